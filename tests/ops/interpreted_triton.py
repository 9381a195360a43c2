"""The Triton kernels, interpreted on the CPU, give what the reference defines: the same bits.

test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1 and IAAT_FAST_BACKEND=triton: the kernels
are bound to the interpreter when they are first imported.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from iaat_fast import ops
from iaat_fast.ops import checks, reference
from iaat_fast.ops import triton as triton_ops
from iaat_fast.ops.triton import common
from tests.folded import rotated
from tests.ops import cases
from tests.ops.cases import LAYOUTS, Images, assert_same, candidates

# Beside the usual: a border between rows in a tile and a last partial vector, in rows longer and shorter than a tile.
# Fewer images than there, and fewer pixels below: the interpreter takes its time for every tile.
FEWER = {(2, 3, 32, 32): (1, 3, 24, 24), (3, 1000): (2, 1000)}
SHAPES = [*(FEWER.get(shape, shape) for shape in cases.SHAPES), (2, 1101), (3, 341)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())

pytestmark = pytest.mark.triton


def assert_all_ops_agree(case: Images, *, targeted: bool = False) -> None:
    """Projection, step and random start on the images of a case."""
    box = (0.1, 0.9)
    args = (case.x_adv, case.x, case.eps, *box)
    assert_same("projection", reference.project_linf(*args), triton_ops.project_linf(*args))

    results = []
    for backend in (reference, triton_ops):
        x_adv, stats = case.x_adv.clone(), torch.tensor([7, 9])
        backend.pgd_step_linf_(
            x_adv, case.grad, case.x, case.eps, case.alpha, *box, targeted, stats
        )
        results.append((x_adv, stats))
    assert_same("x_adv", results[0][0], results[1][0])
    assert_same("stats", results[0][1], results[1][1])

    index = torch.arange(case.x.shape[0]) * 12345 + 2**31
    start = (case.x, case.eps, torch.tensor([-(2**40) + 3, 2, 1]), index, *box)
    assert_same("start", reference.random_start_linf(*start), triton_ops.random_start_linf(*start))


def test_the_public_functions_run_on_triton() -> None:
    assert ops.backend() == "triton"
    case = Images((3, 63), 3, torch.float32, LAYOUTS["contiguous"])
    expected = reference.project_linf(case.x_adv, case.x, case.eps, 0.0, 1.0)
    assert_same("projection", expected, ops.project_linf(case.x_adv, case.x, case.eps))

    images = torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3).to(torch.uint8)
    index = torch.tensor([1, 0, 1])
    crops = reference.random_crop_flip(images, index, torch.tensor([5]), 4, True)
    assert_same("crops", crops, ops.random_crop_flip(images, index, 5))


@pytest.mark.parametrize(
    ("dtype", "shape", "k"), rotated(cases.DTYPES, SHAPES, cases.CANDIDATES), ids=str
)
def test_images_of_every_dtype_and_shape(
    dtype: torch.dtype, shape: tuple[int, ...], k: int
) -> None:
    assert_all_ops_agree(Images(shape, k, dtype, LAYOUTS["contiguous"]), targeted=k == 3)


@layouts
@candidates
def test_images_of_every_layout(layout: object, k: int) -> None:
    assert_all_ops_agree(Images((2, 3, 8, 12), k, torch.float32, layout))


@shapes
def test_the_64_bit_path_of_large_tensors(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "INT32_MAX", 0)
    assert_all_ops_agree(Images(shape, 3, torch.float32, LAYOUTS["contiguous"]))


@pytest.mark.parametrize("entries", [[5], [-7, 2**32 + 1], [2**63 - 1, -1, 2**31]])
def test_a_seed_of_one_to_three_entries_of_any_size(entries: list[int]) -> None:
    args = (torch.rand(4, 8), torch.ones(12), torch.tensor(entries), torch.arange(4), -1.0, 2.0)
    assert_same("start", reference.random_start_linf(*args), triton_ops.random_start_linf(*args))


def test_double_images_meet_double_bounds() -> None:
    """A bound that passed through float32 would differ from the ninth digit on."""
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    start = triton_ops.project_linf(x - 1, x, torch.ones(1, dtype=torch.float64), 0.1, 0.9)
    assert (start == 0.1).all()


def test_no_counter_is_needed() -> None:
    case = Images((2, 12), 1, torch.float32, LAYOUTS["contiguous"])
    results = [case.x_adv.clone(), case.x_adv.clone()]
    for backend, x_adv in zip((reference, triton_ops), results, strict=True):
        rest = (case.grad, case.x, case.eps, case.alpha, 0.0, 1.0, False, None)
        backend.pgd_step_linf_(x_adv, *rest)
    assert_same("x_adv", *results)


@pytest.mark.parametrize(
    ("dtype", "classes", "scale"),
    rotated(cases.DTYPES, [1, 2, 10, 1500], [0.0, 1.0, 30.0, 1e4]),
    ids=str,
)
@candidates
def test_ce_cotangent(dtype: torch.dtype, k: int, classes: int, scale: float) -> None:
    logits, y = cases.logits_and_classes(k, classes, scale, dtype)
    expected = reference.ce_cotangent(logits, y, False)
    actual = triton_ops.ce_cotangent(logits, y, False)
    if dtype is torch.float64:  # torch and NumPy call different exponentials
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=8 * ulp, atol=0.0)
    else:
        assert_same("cotangent", expected, actual)


def selected(backend: object, case: cases.Selection, *options: object) -> tuple[Tensor, ...]:
    memory = case.memory.clone()
    chosen = backend.select_epsilon_(
        memory, case.index, case.logits, case.y, 0.03, 0.1, 0.01, 0.09, *options
    )
    return memory, *chosen


@pytest.mark.parametrize(
    ("dtype", "size", "released"),
    rotated(cases.DTYPES, [(0, 4), (1, 4), (200, 4), (5, 1500)], [False, True]),
    ids=str,
)
def test_select_epsilon(dtype: torch.dtype, size: tuple[int, int], released: bool) -> None:
    samples, classes = size
    case = cases.Selection(samples, dtype, classes=classes)
    options = (True, case.misclassified) if released else ()
    expected, actual = (selected(backend, case, *options) for backend in (reference, triton_ops))
    for name, one, other in zip(("memory", "eps", "choice"), expected, actual, strict=True):
        assert_same(name, one, other)


FORMS = [(layout, branch) for layout in ("contiguous", "channels_last") for branch in (False, True)]


@pytest.mark.parametrize(
    ("dtype", "shape", "form"), rotated(cases.DTYPES, cases.LAYER_SHAPES, FORMS), ids=str
)
def test_the_passes_of_a_network(
    dtype: torch.dtype, shape: tuple[int, ...], form: tuple[str, bool]
) -> None:
    """One of the bounds in turn, so that they too meet every type, every shape and every form."""
    layout, branch = form
    turn = cases.DTYPES.index(dtype) + cases.LAYER_SHAPES.index(shape) // len(FORMS)
    bounds = [*cases.BOUNDS.values()][turn % len(cases.BOUNDS)]
    cases.Layer(shape, dtype, LAYOUTS[layout]).assert_same(triton_ops, bounds, branch=branch)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
def test_the_passes_on_several_tiles_and_on_their_64_bit_path(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((2, 65, 7, 5), (2, 64, 6, 6), (2, 64, 5, 5))
    for shape in shapes[2:] if layout == "every_second" else shapes:  # which is copied first
        case = cases.Layer(shape, torch.float32, LAYOUTS[layout])
        case.assert_same(triton_ops, (0.0, math.inf), branch=True)
        monkeypatch.setattr(common, "INT32_MAX", 0)
        case.assert_same(triton_ops, (0.0, math.inf), branch=True)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("shape", "border", "entries"),
    rotated(
        [(8, 8, 1), (16, 24, 3), (7, 9, 2), (5, 64, 3)],
        [(padding, flip) for padding in (0, 4) for flip in (False, True)],
        [[5], [2**40 + 1, -3]],
    ),
    ids=str,
)
def test_random_crop_flip(
    shape: tuple[int, ...], border: tuple[int, bool], entries: list[int]
) -> None:
    padding, flip = border
    generator = torch.Generator().manual_seed(padding)
    images = torch.randint(0, 256, (9, *shape), generator=generator, dtype=torch.uint8)
    args = (images, torch.tensor([3, 8, 0, 3]), torch.tensor(entries), padding, flip)
    assert_same("images", reference.random_crop_flip(*args), triton_ops.random_crop_flip(*args))


def test_every_byte_is_divided_correctly_rounded() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = triton_ops.random_crop_flip(images, torch.tensor([0]), torch.tensor([0]), 0, False)
    assert_same("bytes", (torch.arange(256).double() / 255).float(), x.flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, -1)
    x = x[:, x[0].isfinite()]
    args = (x, torch.zeros_like(x), torch.tensor([math.inf]), -math.inf, math.inf)
    assert_same(str(dtype), x, triton_ops.project_linf(*args))
    # Sums of two numbers fall between two others, halfway included.
    step = (x, torch.ones_like(x), x, torch.full((1,), math.inf), torch.full((1,), 1.0))
    results = [x.clone(), x.clone()]
    for backend, x_adv in zip((reference, triton_ops), results, strict=True):
        backend.pgd_step_linf_(x_adv, *step[1:], -math.inf, math.inf, False, None)
    assert_same(str(dtype), *results)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nobody looks at the values inside tensors."""
    for name in ("class_values", "index_values", "logit_values"):
        monkeypatch.setattr(checks, name, lambda *_: None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("classes", [10, 1500])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_class_out_of_range_makes_its_row_nan(classes: int, scale: float) -> None:
    logits, y = cases.logits_and_classes(1, classes, scale, torch.float32)
    wrong = y.clone()
    wrong[1], wrong[4] = classes, -1
    expected = triton_ops.ce_cotangent(logits, y, False)
    expected[[1, 4]] = math.nan
    assert_same("cotangent", expected, triton_ops.ce_cotangent(logits, wrong, False))


@pytest.mark.usefixtures("unchecked")
def test_a_sample_outside_the_memory_changes_nothing() -> None:
    case = cases.Selection(20, torch.float32)
    case.index[3], case.index[11] = 300, -1
    inside = (case.index >= 0) & (case.index < 300)
    memory, eps, choice = selected(triton_ops, case)
    case.index = case.index.clamp(0, 299)
    _, expected_eps, expected_choice = selected(reference, case)
    expected = case.memory.clone()
    expected[case.index[inside]] = expected_eps[inside]
    assert_same("memory", expected, memory)
    assert_same("eps", expected_eps.where(inside, math.nan), eps)
    assert_same("choice", expected_choice.where(inside, -1), choice)


@pytest.mark.usefixtures("unchecked")
def test_nan_logits_are_the_largest_as_in_argmax() -> None:
    case = cases.Selection(200, torch.float32)
    case.logits[torch.rand(case.logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = (
        math.nan
    )
    expected, actual = (selected(backend, case) for backend in (reference, triton_ops))
    for name, one, other in zip(("memory", "eps", "choice"), expected, actual, strict=True):
        assert_same(name, one, other)


@pytest.mark.usefixtures("unchecked")
def test_an_image_out_of_range_is_nan() -> None:
    images = torch.full((5, 8, 8, 3), 7, dtype=torch.uint8)
    index = torch.tensor([0, 5, 4, -1])
    x = triton_ops.random_crop_flip(images, index, torch.tensor([1]), 2, True)
    assert x[[1, 3]].isnan().all()
    assert (x[[0, 2]] == torch.tensor(7.0) / 255).all()


def test_a_step_tells_autograd_that_the_images_changed() -> None:
    case = Images((2, 12), 1, torch.float32, LAYOUTS["contiguous"])
    before = case.x_adv._version
    ops.pgd_step_linf_(case.x_adv, case.grad, case.x, 0.1, 0.01)
    assert case.x_adv._version > before
