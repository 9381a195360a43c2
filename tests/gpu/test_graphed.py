"""Whole training steps in CUDA graphs end with the bits of eager ones, where kernels are deterministic.

The bound: 0. A graph launches the kernels of the eager step on the same numbers, so that what may differ is the order
in which atomic additions arrive, in cuDNN's gradients of the weights unless it is told to be deterministic, as here.
Without that, a run in graphs differs from an eager one as two eager runs differ from each other.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData, Split

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("tyro")]

SIZE, BATCH = 200, 32  # six full batches and one of 8


@pytest.fixture(autouse=True)
def same_kernels_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture
def images() -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        pixels = torch.randint(0, 256, (size, 12, 12, 3), generator=generator, dtype=torch.uint8)
        return Split(pixels, torch.randint(0, 5, (size,), generator=generator))

    return ImageData("noise", split(SIZE), split(40), num_classes=5)


class Network(nn.Sequential):
    """BatchNorm, and dropout that draws while it trains; `asked` is called in every training forward."""

    def __init__(self, asked: Callable[[Tensor], None] = lambda x: None) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(576, 5),
        )
        self.asked = asked

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.asked(x)
        return super().forward(x)


Train = Callable[..., Any]


@pytest.fixture
def train(images: ImageData, tmp_path: Path) -> Train:
    """Trains on the GPU and returns the folder of the run."""
    from iaat_fast.train import fit, override, preset

    def call(
        name: str,
        *,
        graph: bool,
        model: nn.Module | None = None,
        resume: bool = False,
        **parts: Any,
    ) -> Any:
        config = preset("digits", method=parts.pop("method", "iaat"))
        changes: dict[str, Any] = {
            "data": {"augment": True},
            "attack": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 4},
            "epsilon": {"warmup_epochs": 1, "strategy": "batched"},
            "optim": {
                **{"epochs": 4, "batch_size": BATCH, "lr": 0.05, "decay_epochs": [2, 3]},
                "graph": graph,
            },
            "run": {"out": str(tmp_path / name), "device": "cuda", "tensorboard": False},
        }
        config = override(override(config, changes), parts)
        return fit(config, model=model or Network(), data=images, quiet=True, resume=resume).folder

    return call


def captures(caplog: pytest.LogCaptureFixture) -> int:
    return sum("whole steps are captured" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(
    ("phases", "parts"),
    [
        (1, {"method": "clean"}),
        (1, {"method": "adv"}),
        (1, {"method": "adv", "attack": {"precision": "bf16"}}),
        (1, {"method": "mixup"}),
        (1, {"method": "trades"}),
        (1, {"method": "mart"}),
        (1, {"method": "mma"}),
        (1, {"method": "cat"}),
        (1, {"method": "cat", "baseline": {"cat_loss": "mix"}, "attack": {"precision": "bf16"}}),
        (2, {"method": "iaat"}),
        (2, {"method": "iaat", "epsilon": {"final": "reuse"}, "attack": {"precision": "bf16"}}),
    ],
    ids=str,
)
def test_runs_in_graphs_end_with_the_bits_of_eager_ones(
    train: Train, caplog: pytest.LogCaptureFixture, amp: str, phases: int, parts: dict[str, Any]
) -> None:
    from tests.train.same_run import assert_same_checkpoints

    how = {**parts, "optim": {"amp": amp, "ema_decay": 0.9}}
    eager = train("eager", graph=False, **how)
    with caplog.at_level(logging.INFO, "iaat_fast"):
        graphed = train("graphed", graph=True, **how)
    assert captures(caplog) == phases
    assert_same_checkpoints(graphed, eager)


@pytest.mark.parametrize("step", [3, 9, 20])
def test_resumed_a_run_in_graphs_ends_with_the_same_bits(
    train: Train, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iaat_fast.train.cudagraph_step import CudaGraphStep
    from tests.train.same_run import assert_same_checkpoints

    class Killed(BaseException):
        pass

    launch, how = CudaGraphStep.__call__, {"run": {"checkpoint_steps": 1}}

    def killed(self: CudaGraphStep, *args: Any, **kwargs: Any) -> None:
        nonlocal step
        step -= 1
        if step < 0:
            raise Killed
        launch(self, *args, **kwargs)

    reference = train("reference", graph=True, **how)
    with monkeypatch.context() as patch:
        patch.setattr(CudaGraphStep, "__call__", killed)
        with pytest.raises(Killed):
            train("killed", graph=True, **how)
    assert_same_checkpoints(train("killed", graph=True, resume=True, **how), reference)


def reads(x: Tensor) -> None:
    assert float(x.mean()) > -1


def runs_out_of_memory(x: Tensor) -> None:
    if torch.cuda.is_current_stream_capturing():
        raise torch.OutOfMemoryError("CUDA out of memory.")


def really_runs_out_of_memory(x: Tensor) -> None:
    if torch.cuda.is_current_stream_capturing():
        torch.empty(2**50, dtype=torch.uint8, device=x.device)


def draws_on_the_host(x: Tensor) -> None:
    random.random()


@pytest.mark.parametrize(
    "asked", [reads, runs_out_of_memory, really_runs_out_of_memory, draws_on_the_host]
)
def test_what_cannot_be_captured_trains_eagerly_and_says_so_once(
    train: Train, caplog: pytest.LogCaptureFixture, asked: Callable[[Tensor], None]
) -> None:
    """Dropout goes on as if nothing had been tried: a capture that fails would leave torch's generator unusable."""
    from tests.train.same_run import assert_same_checkpoints

    with caplog.at_level(logging.WARNING, "iaat_fast"):
        tried = train("tried", graph=True, model=Network(asked))
    said = [
        record.getMessage() for record in caplog.records if "whole steps" in record.getMessage()
    ]
    assert len(said) == 1
    assert "running eagerly" in said[0]
    assert_same_checkpoints(tried, train("eager", graph=False, model=Network(asked)))


@pytest.mark.parametrize("method", ["adv", "iaat"])
def test_a_replay_waits_for_nothing(images: ImageData, device: torch.device, method: Any) -> None:
    from iaat_fast.train import override, preset
    from iaat_fast.train.cudagraph_step import CudaGraphStep, capture_for
    from iaat_fast.train.dataloader import TrainLoader
    from iaat_fast.train.setup import make_state

    changes = {
        "data": {"augment": True},
        "epsilon": {"strategy": "batched"},
        "optim": {"batch_size": BATCH},
        "run": {"device": "cuda"},
    }
    config = override(preset("digits", method=method), changes)
    data = images.to(device)
    state = make_state(config, Network().to(device), data, device)
    loader = TrainLoader(data.train, augment=True)
    steps = CudaGraphStep(state.training_step, size=BATCH, capture=capture_for(device))
    batches = torch.randperm(SIZE, device=device).split(BATCH)[:6]
    epoch = config.epsilon.warmup_epochs
    for seed, batch in enumerate(loader(batches, list(range(6)))):
        if seed == 2:  # after the warm-up and the capture
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            steps(batch, epoch=epoch, seed=seed)
        except BaseException:
            torch.cuda.set_sync_debug_mode("default")
            raise
    torch.cuda.set_sync_debug_mode("default")
    steps.settle()
    assert state.training_step.totals[3].item() == 6 * BATCH
