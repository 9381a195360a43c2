"""Models of which no program can be made are named, and attacked all the same with the verdicts of the plain loop."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.shadow import Shadow, Unshadowable
from iaat_fast.attacks.gradients.source import ByAutograd, Cotangent, Source
from iaat_fast.attacks.gradients.verify import check_gradients
from tests.attacks.networks import preactivation_resnet, with_statistics


class Base(nn.Module):
    """Flatten and a linear layer, with something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 12), nn.Linear(12, 4)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x.flatten(1))))


class Branching(Base):
    def between(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.sum() > 0 else x


class ReadsItem(Base):
    def between(self, x: Tensor) -> Tensor:
        return F.relu(x) * min(x.abs().max().item(), 1.0)


class FixedBatch(Base):
    def between(self, x: Tensor) -> Tensor:
        return F.relu(x).view(8, -1)


class ShapeByBatch(Base):
    """Another network for an even number of images than for an odd one."""

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x) if len(x) % 2 == 0 else x


class Locked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def between(self, x: Tensor) -> Tensor:
        with self.lock:
            return F.relu(x)


class WithoutGradient(Base):
    """Half of its logits' dependence on the images is hidden from autograd."""

    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.sigmoid(3 * x)
        return F.relu(x) + hidden


class Detached(Base):
    def between(self, x: Tensor) -> Tensor:
        return F.relu(x) + torch.sigmoid(3 * x.detach())


class Straight(torch.autograd.Function):
    """Rounds, and hands the gradient on as if it did not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class StraightThrough(Base):
    def between(self, x: Tensor) -> Tensor:
        return Straight.apply(F.relu(x))


class Random(Base):
    def between(self, x: Tensor) -> Tensor:
        return F.relu(x) + 0.5 * torch.randn_like(x)


class TwoOutputs(Base):
    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x.flatten(1))
        return self.last(hidden), hidden


class IgnoresImages(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last.bias.expand(len(x), -1)


class Constant(Base):
    """Always for the same eight images, say."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last.bias.expand(8, -1)


