"""The table of the compiled kernels' signatures, and functions that call them with tensors instead of addresses.

The arguments have the names and the order of csrc/module.cpp and csrc/cuda/bindings.h, and the syntax of schema.py. A
`dtype` is passed as its code, a Tensor as its address, None for a `Tensor?` as 0, a `Seed` as the address and number of
its entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

_IMAGES = "int rows, int samples, int row_elems, float lo, float hi"
_ROWS = "int rows, int samples, int classes"
_LAYER = "int elements, int channels, int inner, float floor, float ceiling"

_BOTH = {
    "project_linf": f"dtype dtype, Tensor out, Tensor x_adv, Tensor x, Tensor eps, {_IMAGES}",
    "pgd_step_linf": (
        "dtype dtype, Tensor x_adv, Tensor grad, Tensor x, Tensor eps, Tensor alpha, Tensor? stats, "
        f"{_IMAGES}, bool targeted"
    ),
    "random_start_linf": (
        f"dtype dtype, Tensor out, Tensor x, Tensor eps, {{seed}}, Tensor index, {_IMAGES}"
    ),
    "saturation_proof": f"dtype dtype, Tensor cotangent, Tensor logits, Tensor y, {_ROWS}",
    "select_epsilon": (
        "dtype dtype, Tensor memory, int size, Tensor index, Tensor logits, Tensor y, Tensor eps, Tensor choice, "
        "Tensor? misclassified, int samples, int classes, float gamma, float beta, float eps_min, "
        "float eps_max, bool clamp_candidate"
    ),
    "random_crop_flip": (
        "Tensor out, Tensor images, Tensor index, {seed}, int n, int size, int height, int width, int channels, "
        "int padding, bool flip"
    ),
    "relu_backward": (
        "dtype dtype, Tensor grad, Tensor out, Tensor? other, int elements, float floor, float ceiling"
    ),
    "scale_shift_relu": (
        f"dtype dtype, Tensor out, Tensor x, Tensor? residual, Tensor scale, Tensor shift, {_LAYER}"
    ),
    "scale_shift_relu_backward": (
        f"dtype dtype, Tensor grad, Tensor out, Tensor scale, Tensor? residual, {_LAYER}"
    ),
}

CPU = {
    **{name: arguments.format(seed="Tensor stream") for name, arguments in _BOTH.items()},
    "minus_onehot": "dtype dtype, Tensor rows, Tensor y, int n_rows, int samples, int classes",
}
"""The kernels of iaat_fast._C. Those that check values return False if one is invalid (see csrc/cpu/kernels.h)."""

CUDA = {
    **{name: arguments.format(seed="Seed seed") for name, arguments in _BOTH.items()},
    "ce_cotangent": f"dtype dtype, Tensor out, Tensor logits, Tensor y, {_ROWS}",
}
"""The kernels of iaat_fast._C.cuda, which return None; each also takes the device and stream of `queue`, at the end."""

# As in csrc/types.h.
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

_GIVEN_AS = {
    "dtype": "CODES[{0}]",
    "Tensor": "{0}.data_ptr()",
    "Tensor?": "0 if {0} is None else {0}.data_ptr()",
    "Seed": "{0}.data_ptr(), {0}.numel()",
}


def parsed(arguments: str) -> dict[str, str]:
    """A signature as {argument: kind}, such as {"x": "Tensor"}."""
    return {name: kind for kind, name in (each.split() for each in arguments.split(", "))}


def queue(device: torch.device) -> tuple[int, int]:
    """The number of a CUDA device and the address of its current stream, the last two arguments of CUDA kernels."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def callers(kernels: Any, table: Mapping[str, str], *, queued: bool) -> SimpleNamespace:
    """The kernels of a table as functions of the table's arguments; `queued` adds the tensors' device and stream."""
    return SimpleNamespace(
        **{
            name: _caller(getattr(kernels, name), parsed(arguments), queued=queued)
            for name, arguments in table.items()
        }
    )


def _caller(kernel: Any, kinds: Mapping[str, str], *, queued: bool) -> Callable[..., Any]:
    """A lambda, made with `eval`: a loop over the arguments could take longer than a small kernel.

    Its parameters hold the tensors until the kernel has run or is queued.
    """
    given = [_GIVEN_AS.get(kind, "{0}").format(name) for name, kind in kinds.items()]
    if queued:
        tensor = next(name for name, kind in kinds.items() if kind == "Tensor")
        given.append(f"*queue({tensor}.device)")
    code = f"lambda {', '.join(kinds)}: kernel({', '.join(given)})"
    return eval(code, {"kernel": kernel, "CODES": CODES, "queue": queue})
