"""The operations of an attack, the rate of matrix products on this machine, and where an attack's time goes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleave import wait
from benchmarks.targets import Target

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Large enough that a product is limited by arithmetic.
_SIZE = {"cuda": 8192, "cpu": 1024}

# The first pattern found in a name decides. The order matters: fused kernels have the names of all that is fused,
# cuDNN's changes of layout have convolutions' names, and most convolutions have names of matrix products.
PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("elementwise", r"triton_poi_|cpp_fused"),
        ("reductions", r"triton_(red|per)_"),
        (
            "copies",
            r"memcpy|memset|nchwtonhwc|nhwctonchw|nhwcaddpadding|copy|transpose|catarray|fillfunctor|reorder|"
            r"aten::(clone|contiguous|to|_to_copy|cat|fill_|zero_|stack)$",
        ),
        ("convolutions", r"conv|fprop|dgrad|wgrad|winograd"),
        ("products", r"gemm|gemv|cutlass|nvjet|cublas|splitk|aten::(mm|addmm|bmm|linear|matmul)$"),
        (
            "reductions",
            r"reduce|softmax|pool|logsumexp|nll_loss|argmax|norm_kernel|ce_cotangent|"
            r"aten::(sum|mean|amax|amin|max|min|all|any|_?aminmax|linalg_vector_norm)$",
        ),
        (
            "elementwise",
            r"elementwise|bn_fw|batch_?norm|pgd_step|project_linf|random_start|select_epsilon|mask|relu|threshold|"
            r"distribution|aten::(add|sub|mul|div|neg|abs|sign|sgn|clamp|clamp_min|clamp_max|minimum|maximum|where|eq|ne|"
            r"lt|le|gt|ge|isfinite|isnan|bitwise_and|logical_and|uniform|rsqrt|sqrt|exp|pow|silu|sigmoid|hardtanh)_?"
            r"(_backward)?$",
        ),
    )
)
KINDS = ("convolutions", "elementwise", "copies", "reductions", "products")
OTHER, GAPS = "other", "gaps"


def flops_per_gradient(target: Target) -> float:
    """Floating-point operations of one image's forward pass and gradient, two per multiply-add; elementwise ones are
    not counted."""
    leaf, y = target.x[:2].detach().requires_grad_(), target.y[:2]
    with FlopCounterMode(display=False) as counter:
        # A copy, because the counter's hooks do not work on the leaf that `autograd.grad` differentiates.
        loss = F.cross_entropy(target.model(leaf.clone()), y, reduction="sum")
        torch.autograd.grad(loss, leaf)
    return counter.get_total_flops() / len(y)


def matmul_rates(precisions: Iterable[str], device: torch.device) -> dict[str, float]:
    """Floating-point operations per second of a product of square matrices, the median of 20, by precision.

    "fp32" means TF32 if the process allows it, as for every provider in fp32.
    """
    return {precision: _matmul_rate(precision, device) for precision in dict.fromkeys(precisions)}


def _matmul_rate(precision: str, device: torch.device, calls: int = 20) -> float:
    size = _SIZE[device.type]
    matrix = torch.randn(size, size, device=device).to(DTYPES[precision])
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = allowed or precision == "tf32"
        seconds = []
        for call in range(calls + 3):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            wait(device)
            if call >= 3:
                seconds.append(time.perf_counter() - start)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * size**3 / float(np.median(seconds))


@dataclasses.dataclass
class DeviceTime:
    """Seconds of one call, measured in a process of its own.

    wall_s: median of calls before the profiler was started, since afterwards every launch takes longer.
    device_s: all kernels together by the profiler; on a CPU all operators.
    kinds: the same by kind; `gaps` is wall_s less device_s: the time that the device waits (negative if the profiler
        slows it down).
    """

    wall_s: float
    device_s: float
    kinds: dict[str, float]


def kind_of(name: str) -> str:
    """The kind of a kernel or an operator by its name."""
    return next((kind for kind, pattern in PATTERNS if pattern.search(name)), OTHER)


def by_kind(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The sums of (name, seconds) by kind, for every kind."""
    sums = dict.fromkeys((*KINDS, OTHER), 0.0)
    for name, seconds in times:
        sums[kind_of(name)] += seconds
    return sums


def device_time(call: Callable[[], object], device: torch.device, calls: int = 3) -> DeviceTime:
    """Where a call's time goes; it is run 3 + 2 x `calls` times."""
    walls = []
    for number in range(calls + 3):
        start = time.perf_counter()
        call()
        wait(device)
        if number >= 3:
            walls.append(time.perf_counter() - start)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as watched:
        for _ in range(calls):
            call()
        wait(device)
    kinds = by_kind(
        (event.key, 1e-6 * _microseconds(event, on_gpu=on_gpu) / calls)
        for event in watched.key_averages()
    )
    wall, spent = float(np.median(walls)), sum(kinds.values())
    return DeviceTime(wall, spent, {**kinds, GAPS: wall - spent})


def _microseconds(event: object, *, on_gpu: bool) -> float:
    """Time of an event without that of its children; on a GPU only kernels count."""
    is_kernel = event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    if on_gpu:
        annotation = getattr(event, "is_user_annotation", False)
        return float(event.self_device_time_total) if is_kernel and not annotation else 0.0  # type: ignore[attr-defined]
    return float(event.self_cpu_time_total)  # type: ignore[attr-defined]
