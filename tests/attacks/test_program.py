"""The program gives autograd's logits and gradients, for every kind of network that it is to serve."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import program as program_package
from iaat_fast.attacks.program import Program
from iaat_fast.attacks.program.exported import ExportedForward
from iaat_fast.attacks.shadow import Shadow
from iaat_fast.attacks.sources import ByAutograd, Source
from tests.attacks.networks import WHOLE, Attention, BatchNorm, Normalised, with_statistics

# Sums of float64 in another order: 23 networks are off by 1e-16 to 6e-15 of the largest entry.
EXACT = 1e-13


def cotangent(logits: Tensor) -> Tensor:
    """Another number for every class."""
    classes = torch.arange(1, logits.shape[1] + 1)
    return torch.sin(classes.double()).to(logits.dtype).expand_as(logits)


def images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)).to(dtype)


def off(value: Tensor, true: Tensor) -> float:
    """The largest difference, in units of the largest entry."""
    value, true = value.detach(), true.detach()
    return float((value.double() - true.double()).abs().max() / true.double().abs().max())


def assert_equal(source: Source, model: nn.Module, x: Tensor, most: float = EXACT) -> None:
    logits, grad = source.input_vjp(x, cotangent)
    true, slope = ByAutograd(model).input_vjp(x, cotangent)
    assert grad is not None
    assert slope is not None
    assert logits.shape == true.shape
    assert grad.shape == x.shape
    assert off(logits, true) < most
    assert off(grad, slope) < most


def program_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Program:
    return Program(model, x, dtype=dtype)


@dataclass
class Served:
    model: nn.Module
    folded: int
    program: Program


# Exporting takes most of the time, of deep networks seconds.
DEEP = ("imagenet-resnet18", "imagenet-resnet50")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in WHOLE]


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest) -> Served:
    """A network in float64 and its program, made from 5 images."""
    torch.manual_seed(0)
    make, folded = WHOLE[request.param]
    model = with_statistics(make()).double()
    return Served(model, folded, program_of(model, images(5)))


def test_it_needs_no_autograd_and_folds_every_batchnorm_behind_a_layer(served: Served) -> None:
    norms = sum(isinstance(layer, BatchNorm) for layer in served.model.modules())
    left = [step for step in served.program.operations if step.name == "batch_norm"]
    assert served.program.by_autograd == ()
    assert served.program.folded == served.folded
    assert len(left) == norms - served.folded


def test_logits_and_gradients_are_autograds(served: Served) -> None:
    assert_equal(served.program, served.model, images(5))


def test_forward_gives_the_logits_of_the_gradient(served: Served) -> None:
    x = images(5)
    logits = served.program.forward(x)
    assert torch.equal(logits, served.program.input_vjp(x, cotangent)[0])
    assert not logits.requires_grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_any_number_of_images_in_either_format(
    served: Served, count: int, layout: torch.memory_format
) -> None:
    x = images(count).contiguous(memory_format=layout)
    before = x.clone()
    assert_equal(served.program, served.model, x)
    assert torch.equal(x, before)


def test_it_follows_the_live_weights_and_statistics(served: Served) -> None:
    x, program = images(3), served.program
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in (*served.model.parameters(), *served.model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    assert off(program.forward(x), served.model(x)) > 1e-4
    program.refresh()
    assert_equal(program, served.model, x)


def test_its_twins_share_no_memory_with_the_live_model_and_need_no_gradient(served: Served) -> None:
    def memory(tensors: list[Tensor]) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    twins = served.program.tensors()
    assert twins
    assert not any(twin.requires_grad for twin in twins)
    assert not memory(twins) & memory([*served.model.parameters(), *served.model.buffers()])


@dataclass
class InFloat32:
    model: nn.Module
    x: Tensor
    exported: ExportedForward
    true: Tensor
    slope: Tensor


@pytest.fixture(
    scope="module",
    params=NAMES,
)
def in_float32(request: pytest.FixtureRequest) -> InFloat32:
    """A network in float32, the graph that its programs share, and the truth from float64."""
    torch.manual_seed(0)
    model = with_statistics(WHOLE[request.param][0]())
    x = images(5, torch.float32)
    exported = ExportedForward(model, x)
    true, slope = ByAutograd(model.double()).input_vjp(x.double(), cotangent)
    assert slope is not None
    return InFloat32(model.float(), x, exported, true, slope)


def test_in_float32_it_is_as_near_to_the_truth_as_autograd(
    in_float32: InFloat32, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding and fused sums round otherwise, not more: within 4 times autograd's own error, or some last bits."""
    net = in_float32
    monkeypatch.setattr(program_package, "ExportedForward", lambda *_: net.exported)
    logits, grad = program_of(net.model, net.x).input_vjp(net.x, cotangent)
    plain, slope = ByAutograd(net.model).input_vjp(net.x, cotangent)
    assert grad is not None
    assert slope is not None
    last_bits = 16 * torch.finfo(torch.float32).eps
    assert off(logits, net.true) < max(4 * off(plain, net.true), last_bits)
    assert off(grad, net.slope) < max(4 * off(slope, net.slope), last_bits)


