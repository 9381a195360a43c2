"""PGD and the trainer on a GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.epsilon import EpsilonMemory

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def same_kernels_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may otherwise choose another algorithm, with other roundings, for each call."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture
def net(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ]
    return nn.Sequential(*layers).to(device).eval()


@pytest.fixture
def batch(net: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(device)
    return x, net(x).argmax(1)


def plain_loop(
    net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float, alpha: float, steps: int
) -> Tensor:
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(net(leaf), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        x_adv = x_adv + alpha * grad.sign()
        x_adv = torch.clamp(x + torch.clamp(x_adv - x, -eps, eps), 0.0, 1.0)
    return x_adv


@pytest.mark.parametrize("engine", ["auto", "exact"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pgd_is_the_plain_loop(
    net: nn.Module, batch: tuple[Tensor, Tensor], engine: str, layout: torch.memory_format
) -> None:
    x, y = batch
    x = x.contiguous(memory_format=layout)
    start = (x + 0.1 * (torch.rand_like(x) - 0.5)).clamp(0, 1)
    found = PGD(net, 0.05, 0.01, 7, engine=engine)(x, y, start=start)
    expected = plain_loop(net, x, y, start, 0.05, 0.01, 7)
    assert torch.equal(found, expected)
    assert not torch.equal(found, start)


def test_the_random_start_is_that_of_the_cpu(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    from iaat_fast.ops import reference

    x, y = batch
    found = PGD(net, eps=0.05, steps=0)(x, y, seed=11)
    radii, stream = torch.full((32,), 0.05), torch.tensor([11, 0, 0])
    expected = reference.random_start_linf(x.cpu(), radii, stream, torch.arange(32), 0.0, 1.0)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("options", [{}, {"targeted": True}, {"engine": "exact"}, {"bn": "train"}])
def test_the_loop_does_not_wait_for_the_device(
    net: nn.Module,
    batch: tuple[Tensor, Tensor],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = batch
    pgd = PGD(net, 0.05, 0.01, 5, seed=0, **options)
    pgd(x, y)  # compiled, loaded
    descend, guarded = PGD._run_once, []

    def without_waiting(*args: Any) -> Any:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            guarded.append(True)
            return descend(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(PGD, "_run_once", without_waiting)
    pgd(x, y)
    pgd(
        x,
        y,
        eps=torch.linspace(0, 0.1, 96, device=x.device),
        index=torch.arange(32, device=x.device),
    )
    assert guarded == [True, True]


def test_captured_steps_write_the_trace_of_eager_ones(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    eager = PGD(net, 0.02, 0.005, 4, restarts=2, seed=0, engine=EngineOptions(graph=False))
    captured = PGD(net, 0.02, 0.005, 4, restarts=2, seed=0, engine=EngineOptions())
    expected = eager.run(*batch, trace=True).trace
    assert expected is not None
    for _ in range(3):
        found = captured.run(*batch, trace=True).trace
        assert found is not None
        torch.testing.assert_close(found.loss, expected.loss, equal_nan=True)
        assert torch.equal(found.success, expected.success)


@pytest.mark.parametrize("strategy", ["batched", "lazy"])
def test_the_radii_follow_the_candidates(device: torch.device, strategy: str) -> None:
    """An image of class 1 falls at the radius by which its mean pixel is above 0.5."""

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = x.flatten(1).mean(1) - 0.5
            return torch.stack([-margin, margin], 1)

    x = torch.full((3, 1, 4, 4), 0.6, device=device)
    memory = EpsilonMemory(3, gamma=0.02, beta=0.1, strategy=strategy, device=device)
    memory.load(torch.tensor([0.05, 0.09, 0.15], device=device))
    y, index = torch.ones(3, dtype=torch.int64, device=device), torch.arange(3, device=device)
    eps, choice, x_adv = memory.select(PGD(Threshold(), alpha=0.05, steps=10), x, y, index, seed=0)
    assert choice.tolist() == [0, 1, 2]
    torch.testing.assert_close(eps.cpu(), torch.tensor([0.052, 0.09, 0.148]))
    assert ((x_adv - x).abs().amax((1, 2, 3)) <= eps + 1e-6).all()


@pytest.mark.usefixtures("tyro")
def test_the_digits_preset_trains(tmp_path: Path, device: torch.device) -> None:
    from iaat_fast.train import fit, override, preset

    changes = {
        "data": {"limit": 256},
        "attack": {"steps": 3},
        "epsilon": {"warmup_epochs": 1},
        "optim": {"epochs": 3, "batch_size": 64},
        "run": {"out": str(tmp_path / "run"), "device": "cuda", "tensorboard": False},
    }
    result = fit(override(preset("digits"), changes), quiet=True)
    assert next(result.model.parameters()).device == device
    assert [row["step"] for row in result.metrics] == [4, 8, 12]
    assert all(math.isfinite(row["train_loss"]) for row in result.metrics)
    assert result.epsilon.isfinite().all()
    assert result.epsilon.std() > 0
