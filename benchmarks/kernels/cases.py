"""The cases: an op on a problem, with its arguments, the fewest bytes that it can move, and the problems' sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

ROW = 3 * 32 * 32
"""Elements of a row of the flat sizes: a CIFAR image."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Problem:
    """N rows of images (or of logits, or of uint8 images to augment) and K candidates for each.

    A problem with `bandwidth` measures that of DRAM, and rotates among buffers far larger than the L2 cache; the others
    are small, and the time of a call matters.
    """

    label: str
    shape: tuple[int, ...]
    k: int
    dtype: torch.dtype
    bandwidth: bool
    outputs: int = 0
    """Output channels of the stem."""

    @property
    def numel(self) -> int:
        return self.k * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class LayerProblem(Problem):
    """Features [N, C, H, W] inside a network, and whether a branch is added to them."""

    channels_last: bool = True
    branch: bool = False


def image_problems(dtype: torch.dtype, *, quick: bool, on_gpu: bool) -> list[Problem]:
    """For the elementwise ops: batches of CIFAR and ImageNet, and flat sizes."""
    if quick:
        return [
            Problem("CIFAR 8", (8, 3, 32, 32), 1, dtype, False),
            Problem("CIFAR 3x8", (8, 3, 32, 32), 3, dtype, False),
        ]
    found = [
        Problem("CIFAR 128", (128, 3, 32, 32), 1, dtype, False),
        Problem("CIFAR 3x128", (128, 3, 32, 32), 3, dtype, False),
        Problem("ImageNet 32", (32, 3, 224, 224), 1, dtype, True),
        Problem("ImageNet 3x64", (64, 3, 224, 224), 3, dtype, True),
        # 149,187 elements a row: no row except the first starts at a multiple of 16 bytes.
        Problem("odd rows 32", (32, 3, 223, 223), 1, dtype, True),
        _flat("64 MiB", 64 * 2**20, dtype),
    ]
    # 1 GiB in every tensor is more than most machines without such a GPU care to give.
    return [*found, _flat("1 GiB", 2**30, dtype)] if on_gpu else found


def logits_problems(dtype: torch.dtype, *, quick: bool, candidates: int | None) -> list[Problem]:
    """For the ops over logits [K*N, C]; `candidates` fixes K."""
    found = [
        Problem("128x10", (128, 10), 1, dtype, False),
        Problem("384x10", (128, 10), 3, dtype, False),
        Problem("384x1000", (128, 1000), 3, dtype, False),
    ]
    return [p for p in found if candidates in (None, p.k)][: 1 if quick else None]


def layer_problems(dtype: torch.dtype, *, quick: bool) -> list[Problem]:
    """For the passes of a network: ResNet-18's first and last stage at a CIFAR batch of 128.

    A network's own buffers, of 17 MB each in bfloat16, are partly found in the L2 cache; these are read from DRAM.
    """
    if quick:
        return [LayerProblem("8 of 64x8x8", (8, 64, 8, 8), 1, dtype, False)]
    first, last = (128, 64, 32, 32), (128, 512, 4, 4)
    found: list[Problem] = [
        LayerProblem("64x32x32", first, 1, dtype, True),
        LayerProblem("64x32x32 + branch", first, 1, dtype, True, branch=True),
        LayerProblem("512x4x4 + branch", last, 1, dtype, False, branch=True),
        LayerProblem(
            "contiguous 64x32x32 + branch", first, 1, dtype, True, channels_last=False, branch=True
        ),
    ]
    return found


def augment_problems(*, quick: bool) -> list[Problem]:
    """For the augmentation: images drawn from a data set of 16 times as many."""
    if quick:
        return [Problem("CIFAR 8", (8, 3, 32, 32), 1, torch.uint8, False)]
    small = Problem("CIFAR 128", (128, 3, 32, 32), 1, torch.uint8, False)
    large = [
        Problem("CIFAR 4096", (4096, 3, 32, 32), 1, torch.uint8, True),
        Problem("ImageNet 64", (64, 3, 224, 224), 1, torch.uint8, True),
    ]
    return [small, *large]


def stem_problems(dtype: torch.dtype, *, quick: bool) -> list[Problem]:
    """For the stem, in half precision (a float32 one is torch's own): usual widths, on CIFAR and ImageNet."""
    if dtype is torch.float32:
        return []
    if quick:
        return [Problem("CIFAR 8 to 16", (8, 3, 32, 32), 1, dtype, False, 16)]
    found = [
        Problem("CIFAR 128 to 64", (128, 3, 32, 32), 1, dtype, False, 64),
        Problem("CIFAR 3x128 to 64", (128, 3, 32, 32), 3, dtype, False, 64),
        Problem("CIFAR 128 to 160", (128, 3, 32, 32), 1, dtype, False, 160),
        Problem("CIFAR 128 to 16", (128, 3, 32, 32), 1, dtype, False, 16),
        Problem("ImageNet 32 to 64", (32, 3, 224, 224), 1, dtype, True, 64),
    ]
    return found


