"""Algorithm 2 on a GPU: nothing is waited for, an index out of range is heard of later, fooled samples are captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory

pytestmark = pytest.mark.gpu

N = 32


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above 0.5: an image x of class 1 falls at the radius mean(x) - 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).mean(1) - 0.5
        return torch.stack([-margin, margin], 1)


@pytest.fixture
def x(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(N, 1, 2, 2, generator=generator) * 0.2 + 0.45).to(device)


def memory(device: torch.device, **options: Any) -> EpsilonMemory:
    return EpsilonMemory(N, 0.02, 0.1, init=0.04, device=device, **options)


@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_a_batched_selection_waits_for_nothing(device: torch.device, x: Tensor, final: str) -> None:
    radii, found = memory(device, final=final, misclassified="shrink"), Findings(device)
    y, index = torch.ones(N, dtype=torch.int64, device=device), torch.arange(N, device=device)
    attack, seed = PGD(Threshold(), alpha=0.02, steps=5), torch.tensor(3, device=device)
    expected = [
        memory(device, final=final, misclassified="shrink").select(
            attack, x, y, index, judge=True, seed=3
        )
        for _ in range(2)  # a warm-up and a capture
    ][-1]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = radii.select(attack, x, y, index, judge=True, seed=seed, findings=found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.settle()
    for one, other in zip(selection, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [N, -1])
def test_an_index_out_of_range_is_heard_of_when_findings_settle(
    device: torch.device, x: Tensor, bad: int
) -> None:
    radii, found = memory(device), Findings(device)
    y, index = torch.ones(4, dtype=torch.int64, device=device), torch.arange(4, device=device)
    index[2] = bad
    radii.select(PGD(Threshold(), alpha=0.02, steps=2), x[:4], y, index, seed=3, findings=found)
    with pytest.raises(ValueError, match=rf"^index: {bad}, expected a sample in 0 \.\.\. 31"):
        found.settle()
    assert (radii.values[4:] == 0.04).all()


@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_lazy_filled_up_and_captured_is_batched(
    device: torch.device, x: Tensor, final: str
) -> None:
    y, index = torch.ones(N, dtype=torch.int64, device=device), torch.arange(N, device=device)
    attack = PGD(Threshold(), alpha=0.02, steps=5)
    lazy, batched = (memory(device, strategy=name, final=final) for name in ("lazy", "batched"))
    for seed in range(8):
        found = [radii.select(attack, x, y, index, seed=seed) for radii in (lazy, batched)]
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
