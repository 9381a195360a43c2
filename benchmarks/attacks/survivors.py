"""What restarts cost when only samples still standing are attacked again, on a real checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.attacks.contender import Setting
from benchmarks.attacks.loops import descend
from benchmarks.attacks.rates import wait
from benchmarks.interleave import interleave
from iaat_fast import ops
from iaat_fast.attacks import PGD
from iaat_fast.data import Split
from iaat_fast.evaluate import robust_accuracy

PLAIN, EARLY = "plain loop", "PGD, early_stop"
COLUMNS = (
    *("attack", "s p50 [p20, p80]", "× plain loop", "gradients taken"),
    *("robust", "same verdicts", "missed"),
)
_SEED = 0


@dataclasses.dataclass
class SurvivorRecord:
    """A way to run all restarts, in float32 from the same starts.

    last_iterate: whether verdicts are those of the last iterates alone, as the plain loop's, or of any iterate.
    over_plain: how many times faster than the plain loop on all samples, median over rounds.
    gradients: images that went through the network and back, as a share of samples x steps x restarts.
    robust: share of samples that no restart fools.
    same_verdicts: share of samples with the plain loop's verdict.
    missed: samples that the plain loop fools and this does not.
    """

    name: str
    last_iterate: bool
    n: int
    p20_s: float
    p50_s: float
    p80_s: float
    over_plain: float
    gradients: float
    robust: float
    same_verdicts: float
    missed: int


@dataclasses.dataclass(frozen=True)
class Restarts:
    """All samples under all restarts: a network, float32 images [N, C, H, W], their classes, and how to attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    setting: Setting
    restarts: int
    batch_size: int

    def plain(self) -> tuple[Tensor, float]:
        """Every restart on every sample: what a loop without survivors does."""
        fooled = []
        for index in self._batches():
            x, y = self.x[index], self.y[index]
            fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for restart in range(self.restarts):
                start = ops.random_start_linf(x, self.setting.eps, _SEED, index, restart=restart)
                x_adv = descend(self.model, start, x, y, self.setting)
                with torch.no_grad():
                    fallen |= self.model(x_adv).argmax(1) != y
            fooled.append(fallen)
        return torch.cat(fooled), 1.0

    def pgd(self, *, early_stop: bool) -> tuple[Tensor, float]:
        """iaat_fast's PGD batch by batch."""
        attack = PGD(
            self.model,
            self.setting.eps,
            self.setting.alpha,
            self.setting.steps,
            restarts=self.restarts,
            early_stop=early_stop,
            engine="exact",
            seed=_SEED,
        )
        fooled, taken, planned = [], 0, 0
        for index in self._batches():
            x_adv = attack(self.x[index], self.y[index], index=index)
            fooled.append(attack.logits(x_adv).argmax(1) != self.y[index])
            taken, planned = taken + attack.stats.gradients, planned + attack.stats.planned
        return torch.cat(fooled), taken / planned

    def evaluation(self) -> tuple[Tensor, float]:
        """`iaat_fast.evaluate.robust_accuracy`, which fills its batches with survivors of all of them."""
        pixels = self.x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        result = robust_accuracy(
            self.model,
            Split(pixels, self.y),
            eps=self.setting.eps,
            alpha=self.setting.alpha,
            steps=self.setting.steps,
            restarts=self.restarts,
            batch_size=self.batch_size,
            seed=_SEED,
        )
        taken = result.gradients
        return ~result.correct.to(self.y.device), taken.gradients / taken.planned

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.x), device=self.x.device).split(self.batch_size)


def measure(restarts: Restarts, *, rounds: int) -> list[SurvivorRecord]:
    """Verdicts, then times, of the plain loop, of PGD with survivors, of the evaluation, and of PGD that stops early
    (whose verdicts count every iterate, so that it fools at least as many)."""
    ways: dict[str, Callable[[], tuple[Tensor, float]]] = {
        PLAIN: restarts.plain,
        "PGD, survivors": lambda: restarts.pgd(early_stop=False),
        "robust_accuracy": restarts.evaluation,
        EARLY: lambda: restarts.pgd(early_stop=True),
    }
    found: dict[str, tuple[Tensor, float]] = {}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            found[name] = ways[name]()
            wait(restarts.x.device)

        return call

    timings = interleave({name: timed(name) for name in ways}, rounds=rounds)
    expected, _ = found[PLAIN]
    records = []
    for name, (fooled, gradients) in found.items():
        low, middle, high = timings.percentiles(name)
        records.append(
            SurvivorRecord(
                name=name,
                last_iterate=name != EARLY,
                n=rounds,
                p20_s=low,
                p50_s=middle,
                p80_s=high,
                over_plain=timings.ratio(PLAIN, name),
                gradients=gradients,
                robust=float((~fooled).float().mean()),
                same_verdicts=float((fooled == expected).float().mean()),
                missed=int((expected & ~fooled).sum()),
            )
        )
    return records


def row(record: SurvivorRecord) -> list[str]:
    """The record under `COLUMNS`."""
    return [
        record.name,
        f"{record.p50_s:.4g} [{record.p20_s:.4g}, {record.p80_s:.4g}]",
        f"{record.over_plain:.2f}",
        f"{record.gradients:.1%}",
        f"{record.robust:.2%}",
        f"{record.same_verdicts:.2%}",
        str(record.missed),
    ]