def _flat(label: str, size: int, dtype: torch.dtype) -> Problem:
    """Tensors of at least `size` bytes."""
    rows = -(-size // (ROW * dtype.itemsize))
    return Problem(label, (rows, ROW), 1, dtype, True)


OPS = (
    "pgd_step_linf_",
    "project_linf",
    "random_start_linf",
    "ce_cotangent",
    "select_epsilon_",
    "random_crop_flip",
    "stem_conv_relu",
    "stem_conv_step_",
    "relu_backward_",
    "scale_shift_relu",
    "scale_shift_relu_backward_",
)
STEM = ("stem_conv_relu", "stem_conv_step_")
LAYERS = OPS[-3:]
MUTATED = {
    "pgd_step_linf_": (0, 8),
    "select_epsilon_": (0,),
    "stem_conv_step_": (0, 9),
    **dict.fromkeys(LAYERS, (0,)),
}
"""Positions of the arguments that an op writes."""

LO, HI = 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """An op on one problem; `counted`: whether the step counts zero and NaN gradients, as in an attack."""

    op: str
    problem: Problem
    counted: bool = True

    @property
    def title(self) -> str:
        dtype = str(self.problem.dtype).removeprefix("torch.")
        return f"{self.op}{'' if self.counted else ' (no stats)'} {self.problem.label} {dtype}"

    def arguments(self, device: torch.device, seed: int) -> tuple[Any, ...]:
        """The arguments of the op's schema, of random values."""
        generator = torch.Generator(device).manual_seed(seed)
        if self.op == "random_crop_flip":
            return _augment_arguments(self.problem, generator)
        if self.op in ("ce_cotangent", "select_epsilon_"):
            return _logits_arguments(self.op, self.problem, generator)
        if self.op in STEM:
            return _stem_arguments(self.op, self.problem, generator)
        if isinstance(self.problem, LayerProblem):
            return _layer_arguments(self.op, self.problem, generator)
        return _image_arguments(self.op, self.problem, generator, self.counted)

    def moved(self, args: tuple[Any, ...]) -> int:
        """The fewest bytes that the op must move: inputs, outputs, and the visited rows of the memory, each once."""
        read = [a for a in args if isinstance(a, Tensor)]
        size, written = self.problem.numel * self.problem.dtype.itemsize, 0
        if self.op == "random_crop_flip":
            read, written = read[1:], self.problem.numel * (1 + 4)
        elif self.op == "select_epsilon_":
            # memory: read and written at the index; eps float32 and choice int64 written
            read, written = read[1:], self.problem.shape[0] * (4 + 4 + 4 + 8)
        elif self.op == "stem_conv_relu":
            pixels = self.problem.numel // self.problem.shape[1]
            written = pixels * self.problem.outputs * self.problem.dtype.itemsize
        elif self.op == "stem_conv_step_":
            written = self.problem.numel * 4
        elif self.op == "scale_shift_relu" and args[1] is not None:
            written = 2 * size  # the sum replaces x
        else:
            written = size
        return sum(t.nbytes for t in read) + written


def make_cases(
    ops: Iterable[str], dtypes: Iterable[torch.dtype], *, quick: bool, on_gpu: bool
) -> list[Case]:
    """All cases, dtype by dtype, so that a run cut short has the first dtypes complete."""
    ops, dtypes = list(ops), list(dtypes)
    cases = []
    for dtype in dtypes:
        images = image_problems(dtype, quick=quick, on_gpu=on_gpu)
        for op in ops:
            if op == "random_crop_flip":
                if dtype is dtypes[0]:  # uint8 in, float32 out
                    cases += [Case(op, p) for p in augment_problems(quick=quick)]
            elif op == "ce_cotangent":
                found = logits_problems(dtype, quick=quick, candidates=None)
                cases += [Case(op, p) for p in found]
            elif op == "select_epsilon_":
                found = logits_problems(dtype, quick=quick, candidates=3)
                cases += [Case(op, p) for p in found]
            elif op in STEM:
                cases += [Case(op, p) for p in stem_problems(dtype, quick=quick)]
            elif op in LAYERS:
                if dtype is not torch.float16:
                    cases += [Case(op, p) for p in layer_problems(dtype, quick=quick)]
            else:
                cases += [Case(op, p) for p in images]
        if "pgd_step_linf_" in ops:
            flat = [p for p in images if len(p.shape) == 2 and dtype is not torch.float16]
            cases += [Case("pgd_step_linf_", p, counted=False) for p in flat]
    return cases


def _image_arguments(
    op: str, problem: Problem, generator: torch.Generator, counted: bool
) -> tuple[Any, ...]:
    device, dtype, k, n = generator.device, problem.dtype, problem.k, problem.shape[0]
    rows = (k * n, *problem.shape[1:])

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device, dtype=dtype)

    x = uniform(problem.shape)
    eps = torch.rand(k * n, generator=generator, device=device) * 16 / 255
    if op == "random_start_linf":
        key = torch.tensor([generator.initial_seed(), 0, 0], device=device)
        return x, eps, key, torch.arange(n, device=device), LO, HI
    x_adv = uniform(rows)
    if op == "project_linf":
        return x_adv, x, eps, LO, HI
    grad = torch.randn(rows, generator=generator, device=device, dtype=dtype)
    grad.view(-1)[::97] = 0  # for the step to count
    stats = torch.zeros(2, dtype=torch.int64, device=device) if counted else None
    return x_adv, grad, x, eps, eps / 4, LO, HI, False, stats


