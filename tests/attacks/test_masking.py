"""The report on masked gradients sees masks, and sees none where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, masking_report

OPTIONS = {"eps": 0.05, "alpha": 0.01, "steps": 10}


def test_an_honest_network(net: nn.Module, x: Tensor, y: Tensor) -> None:
    report = masking_report(net, x, y, **OPTIONS)
    assert report.samples == 8
    assert report.correct == 1
    assert report.zero_gradients < 0.01
    assert report.saturated == report.stronger_loss == report.fgsm_beats_pgd == 0


def test_saturated_logits(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Times 10**4, as Croce and Hein do: cross-entropy loses its gradient, the margins do not."""

    def confident(images: Tensor) -> Tensor:
        return 1e4 * net(images)

    blind = PGD(confident, **OPTIONS, random_start=False, engine="exact")
    with pytest.warns(RuntimeWarning, match="are 0"):
        standing = (net(blind(x, y)).argmax(1) == y).double().mean()
    assert standing >= 0.25
    report = masking_report(confident, x, y, **OPTIONS)
    assert report.stronger_loss == standing
    assert report.saturated > 0.5
    assert report.zero_gradients > 0.25
    assert report.correct == 1


def test_a_quantised_input(net: nn.Module, x: Tensor, y: Tensor) -> None:
    report = masking_report(lambda a: net((16 * a).round() / 16), x, y, **OPTIONS)
    assert report.zero_gradients == 1
    assert report.saturated == report.stronger_loss == report.fgsm_beats_pgd == 0


def test_a_step_that_leads_pgd_astray(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A network whose gradient points the wrong way once the images have moved; FGSM, which stops there, wins."""

    def trap(images: Tensor) -> Tensor:
        near = (images - x).flatten(1).abs().amax(1, keepdim=True) < 0.001
        logits = net(images)
        return torch.where(near, logits, 2 * logits.detach() - logits)

    report = masking_report(trap, x, y, eps=0.05, alpha=0.01, steps=10, batch_size=8)
    assert report.fgsm_beats_pgd > 0.25


def test_batches_and_radii_per_sample(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    eps = torch.linspace(0, 0.05, 8)
    labels = y.clone()
    labels[0] = (y[0] + 1) % 10
    whole = masking_report(net, x, labels, eps, lambda radii: radii / 4 + 0.001, 5)
    assert masking_report(net, x, labels, eps, eps / 4 + 0.001, 5, batch_size=3) == whole
    assert whole.correct == 7 / 8


def test_two_classes_have_no_dlr(x: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    assert masking_report(net, x, net(x).argmax(1)).stronger_loss == 0


def test_it_reads_as_a_table(net: nn.Module, x: Tensor, y: Tensor) -> None:
    lines = str(masking_report(net, x, y, **OPTIONS)).splitlines()
    assert lines[0] == "signs of gradient masking, 8 images"
    assert lines[1].split() == ["classified", "correctly", "100.0", "%"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_real_networks(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """One trained with PGD is honest; a confident clean one saturates, though its gradients are not 0."""
    x, y = cifar10[0][:64], cifar10[1][:64]
    robust = masking_report(checkpoint("resnet4b"), x, y, 4 / 255, 1 / 255, 5)
    assert robust.saturated < 0.05
    assert robust.zero_gradients < 0.05
    assert robust.fgsm_beats_pgd <= 1 / 64
    clean = masking_report(checkpoint("resnet20"), x[:32], y[:32], 2 / 255, 0.5 / 255, 5)
    assert clean.saturated > 0.25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"^steps: 0, expected at least 1"),
        ({"batch_size": 0}, ValueError, r"^batch_size: 0, expected at least 1"),
        ({"eps": -1.0}, ValueError, r"^eps: -1\.0, expected a number >= 0"),
        ({"eps": torch.zeros(16)}, ValueError, r"^eps: shape \(16,\), expected .* \[8\]"),
        ({"alpha": 0.0}, ValueError, r"^alpha: 0\.0 at index 0, expected a number > 0"),
    ],
)
def test_bad_arguments(
    options: dict[str, object],
    error: type[Exception],
    message: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
) -> None:
    with pytest.raises(error, match=message):
        masking_report(net, x, y, **options)  # type: ignore[arg-type]


def test_bad_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x: 0 images, expected at least 1"):
        masking_report(net, x[:0], y[:0])
    with pytest.raises(ValueError, match=r"^y: shape \(7,\), expected \[8\]"):
        masking_report(net, x, y[:7])
    with pytest.raises(TypeError, match=r"^x: dtype torch\.uint8"):
        masking_report(net, x.byte(), y)
