"""The ImageNet networks are torchvision's: in names, in shapes and in what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iaat_fast import models
from iaat_fast.attacks import PGD
from iaat_fast.data._torchvision import torchvision
from iaat_fast.evaluate.weights import fit_weights
from iaat_fast.models.imagenet_resnet import BLOCKS

MEAN, STD = (torch.tensor(value)[:, None, None] for value in models.STATISTICS["imagenet"])


def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in model.state_dict().items()]


def randomise(model: nn.Module) -> None:
    """BatchNorm too, whose fresh scale, shift and statistics would hide that two were exchanged."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(torch.rand_like(value) + (0.5 if "bias" not in name else -0.5))


@pytest.mark.parametrize("depth", BLOCKS)
def test_state_dicts_have_the_names_shapes_and_order_of_torchvision(depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision("models"), f"resnet{depth}")()
        ours = models.build(f"imagenet-resnet{depth}", num_classes=1000)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_a_checkpoint_of_torchvision_gives_the_same_logits_and_gradients(depth: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision("models"), f"resnet{depth}")(num_classes=7)
    randomise(theirs)
    ours = models.build(f"imagenet-resnet{depth}", num_classes=7).eval()
    fit_weights(ours, {"state_dict": theirs.state_dict()}, "torchvision")
    theirs.eval().to(memory_format=torch.channels_last)

    def run(model: nn.Module, normalised: bool) -> tuple[Tensor, Tensor]:
        x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = model(x if normalised else (x - MEAN) / STD)
        (grad,) = torch.autograd.grad(logits.square().sum(), x)
        return logits, grad

    for mine, expected in zip(run(ours, True), run(theirs, False), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.slow
def test_attacks_fold_all_its_batchnorm() -> None:
    torch.manual_seed(0)
    model = models.build("imagenet-resnet18", num_classes=5, width=4).eval()
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    pgd = PGD(model, eps=8 / 255, alpha=2 / 255, steps=3, engine="fast", targeted="random")
    pgd(x, y, seed=1)
    assert pgd.network.gradient_source.endswith("with 20 BatchNorm layers folded")


def test_a_checkpoint_of_other_classes_is_refused_by_name() -> None:
    state = models.build("imagenet-resnet18", num_classes=10, width=4).state_dict()
    model = models.build("imagenet-resnet18", num_classes=7, width=4)
    with pytest.raises(ValueError, match=r"r.pt: .*other shapes \(fc.weight \[10, 32\], in the m"):
        fit_weights(model, state, "r.pt")