def _logits_arguments(op: str, problem: Problem, generator: torch.Generator) -> tuple[Any, ...]:
    device, (n, classes) = generator.device, problem.shape
    shape = (problem.k * n, classes)
    logits = torch.randn(shape, generator=generator, device=device).to(problem.dtype)
    y = torch.randint(classes, (n,), generator=generator, device=device)
    if op == "ce_cotangent":
        return logits, y, False
    y[::2] = logits[:n:2].argmax(1)  # so that every choice is met
    memory = torch.rand(50_000, generator=generator, device=device) * 16 / 255
    index = torch.randperm(len(memory), generator=generator, device=device)[:n]
    return memory, index, logits, y, 1.9 / 255, 0.1, 0.0, 1.0, False, None


def _layer_arguments(op: str, problem: LayerProblem, generator: torch.Generator) -> tuple[Any, ...]:
    device, channels = generator.device, problem.shape[1]
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format

    def uniform() -> Tensor:
        values = torch.empty(problem.shape, device=device, dtype=problem.dtype)
        return values.uniform_(-1, 1, generator=generator).contiguous(memory_format=layout)

    first, out = uniform(), uniform().relu_()
    branch = uniform() if problem.branch else None
    if op == "relu_backward_":
        return first, out, branch, 0.0, math.inf
    # Other factors than 1 and -1 would shrink a gradient, call after call, to subnormals.
    scale = torch.randint(2, (channels,), generator=generator, device=device) * 2.0 - 1
    if op == "scale_shift_relu_backward_":
        return first, out, scale, branch, 0.0, math.inf
    shift = torch.rand(channels, generator=generator, device=device) - 0.5
    return first, branch, scale, shift, 0.0, math.inf


def _augment_arguments(problem: Problem, generator: torch.Generator) -> tuple[Any, ...]:
    device, (n, channels, height, width) = generator.device, problem.shape
    size = (16 * n, height, width, channels)
    images = torch.randint(256, size, generator=generator, device=device, dtype=torch.uint8)
    index = torch.randperm(16 * n, generator=generator, device=device)[:n]
    return images, index, torch.tensor([generator.initial_seed(), 0], device=device), 4, True


def _stem_arguments(op: str, problem: Problem, generator: torch.Generator) -> tuple[Any, ...]:
    """Images in float32, all else in the problem's dtype; the gradient of one image is 0, to be counted."""
    device, (n, channels, height, width) = generator.device, problem.shape
    rows, outputs = problem.k * n, problem.outputs

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device).to(problem.dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    x_adv = torch.rand((rows, channels, height, width), generator=generator, device=device)
    weight = normal(outputs, channels, 3, 3) / 5
    if op == "stem_conv_relu":
        mean, std = (torch.full((channels,), value, device=device) for value in (0.45, 0.25))
        return x_adv, mean, std, weight, normal(outputs), 0.0, math.inf
    grad = normal(rows, outputs, height, width)
    grad[0] = 0
    eps = torch.rand(rows, generator=generator, device=device) * 16 / 255
    stats = torch.zeros(2, dtype=torch.int64, device=device)
    return x_adv, grad, weight, x_adv[:n].clone(), eps, eps / 4, LO, HI, False, stats
