"""Operations and bytes of a pass, against layers counted by hand and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from iaat_fast import models
from iaat_fast.plan.cost import Pass, count_forward, count_gradient, count_update


def convolutions() -> nn.Module:
    """3 -> 8 channels, stride 1, then 8 -> 16, stride 2, on 8x8 images; 10 classes."""
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.Flatten(),
            nn.Linear(16 * 16, 10, bias=False),
        )


N = 2
# Two per multiply-add: output places x output channels x input channels x kernel.
FIRST = 2 * N * 64 * 8 * 3 * 9
SECOND = 2 * N * 16 * 16 * 8 * 9
LAST = 2 * N * 256 * 10
LAYERS = FIRST + SECOND + LAST


def operations(counted: Pass) -> list[int]:
    """Of each operator that is a convolution or a matrix product."""
    return [kernel.operations for kernel in counted.kernels if kernel.operations]


def test_forward_by_hand() -> None:
    counted = count_forward(convolutions(), (N, 3, 8, 8))
    assert operations(counted) == [FIRST, SECOND, LAST]
    assert (counted.operations, counted.backward, counted.saved) == (LAYERS, (), 0)


def test_gradient_of_the_images_is_one_more_pass() -> None:
    counted = count_gradient(convolutions(), (N, 3, 8, 8))
    assert operations(counted) == [FIRST, SECOND, LAST, LAST, SECOND, FIRST]
    assert counted.backward_share == 0.5


def test_update_needs_no_gradient_of_the_images() -> None:
    counted = count_update(convolutions(), (N, 3, 8, 8))
    assert operations(counted) == [FIRST, SECOND, LAST, LAST, LAST, 2 * SECOND, FIRST]
    assert counted.operations == 3 * LAYERS - FIRST
    assert counted.backward_share == (2 * LAYERS - FIRST) / (3 * LAYERS - FIRST)


def test_traffic_by_hand() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU())
    counted = count_forward(network, (N, 3, 8, 8))
    image, made, weight = N * 3 * 64, N * 8 * 64, 8 * 3 * 9
    assert [kernel.bytes for kernel in counted.kernels] == [
        4 * (image + weight + made),
        4 * 2 * made,
    ]


def test_half_precision_halves_the_traffic_and_no_operation() -> None:
    full = count_forward(convolutions(), (N, 3, 8, 8))
    half = count_forward(convolutions().half(), (N, 3, 8, 8))
    assert half.operations == full.operations
    assert half.bytes == full.bytes // 2


def test_saved_activations_by_hand() -> None:
    counted = count_gradient(convolutions(), (N, 3, 8, 8))
    image, first, second = N * 3 * 64, N * 8 * 64, N * 16 * 16
    # Images, the ReLU's output (which the second convolution shares), the linear layer's input,
    # logarithms of the softmax, the sum of the loss's weights, labels.
    saved = 4 * (image + first + second + N * 10 + 1) + 8 * N
    assert counted.saved == pytest.approx(saved, abs=64)


@pytest.mark.parametrize("name", ["digits-cnn", "resnet18", "imagenet-resnet18"])
def test_as_torch_counts(name: str) -> None:
    channels, size = (1, 8) if name == "digits-cnn" else (3, 32)
    with torch.device("meta"):
        network = models.build(name, width=4)
        x = torch.empty(N, channels, size, size)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(x), torch.empty(N, dtype=torch.int64, device="meta")).backward()
    counted = count_update(network, x.shape)
    assert counted.operations == counter.get_total_flops()


def test_known_networks() -> None:
    """Multiply-adds of a forward: 4.09 G of a ResNet-50 (torchvision's 4.09), 0.56 G of a CIFAR ResNet-18."""
    with torch.device("meta"):
        large = models.build("imagenet-resnet50", num_classes=1000)
        small = models.build("resnet18")
    assert count_forward(large, (1, 3, 224, 224)).operations / 2e9 == pytest.approx(4.09, abs=0.005)
    assert count_forward(small, (1, 3, 32, 32)).operations / 2e9 == pytest.approx(0.556, abs=0.001)


def test_everything_but_the_weights_grows_with_the_batch() -> None:
    def counted(images: int) -> Pass:
        return count_update(convolutions(), (images, 3, 8, 8))

    one, four = counted(1), counted(4)
    assert four.operations == 4 * one.operations
    assert 1 < four.bytes / one.bytes < 4
