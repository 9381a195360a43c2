"""Operations and bytes of a pass, against layers counted by hand and against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from iaat_fast import models
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.plan.cost import Counts, build
from iaat_fast.plan.kernels import (
    CALL,
    STEP,
    Pass,
    count_forward,
    count_gradient,
    count_optimizer,
    count_program,
    count_update,
)
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.presets import preset
from iaat_fast.train.step import TrainingStep, make_memory


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
    assert operations(counted) == [FIRST, SECOND, LAST, LAST, LAST, SECOND, SECOND, FIRST]
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


def test_products_have_rows_columns_and_the_vectors_that_their_channels_fill() -> None:
    counted = count_gradient(convolutions().half(), (N, 3, 8, 8))
    products = [(k.rows, k.columns, k.narrow) for k in counted.kernels if k.operations]
    forward = [(N * 64, 8, True), (N * 16, 16, False), (N, 10, False)]
    backward = [(N, 256, False), (N * 64, 8, False), (N * 64, 3, True)]
    assert products == forward + backward


def test_sums_over_the_batch_fill_the_gpu_and_have_no_tiles() -> None:
    counted = count_update(convolutions(), (N, 3, 8, 8))
    convolved = [k.rows for k in counted.backward if k.operations in (FIRST, SECOND)]
    assert convolved == [N * 64, 0, 0]


def norm() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10))


def test_batch_statistics_read_their_inputs_once_more() -> None:
    size = 4 * N * 4 * 64
    trained, judged = (count_update(norm().train(mode), (N, 4, 8, 8)) for mode in (True, False))
    seen = [
        [k.bytes // size for k in each.forward[:4] if k.access == "broadcast"]
        for each in (trained, judged)
    ]
    assert seen == [[1, 2], [2]]
    assert [k.access for k in judged.backward].count("strided") == 2


def test_a_program_has_no_kernels_for_what_its_convolutions_do_at_their_end() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
        network = network.append(nn.Linear(512, 10)).eval()
        x = torch.empty(N, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    counted = count_program(Program(network, x, dtype=None), x)
    assert [k.operations > 0 for k in counted.forward] == [True, False, True], "it flattens"
    live = count_gradient(network, x.shape)
    assert counted.launched < live.launched


def test_the_optimizer_by_hand() -> None:
    network = convolutions()
    weights = sum(p.numel() for p in network.parameters())
    assert count_optimizer(network).bytes == 4 * 5 * weights
    assert count_optimizer(network, fused=False).bytes == 4 * 11 * weights
    assert count_optimizer(network, averaged=True).bytes == 4 * 8 * weights


class Operators(TorchDispatchMode):
    """Counts those that are neither views nor only allocate."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += not (func.is_view or "empty" in func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators_of_a_step(method: Any) -> tuple[int, Counts]:
    """Of a real one, with one step of the attack."""
    attack = {} if method == "clean" else {"attack": {"steps": 1}}
    config = preset("cifar10-resnet18", method=method, model={"width": 1}, **attack)
    device = torch.device("cpu")
    model = build(config, device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True
    )
    step = TrainingStep(config, model, make_memory(config, 2, device), optimizer, device)
    batch = GlobalBatch.of(torch.rand(2, 3, 8, 8), torch.zeros(2).long(), torch.arange(2))
    step(batch, epoch=0, seed=0)
    with Operators() as operators:
        step(batch, epoch=0, seed=1)
    return operators.count, Counts(config, "fp32")


def test_operators_outside_of_the_network_are_those_of_a_real_step() -> None:
    clean, counts = operators_of_a_step("clean")
    update = count_optimizer(counts.network, fused=False)
    planned = counts.of("update", 2).launched + len(update.kernels) + STEP.launched
    assert planned == pytest.approx(clean, rel=0.1)
    attacked, _ = operators_of_a_step("adv")
    planned = counts.of("gradient", 2).launched + CALL.launched
    assert planned == pytest.approx(attacked - clean, rel=0.1)
