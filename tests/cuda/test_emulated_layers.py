"""The CUDA kernels of a network's passes, run on the emulated device, give what the reference defines.

As in test_emulated_parity.py an access outside of a call's buffers, or one that is not aligned, raises.
"""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from tests.cuda.emulator import DeviceMemory
from tests.cuda.test_emulated_parity import LAYOUTS, Layout, offset_by
from tests.folded import every, rotated
from tests.ops.cases import Layer, bounds_in_turn, dtypes, layer_shapes

pytestmark = pytest.mark.slow  # the kernels are compiled

RELU = (0.0, math.inf)


@dtypes
@layer_shapes
@every(layout=LAYOUTS, branch=[False, True])
def test_the_passes_of_a_network(
    native_cuda: ModuleType,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: Layout,
    branch: bool,
) -> None:
    bounds = bounds_in_turn(dtype, branch)
    Layer(shape, dtype, layout).assert_same(native_cuda, *bounds, branch=branch)


@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    rotated(
        [(3, 64, 33, 33), (9, 65, 19, 17), (9, 1, 111, 101), (70001, 3)],
        ["contiguous", "channels_last"],
        [torch.float32, torch.bfloat16],
    ),
    ids=str,
)
def test_layers_that_take_several_turns_of_every_thread(
    native_cuda: ModuleType, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    Layer(shape, dtype, LAYOUTS[layout]).assert_same(native_cuda, RELU, branch=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_per_channel_that_begin_at_no_multiple_of_a_vector(
    native_cuda: ModuleType, layout: str
) -> None:
    case = Layer((3, 64, 5, 4), torch.bfloat16, LAYOUTS[layout])
    case.scale, case.shift = offset_by(1)(case.scale), offset_by(3)(case.shift)
    case.assert_same(native_cuda, RELU, branch=True)


# Vectors of one channel; of neighbouring channels; of channels that change within a vector, with a rest behind it.
@dtypes
@pytest.mark.parametrize(
    ("shape", "layout", "offset"),
    [
        ((2, 64, 4, 4), "contiguous", 0),
        ((2, 64, 5, 5), "channels_last", 0),
        ((3, 65, 5, 5), "contiguous", 0),
        ((3, 65, 5, 5), "channels_last", 0),
        ((2, 64, 4, 4), "contiguous", 1),
    ],
)
def test_every_tensor_is_read_once_and_written_once(
    native_cuda: ModuleType,
    memory: DeviceMemory,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    offset: int,
) -> None:
    case = Layer(shape, dtype, LAYOUTS[layout])
    if offset:
        move = offset_by(offset)
        case.x, case.grad, case.out, case.branch = map(
            move, (case.x, case.grad, case.out, case.branch)
        )
    all_of_it = case.x.numel() * case.x.element_size()
    read, written = (all_of_it, 0), (0, all_of_it)
    both = (all_of_it, all_of_it)

    native_cuda.relu_backward_(case.grad, case.out, None, *RELU)
    assert memory.traffic == {"grad": both, "out": read}
    native_cuda.relu_backward_(case.grad, case.out, case.branch, *RELU)
    assert memory.traffic == {"grad": both, "out": read, "other": read}

    def tensors() -> dict[str, tuple[int, int]]:
        return {k: v for k, v in memory.traffic.items() if k not in ("scale", "shift")}

    native_cuda.scale_shift_relu(case.x, None, case.scale, case.shift, *RELU)
    assert tensors() == {"x": read, "out": written}
    native_cuda.scale_shift_relu(case.x, case.branch, case.scale, case.shift, *RELU)
    assert tensors() == {"x": both, "residual": read, "out": written}

    native_cuda.scale_shift_relu_backward_(case.grad, case.out, case.scale, None, *RELU)
    assert tensors() == {"grad": both, "out": read}
    native_cuda.scale_shift_relu_backward_(case.grad, case.out, case.scale, case.branch, *RELU)
    assert tensors() == {"grad": both, "out": read, "residual": read}


@pytest.mark.parametrize(
    ("shape", "layout", "values_a_vector"),
    [((2, 64, 4, 4), "contiguous", 1), ((2, 64, 5, 5), "channels_last", 8)],
)
def test_a_vector_reads_no_more_values_than_it_has_channels(
    native_cuda: ModuleType,
    memory: DeviceMemory,
    shape: tuple[int, ...],
    layout: str,
    values_a_vector: int,
) -> None:
    case = Layer(shape, torch.bfloat16, LAYOUTS[layout])
    native_cuda.scale_shift_relu(case.x, None, case.scale, case.shift, *RELU)
    expected = 4 * values_a_vector * case.x.numel() // 8
    assert memory.traffic["scale"] == memory.traffic["shift"] == (expected, 0)


def test_one_launch_an_op(emulated: ModuleType, native_cuda: ModuleType) -> None:
    case = Layer((2, 65, 5, 5), torch.bfloat16, LAYOUTS["channels_last"])
    before = emulated.launches()
    case.results(native_cuda, RELU, branch=True)
    assert emulated.launches() - before == 3


def test_a_launch_error_names_the_op(emulated: ModuleType, native_cuda: ModuleType) -> None:
    case = Layer((2, 3), torch.float32, LAYOUTS["contiguous"])
    calls = {
        "relu_backward": lambda: native_cuda.relu_backward_(case.grad, case.out, None, *RELU),
        "scale_shift_relu": lambda: native_cuda.scale_shift_relu(
            case.x, None, case.scale, case.shift, *RELU
        ),
        "scale_shift_relu_backward": lambda: native_cuda.scale_shift_relu_backward_(
            case.grad, case.out, case.scale, None, *RELU
        ),
    }
    for name, call in calls.items():
        emulated.fail_next_launch()
        with pytest.raises(RuntimeError, match=rf"^{name}: CUDA error: cudaErrorInvalidValue"):
            call()
