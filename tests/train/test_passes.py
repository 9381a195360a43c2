"""The passes that a plan counts are those that a real training step takes."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast import models
from iaat_fast.attacks.active_set import bucket
from iaat_fast.epsilon import EpsilonMemory, strategies
from iaat_fast.epsilon.memory import Selection
from iaat_fast.plan.estimate import phases
from iaat_fast.train import awp, override, preset
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods import METHODS, Method
from iaat_fast.train.methods.passes import Fooled
from iaat_fast.train.step import TrainingStep, make_memory

N = 24


def tiny(**parts: Any) -> TrainConfig:
    epsilon = {"gamma": 0.15, "warmup_epochs": 2, "strategy": "lazy", **parts.pop("epsilon", {})}
    changes = {"epsilon": epsilon, "attack": {"steps": 3, **parts.pop("attack", {})}, **parts}
    return override(preset("digits"), changes)


def images_through(model: nn.Module) -> Counter[str]:
    """Counts images by what is asked of the pass, from now on."""
    seen: Counter[str] = Counter()

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        kind = "forward"
        if out.requires_grad:
            kind = "gradient" if args[0].requires_grad else "update"
        seen[kind] += len(args[0])

    model.register_forward_hook(hook)
    return seen


def real_step(
    config: TrainConfig, phase: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], Fooled]:
    """Passes of one step of a fresh network, times N, and the shares that its candidates fooled."""
    torch.manual_seed(0)
    model = models.build("digits-cnn", width=4)
    memory = make_memory(config, N, torch.device("cpu"))
    memory.values.uniform_(0, 0.1, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainingStep(config, model, memory, optimizer, torch.device("cpu"))
    x, y = torch.rand(N, 1, 8, 8), torch.arange(N) % 10
    with torch.no_grad():  # most samples right, so that some stand and some fall
        y[: N * 3 // 4] = model.eval()(x).argmax(1)[: N * 3 // 4]
    choices: list[Tensor] = []
    select = EpsilonMemory.select

    def watched(self: EpsilonMemory, *args: Any, **kwargs: Any) -> Selection:
        selection = select(self, *args, **kwargs)
        choices.append(selection.choice)
        return selection

    monkeypatch.setattr(EpsilonMemory, "select", watched)
    seen = images_through(model)
    epoch = config.epsilon.warmup_epochs if phase == "adaptive" else 0
    step(GlobalBatch.of(x, y, torch.arange(N)), epoch=epoch, seed=3)
    if not choices:
        return seen, Fooled()
    return seen, Fooled(
        once=float((choices[0] != 0).float().mean()), twice=float((choices[0] == 2).float().mean())
    )


def filled_up(fooled: Fooled) -> Fooled:
    """The shares of a batch of N that are attacked for these, where few sizes are captured."""
    once, twice = (bucket(round(share * N), N) / N for share in dataclasses.astuple(fooled))
    return Fooled(once=once, twice=twice)


def planned(config: TrainConfig, phase: str, fooled: Fooled) -> dict[str, float]:
    total: Counter[str] = Counter()
    for stage in awp.passes(config, phase, fooled):
        total[stage.kind] += stage.passes * N  # type: ignore[assignment]
    return {kind: pytest.approx(images) for kind, images in total.items() if images}


@pytest.mark.parametrize("method", METHODS)
def test_first_epochs(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(method=method)
    phase = next(iter(phases(config)))
    seen, fooled = real_step(config, phase, monkeypatch)
    assert seen == planned(config, phase, fooled)


@pytest.mark.parametrize(
    ("strategy", "final"),
    list(itertools.product(("lazy", "batched", "sequential"), ("exact", "reuse"))),
)
def test_adaptive_epochs(strategy: str, final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(epsilon={"strategy": strategy, "final": final})
    seen, fooled = real_step(config, "adaptive", monkeypatch)
    assert 0 < fooled.twice < fooled.once < 1, "the counts would not tell the samples apart"
    assert seen == planned(config, "adaptive", fooled)


@pytest.mark.parametrize(
    ("strategy", "final"), [("lazy", "exact"), ("lazy", "reuse"), ("sequential", "reuse")]
)
def test_adaptive_epochs_where_steps_are_captured(
    strategy: str, final: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "_PADDED_ON", ("cpu",))
    config = tiny(epsilon={"strategy": strategy, "final": final})
    seen, fooled = real_step(config, "adaptive", monkeypatch)
    assert filled_up(fooled) != fooled, "nothing is filled up"
    assert seen == planned(config, "adaptive", filled_up(fooled))


@pytest.mark.parametrize(("once", "twice"), [(0.5, 0.25), (0.3, 0.3), (0.9, 0.0), (1.0, 1.0)])
def test_shares_filled_up_are_means_over_the_samples_that_fall(once: float, twice: float) -> None:
    def mean(share: float, batch: int) -> float:
        """Over all 2^batch outcomes."""
        outcomes = [sum(outcome) for outcome in itertools.product((0, 1), repeat=batch)]
        chances = [share**fallen * (1 - share) ** (batch - fallen) for fallen in outcomes]
        sizes = [bucket(fallen, batch) / batch for fallen in outcomes]
        return sum(chance * size for chance, size in zip(chances, sizes, strict=True))

    for batch in (1, 5, 12):
        found = Fooled(once=once, twice=twice).padded(batch)
        assert found.once == pytest.approx(mean(once, batch))
        assert found.twice == pytest.approx(mean(twice, batch), abs=1e-12)
    assert Fooled(once=once, twice=twice).padded(4096).once <= 1


def test_selection_by_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(epsilon={"selection_steps": 2}, attack={"steps": 5, "targeted": "random"})
    seen, fooled = real_step(config, "adaptive", monkeypatch)
    assert seen == planned(config, "adaptive", fooled)


def test_released_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(protocol="released", epsilon={"strategy": "sequential"}, attack={"bn": "eval"})
    seen, fooled = real_step(config, "adaptive", monkeypatch)
    assert seen == planned(config, "adaptive", fooled)


@pytest.mark.parametrize("method", ["adv", "trades", "iaat"])
def test_the_perturbation_of_the_weights(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(method=method, baseline={"awp_gamma": 0.01})
    phase = next(iter(phases(config)))
    seen, fooled = real_step(config, phase, monkeypatch)
    assert seen == planned(config, phase, fooled)


def test_phases_add_up_to_the_epochs() -> None:
    assert phases(tiny(optim={"epochs": 6})) == {"warm-up": 2, "adaptive": 4}
    assert phases(tiny(optim={"epochs": 2})) == {"warm-up": 2}
    assert phases(tiny(optim={"epochs": 6}, method="adv")) == {"every epoch": 6}


def test_only_what_rests_on_the_samples_says_so() -> None:
    def depends(**epsilon: str) -> bool:
        found = METHODS["iaat"].passes(tiny(epsilon=epsilon), "adaptive", Fooled())
        return any(stage.depends_on_samples for stage in found)

    assert depends(strategy="lazy")
    assert not depends(strategy="batched")
    assert not depends(strategy="batched", final="reuse")
    assert not depends(strategy="sequential")
    assert depends(strategy="sequential", final="reuse")


def test_a_method_that_is_not_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="method: 'adv', expected one whose passes are counted"):
        Method.passes(tiny(method="adv"), "every epoch", Fooled())


def test_a_strategy_left_to_the_hardware_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon\.strategy: 'auto', expected what it is on"):
        METHODS["iaat"].passes(tiny(epsilon={"strategy": "auto"}), "adaptive", Fooled())


@pytest.mark.parametrize(("once", "twice"), [(1.5, 0.1), (0.5, -0.1), (0.2, 0.3)])
def test_shares_that_cannot_be(once: float, twice: float) -> None:
    with pytest.raises(ValueError, match=r"--fooled.*expected"):
        Fooled(once=once, twice=twice)
