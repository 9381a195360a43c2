"""Masks: pixels outside keep their values in everything the model sees, and those inside are attacked as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, DIFGSM, FABT, MIFGSM, PGD, SINIFGSM, VNIFGSM, DeepFool, Square
from tests.attacks.every_attack import EVERY_ATTACK

every_attack = pytest.mark.parametrize("name", EVERY_ATTACK)
TRANSFORMING = ("DIFGSM", "TIFGSM", "SINIFGSM")
"""They show the model resized or darker copies."""


def patch() -> Tensor:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 1:7] = True
    return mask


class Watching(nn.Module):
    """A network that refuses images that differ, outside a mask, from all of x."""

    def __init__(self, net: nn.Module, x: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.net, self.mask = net, mask.expand(x.shape)
        self.outside = {tuple(row.tolist()) for row in self._outside(x)}

    def _outside(self, images: Tensor) -> Tensor:
        return torch.where(self.mask[:1], 0.0, images.detach()).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        for row in self._outside(images):
            assert tuple(row.tolist()) in self.outside
        return self.net(images)


@every_attack
def test_pixels_outside_the_mask_never_change(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    # Noise of a pipeline beyond the box, which is not clamped there either.
    x = x.clone()
    x[:, :, 0, 0], x[:, :, 7, 7] = -5e-6, 1 + 5e-6
    model = net if name in TRANSFORMING else Watching(net, x, patch())
    attack = EVERY_ATTACK[name](model, engine="exact", lo=0.0)
    result = attack.run(x, net(x).argmax(1), 0.3, mask=patch())
    moved = result.x_adv != x
    assert not (moved & ~patch()).any()
    assert (moved & patch()).any()
    assert result.success.any()


@every_attack
def test_a_mask_of_every_pixel_changes_nothing(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = EVERY_ATTACK[name](net)
    everywhere = torch.ones(8, 1, 8, 8, dtype=torch.bool)
    assert torch.equal(attack(x, y, mask=everywhere), attack(x, y))


def plain_loop(net: nn.Module, x: Tensor, y: Tensor, mask: Tensor, decay: float | None) -> Tensor:
    """3 steps from x at eps 0.1, alpha 0.03, of the model whose only input is what the mask shows."""
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(3):
        free = x_adv.clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(torch.where(mask, free, x)), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, free)
        if decay is not None:
            size = grad.abs().mean((1, 2, 3), keepdim=True)
            momentum = grad = decay * momentum + grad / size
        moved = x_adv + 0.03 * grad.sign()
        x_adv = (x + (moved - x).clamp(-0.1, 0.1)).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("decay", [None, 1.0])
def test_the_attack_is_that_of_a_model_whose_input_is_inside_the_mask(
    decay: float | None, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net, x = net.double(), x.double()
    mask = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    options: dict[str, Any] = {"eps": 0.1, "alpha": 0.03, "steps": 3, "random_start": False}
    attack = PGD(net, **options) if decay is None else MIFGSM(net, decay=decay, **options)
    x_adv = attack(x, y, mask=mask)
    torch.testing.assert_close(x_adv, plain_loop(net, x, y, mask, decay), atol=1e-12, rtol=0)


def test_the_nearest_image_inside_a_mask_of_a_linear_model() -> None:
    """Against min over j of (z_y - z_j) / ||w_y - w_j||_1, the norm over the pixels inside."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    x = 0.4 + 0.2 * torch.rand(10, 3, 4, 4).double()
    mask = torch.rand(4, 4) < 0.5
    logits, weight = linear(x), linear[1].weight
    y = logits.argmax(1)
    apart = (weight[y].unsqueeze(1) - weight).abs() * mask.expand(3, 4, 4).flatten()
    radius = (logits.gather(1, y[:, None]) - logits) / apart.sum(2)
    radius = radius.scatter(1, y[:, None], torch.inf).amin(1)
    near = radius < 0.35  # beyond, the box cuts
    assert near.sum() >= 5
    for attack in (FABT(linear, eps=None, steps=20, search_steps=8), DeepFool(linear)):
        found = attack.run(x, y, mask=mask)
        assert found.success[near].all()
        assert (found.distances[near] >= radius[near] - 1e-6).all()
        assert (found.distances[near] <= 1.03 * radius[near] + 1e-3).all()


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8), (8, 1, 8, 8), (8, 3, 8, 8), (8,)])
def test_a_mask_broadcasts(shape: tuple[int, ...], net: nn.Module, x: Tensor, y: Tensor) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = mask.expand(x.shape).contiguous()
    for attack in (EVERY_ATTACK["PGD"](net), EVERY_ATTACK["APGD"](net)):
        assert torch.equal(attack(x, y, mask=mask), attack(x, y, mask=whole))


def test_candidates_share_their_samples_mask(net: nn.Module, x: Tensor, y: Tensor) -> None:
    mask = torch.rand(8, 1, 8, 8) < 0.5
    radii = torch.cat([torch.full((8,), 0.05), torch.full((8,), 0.1)])
    for kind in (PGD, MIFGSM, APGD, VNIFGSM, SINIFGSM, DIFGSM, Square, FABT, DeepFool):
        attack = kind(net, steps=2) if kind is not Square else Square(net, n_queries=3)
        x_adv = attack(x, y, eps=radii, mask=mask, seed=0).view(2, *x.shape)
        assert not ((x_adv != x) & ~mask).any()
        assert (x_adv != x).any()


def test_early_stop_and_restarts_keep_each_samples_mask(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    mask = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.4
    pgd = EVERY_ATTACK["restarts"](net)
    result = pgd.run(x, y, [0.05, 0.1, 0.4], mask=mask)
    assert not ((result.x_adv != x) & ~mask).any()
    assert 0 < result.success[0].sum() < result.success[2].sum()


def test_a_start_is_masked_too(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x_adv = PGD(net, eps=0.1, steps=2)(x, y, start=(x + 0.05).clamp(0, 1), mask=patch())
    assert not ((x_adv != x) & ~patch()).any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(8, 8), "mask: dtype torch.float32, expected a Tensor of torch.bool"),
        ([[True]], "mask: list, expected a Tensor of torch.bool"),
        (patch()[:5], r"mask: shape \(5, 8\), expected one that broadcasts to that of x, \(8, 3,"),
        (patch().expand(2, 8, 3, 8, 8), r"mask: shape \(2, 8, 3, 8, 8\), expected one that"),
    ],
)
def test_what_is_no_mask_is_refused(
    mask: Any, message: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        EVERY_ATTACK["PGD"](net)(x, y, mask=mask)


def test_a_radius_per_channel_is_refused(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^eps: shape \(3, 1, 1\), expected a float or one value"):
        EVERY_ATTACK["PGD"](net)(x, y, eps=torch.full((3, 1, 1), 0.1))