def test_in_bfloat16_as_many_signs_are_right_as_in_a_copy_of_the_modules(
    in_float32: InFloat32, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signs of 3,840 entries: 0.02 are 77 of them, several deviations where one in ten is wrong."""
    net = in_float32
    monkeypatch.setattr(program_package, "ExportedForward", lambda *_: net.exported)
    made = program_of(net.model, net.x, torch.bfloat16)
    _, grad = made.input_vjp(net.x, cotangent)
    copy = Shadow(net.model, dtype=torch.bfloat16, channels_last=True)
    copy.refresh()
    _, slope = ByAutograd(copy.module, dtype=torch.bfloat16).input_vjp(net.x, cotangent)
    assert grad is not None
    assert slope is not None
    assert grad.dtype is torch.bfloat16

    def right(found: Tensor) -> float:
        return float((found.sign() == net.slope.sign()).double().mean())

    assert right(grad) > right(slope) - 0.02
    assert right(grad) > 0.75


def test_what_it_does_not_know_runs_by_autograd_in_between() -> None:
    torch.manual_seed(0)
    model = with_statistics(Attention()).double()
    program = program_of(model, images(5))
    assert any("layer_norm" in call for call in program.by_autograd)
    assert any("attention" in call for call in program.by_autograd)
    assert not any("conv" in call or "linear" in call for call in program.by_autograd)
    assert program.folded == 1
    for count in (1, 5, 8):
        assert_equal(program, model, images(count))


@pytest.mark.parametrize("scalars", [False, True])
def test_normalisation_goes_into_the_first_layer_also_where_the_images_are_counted(
    scalars: bool,
) -> None:
    model = with_statistics(Normalised(scalars=scalars)).double()
    names = [operation.name for operation in program_of(model, images(2)).operations]
    assert [name for name in names[: names.index("convolution")] if name != "sizes"] == ["images"]


class SumOfNorms(nn.Module):
    """BatchNorm of a sum whose main path ends in a BatchNorm that no layer takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)
        self.first, self.second, self.third = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.sigmoid(self.conv(x))
        shortcut = self.first(stem)
        out = torch.relu(self.third(shortcut.sigmoid() + self.second(stem)))
        return self.head(out.mean((2, 3)) + shortcut.mean((2, 3)))


class Shared(nn.Module):
    """A convolution called twice, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm(self.conv(torch.relu(self.conv(x))))).mean((2, 3))
        return self.head(self.second(torch.relu(self.first(out))))


@pytest.mark.parametrize(("make", "folded"), [(SumOfNorms, 0), (Shared, 1)])
def test_sums_of_norms_and_shared_weights(make: type[nn.Module], folded: int) -> None:
    torch.manual_seed(0)
    model = with_statistics(make()).double()
    program = program_of(model, images(3))
    assert program.folded == folded
    assert_equal(program, model, images(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)
    program.refresh()
    assert_equal(program, model, images(3))
