"""The cost of restarts that attack only the samples not fooled yet, on a trained network in float32."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.attacks.providers import Setting, run_loop
from benchmarks.interleave import interleave, wait
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.targets import CHECKPOINTS, SMALL, as_split, load_trained
from iaat_fast import ops
from iaat_fast.attacks import PGD
from iaat_fast.evaluate import robust_accuracy

PLAIN, EARLY = "plain loop", "PGD, early_stop"
_SEED = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", choices=(*CHECKPOINTS, SMALL), help="resnet4b")
    add("--images", type=positive, metavar="N", help="test images (1000)")
    add("--batch-sizes", nargs="+", type=positive, metavar="N", help="250")
    add("--restarts", type=positive, default=5, metavar="N", help="5")
    add("--steps", type=positive, metavar="K", help="100")
    add("--rounds", type=positive, metavar="N", help="timed calls of each (3)")
    registry.add_device(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options,
        models=([SMALL], [CHECKPOINTS[0]]),
        images=(16, 1000),
        batch_sizes=([8], [250]),
        steps=(2, 100),
        rounds=(1, 3),
    )


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    setting = Setting(steps=options.steps)
    record.facts["attack"] = dataclasses.asdict(setting)
    for model in options.models:
        net, x, y, record.facts["images"] = load_trained(model, options.images, options.device)
        for size in options.batch_sizes:
            case = f"{model}, {len(x)} images in batches of {size}, PGD-{options.steps} x {options.restarts}"
            say(case)
            restarts = Restarts(net, x, y, setting, options.restarts, size)
            yield from measure_restarts(case, restarts, rounds=options.rounds)


@dataclasses.dataclass(frozen=True)
class Restarts:
    """The task: a network, float32 images [N, C, H, W], their classes, and the attack with its restarts.

    Each method attacks all samples, and returns which are fooled, bool [N], and the share of the gradients taken.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    setting: Setting
    restarts: int
    batch_size: int

    def plain(self) -> tuple[Tensor, float]:
        """A plain loop: every restart on every sample."""
        fooled = []
        for index in self._batches():
            x, y = self.x[index], self.y[index]
            fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for restart in range(self.restarts):
                start = ops.random_start_linf(x, self.setting.eps, _SEED, index, restart=restart)
                x_adv = run_loop(self.model, start, x, y, self.setting)
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
        """`iaat_fast.evaluate.robust_accuracy`, which fills its batches with robust samples of all batches."""
        result = robust_accuracy(
            self.model,
            as_split(self.x, self.y),
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


def measure_restarts(case: str, restarts: Restarts, *, rounds: int) -> list[Row]:
    """A row for the plain loop, for PGD on survivors, for the evaluation, and for PGD that stops early (which counts
    every iterate, and so fools at least as many samples).

    Figures: `gradients`, gradients taken as a share of samples x steps x restarts; `robust`, share of samples that no
    restart fools; `same_verdicts`, share of samples with the plain loop's verdict; `missed`, number of samples that the
    plain loop fools and this provider does not. Where only last iterates count, as in the plain loop, a verdict that
    differs from the plain loop's is wrong.
    """
    providers: dict[str, Callable[[], tuple[Tensor, float]]] = {
        PLAIN: restarts.plain,
        "PGD, survivors": lambda: restarts.pgd(early_stop=False),
        "robust_accuracy": restarts.evaluation,
        EARLY: lambda: restarts.pgd(early_stop=True),
    }
    found: dict[str, tuple[Tensor, float]] = {}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            found[name] = providers[name]()
            wait(restarts.x.device)

        return call

    timings = interleave({name: timed(name) for name in providers}, rounds=rounds)
    expected, _ = found[PLAIN]
    rows = []
    for name, (fooled, gradients) in found.items():
        row = Row(case=case, provider=name).sampled(timings.seconds[name])
        row.figures = {
            "last_iterate": name != EARLY,
            "over_plain": timings.ratio(PLAIN, name),
            "gradients": gradients,
            "robust": float((~fooled).float().mean()),
            "same_verdicts": float((fooled == expected).float().mean()),
            "missed": int((expected & ~fooled).sum()),
        }
        if name != EARLY and row.figures["same_verdicts"] < 1:
            row.refused("wrong", "verdicts differ from the plain loop's")
        rows.append(row)
    return rows
