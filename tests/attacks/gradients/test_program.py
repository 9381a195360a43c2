"""The program gives autograd's logits and gradients, for every kind of network that it is to serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks.gradients.program import Program
from tests.attacks.gradients.program_checks import InFloat32, assert_equal, cotangent, off
from tests.attacks.later_networks import WHOLE
from tests.attacks.networks import Attention, BatchNorm, Normalised, with_statistics


def images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)).to(dtype)


def program_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Program:
    return Program(model, x, dtype=dtype)


@dataclass
class Served:
    model: nn.Module
    folded: int
    program: Program


@pytest.fixture(scope="module", params=list(WHOLE))
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


# In the precisions of attacks, test_program_torchvision.py has torchvision's own.
AS_TORCHVISIONS = {
    "imagenet-resnet18",
    "imagenet-resnet50",
    "vgg",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet",
    "densenet",
    "shufflenet",
}


@pytest.fixture(scope="module", params=[name for name in WHOLE if name not in AS_TORCHVISIONS])
def in_float32(request: pytest.FixtureRequest) -> InFloat32:
    torch.manual_seed(0)
    return InFloat32.of(with_statistics(WHOLE[request.param][0]()), images(5, torch.float32))


def test_in_float32_it_is_as_near_to_the_truth_as_autograd(
    in_float32: InFloat32, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float32.assert_as_near_to_the_truth_as_autograd(in_float32.program(monkeypatch))


def test_in_bfloat16_as_many_signs_are_right_as_in_a_copy_of_the_modules(
    in_float32: InFloat32, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = in_float32.program(monkeypatch, torch.bfloat16)
    in_float32.assert_as_many_signs_are_right_as_in_a_copy_of_the_modules(program)


def test_what_it_does_not_know_runs_by_autograd_in_between() -> None:
    torch.manual_seed(0)
    model = with_statistics(Attention()).double()
    program = program_of(model, images(5))
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


class Between(nn.Module):
    """A layer between two convolutions that reads, and whose gradient is, in the layouts `before` and `after` make."""

    def __init__(
        self,
        layer: nn.Module,
        before: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.layer, self.head = layer, nn.Linear(4, 10)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        out = self.after(self.layer(self.before(self.first(x))))
        return self.head(torch.tanh(self.second(out)).mean((2, 3)))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.transpose(2, 3),
    "channels": lambda x: torch.cat((x, x), 1)[:, 2:6],
    "rows": lambda x: F.pad(x, (0, 0, 1, 0))[:, :, 1:],
    "repeated": lambda x: x[:, :1].expand_as(x),
    "selected": lambda x: torch.stack((x, x.sin()), -1)[..., 1],
}


@pytest.mark.parametrize(
    ("before", "after"),
    [*((name, "transposed") for name in LAYOUTS), *(("as it is", name) for name in LAYOUTS)],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm((16, 16)),
        lambda: nn.Softmax(2),
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2)),
        lambda: nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(3, 1, 1)),
        lambda: nn.BatchNorm2d(4),
    ],
    ids=["group norm", "layer norm", "softmax", "upsampling", "maxima", "norm"],
)
def test_a_layer_reads_and_gives_any_layout(
    make: Callable[[], nn.Module], before: str, after: str
) -> None:
    torch.manual_seed(0)
    model = with_statistics(Between(make(), LAYOUTS[before], LAYOUTS[after])).double()
    assert_equal(program_of(model, images(3)), model, images(3))


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


class Overwritten(nn.Module):
    """A convolution's output that `write` changes in place; the head reads what `write` returns."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.write = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10), write

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.write(self.conv(x)).mean((2, 3)))


def _reads_what_it_wrote(x: Tensor) -> Tensor:
    before = x.sigmoid()
    F.relu_(x)
    return (x * 2).add_(before).add_(x)


def _reads_a_view_of_what_it_wrote(x: Tensor) -> Tensor:
    view = x.flatten(2)
    x.mul_(3)
    return view.sin().view_as(x)


def _writes_to_a_view(x: Tensor) -> Tensor:
    x[:, :2] += 1.0
    x.flatten(1).mul_(2)
    return x.sin()


@pytest.mark.parametrize(
    "write",
    [_reads_what_it_wrote, _reads_a_view_of_what_it_wrote, _writes_to_a_view],
)
def test_writing_in_place_changes_what_is_read_later_and_nothing_before(
    write: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Overwritten(write).double()
    assert_equal(program_of(model, images(3)), model, images(3))


@pytest.mark.parametrize(
    "layer", [nn.ReLU6(True), nn.Hardswish(True), nn.SiLU(True), nn.Dropout(inplace=True)]
)
def test_a_layer_in_place_needs_no_decomposition(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's takes seconds for a deep network."""
    monkeypatch.delattr(torch.export.ExportedProgram, "run_decompositions")
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), layer, nn.Flatten(), nn.Linear(4 * 14 * 14, 10)]
    model = with_statistics(nn.Sequential(*body)).double()
    program = program_of(model, images(2))
    assert program.by_autograd == ()
    assert_equal(program, model, images(2))
