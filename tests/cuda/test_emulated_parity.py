"""The CUDA kernels, run on the emulated device, give what the reference defines, and touch nothing but their buffers.

Every buffer of a call lies between guard zones (see `emulator.DeviceMemory`): an access outside of it, or one that is
not aligned, raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import primitives, reference
from tests.cuda import guarded
from tests.cuda.emulator import DeviceMemory
from tests.folded import every, rotated
from tests.ops.cases import (
    Images,
    Selection,
    assert_same,
    dtypes,
    logits_and_classes,
)

pytestmark = pytest.mark.slow  # the kernels are compiled

Layout = Callable[[Tensor], Tensor]

SHAPES = [(5, 1), (4, 63), (2, 3, 32, 32), (3, 1000), (7, 3, 5, 5), (6, 3), (0, 3, 8, 8), (3, 0)]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def offset_by(elements: int) -> Layout:
    """The same values at an address that many elements behind a multiple of 16 bytes."""

    def move(x: Tensor) -> Tensor:
        moved = torch.empty(x.numel() + elements, dtype=x.dtype)[elements:].view(x.shape)
        return moved.copy_(x)

    return move


LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "one element off": offset_by(1),
    "batch slice": lambda x: torch.cat([x[:1], x])[1:],
    "every_second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
}

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
CANDIDATES = [1, 3, 4]
# Long enough for the threads to take a second turn on the emulated device, with rows that straddle vectors.
LONG = (7, 20011)


@dtypes
@shapes
@every(k=CANDIDATES, layout=LAYOUTS)
def test_project_linf(
    native_cuda: ModuleType, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Layout
) -> None:
    case = Images(shape, k, dtype, layout)
    args = (case.x_adv, case.x, case.eps, 0.1, 0.9)
    assert_same("projection", reference.project_linf(*args), native_cuda.project_linf(*args))


def assert_same_step(
    native_cuda: ModuleType, case: Images, targeted: bool, *, counted: bool
) -> None:
    results = []
    for backend in (reference, native_cuda):
        x_adv, stats = case.x_adv.clone(), torch.tensor([7, 9]) if counted else None
        args = (x_adv, case.grad, case.x, case.eps, case.alpha, 0.1, 0.9, targeted, stats)
        backend.pgd_step_linf_(*args)
        results.append((x_adv, stats))
    assert_same("x_adv", results[0][0], results[1][0])
    if counted:
        assert_same("stats", results[0][1], results[1][1])


@dtypes
@shapes
@every(form=rotated(CANDIDATES, [*LAYOUTS], [False, True]))
def test_pgd_step_linf(
    native_cuda: ModuleType,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    form: tuple[int, str, bool],
) -> None:
    k, layout, counted = form
    case = Images(shape, k, dtype, LAYOUTS[layout])
    assert_same_step(native_cuda, case, targeted=counted, counted=counted)


@pytest.mark.parametrize("descending", [False, True])
def test_the_order_of_the_threads_changes_no_count(
    emulated: ModuleType, native_cuda: ModuleType, descending: bool
) -> None:
    emulated.run_threads_descending(descending)
    try:
        case = Images((5, 700), 3, torch.float32, LAYOUTS["contiguous"])
        assert_same_step(native_cuda, case, targeted=False, counted=True)
    finally:
        emulated.run_threads_descending(False)


@dtypes
@shapes
@every(k=CANDIDATES, layout=LAYOUTS)
def test_random_start_linf(
    native_cuda: ModuleType, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Layout
) -> None:
    case = Images(shape, k, dtype, layout)
    index = torch.arange(shape[0]) * 12345 + 2**31
    args = (case.x, case.eps, torch.tensor([-(2**40) + 3, 2, 1]), index, 0.1, 0.9)
    assert_same("start", reference.random_start_linf(*args), native_cuda.random_start_linf(*args))


@dtypes
@every(
    k=CANDIDATES,
    shape=[(2, 3, 32, 32), (3, 3, 5, 5), (2, 3, 2, 7), (2, 4, 6, 6), (2, 1, 4, 4)],
)
def test_random_start_of_channels_last_images(
    native_cuda: ModuleType, dtype: torch.dtype, k: int, shape: tuple[int, ...]
) -> None:
    for layout in (channels_last, lambda x: channels_last(torch.cat([x[:1], x]))[1:]):
        case = Images(shape, k, dtype, layout)
        args = (case.x, case.eps, torch.tensor([5]), torch.arange(shape[0]) + 9, 0.1, 0.9)
        expected = reference.random_start_linf(*args)
        assert_same("start", expected, native_cuda.random_start_linf(*args))


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_entries_that_a_seed_lacks_are_zero(native_cuda: ModuleType, entries: int) -> None:
    case = Images((3, 50), 3, torch.float32, LAYOUTS["contiguous"])
    args = (case.x, case.eps, torch.tensor([7, 8, 9])[:entries], torch.arange(3), 0.0, 1.0)
    assert_same("start", reference.random_start_linf(*args), native_cuda.random_start_linf(*args))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", [LONG, (11, 3, 64, 64)], ids=str)
def test_batches_that_take_several_turns_of_every_thread(
    native_cuda: ModuleType, k: int, shape: tuple[int, ...]
) -> None:
    case = Images(shape, k, torch.float32, LAYOUTS["contiguous"])
    args = (case.x_adv, case.x, case.eps, 0.1, 0.9)
    assert_same("projection", reference.project_linf(*args), native_cuda.project_linf(*args))
    assert_same_step(native_cuda, case, targeted=False, counted=True)
    args = (case.x, case.eps, torch.tensor([1]), torch.arange(shape[0]), 0.1, 0.9)
    assert_same("start", reference.random_start_linf(*args), native_cuda.random_start_linf(*args))


# 75 elements a row: vectors straddle rows, and 7 * 75 is no multiple of one. 8 * 75 is, for all types.
@dtypes
@pytest.mark.parametrize(("shape", "k"), [((7, 75), 1), ((8, 75), 1), ((8, 75), 3), ((8, 75), 4)])
@pytest.mark.parametrize("layout", [LAYOUTS["contiguous"], offset_by(1)], ids=["", "offset"])
def test_every_image_is_read_once_and_written_once(
    native_cuda: ModuleType,
    memory: DeviceMemory,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    k: int,
    layout: Layout,
) -> None:
    """x, shared by the candidates, also once: where vectors do not fit it, once for each."""
    case = Images(shape, k, dtype, layout)
    one = case.x.numel() * case.x.element_size()

    native_cuda.pgd_step_linf_(
        case.x_adv, case.grad, case.x, case.eps, case.alpha, 0.0, 1.0, False, None
    )
    assert memory.traffic["x_adv"] == (k * one, k * one)
    assert memory.traffic["grad"] == (k * one, 0)
    assert memory.traffic["x"] == (one, 0)

    native_cuda.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0)
    assert memory.traffic["x_adv"] == (k * one, 0)
    assert memory.traffic["out"] == (0, k * one)
    assert memory.traffic["x"] == (one, 0)


@dtypes
@every(
    form=rotated([1, 2, 10, 33, 100, 1000, 1024, 1500], [0.0, 1.0, 30.0, 1e4], [1, 3]),
)
def test_ce_cotangent(
    native_cuda: ModuleType, dtype: torch.dtype, form: tuple[int, float, int]
) -> None:
    """The same bits where a row saturates, and a stated distance where it does not.

    The kernel repeats the arithmetic of torch's CUDA softmax. The reference's plain gradient on a CPU comes from
    torch's CPU softmax, which adds in another order and has another expf. Where p is not 0, |log p| is below 88, so
    that each of two roundings of log p moves it by at most 2**-18 = 32 eps, in both softmaxes: p differs by 128 eps of
    itself. The y entry, p_y - 1, differs by as much of 1, and the row is then scaled by a power of two of up to 2**12.
    """
    classes, scale, k = form
    logits, y = logits_and_classes(k, classes, scale, dtype)
    expected = reference.ce_cotangent(logits, y, False)
    actual = native_cuda.ce_cotangent(logits, y, False)
    assert actual.dtype is expected.dtype
    assert actual.stride() == expected.stride()
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    plain = primitives.softmax_minus_onehot(logits.to(wide), y)
    missing = -plain.gather(1, y.repeat(k).view(-1, 1))
    saturated = missing[:, 0] <= primitives.SATURATION
    if dtype is torch.float64:  # the reference takes torch's exponential there
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(actual[saturated], expected[saturated], rtol=8 * ulp, atol=0.0)
    else:
        assert_same("saturated rows", expected[saturated], actual[saturated])
    eps = torch.finfo(wide).eps
    y_entry = torch.zeros_like(plain).scatter(1, y.repeat(k).view(-1, 1), 1.0)
    power = torch.where(missing > 0, 1 / missing, 1.0)  # at most twice the power of two
    bound = 128 * eps * (expected.abs() + y_entry * power) + torch.finfo(dtype).eps * expected.abs()
    different = (actual.double() - expected.double()).abs() > bound.double() + 1e-37
    assert not different[~saturated].any()


def test_the_cases_of_ce_cotangent_have_saturated_and_ordinary_rows() -> None:
    shares = []
    for scale in (1.0, 30.0):
        logits, y = logits_and_classes(3, 10, scale, torch.float32)
        missing = -primitives.softmax_minus_onehot(logits, y).gather(1, y.repeat(3).view(-1, 1))
        shares.append(float((missing <= primitives.SATURATION).float().mean()))
    assert shares[0] == 0
    assert 0 < shares[1] < 1


@dtypes
@pytest.mark.parametrize("classes", [10, 1000, 1500])
def test_a_class_out_of_range_makes_its_row_nan(
    native_cuda: ModuleType, dtype: torch.dtype, classes: int
) -> None:
    logits = torch.randn(8, classes, generator=torch.manual_seed(0)).to(dtype)
    y = torch.tensor([0, classes, -1, classes + 40, -(2**62), 2**62, classes - 1, 1])
    bad = (y < 0) | (y >= classes)
    actual = native_cuda.ce_cotangent(logits, y, False)
    assert actual[bad].isnan().all()
    expected = native_cuda.ce_cotangent(logits[~bad], y[~bad], False)
    assert_same("other rows", expected, actual[~bad])


@dtypes
@pytest.mark.parametrize("classes", [10, 1000])
def test_nan_and_infinite_logits_make_their_row_nan(
    native_cuda: ModuleType, dtype: torch.dtype, classes: int
) -> None:
    logits = torch.randn(5, classes, generator=torch.manual_seed(0)).to(dtype)
    logits[1, 3], logits[2, 4], logits[3] = math.nan, math.inf, -math.inf
    y = torch.tensor([0, 0, 4, 0, 3])
    actual = native_cuda.ce_cotangent(logits, y, False)
    assert actual.isnan().any(1).tolist() == [False, True, True, True, False]


# Many samples are many warps, many classes many turns of each: both at once is slow and nothing else.
SELECTIONS = [
    (samples, classes)
    for samples in (0, 1, 7, 40)
    for classes in (1, 4, 10, 100, 1000)
    if samples * classes <= 7000
]


@dtypes
@every(form=rotated(SELECTIONS, [False, True], [False, True]))
def test_select_epsilon(
    native_cuda: ModuleType, dtype: torch.dtype, form: tuple[tuple[int, int], bool, bool]
) -> None:
    (samples, classes), clamp_candidate, masked = form
    case = Selection(samples, dtype, classes=classes)
    mask = case.misclassified if masked else None
    results = []
    for backend in (reference, native_cuda):
        memory = case.memory.clone()
        args = (memory, case.index, case.logits, case.y)
        options = (0.03, 0.1, 0.01, 0.09, clamp_candidate, mask)
        results.append((memory, *backend.select_epsilon_(*args, *options)))
    for name, expected, actual in zip(("memory", "eps", "choice"), *results, strict=True):
        assert_same(name, expected, actual)


def test_an_index_out_of_range_leaves_the_memory_alone(native_cuda: ModuleType) -> None:
    case = Selection(8, torch.float32)
    bad = torch.tensor([False, True, False, True, True, True, True, False])
    case.index[bad] = torch.tensor([300, -1, 301, -(2**62), 2**62])
    expected = case.memory.clone()
    y, logits = case.y[~bad], case.logits.view(3, 8, -1)[:, ~bad].flatten(0, 1)
    good = reference.select_epsilon_(expected, case.index[~bad], logits, y, 0.03, 0.1, 0.0, 1.0)
    memory = case.memory.clone()
    args = (memory, case.index, case.logits, case.y, 0.03, 0.1, 0.0, 1.0)
    eps, choice = native_cuda.select_epsilon_(*args)
    assert torch.equal(memory, expected)
    assert eps[bad].isnan().all()
    assert (choice[bad] == -1).all()
    assert torch.equal(eps[~bad], good[0])
    assert torch.equal(choice[~bad], good[1])


def test_classes_out_of_range_are_never_predicted(native_cuda: ModuleType) -> None:
    case = Selection(4, torch.float32)
    case.y[:] = torch.tensor([4, -1, 2**62, -(2**62)])
    args = (case.memory.clone(), case.index, case.logits, case.y, 0.03, 0.1, 0.0, 1.0)
    assert native_cuda.select_epsilon_(*args)[1].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_nan_logits_count_as_the_largest_as_in_argmax(
    native_cuda: ModuleType, classes: int
) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(3 * 64, classes, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 1.5 / classes] = math.nan
    logits[torch.rand(logits.shape, generator=generator) < 0.5 / classes] = math.inf
    robust = logits.argmax(1).view(3, 64)
    y = torch.where(torch.arange(64) % 2 == 0, robust[0], robust[1])
    expected = torch.where(robust[0] == y, 0, torch.where(robust[1] == y, 1, 2))
    assert len(expected.unique()) > 1
    args = (torch.zeros(64), torch.arange(64), logits, y, 0.03, 0.1, 0.0, 1.0)
    assert torch.equal(native_cuda.select_epsilon_(*args)[1], expected)


def pictures(size: int, height: int, width: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    shape = (size, height, width, channels)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    "size", [(32, 32, 3), (8, 8, 1), (5, 7, 3), (9, 6, 4), (1, 1, 2), (33, 31, 3)], ids=str
)
@every(
    n=[1, 13],
    border=[(0, False), (0, True), (4, False), (4, True), (1, True)],
    entries=[1, 2],
)
def test_random_crop_flip(
    native_cuda: ModuleType,
    size: tuple[int, int, int],
    n: int,
    border: tuple[int, bool],
    entries: int,
) -> None:
    padding, flip = border
    if padding >= min(size[:2]):
        padding = min(size[:2]) - 1
    images = pictures(9, *size)
    index = torch.randint(9, (n,), generator=torch.Generator().manual_seed(n))
    args = (images, index, torch.tensor([2**40 + 5, 77])[:entries], padding, flip)
    expected = reference.random_crop_flip(*args)
    assert_same("images", expected, native_cuda.random_crop_flip(*args))


def test_an_empty_batch_is_cropped_to_an_empty_batch(native_cuda: ModuleType) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    actual = native_cuda.random_crop_flip(pictures(9, 8, 8, 3), none, torch.tensor([3]), 1, True)
    assert actual.shape == (0, 3, 8, 8)
    assert actual.dtype is torch.float32


def test_images_outside_the_data_set_are_nan(native_cuda: ModuleType) -> None:
    images, seed = pictures(9, 32, 32, 3), torch.tensor([3, 4])
    index = torch.tensor([8, 9, -1, 0, 2**62, -(2**62)])
    actual = native_cuda.random_crop_flip(images, index, seed, 4, True)
    assert actual[[1, 2, 4, 5]].isnan().all()
    expected = reference.random_crop_flip(images, index[[0, 3]], seed, 4, True)
    assert torch.equal(actual[[0, 3]], expected)


def test_one_launch_an_op(emulated: ModuleType, native_cuda: ModuleType) -> None:
    case, chosen = (
        Images((4, 63), 3, torch.float32, LAYOUTS["contiguous"]),
        Selection(7, torch.float32),
    )
    logits, y = logits_and_classes(1, 10, 1.0, torch.float32)
    seed, index = torch.tensor([1]), torch.arange(4)
    calls: dict[str, Callable[[], object]] = {
        "project": lambda: native_cuda.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0),
        "step": lambda: native_cuda.pgd_step_linf_(
            *(case.x_adv, case.grad, case.x, case.eps, case.alpha, 0.0, 1.0, False),
            torch.zeros(2, dtype=torch.int64),
        ),
        "start": lambda: native_cuda.random_start_linf(case.x, case.eps, seed, index, 0.0, 1.0),
        "cotangent": lambda: native_cuda.ce_cotangent(logits, y, False),
        "select": lambda: native_cuda.select_epsilon_(
            *(chosen.memory, chosen.index, chosen.logits, chosen.y, 0.03, 0.1, 0.0, 1.0)
        ),
        "crop": lambda: native_cuda.random_crop_flip(pictures(4, 8, 8, 3), index, seed, 1, True),
    }
    counts = {}
    for name, call in calls.items():
        before = emulated.launches()
        call()
        counts[name] = emulated.launches() - before
    assert counts == dict.fromkeys(calls, 1)


def test_a_launch_error_names_the_op(emulated: ModuleType, native_cuda: ModuleType) -> None:
    case = Images((4, 63), 1, torch.float32, LAYOUTS["contiguous"])
    emulated.fail_next_launch()
    with pytest.raises(
        RuntimeError, match=r"^project_linf: CUDA error: cudaErrorInvalidValue: invalid argument"
    ):
        native_cuda.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0)
    native_cuda.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0)


def test_kernels_run_on_the_tensors_device_and_leave_the_current_one(
    emulated: ModuleType, native_cuda: ModuleType
) -> None:
    case = Images((4, 63), 1, torch.float32, LAYOUTS["contiguous"])
    native_cuda.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0)
    assert emulated.last_device() == guarded.DEVICE
    assert emulated.current_device() == 0
