"""A model that masks classes by logits of -infinity is attacked as the model that has only the others."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    APGDT,
    DIFGSM,
    FABT,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    DeepFool,
    Square,
    losses,
)
from iaat_fast.attacks.cudagraph import GraphRunner
from iaat_fast.attacks.targets import likely_targets, random_targets, target_draws

EPS = 0.02
FAMILY = {
    "PGD on CE": (PGD, {"alpha": EPS / 4}),
    "PGD on CE, plain": (PGD, {"alpha": EPS / 4, "engine": "exact"}),
    "PGD on C&W": (PGD, {"alpha": EPS / 4, "loss": "cw"}),
    "PGD on KL": (PGD, {"alpha": EPS / 4, "loss": "kl"}),
    "PGD to random targets": (PGD, {"alpha": EPS / 4, "targeted": "random"}),
    "FGSM": (FGSM, {}),
    "MI-FGSM": (MIFGSM, {"alpha": EPS / 4}),
    "NI-FGSM": (NIFGSM, {"alpha": EPS / 4}),
    "SI-NI-FGSM": (SINIFGSM, {"alpha": EPS / 4}),
    "VMI-FGSM": (VMIFGSM, {"alpha": EPS / 4}),
    "VNI-FGSM to random targets": (VNIFGSM, {"alpha": EPS / 4, "targeted": "random"}),
    "DI-FGSM": (DIFGSM, {"alpha": EPS / 4, "resize_rate": 0.6}),
    "TI-FGSM": (TIFGSM, {"alpha": EPS / 4, "len_kernel": 3}),
    "APGD on CE": (APGD, {"steps": 10}),
    "APGD on C&W": (APGD, {"steps": 10, "loss": "cw"}),
    "APGD on KL": (APGD, {"steps": 10, "loss": "kl"}),
    "APGD to random targets": (APGD, {"steps": 10, "targeted": "random"}),
    "APGDT on CE": (APGDT, {"steps": 5, "loss": "ce"}),
    "APGDT on C&W": (APGDT, {"steps": 5, "loss": "cw"}),
    "FABT": (FABT, {"steps": 5}),
    "DeepFool": (DeepFool, {"steps": 5}),
    "Square": (Square, {"n_queries": 20}),
}


class Masked(nn.Module):
    """The network with all but its first `kept` classes masked."""

    def __init__(self, net: nn.Module, kept: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("off", torch.arange(10) >= kept)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).masked_fill(self.off, -math.inf)


def cut(net: nn.Sequential, kept: int) -> nn.Sequential:
    """The network with nothing but these classes."""
    net = copy.deepcopy(net)
    net[-1].weight = nn.Parameter(net[-1].weight[:kept].detach().clone())
    net[-1].bias = nn.Parameter(net[-1].bias[:kept].detach().clone())
    return net


def assert_same_attack(
    net: nn.Sequential, kept: int, x: Tensor, attack: Any, options: Any, other: Any
) -> None:
    """In float64, because matrices of another size may round differently."""
    x, few, masked = x.double(), cut(net.double(), kept), Masked(net.double(), kept).eval()
    y = few(x).argmax(1)
    found = attack(masked, EPS, **options)
    expected = attack(few, EPS, **options | other)
    torch.testing.assert_close(found(x, y, seed=0), expected(x, y, seed=0), rtol=0, atol=1e-10)
    assert found.stats.nan == 0


@pytest.mark.parametrize("kept", [2, 3])
@pytest.mark.parametrize("name", FAMILY)
def test_masked_classes_change_no_attack(
    name: str, kept: int, net: nn.Sequential, x: Tensor
) -> None:
    attack, options = FAMILY[name]
    assert_same_attack(net, kept, x, attack, options, {})


@pytest.mark.parametrize(
    ("attack", "options", "kept"),
    [
        (PGD, {"alpha": EPS / 4}, 2),
        (APGD, {"steps": 10}, 2),
        (PGD, {"alpha": EPS / 4, "targeted": "random"}, 3),
        (APGDT, {"steps": 5}, 2),
        (APGDT, {"steps": 5}, 3),
    ],
    ids=["PGD, 2", "APGD, 2", "PGD to targets, 3", "APGDT, 2", "APGDT, 3"],
)
def test_a_dlr_without_classes_enough_is_the_margin_and_says_so(
    attack: Any, options: Any, kept: int, net: nn.Sequential, x: Tensor
) -> None:
    with pytest.warns(RuntimeWarning, match="leaves fewer than the loss 'dlr' is made of"):
        assert_same_attack(net, kept, x, attack, {**options, "loss": "dlr"}, {"loss": "cw"})


@pytest.mark.parametrize(
    ("attack", "options", "kept"),
    [(PGD, {"alpha": EPS / 4}, 3), (APGD, {"steps": 10}, 3), (APGDT, {"steps": 5}, 4)],
    ids=["PGD", "APGD", "APGDT"],
)
def test_a_dlr_with_classes_enough_stays_one(
    attack: Any, options: Any, kept: int, net: nn.Sequential, x: Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_attack(net, kept, x, attack, {**options, "loss": "dlr"}, {})


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_values_and_gradients_of_masked_logits_are_numbers(loss: str, targeted: bool) -> None:
    """Where the goal, all other classes, or all but two are masked; infinite where the loss is."""
    inf = math.inf
    logits = torch.tensor([[1.0, -inf, -inf, -inf], [-inf, 2.0, 1.0, 0.0], [9.0, 1.0, -inf, -inf]])
    goal = logits.log_softmax(1) if loss == "kl" else torch.zeros(3, dtype=torch.int64)
    for saturation_proof in (False, True):
        cotangent = losses.cotangent(
            loss, logits, goal, targeted=targeted, saturation_proof=saturation_proof
        )
        assert cotangent.isfinite().all()
    assert not losses.value(loss, logits, goal, targeted=targeted).isnan().any()


def test_random_targets_are_uniform_over_the_classes_left() -> None:
    n, left = 3_000, torch.tensor([1, 4, 5, 8])
    logits = torch.full((n, 10), -math.inf)
    logits[:, left] = torch.randn(n, 4)
    y = left[torch.arange(n) % 4]
    targets = random_targets(logits, y, target_draws(torch.tensor([7]), torch.arange(n)))
    assert (targets != y).all()
    counts = targets.bincount(minlength=10)
    assert counts[left].sum() == n
    assert stats.chisquare(counts[left].numpy()).pvalue > 1e-3


def test_likely_targets_are_classes_left_and_begin_again_where_they_run_out() -> None:
    inf = math.inf
    logits = torch.tensor([[5.0, 1.0, 2.0, -inf, 3.0], [5.0, 1.0, 2.0, -inf, -inf]])
    targets = likely_targets(logits, torch.tensor([0, 0]), most=9)
    assert targets.tolist() == [[4, 2, 1], [2, 1, 2]]


def test_nothing_but_the_true_class_left_is_no_model_to_attack(
    net: nn.Sequential, x: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"^model: its logits are finite for the true classes"):
        APGDT(Masked(net, 1), EPS, 5)(x, torch.zeros(8, dtype=torch.int64))


def test_replayed_steps_see_the_masks_of_the_day(net: nn.Sequential, x: Tensor) -> None:
    """A graph is captured under one mask and replayed under another."""
    model = Masked(net, 10).eval()
    options = {"eps": EPS, "alpha": EPS / 4, "steps": 3, "seed": 0, "targeted": "random"}
    pgd = PGD(model, **options)
    pgd.network._graphs = GraphRunner(lambda body, pool: body)
    pgd.network._capturable = ("cpu",)
    for kept in (10, 10, 3, 2):
        model.off.copy_(torch.arange(10) >= kept)
        y = model(x).argmax(1)
        assert torch.equal(pgd(x, y), PGD(model, **options)(x, y))


def test_a_model_with_masked_classes_is_copied_as_any_other(net: nn.Sequential, x: Tensor) -> None:
    pgd = PGD(Masked(net, 3).eval(), EPS, steps=1, engine="fast")
    pgd(x, torch.zeros(8, dtype=torch.int64))
    assert "a copy in its own precision" in pgd.network.gradient_source
