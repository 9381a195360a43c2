"""What torch asks of a registered op: schema, fake tensors, autograd and functionalisation agree with the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from iaat_fast import ops

_ops = torch.ops.iaat_fast

IMAGES: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.rand(2, 3, 8, 8),
    "channels_last": lambda: torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),
    "one channel": lambda: torch.rand(2, 1, 8, 8).contiguous(memory_format=torch.channels_last),
    "slice": lambda: torch.rand(2, 3, 8, 8)[:, :, :4],
    "channels_last slice": lambda: torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2)[:, :, ::2],
    "batch slice": lambda: torch.rand(5, 3, 8, 8)[1:4],
    "permuted": lambda: torch.rand(2, 3, 8, 8).transpose(2, 3),
    "transposed matrix": lambda: torch.rand(8, 3).t(),
    "video": lambda: torch.rand(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d),
    "expanded": lambda: torch.rand(1, 3, 8, 8).expand(2, -1, -1, -1),
    "scalars": lambda: torch.rand(4),
    "empty": lambda: torch.rand(0, 3, 8, 8),
    "float64": lambda: torch.rand(2, 5, dtype=torch.float64),
    "half": lambda: torch.rand(2, 5).half(),
}
images = pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())


# A registration knows of no layout, and opcheck takes its time. The results' strides have tests below, over all images.
CHECKED = ("contiguous", "channels_last", "slice", "scalars", "empty", "half")


def in_turn(
    cases: dict[str, Callable[[], Tensor]], name: str, values: list[Any]
) -> pytest.MarkDecorator:
    """Those of the cases that opcheck sees, each with one of the values."""
    checked = {case: cases[case] for case in CHECKED if case in cases}
    chosen = [
        pytest.param(
            make, values[number % len(values)], id=f"{case}-{values[number % len(values)]}"
        )
        for number, (case, make) in enumerate(checked.items())
    ]
    return pytest.mark.parametrize(("make", name), chosen)


def opcheck(op: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """With the Triton kernels, interpreted, what depends on kernels: what is written, and the results' form."""
    of_kernels = ("test_schema", "test_faketensor")
    of_registration = ("test_autograd_registration", "test_aot_dispatch_dynamic")
    chosen = of_kernels if ops.backend() == "triton" else of_kernels + of_registration
    torch.library.opcheck(op, args, test_utils=chosen)


def radii(x: Tensor, rows: int | None = None) -> Tensor:
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    return torch.full((len(x) if rows is None else rows,), 0.1, dtype=dtype)


@in_turn(IMAGES, "learns", [True, False])
def test_project_linf(make: Callable[[], Tensor], learns: bool) -> None:
    x, leaf = make(), make().detach().requires_grad_(learns)
    opcheck(_ops.project_linf, (leaf, x, radii(x), 0.0, 1.0))


@in_turn(IMAGES, "counted", [False, True])
def test_pgd_step_linf(make: Callable[[], Tensor], counted: bool) -> None:
    x = make()
    stats = torch.zeros(2, dtype=torch.int64) if counted else None
    x_adv = x.clone()
    grad = torch.randn_like(x)
    args = (x_adv, grad, x, radii(x), radii(x), 0.0, 1.0, False, stats)
    opcheck(_ops.pgd_step_linf_, args)


@in_turn(IMAGES, "k", [1, 3])
def test_random_start_linf(make: Callable[[], Tensor], k: int) -> None:
    x = make()
    args = (x, radii(x, k * len(x)), torch.tensor([1, 2, 3]), torch.arange(len(x)), 0.0, 1.0)
    opcheck(_ops.random_start_linf, args)


# Every type and every number of candidates, as `in_turn`.
@pytest.mark.parametrize(
    ("dtype", "k"),
    [(torch.float32, 3), (torch.float64, 1), (torch.float16, 0), (torch.bfloat16, 3)],
)
def test_ce_cotangent(dtype: torch.dtype, k: int) -> None:
    logits = torch.randn(10, 4 * k, dtype=torch.float32).to(dtype).t()
    y = torch.arange(4 if k else 0)
    opcheck(_ops.ce_cotangent, (logits, y, False))


