"""The stem's Triton kernels, interpreted on the CPU, are right to the error of a float32 sum; their step bit for bit.

Run by test_triton.py, as interpreted_triton.py is.
"""

from __future__ import annotations

import math

import pytest
import torch

from iaat_fast import ops
from iaat_fast.ops import triton as triton_ops
from iaat_fast.ops.triton import stem as triton_stem
from tests.folded import rotated
from tests.ops import stem_cases
from tests.ops.stem_cases import (
    HALF,
    LAYOUTS,
    Stem,
    assert_forward_right,
    assert_step_right,
)
from tests.ops.test_registration import opcheck

_ops = torch.ops.iaat_fast

pytestmark = pytest.mark.triton

# As SHAPES, in fewer tiles: the interpreter takes its time for each.
FEWER = {
    (3, 64, 32, 32): (3, 64, 8, 32),
    (1, 64, 9, 33): (1, 64, 5, 33),
    (4, 160, 6, 65): (4, 96, 2, 65),
}
SHAPES = [FEWER.get(shape, shape) for shape in stem_cases.SHAPES]

every_pair = pytest.mark.parametrize(
    ("dtype", "shape", "layout"), rotated(HALF, SHAPES, [*LAYOUTS]), ids=str
)


@every_pair
def test_the_convolution(dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int]) -> None:
    assert_forward_right(Stem(shape, dtype, layout=layout), triton_ops)


@every_pair
def test_the_step(dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int]) -> None:
    assert_step_right(Stem(shape, dtype, layout=layout), triton_ops)


# All pairs of values.
@pytest.mark.parametrize(
    ("shape", "targeted", "counted", "dtype"),
    [
        ((3, 8, 5, 7), False, False, HALF[0]),
        ((3, 8, 5, 7), True, True, HALF[1]),
        ((3, 16, 1, 1), False, True, HALF[0]),
        ((3, 16, 1, 1), True, False, HALF[1]),
        ((3, 16, 2, 67), False, False, HALF[1]),
        ((3, 16, 2, 67), True, True, HALF[0]),
    ],
    ids=str,
)
def test_candidates_up_and_down_with_and_without_counts(
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    targeted: bool,
    counted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_stem, "_ROWS", 2)  # a walk takes two turns more than its rows
    case = Stem(shape, dtype, k=3)
    assert_step_right(case, triton_ops, targeted=targeted, counted=counted)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("shape", "k"), [((3, 8, 9, 7), 3), ((3, 16, 2, 70), 1)], ids=str)
def test_nan_stays_nan(dtype: torch.dtype, shape: tuple[int, int, int, int], k: int) -> None:
    case = Stem(shape, dtype, k=k, poisoned=True)
    assert case.gradient()[0].isnan().any()
    assert_forward_right(case, triton_ops)
    assert_step_right(case, triton_ops)


@pytest.mark.parametrize(("floor", "ceiling"), [(-math.inf, math.inf), (0.0, 0.3), (-0.25, 1.0)])
def test_bounds_of_the_result(floor: float, ceiling: float) -> None:
    assert_forward_right(Stem((3, 8, 5, 7), torch.bfloat16), triton_ops, floor, ceiling)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_any_length_of_a_walk(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_stem, "_ROWS", rows)
    assert_step_right(Stem((3, 8, 5, 12), torch.bfloat16, k=2), triton_ops)


def test_other_layouts_are_right_too() -> None:
    """Images that are every second column of others, a gradient and a weight that are not channels_last."""
    case = Stem((3, 8, 5, 7), torch.float16)
    for name in ("x", "x_adv", "weight"):
        tensor = getattr(case, name)
        setattr(case, name, torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2])
    case.grad = case.grad.contiguous()
    assert_forward_right(case, triton_ops)
    assert_step_right(case, triton_ops)


@pytest.mark.parametrize("served", [True, False])
def test_what_the_kernels_do_not_serve_is_the_references(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 weights, and images too large to count in 32 bits."""
    case = Stem((3, 8, 5, 7), torch.float32)
    if not served:
        monkeypatch.setattr(triton_stem, "_INT32_MAX", 100)
        case = Stem((3, 8, 5, 7), torch.float16)
    monkeypatch.setattr(triton_stem, "stem_conv_relu_kernel", None)
    monkeypatch.setattr(triton_stem, "stem_conv_step_kernel", None)
    assert_forward_right(case, triton_ops)
    assert_step_right(case, triton_ops)


def test_no_images_at_all() -> None:
    weight, channel = torch.randn(8, 3, 3, 3).half(), torch.ones(3)
    x = torch.rand(0, 3, 5, 7)
    out = ops.stem_conv_relu(x, channel, channel, weight, torch.ones(8).half())
    assert out.shape == (0, 8, 5, 7)
    assert ops.stem_conv_step_(x, out, weight, x, 0.1, 0.1) is x


def test_bad_radii_are_named() -> None:
    case = Stem((3, 8, 5, 7), torch.float16)
    case.eps[1] = -0.5
    with pytest.raises(ValueError, match=r"^eps: -0\.5 at index 1, expected a number >= 0"):
        _ops.stem_conv_step_(*case.step_args(False, None))


def test_torch_knows_both() -> None:
    assert ops.backend() == "triton"
    case = Stem((3, 8, 2, 4), torch.float16, layout="channels_last")
    opcheck(_ops.stem_conv_relu, case.forward_args())
    stats = torch.zeros(2, dtype=torch.int64)
    opcheck(_ops.stem_conv_step_, case.step_args(False, stats))
