"""Between the first forward and the last step nothing asks for a value, for which a GPU would have to be waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, FGSM, MIFGSM, PGD, SINIFGSM, TIFGSM, VNIFGSM, active_set
from tests.attacks.like_a_gpu import FETCHING, WAITING, Recorder


def loop_of(pgd: PGD | APGD, *args: Tensor, **options: Any) -> list[str]:
    with Recorder() as recorder:
        pgd(*args, **options)
    names = recorder.names
    first = names.index("convolution")
    last = len(names) - names[::-1].index("pgd_step_linf_")
    assert names.count("pgd_step_linf_") == pgd.steps
    return names[first:last]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"random_start": False},
        {"targeted": True},
        {"targeted": "random"},
        {"engine": "exact"},
        {"bn": "train"},
        {"loss": "cw"},
        {"loss": "dlr"},
        {"loss": "dlr", "targeted": "random"},
        pytest.param({"alpha": lambda eps: eps / 4}, id="alpha of eps"),
    ],
    ids=str,
)
def test_the_loop_does_not_wait(
    net: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]
) -> None:
    assert not (WAITING | FETCHING) & set(loop_of(PGD(net, steps=4, **options), x, y))


def test_the_loop_over_candidates_does_not_wait(net: nn.Module, x: Tensor, y: Tensor) -> None:
    eps = torch.linspace(0, 0.1, 24)
    assert not (WAITING | FETCHING) & set(
        loop_of(PGD(net, steps=4), x, y, eps=eps, index=torch.arange(8))
    )


def test_fgsm_does_not_wait(net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert not (WAITING | FETCHING) & set(loop_of(FGSM(net), x, y))


@pytest.mark.parametrize("attack", [MIFGSM, SINIFGSM, VNIFGSM, TIFGSM])
def test_nor_does_a_momentum(attack: type[MIFGSM], net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert not (WAITING | FETCHING) & set(loop_of(attack(net, steps=4), x, y))


@pytest.mark.parametrize("loss", ["ce", "cw", "dlr"])
def test_apgd_that_lets_nobody_leave_does_not_wait(
    loss: str, net: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_set, "_READS_FREELY", set())
    assert not (WAITING | FETCHING) & set(
        loop_of(APGD(net, steps=9, loss=loss, early_stop=False), x, y)
    )


def test_a_wait_would_show(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def waits(images: Tensor) -> Tensor:
        logits = net(images)
        return logits * float(logits.detach().max() > 0)

    assert "_local_scalar_dense" in loop_of(PGD(waits, steps=4), x, y)

    def masks(images: Tensor) -> Tensor:
        logits = net(images)
        return logits + 0 * logits[logits > 0].sum()

    assert "nonzero" in loop_of(PGD(masks, steps=4), x, y)
