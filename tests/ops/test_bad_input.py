"""Bad input to the ops is refused with an error that names the argument, its value and what was expected."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from iaat_fast import ops

X = torch.full((4, 3), 0.5)
LABELS = torch.tensor([0, 1, 2, 0])
LOGITS = torch.zeros(4, 3)
PIXELS = torch.zeros(4, 5, 6, 1, dtype=torch.uint8)


def step(**changes: Any) -> None:
    arguments = {"x_adv": X.clone(), "grad": X, "x": X, "eps": 0.1, "alpha": 0.1, **changes}
    ops.pgd_step_linf_(**arguments)


def project(**changes: Any) -> None:
    ops.project_linf(**{"x_adv": X, "x": X, "eps": 0.1, **changes})


def start(**changes: Any) -> None:
    ops.random_start_linf(**{"x": X, "eps": 0.1, "seed": 0, **changes})


def cotangent(**changes: Any) -> None:
    ops.ce_cotangent(**{"logits": LOGITS, "y": LABELS, **changes})


def select(**changes: Any) -> None:
    arguments = {
        "memory": torch.zeros(9),
        "index": torch.arange(4),
        "logits": torch.zeros(12, 3),
        "y": LABELS,
        "gamma": 0.1,
        "beta": 0.1,
        **changes,
    }
    ops.select_epsilon_(**arguments)


def crop(**changes: Any) -> None:
    arguments = {"images": PIXELS, "index": torch.arange(4), "seed": 0, **changes}
    ops.random_crop_flip(**arguments)


@pytest.mark.parametrize("op", [project, step, start])
@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (-0.1, r"^eps: -0\.1, expected a number >= 0"),
        (math.nan, r"^eps: nan, expected a number >= 0"),
        (torch.tensor([0.1, 0.1, -0.5, 0.1]), r"^eps: -0\.5 at index 2, expected a number >= 0"),
        (torch.tensor([0.1, math.nan, 0.1, 0.1]), r"^eps: nan at index 1, expected"),
        (torch.tensor(-0.5), r"^eps: -0\.5 at index 0, expected"),
        (torch.full((3,), 0.1), r"^eps: (shape \(3,\)|length 3), expected"),
        (
            torch.full((4, 1, 1), 0.1),
            r"^eps: shape \(4, 1, 1\), expected a float or one value per row",
        ),
        (
            torch.full((4,), 0.1, device="meta"),
            r"^eps: device meta, expected that of the images, cpu",
        ),
    ],
)
def test_a_bad_radius(op: Any, eps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(eps=eps)


@pytest.mark.parametrize("op", [project, step, start])
@pytest.mark.parametrize("eps", ["8/255", None, torch.tensor([1, 1, 1, 1])])
def test_a_radius_of_another_type(op: Any, eps: Any) -> None:
    with pytest.raises(TypeError, match=r"^eps: .*expected a"):
        op(eps=eps)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (0.0, r"^alpha: 0\.0, expected a number > 0"),
        (-0.1, r"^alpha: -0\.1, expected a number > 0"),
        (math.nan, r"^alpha: nan, expected a number > 0"),
        (torch.tensor([0.1, 0.0, 0.1, 0.1]), r"^alpha: 0\.0 at index 1, expected a number > 0"),
        (torch.tensor([0.1, 0.1, 0.1, math.nan]), r"^alpha: nan at index 3, expected"),
        (
            torch.full((5,), 0.1),
            r"^alpha: shape \(5,\), expected a float or one value per row, \[4\]",
        ),
    ],
)
def test_a_bad_step_size(alpha: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(alpha=alpha)


@pytest.mark.parametrize("op", [project, step, start])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_images_that_are_not_floating_point(op: Any, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^x: dtype {dtype}, expected float32"):
        op(x=torch.zeros(4, 3, dtype=dtype))
    with pytest.raises(TypeError, match=r"^x: list, expected a torch\.Tensor"):
        op(x=[[0.5]])
    with pytest.raises(ValueError, match=r"^x: shape \(\), expected \[N, \.\.\.\]"):
        op(x=torch.tensor(0.5))


@pytest.mark.parametrize("op", [project, step])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (2, 3), (4, 3, 1), (3,), (0, 3)])
def test_images_of_another_shape(op: Any, shape: tuple[int, ...]) -> None:
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"^x_adv: shape {found}, expected that of x, \(4, 3\)"):
        op(x_adv=torch.zeros(shape))


@pytest.mark.parametrize("op", [project, step])
def test_images_of_another_dtype_or_device(op: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^x_adv: dtype torch.float16, expected that of x, torch.float32"
    ):
        op(x_adv=X.half())
    with pytest.raises(ValueError, match=r"^x_adv: device meta, expected that of x, cpu"):
        op(x_adv=X.to("meta"))


def test_a_gradient_of_another_shape_or_dtype() -> None:
    with pytest.raises(
        ValueError, match=r"^grad: shape \(8, 3\), expected that of x_adv, \(4, 3\)"
    ):
        step(grad=torch.zeros(8, 3))
    with pytest.raises(TypeError, match=r"^grad: dtype torch.float64, expected that of x_adv"):
        step(grad=X.double())


def test_a_tensor_that_requires_grad_is_not_written_in_place() -> None:
    with pytest.raises(ValueError, match=r"^x_adv: requires grad, .*pass x_adv\.detach\(\)"):
        step(x_adv=X.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"^memory: requires grad"):
        select(memory=torch.zeros(9, requires_grad=True))


@pytest.mark.parametrize("op", [project, step, start])
@pytest.mark.parametrize(("lo", "hi"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_a_box_that_is_none(op: Any, lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match=rf"^lo, hi: {lo}, {hi}, expected lo <= hi"):
        op(lo=lo, hi=hi)


@pytest.mark.parametrize("stats", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1).long()])
def test_counters_of_another_shape(stats: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^stats: shape .*, expected \[2\]"):
        step(stats=stats)


def test_counters_of_another_dtype_or_device() -> None:
    with pytest.raises(TypeError, match=r"^stats: dtype torch.int32, expected int64"):
        step(stats=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^stats: device meta, expected cpu"):
        step(stats=torch.zeros(2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("op", [start, crop])
@pytest.mark.parametrize("seed", [0.5, True, None, "0", torch.tensor([0.5])])
def test_a_seed_of_another_type(op: Any, seed: Any) -> None:
    with pytest.raises(TypeError, match=r"^seed: .*expected"):
        op(seed=seed)


@pytest.mark.parametrize(("op", "most"), [(start, 3), (crop, 2)])
def test_seeds_and_stream_numbers_out_of_range(op: Any, most: int) -> None:
    with pytest.raises(ValueError, match=r"^seed: 9223372036854775808, expected a number in"):
        op(seed=2**63)
    for entries in (most + 1, 0):
        with pytest.raises(ValueError, match=rf"^seed: {entries} entries, expected 1 to {most}"):
            op(seed=torch.zeros(entries, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^seed: device meta, expected cpu"):
        op(seed=torch.zeros(1, dtype=torch.int64, device="meta"))


def test_stream_numbers_that_are_no_whole_numbers() -> None:
    with pytest.raises(TypeError, match=r"^stream: 1\.0, expected an int"):
        crop(stream=1.0)
    with pytest.raises(TypeError, match=r"^restart: 0\.5, expected an int"):
        start(restart=0.5)
    with pytest.raises(TypeError, match=r"^candidate: 1\.0, expected an int"):
        start(candidate=1.0)


@pytest.mark.parametrize("op", [start, select, crop])
def test_sample_numbers_of_another_type_or_length(op: Any) -> None:
    with pytest.raises(TypeError, match=r"^index: dtype torch.int32, expected int64"):
        op(index=torch.arange(4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^index: shape \(4, 1\), expected"):
        op(index=torch.arange(4).view(4, 1))


def test_sample_numbers_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"^index: shape \(3,\), expected \[4\]"):
        start(index=torch.arange(3))


@pytest.mark.parametrize("op", [cotangent, select])
@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (
            torch.tensor([0, 1, 3, 0]),
            ValueError,
            r"^y: 3 at index 2, expected a class in 0 \.\.\. 2",
        ),
        (
            torch.tensor([0, 1, 2, -1]),
            ValueError,
            r"^y: -1 at index 3, expected a class in 0 \.\.\. 2",
        ),
        (torch.zeros(4), TypeError, r"^y: dtype torch.float32, expected int64"),
        (torch.zeros(4, dtype=torch.int32), TypeError, r"^y: dtype torch.int32, expected int64"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"^y: (shape \(3,\)|length 3), expected"),
        (torch.zeros(4, 1, dtype=torch.int64), ValueError, r"^y: shape \(4, 1\), expected"),
        (torch.zeros(0, dtype=torch.int64), ValueError, r"^y: (shape \(0,\)|length 0), expected"),
        ([0, 1, 2, 0], TypeError, r"^y: list, expected a torch\.Tensor"),
    ],
)
def test_bad_labels(op: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        op(y=y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_logits_that_are_no_numbers(bad: float, dtype: torch.dtype) -> None:
    logits = torch.zeros(12, 3, dtype=dtype)
    logits[7, 1] = bad
    for op in (cotangent, select):
        with pytest.raises(
            ValueError, match=rf"^logits: \[0\.0, {bad}, 0\.0\] in row 7, expected numbers"
        ):
            op(logits=logits)


@pytest.mark.parametrize("op", [cotangent, select])
def test_logits_of_another_type_or_shape(op: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^logits: dtype torch.int64, expected a floating-point type"
    ):
        op(logits=torch.zeros(12, 3, dtype=torch.int64))
    for shape in ((12,), (12, 3, 1), (12, 0)):
        with pytest.raises(ValueError, match=r"^logits: shape \(12.*expected \[N, C\]"):
            op(logits=torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"logits": torch.zeros(4, 3)},
            r"^logits: 4 rows on cpu, expected 3 candidates of 4 samples",
        ),
        ({"gamma": -0.1}, r"^gamma: -0\.1, expected a number >= 0"),
        ({"gamma": math.nan}, r"^gamma: nan, expected"),
        ({"beta": 1.1}, r"^beta: 1\.1, expected a number in \[0, 1\]"),
        ({"beta": math.nan}, r"^beta: nan, expected"),
        ({"eps_min": -0.1}, r"^eps_min, eps_max: -0\.1, None, expected 0 <= eps_min <= eps_max"),
        ({"eps_min": 0.2, "eps_max": 0.1}, r"^eps_min, eps_max: 0\.2, 0\.1, expected"),
        (
            {"index": torch.tensor([0, 1, 2, 9])},
            r"^index: 9 at index 3, expected a sample in 0 \.\.\. 8",
        ),
        (
            {"index": torch.tensor([0, -1, 2, 3])},
            r"^index: -1 at index 1, expected a sample in 0 \.\.\. 8",
        ),
        (
            {"misclassified": torch.zeros(4)},
            r"^misclassified: torch.float32 of shape \(4,\), expected bool \[4\]",
        ),
        (
            {"misclassified": torch.zeros(3).bool()},
            r"^misclassified: torch.bool of shape \(3,\), expected",
        ),
    ],
)
def test_bad_arguments_of_the_selection(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(**changes)


def test_a_memory_that_is_not_float32() -> None:
    for memory in (torch.zeros(9, dtype=torch.float64), torch.zeros(3, 3)):
        with pytest.raises(TypeError, match=r"^memory: .*expected float32 \[size\]"):
            select(memory=memory)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [[0]]}, TypeError, r"^images: list, expected a torch\.Tensor"),
        ({"images": PIXELS.float()}, TypeError, r"^images: dtype torch.float32, expected uint8"),
        (
            {"images": PIXELS[0]},
            ValueError,
            r"^images: shape \(5, 6, 1\), expected contiguous \[size, H, W, C\]",
        ),
        (
            {"images": PIXELS.transpose(1, 2)},
            ValueError,
            r"^images: shape \(4, 6, 5, 1\), not contiguous, expected contiguous",
        ),
        (
            {"padding": 5},
            ValueError,
            r"^padding: images of 5 x 6 are too small to reflect 5 pixels, .* at least 6 x 6",
        ),
        ({"padding": -1}, ValueError, r"^padding: -1, expected at least 0"),
        ({"padding": 1.0}, TypeError, r"^padding: 1\.0, expected an int"),
        ({"padding": True}, TypeError, r"^padding: True, expected an int"),
        (
            {"index": torch.tensor([0, 4])},
            ValueError,
            r"^index: 4 at index 1, expected a sample in 0 \.\.\. 3",
        ),
        (
            {"index": torch.tensor([-1])},
            ValueError,
            r"^index: -1 at index 0, expected a sample in 0 \.\.\. 3",
        ),
        ({"images": PIXELS[:0]}, ValueError, r"^index: 4 samples of a data set of 0"),
        (
            {"index": torch.arange(4, device="meta")},
            ValueError,
            r"^index: device meta, expected cpu",
        ),
    ],
)
def test_bad_arguments_of_the_augmentation(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        crop(**changes)