@pytest.mark.parametrize("masked", [False, True])
def test_select_epsilon(masked: bool) -> None:
    mask = torch.tensor([True, False]) if masked else None
    args = (torch.rand(5), torch.tensor([3, 1]), torch.randn(6, 4), torch.tensor([0, 1]))
    opcheck(_ops.select_epsilon_, (*args, 0.1, 0.1, 0.0, 1.0, masked, mask))


@pytest.mark.parametrize(("n", "seed"), [(0, [1]), (1, [1, 2]), (5, [1]), (5, [1, 2])], ids=str)
def test_random_crop_flip(n: int, seed: list[int]) -> None:
    data = torch.randint(256, (3, 6, 7, 2), dtype=torch.uint8)
    args = (data, torch.arange(n) % 3, torch.tensor(seed), 4, True)
    opcheck(_ops.random_crop_flip, args)


LAYERS = {name: make for name, make in IMAGES.items() if name != "scalars"}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
branches = pytest.mark.parametrize("branch", [False, True], ids=["", "with a branch"])


def per_channel(x: Tensor) -> Tensor:
    return radii(x, x.shape[1]) + 1


@in_turn(IMAGES, "branch", [False, True])
def test_relu_backward(make: Callable[[], Tensor], branch: bool) -> None:
    args = (make().clone(), make(), make() if branch else None, 0.0, 6.0)
    opcheck(_ops.relu_backward_, args)


@in_turn(LAYERS, "branch", [False, True])
def test_scale_shift_relu(make: Callable[[], Tensor], branch: bool) -> None:
    x = make().clone()
    args = (x, make() if branch else None, per_channel(x), per_channel(x), 0.0, math.inf)
    opcheck(_ops.scale_shift_relu, args)


@in_turn(LAYERS, "branch", [False, True])
def test_scale_shift_relu_backward(make: Callable[[], Tensor], branch: bool) -> None:
    grad = make().clone()
    args = (grad, make(), per_channel(grad), make() if branch else None, 0.0, math.inf)
    opcheck(_ops.scale_shift_relu_backward_, args)


@layers
@branches
def test_a_layer_has_the_strides_that_tracing_sees(
    make: Callable[[], Tensor], branch: bool
) -> None:
    x, residual = make(), make() if branch else None
    x = x.clone() if branch else x
    values = (per_channel(x), per_channel(x), 0.0, math.inf)
    with FakeTensorMode() as mode:
        fake = [a if not isinstance(a, Tensor) else mode.from_tensor(a) for a in (x, residual)]
        traced = _ops.scale_shift_relu(*fake, *map(mode.from_tensor, values[:2]), *values[2:])
    real = _ops.scale_shift_relu(x, residual, *values)
    assert traced.dtype is real.dtype
    assert traced.shape == real.shape
    assert traced.stride() == real.stride()


@images
@pytest.mark.parametrize("k", [1, 2])
def test_the_strides_that_tracing_sees_are_those_of_the_result(
    make: Callable[[], Tensor], k: int
) -> None:
    x = make()
    x_adv = x if k == 1 else torch.cat([x, x])
    eps, seed, index = radii(x, k * len(x)), torch.tensor([0]), torch.arange(len(x))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x_adv, x, eps, seed, index)]
        traced = (
            _ops.project_linf(*fake[:3], 0.0, 1.0),
            _ops.random_start_linf(*fake[1:], 0.0, 1.0),
        )
    real = (
        _ops.project_linf(x_adv, x, eps, 0.0, 1.0),
        _ops.random_start_linf(x, eps, seed, index, 0.0, 1.0),
    )
    for expected, actual in zip(traced, real, strict=True):
        assert actual.dtype is expected.dtype
        assert actual.shape == expected.shape
        assert actual.stride() == expected.stride()


def test_unwritten_outputs_would_show() -> None:
    """What the fixture of these tests relies on."""
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.rand(3)).isnan().all()
    assert torch.rand(3).new_empty(3).isnan().all()
