"""Every op with arguments for the GPU, each backend that serves it, and stand-ins for packages that may be missing."""

from __future__ import annotations

import math
import sys
import unittest
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import backends

OPS = (
    "project_linf",
    "pgd_step_linf_",
    "random_start_linf",
    "ce_cotangent",
    "select_epsilon_",
    "random_crop_flip",
    "relu_backward_",
    "scale_shift_relu",
    "scale_shift_relu_backward_",
)
LAYERS = OPS[-3:]
WRITTEN = {"pgd_step_linf_": (0, 8), "select_epsilon_": (0,), **dict.fromkeys(LAYERS, (0,))}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    # Contiguous, and no element of it is where a 16-byte access may begin by chance alone.
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "batch_slice": lambda t: torch.cat([t, t])[1 : len(t) + 1],
    "every_second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
}

# torch.library.opcheck imports expecttest for a base class of test cases that it does not use here.
try:
    import expecttest  # noqa: F401
except ModuleNotFoundError:
    stand_in = ModuleType("expecttest")
    vars(stand_in).update(TestCase=unittest.TestCase, assert_expected_inline=None)
    sys.modules["expecttest"] = stand_in


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest, device: torch.device) -> ModuleType:
    """The functions of every backend in turn, whichever of them is the default."""
    try:
        return backends.load(request.param, device)
    except backends.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["native", "triton"])
def kernels(request: pytest.FixtureRequest, device: torch.device) -> ModuleType:
    """As `backend`, without the reference."""
    try:
        return backends.load(request.param, device)
    except backends.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def written(op: str) -> tuple[int, ...]:
    """Positions of the arguments that the op writes."""
    return WRITTEN.get(op, ())


@pytest.fixture
def arguments() -> Callable[..., tuple[Any, ...]]:
    return make_arguments


@pytest.fixture
def on(device: torch.device) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Copies of arguments on the GPU, with the strides they have on the CPU."""
    return lambda args: tuple(moved(a, device) if isinstance(a, Tensor) else a for a in args)


@pytest.fixture
def outcome() -> Callable[..., list[Tensor]]:
    return call_and_collect


@pytest.fixture
def assert_same() -> Callable[..., None]:
    return assert_same_tensors


@pytest.fixture
def tyro() -> None:
    """The trainer names its command line's annotations by tyro and evaluates them only to parse one."""
    try:
        import tyro  # noqa: F401
    except ModuleNotFoundError:
        for name in ("tyro", "tyro.conf", "tyro.constructors"):
            sys.modules[name] = MagicMock()