def hooked() -> nn.Module:
    model = Base()
    model.last.register_forward_hook(lambda module, inputs, output: None)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "last has hooks"),
        (Branching, "cannot be exported"),
        (ReadsItem, "cannot be exported|reads values"),
        (FixedBatch, "cannot be exported"),
        (ShapeByBatch, "cannot be exported"),
        (Locked, "cannot be copied.*lock"),
        (Random, "draws random numbers"),
        (TwoOutputs, "returns 2 tensors"),
        (IgnoresImages, "cannot be exported"),
        (Constant, "does not depend on the images"),
    ],
)
def test_what_cannot_be_a_program_is_refused_with_its_reason(
    make: Callable[[], nn.Module], reason: str, images: Tensor
) -> None:
    with pytest.raises(Unshadowable, match=reason):
        Program(made(make), images, dtype=None)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "last has hooks"),
        (Branching, "cannot be exported"),
        (ReadsItem, "cannot be exported|reads values"),
        (FixedBatch, "does not take any number of images"),
        (ShapeByBatch, "cannot be exported"),
        (Locked, "cannot be copied"),
        (StraightThrough, "gradients are off by|custom"),
        (WithoutGradient, None),
        (Detached, None),
    ],
)
def test_the_verdicts_are_the_plain_loops_and_the_reason_is_said_once(
    make: Callable[[], nn.Module],
    reason: str | None,
    images: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = made(make)
    y = model(images).argmax(1)
    plain = PGD(model, eps=0.05, alpha=0.01, steps=5, engine="exact", seed=0)(images, y)
    pgd = PGD(model, eps=0.05, alpha=0.01, steps=5, engine="fast", seed=0)
    with caplog.at_level(logging.INFO, "iaat_fast"):
        fast = pgd(images, y)
        assert torch.equal(pgd(images, y), fast)
    assert len(caplog.records) == 1
    if reason is not None:
        assert any(part in caplog.text for part in reason.split("|"))
    assert torch.equal(model(fast).argmax(1), model(plain).argmax(1))
    # Not the verdicts alone: a wrong gradient has other signs. Folding none, the copies differ by rounding.
    assert (fast - plain).abs().gt(1e-6).float().mean() < 0.01


@pytest.mark.parametrize("make", [WithoutGradient, Detached])
def test_what_autograd_does_not_see_a_program_does_not_see(
    make: Callable[[], nn.Module], images: Tensor
) -> None:
    model = made(make)
    try:
        program = Program(model, images, dtype=None)
    except Unshadowable:
        return
    check_gradients(program, model, images, "fp32", None)


class LeavesThingsBehind(Base):
    """Makes constants in its forward, counts its calls, and keeps a cache on itself, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.cache: dict[str, Tensor] = {}
        self.last_shape: tuple[int, ...] | None = None
        self.register_buffer("index", torch.arange(12))

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last_shape = tuple(x.shape)
        self.cached = x
        if "bias" not in self.cache:
            self.cache["bias"] = self.first.bias[self.index]
        return F.relu(x) * torch.tensor(0.5) + torch.tensor([0.1] * 12) + self.cache["bias"]


def test_making_a_program_leaves_nothing_in_the_live_model(images: Tensor) -> None:
    model = made(LeavesThingsBehind)
    keys, state = set(model.__dict__), {k: v.clone() for k, v in model.state_dict().items()}
    program = Program(model, images, dtype=None)
    program.input_vjp(images, torch.ones_like)
    assert set(model.__dict__) == keys
    assert model.calls == 0
    assert model.cache == {}
    assert model.last_shape is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    torch.save(model, io.BytesIO())
    assert torch.allclose(program.forward(images), model(images), rtol=1e-5)


def test_a_model_that_keeps_things_is_attacked_twice_and_can_be_saved(images: Tensor) -> None:
    model = made(LeavesThingsBehind)
    with torch.no_grad():
        y = model(images).argmax(1)
    plain = PGD(model, eps=0.05, alpha=0.01, steps=3, engine="exact", seed=0)(images, y)
    pgd = PGD(model, eps=0.05, alpha=0.01, steps=3, engine="fast", seed=0)
    first = pgd(images, y)
    assert torch.equal(pgd(images, y), first)
    assert (first - plain).abs().gt(1e-6).float().mean() < 0.01
    assert model.calls > 0


class KeepsFeatures(Base):
    """Stored with their graph, as for distillation or attention maps."""

    def between(self, x: Tensor) -> Tensor:
        self.kept = SimpleNamespace(features=F.relu(x))
        return self.kept.features  # type: ignore[no-any-return]


class KeepsFile(Base):
    def __init__(self) -> None:
        super().__init__()
        self.log = open(os.devnull)  # noqa: SIM115

    def between(self, x: Tensor) -> Tensor:
        return F.relu(x)


@pytest.mark.parametrize("options", [{}, {"engine": "fast"}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("make", [Locked, KeepsFile])
def test_what_cannot_be_copied_is_attacked_live_with_one_line_that_says_why(
    make: Callable[[], nn.Module],
    options: dict[str, Any],
    images: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = made(make)
    y = model(images).argmax(1)
    pgd = PGD(model, eps=0.05, alpha=0.01, steps=3, seed=0, **options)
    assert torch.equal(pgd(images, y), pgd(images, y))
    assert "the live model" in pgd.network.gradient_source
    assert len(caplog.records) == (1 if options else 0)
    assert ("cannot be copied" in caplog.text) == bool(options)
    assert all("\n" not in r.getMessage() and len(r.getMessage()) < 400 for r in caplog.records)


@pytest.mark.parametrize("options", [{}, {"engine": "fast"}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("make", [KeepsFeatures, lambda: nn.Sequential(KeepsFeatures())])
def test_stored_activations_are_no_obstacle(
    make: Callable[[], nn.Module], options: dict[str, Any], images: Tensor
) -> None:
    model = made(make)
    y = model(images).argmax(1)  # leaves features that refer to a graph, which cannot be copied
    pgd = PGD(model, eps=0.05, alpha=0.01, steps=3, seed=0, **options)
    assert torch.equal(pgd(images, y), pgd(images, y))


def deep() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(preactivation_resnet())


class Wrong:
    """A source whose gradient or logits are spoilt."""

    def __init__(self, source: Source, spoil: str) -> None:
        self.source, self.spoil = source, spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.source.forward(x)

    def input_vjp(self, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor | None]:
        logits, grad = self.source.input_vjp(x, cotangent)
        assert grad is not None
        spoilt = {
            "flipped gradient": (logits, -grad),
            "zero gradient": (logits, torch.zeros_like(grad)),
            "gradient of the next image": (logits, grad.roll(1, 0)),
            "classes in another order": (logits.roll(1, 1), grad),
            "no gradient": (logits, None),
            "NaN": (logits * float("nan"), grad),
        }
        return spoilt[self.spoil]

    def refresh(self) -> None:
        self.source.refresh()


@pytest.mark.parametrize(("precision", "half"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_a_true_copy_of_a_deep_network_is_believed(
    precision: str, half: torch.dtype | None
) -> None:
    model, x = deep(), torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    check_gradients(Program(model, x, dtype=half), model, x, precision, half)


@pytest.mark.parametrize(("precision", "half"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_a_wrong_copy_is_rejected(precision: str, half: torch.dtype | None) -> None:
    model, x = deep(), torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    copy = Shadow(model, dtype=half, channels_last=True)
    copy.refresh()
    source = ByAutograd(copy.module, dtype=half)
    for spoil in (
        "flipped gradient",
        "zero gradient",
        "gradient of the next image",
        "classes in another order",
        "no gradient",
        "NaN",
    ):
        with pytest.raises(Unshadowable, match="copy"):
            check_gradients(Wrong(source, spoil), model, x, precision, half)
    check_gradients(source, model, x, precision, half)
    with torch.no_grad():
        copy.module[0].weight.neg_()
    with pytest.raises(Unshadowable, match="off by"):
        check_gradients(source, model, x, precision, half)
