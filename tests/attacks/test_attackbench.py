"""`AttackBenchAdapter`: AttackBench's call, and queries that are those which a model counts itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    APGDT,
    FABT,
    MIFGSM,
    PGD,
    AttackBenchAdapter,
    DeepFool,
    Square,
)
from iaat_fast.attacks.attack import Attack


class BenchModel(nn.Module):
    """As AttackBench wraps a model: queries are counted for the nearest of the inputs, and the nearest success is kept.

    Written from its behaviour (models/benchmodel_wrapper.py of attackbenchlib 2.0.2): images are clamped to [0, 1],
    forwards are counted by the wrapper, backwards by a full backward hook of the model, the first of the inputs itself
    before the count begins.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.model, self.inputs, self.labels = model, inputs, labels
        model.register_full_backward_hook(self._count_backward)
        self.forwards, self.backwards = torch.zeros(2, len(inputs), dtype=torch.int64)
        self.nearest = torch.full((len(inputs),), torch.inf)
        self.samples = torch.arange(len(inputs))

    def forward(self, images: Tensor) -> Tensor:
        images = images.clamp(0, 1)
        away = (images.detach().flatten(1).unsqueeze(1) - self.inputs.flatten(1)).abs().amax(2)
        distance, self.samples = away.min(1)
        self.forwards.index_add_(*self._one_each())
        logits = self.model(images)
        for sample, far, found in zip(
            self.samples, distance, logits.argmax(1) != self.labels[self.samples], strict=True
        ):
            if found:
                self.nearest[sample] = torch.minimum(self.nearest[sample], far)
        return logits

    def _count_backward(self, *_: object) -> None:
        self.backwards.index_add_(*self._one_each())

    def _one_each(self) -> tuple[int, Tensor, Tensor]:
        return 0, self.samples, torch.ones_like(self.samples)


def run_attack(attack: AttackBenchAdapter, net: nn.Module, x: Tensor, y: Tensor) -> BenchModel:
    """Of AttackBench's loop what touches an attack: its arguments, and that its images are detached in place."""
    model = BenchModel(net, x, y)
    inputs = x.clone()
    x_adv = attack(model=model, inputs=inputs, labels=y.clone(), targeted=False, targets=None)
    x_adv.detach_().clamp_(min=0, max=1)
    assert torch.equal(inputs, x)
    return model


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (PGD, {"steps": 3, "restarts": 2}),
        (PGD, {"steps": 3, "alpha": 0.01, "epsilons": [0.004, 0.02, 0.01]}),
        (MIFGSM, {"steps": 3}),
        (APGD, {"steps": 5, "eps": 0.01}),
        (APGDT, {"steps": 3, "eps": 0.01, "n_target_classes": 2}),
        (FABT, {"steps": 3, "eps": 0.3, "n_target_classes": 2}),
        (Square, {"n_queries": 10}),
        (DeepFool, {"steps": 3, "candidates": 3}),
    ],
)
def test_the_queries_of_a_result_are_those_that_the_model_counts(
    attack: type[Attack], options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    y = y.clone()
    y[0] = (y[0] + 1) % 10
    adapter = AttackBenchAdapter(attack, **options)
    assert adapter.result is None
    model = run_attack(adapter, net, x, y)
    result = adapter.result
    assert result is not None
    forwards, backwards = result.forwards, result.backwards
    success, distances = result.success, result.distances
    if "epsilons" in options:
        forwards, backwards = forwards.sum(0), backwards.sum(0)
        success, distances = success[-1], distances[-1]
    assert model.forwards.tolist() == forwards.tolist()
    assert model.backwards.tolist() == backwards.tolist()
    assert forwards[0] == 1
    assert backwards[0] == 0
    # What it returns is no nearer than the nearest that the model saw, and a success where the model saw one at all.
    assert (model.nearest[success] <= distances[success] + 1e-6).all()
    assert model.nearest[~success].isinf().all() or attack in (PGD, MIFGSM)


def test_the_smallest_of_several_radii_that_fools_a_sample_is_kept(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    several = AttackBenchAdapter(APGD, [0.02, 0.004, 0.01], steps=5, seed=0)
    x_adv = several(net, x, y)
    expected = APGD(net, steps=5, seed=0).run(x, y, [0.004, 0.01, 0.02])
    assert torch.equal(x_adv, expected.x_adv[-1])
    assert 0 < expected.success[0].sum() < expected.success[2].sum()


def test_a_target_is_the_one_that_is_asked_for(net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = net(x).argsort(1, descending=True)[:, 1]
    adapter = AttackBenchAdapter(PGD, eps=0.03, alpha=0.01, steps=5, seed=0)
    x_adv = adapter(model=net, inputs=x, labels=y, targets=target, targeted=True)
    expected = PGD(net, eps=0.03, alpha=0.01, steps=5, seed=0, targeted=True)(x, target)
    assert torch.equal(x_adv, expected)
    with pytest.raises(
        ValueError, match=r"^targets: None with targeted=True, expected int64 \[N\]"
    ):
        adapter(model=net, inputs=x, labels=y, targeted=True)


def test_no_step_is_captured_in_a_graph_that_the_model_would_not_see(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = AttackBenchAdapter(PGD, steps=2)._made_for(net)
    attack.network._capturable = ("cpu",)
    attack.run(x, y)
    assert not attack.network.captures(x)
    assert attack.network.gradient_source == "the live model"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((PGD,), {"engine": "fast"}, "engine: 'fast', expected none: AttackBench counts the"),
        ((PGD,), {"precision": "bf16"}, "precision: 'bf16', expected none"),
        ((PGD,), {"eps": 8}, "eps: 8, expected at most 1"),
        ((PGD,), {"epz": 0.1}, "PGD: unknown argument 'epz', did you mean 'eps'"),
        ((PGD, [0.1, 8.0]), {}, r"epsilons\[1\]: 8.0, expected at most 1"),
        ((PGD, []), {}, "epsilons: empty, expected at least one radius"),
        ((PGD, 0.1), {}, "epsilons: 0.1, expected a list of radii; eps is for one"),
        (("PGD",), {}, "attack: 'PGD', expected the class of an attack"),
        ((nn.Linear,), {}, "attack: <class 'torch.nn"),
    ],
)  # fmt: skip
def test_what_attackbench_would_take_for_a_failed_batch_is_refused_at_once(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        AttackBenchAdapter(*arguments, **options)