def make_arguments(
    op: str,
    *,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (5, 3, 8, 8),
    k: int = 1,
    layout: str = "contiguous",
    classes: int = 10,
    ordinary: bool = False,
) -> tuple[Any, ...]:
    """Arguments of an op's schema on the CPU: edge cases among random numbers, unless they shall be `ordinary`.

    Images lie outside ball and box, hold NaN and infinities; gradients hold zeros and NaN; radii 0 and larger than the
    box; logits ties, saturated rows and masked classes; layers NaN, infinities and outputs at the activation's bounds.
    """
    generator = torch.Generator().manual_seed(len(shape) + shape[-1] + k + classes)
    n = shape[0]

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    index = 12345 * torch.arange(n) + 2**31
    if op in ("ce_cotangent", "select_epsilon_"):
        rows = 3 * n if op == "select_epsilon_" else k * n
        logits = (8 * torch.randn(rows, classes, generator=generator)).round() / 4
        y = torch.randint(classes, (n,), generator=generator)
        if op == "ce_cotangent":
            if not ordinary:
                logits[::3] *= 40
                y[::2] = logits[:n:2].argmax(1)
                logits[1, : classes - 1] = -math.inf
            return logits.to(dtype), y, False
        y[::2] = logits[:n:2].argmax(1)
        memory = 0.1 * rand(2 * n + 7)
        visited = torch.randperm(len(memory), generator=generator)[:n]
        mask = rand(n) < 0.3
        return memory, visited, logits.to(dtype), y, 0.03, 0.1, 0.01, 0.09, True, mask
    if op == "random_crop_flip":
        _, channels, height, width = shape
        images = torch.randint(256, (2 * n, height, width, channels), generator=generator)
        picked = torch.randperm(2 * n, generator=generator)[:n]
        return images.to(torch.uint8), picked, torch.tensor([-(2**40) + 3, 5]), 3, True

    place = LAYOUTS[layout]
    if op in LAYERS:
        x, out, branch = (8 * rand(*shape) - 1 for _ in range(3))
        out = out.clamp(0, 6)  # as ReLU6 leaves it
        if not ordinary:
            for target in (x, out, branch):
                for value in (math.nan, math.inf, -math.inf, 0.1):
                    target[rand(*shape) < 0.02] = value
        x, out, branch = (place(t.to(dtype)) for t in (x, out, branch))
        real = torch.float64 if dtype is torch.float64 else torch.float32
        scale, shift = (4 * rand(2, shape[1]) - 2).to(real)
        if op == "relu_backward_":
            return x, out, branch, 0.0, 6.0
        if op == "scale_shift_relu":
            return x, branch, scale, shift, 0.1, math.inf
        return x, out, scale, branch, 0.0, 6.0
    rows = (k * n, *shape[1:])
    radii = torch.tensor([0.0, 8 / 255, 0.3, 1e-9, 2.0]).repeat(k * n)[: k * n]
    radii = radii.double() if dtype is torch.float64 else radii
    x = rand(*shape)
    if op == "random_start_linf":
        return place(x.to(dtype)), radii, torch.tensor([-(2**40) + 3, 2, 1]), index, 0.1, 0.9
    x_adv = x.repeat(k, *[1] * (len(shape) - 1)) + 0.8 * (rand(*rows) - 0.5)
    if not ordinary:
        x_adv[rand(*rows) < 0.01] = math.nan
        x_adv[rand(*rows) < 0.01] = math.inf
    x, x_adv = place(x.to(dtype)), place(x_adv.to(dtype))
    if op == "project_linf":
        return x_adv, x, radii, 0.1, 0.9
    grad = rand(*rows) - 0.5
    grad[rand(*rows) < 0.1] = 0.0
    if not ordinary:
        grad[rand(*rows) < 0.05] = math.nan
    step = radii / 4 + (radii > 0) * 0.01
    stats = torch.tensor([7, 9])
    return x_adv, place(grad.to(dtype)), x, radii, step, 0.1, 0.9, False, stats


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy with the same strides and the same offset from the start of its memory."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = torch.as_strided(tensor, (size,), (1,), 0)
    copy = whole.to(device, copy=True)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def call_and_collect(module: Any, op: str, args: tuple[Any, ...]) -> list[Tensor]:
    """What a call on copies of the arguments writes and returns."""
    copies = tuple(moved(a, a.device) if isinstance(a, Tensor) else a for a in args)
    poison(copies)
    returned = getattr(module, op)(*copies)
    results = returned if isinstance(returned, tuple) else (returned,)
    written = [copies[position] for position in WRITTEN.get(op, ())]
    return [t for t in (*written, *results) if isinstance(t, Tensor)]


def poison(args: tuple[Any, ...]) -> None:
    """Leave NaN in the memory that the next outputs of these sizes are likely to get: unwritten ones would show."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    blocks = [
        torch.full((size,), math.nan, device=t.device)
        for t in tensors
        for size in (max(t.numel() * t.element_size() // 4, 1), max(t.numel(), 1))
    ]
    del blocks


def assert_same_tensors(expected: list[Tensor], actual: list[Tensor], *, ulps: int = 0) -> None:
    """Equal bits (NaN where NaN is expected), dtypes and strides; `ulps` allows that many float64 roundings."""
    assert len(actual) == len(expected)
    for theirs, ours in zip(expected, actual, strict=True):
        assert ours.dtype is theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        ours, theirs = ours.cpu(), theirs.cpu()
        if ulps:
            bound = ulps * torch.finfo(torch.float64).eps
            torch.testing.assert_close(ours, theirs, rtol=bound, atol=0.0, equal_nan=True)
            continue
        different = ~((theirs == ours) | (theirs.isnan() & ours.isnan()))
        assert not different.any(), (
            f"{int(different.sum())} of {different.numel()} entries differ, "
            f"first {theirs[different][0]} against {ours[different][0]}"
        )
