"""No narrow 1x1 convolution of stride 2 meets the kernel that writes out of bounds, whatever is channels last."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from iaat_fast import models
from iaat_fast.models.narrow import NarrowConv2d
from iaat_fast.train.distributed import SINGLE
from iaat_fast.train.optim import MixedPrecision
from iaat_fast.train.step import Update

CPU = torch.device("cpu")


class Recorder(TorchDispatchMode):
    """Notes the narrow layers of stride 2 whose gradient is taken, and whether of tensors in channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            x, weight, stride = args[1], args[2], args[4]
            if weight.shape[1] < 16 and weight.shape[2:] == (1, 1) and stride == [2, 2]:
                self.seen.append(x.stride(1) == 1 or weight.stride(2) != 1)
        return func(*args, **(kwargs or {}))


class Functional(nn.Module):
    """A user's: no module that could be replaced, and no way for a hook to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(16, 8, 1, 1))
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.conv2d(F.relu(self.stem(x)), self.weight, stride=2).mean((2, 3)))


def channels_last(value: Any) -> Any:
    return value.to(memory_format=torch.channels_last)


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "width", "narrow"),
    [("imagenet-resnet18", 8, 1), ("imagenet-resnet50", 2, 1), ("resnet18", 2, 3)],
)
@pytest.mark.parametrize("moved", [channels_last, lambda x: x], ids=["last", "contiguous"])
def test_the_networks_train_by_themselves(
    name: str, width: int, narrow: int, moved: Callable[[Tensor], Tensor]
) -> None:
    model = channels_last(models.build(name, in_channels=3, width=width)).train()
    with Recorder() as recorder:
        model(moved(images(32))).square().mean().backward()
    assert recorder.seen == [False] * narrow


@pytest.mark.parametrize("scripted", [False, True])
def test_any_model_trains_and_its_gradients_are_those_of_contiguous_tensors(scripted: bool) -> None:
    found = []
    for layout in (channels_last, lambda value: value):
        torch.manual_seed(0)
        model = layout(Functional())
        trained = torch.jit.script(model) if scripted else model
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
        update = Update(trained, optimizer, ranks=SINGLE, amp=MixedPrecision("off", CPU))
        with Recorder() as recorder:
            update.backward(update.forward(layout(images(8))).square().mean(), share=1.0)
        assert recorder.seen == [False]
        found.append([parameter.grad for parameter in model.parameters()])
    # Other kernels sum in another order: 1e-5 is 100 roundings of float32.
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_attacks_run_such_a_layer_as_any_other() -> None:
    from iaat_fast.attacks import PGD

    torch.manual_seed(0)
    layers = NarrowConv2d(4, 6, 1, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Linear(54, 4)).eval()
    attack = PGD(model, eps=8 / 255, alpha=2 / 255, steps=2, engine="fast")
    attack(images(8), torch.tensor([0, 1]), seed=1)
    assert attack.network.gradient_source.endswith("with 1 BatchNorm layers folded")


@pytest.mark.slow
def test_a_slim_network_survives_where_torch_alone_crashes() -> None:
    script = (
        "import torch; from iaat_fast import models\n"
        "model = models.build('imagenet-resnet18', width=8, num_classes=4).train()\n"
        "for _ in range(2): model(torch.rand(8, 3, 224, 224)).mean().backward()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
