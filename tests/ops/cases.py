"""Inputs on which every backend must equal the reference: dtypes, awkward shapes, layouts, NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(5, 1), (4, 63), (2, 3, 32, 32), (3, 1000), (0, 3, 8, 8), (3, 0)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    ),
    "every_second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
CANDIDATES = [1, 3]
candidates = pytest.mark.parametrize("k", CANDIDATES)


def assert_same(name: str, expected: Tensor, actual: Tensor) -> None:
    """The same dtype, strides and values, NaN where NaN is expected."""
    assert actual.dtype is expected.dtype, name
    assert actual.stride() == expected.stride(), name
    different = ~((expected == actual) | (expected.isnan() & actual.isnan()))
    assert not different.any(), (
        f"{name}: {int(different.sum())} of {different.numel()} entries differ, "
        f"first {expected[different][0]} against {actual[different][0]}"
    )


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


class Images:
    """x in [0, 1]; x_adv round it, partly outside ball and box, with NaN and infinity; gradients with 0 and NaN."""

    def __init__(
        self, shape: tuple[int, ...], k: int, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
    ) -> None:
        generator = torch.Generator().manual_seed(len(shape) + shape[-1] + k)
        rows = (k * shape[0], *shape[1:])

        def rand(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64)

        x = rand(*shape)
        x_adv = x.repeat(k, *[1] * (len(shape) - 1)) + 0.8 * (rand(*rows) - 0.5)
        grad = rand(*rows) - 0.5
        grad[rand(*rows) < 0.1] = 0.0
        for target, value, share in ((x_adv, math.nan, 0.01), (x_adv, math.inf, 0.01)):
            target[rand(*rows) < share] = value
        grad[rand(*rows) < 0.05] = math.nan
        self.x, self.x_adv, self.grad = (layout(t.to(dtype)) for t in (x, x_adv, grad))
        radii = torch.tensor([0.0, 8 / 255, 0.3, 1e-9, 2.0], dtype=arithmetic(dtype))
        self.eps = radii.repeat(rows[0])[: rows[0]]
        self.alpha = self.eps / 4 + (self.eps > 0) * 0.01


def logits_and_classes(
    k: int, classes: int, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Logits [6k, classes] and y [6]: half the rows predict their class, every third has a masked one."""
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(6 * k, classes, generator=generator)
    logits[:, -1:][1::3] = -math.inf if classes > 1 else 0.0
    logits = logits.to(dtype)
    y = torch.randint(classes, (6,), generator=generator)
    y[:3] = logits[:3].argmax(1)
    return logits, y


class Selection:
    """Three candidates' logits, with ties, and 300 radii of which `samples` are up for renewal."""

    def __init__(self, samples: int, dtype: torch.dtype, *, classes: int = 4) -> None:
        generator = torch.Generator().manual_seed(samples)
        self.logits = torch.randn(3 * samples, classes, generator=generator).round().to(dtype)
        self.y = torch.randint(classes, (samples,), generator=generator)
        self.index = torch.randperm(300, generator=generator)[:samples]
        self.misclassified = torch.rand(samples, generator=generator) < 0.3
        self.memory = 0.1 * torch.rand(300, generator=generator)


# Elements 1, 63 and 3072; channels 1, 3, 64 and 65, before 1, 15, 16, 21, 25 and 1024 elements of each; none at all.
LAYER_SHAPES = [
    *((1, 1), (63, 1), (21, 3), (1, 3, 32, 32), (3, 1, 7, 5), (6, 3, 3, 5), (5, 64), (2, 64, 4, 4)),
    *((2, 64, 5, 5), (2, 65, 3, 7), (4, 65), (2, 3, 2, 3, 4), (0, 3, 8, 8), (3, 0)),
]
BOUNDS = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "none": (-math.inf, math.inf),
    # No half type has these: an output at a bound is a rounded one.
    "odd": (-0.7, 0.1),
}
layer_shapes = pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)


def bounds_in_turn(dtype: torch.dtype, branch: bool) -> list[tuple[float, float]]:
    """Two of the bounds: over types and branches each meets each, and whatever these are combined with."""
    return [*BOUNDS.values()][(DTYPES.index(dtype) + branch) % 2 :: 2]


branches = pytest.mark.parametrize("branch", [False, True], ids=["", "with a branch"])


class Layer:
    """Values inside a network and gradients of them, with NaN, infinities and outputs at the bounds of activations."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
    ) -> None:
        generator = torch.Generator().manual_seed(sum(shape))

        def values() -> Tensor:
            drawn = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for bound in {b for bounds in BOUNDS.values() for b in bounds} | {math.nan}:
                drawn[torch.rand(shape, generator=generator) < 0.05] = bound
            return layout(drawn.to(dtype))

        self.x, self.grad, self.out, self.branch = values(), values(), values(), values()
        parameters = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
        self.scale, self.shift = parameters.to(arithmetic(dtype))

    def results(
        self, backend: Any, bounds: tuple[float, float], *, branch: bool
    ) -> dict[str, Tensor]:
        """What each of the three ops writes and returns on copies."""
        other = self.branch if branch else None
        x, masked, scaled = (
            copied.clone(memory_format=torch.preserve_format)
            for copied in (self.x, self.grad, self.grad)
        )
        backend.relu_backward_(masked, self.out, other, *bounds)
        out = backend.scale_shift_relu(x, other, self.scale, self.shift, *bounds)
        backend.scale_shift_relu_backward_(scaled, self.out, self.scale, other, *bounds)
        return {"masked": masked, "x": x, "out": out, "scaled": scaled}

    def assert_same(self, backend: Any, *bounds: tuple[float, float], branch: bool) -> None:
        """The backend gives the bits of the reference, half types included: they are rounded once."""
        for activation in bounds or BOUNDS.values():
            expected = self.results(reference, activation, branch=branch)
            for name, actual in self.results(backend, activation, branch=branch).items():
                assert_same(f"{name}, {activation}", expected[name], actual)
