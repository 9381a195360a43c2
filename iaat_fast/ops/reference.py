"""The definition of every op in plain torch: any device, any strides, the oracle of the other backends.

Half types are computed in float32 and rounded once, at the end. In float32 the other backends give the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.ops import checks
from iaat_fast.ops.layout import convolved, memory_format


def project_linf(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    centre, radius = _per_candidate(x, x_adv.shape[0]), _per_row(eps, x.dim())
    delta = (_wide(x_adv) - centre).clamp(-radius, radius)
    return _like((centre + delta).clamp(lo, hi).to(x_adv.dtype), x_adv)


def pgd_step_linf_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    targeted: bool,
    stats: Tensor | None,
) -> None:
    if eps.is_cpu:
        checks.step_values(alpha, eps)
    if stats is not None:
        stats += torch.stack([(grad == 0).sum(), grad.isnan().sum()])
    step = _per_row(-alpha if targeted else alpha, x.dim()) * torch.sign(_wide(grad))
    x_adv.copy_(project_linf(_wide(x_adv) + step, _wide(x), eps, lo, hi))


def random_start_linf(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    rows, per_row = eps.shape[0], math.prod(x.shape[1:])
    key, restart, first_candidate = stream_of(seed).unbind()
    row = torch.arange(rows, device=x.device)
    element = torch.arange(per_row, device=x.device)
    samples = max(x.shape[0], 1)
    words = philox(
        key,
        (element // 4).expand(rows, -1),
        (index[row % samples] if rows else index).view(-1, 1),
        (first_candidate + row // samples).view(-1, 1),
        restart,
    )
    word = torch.stack(words).gather(0, (element % 4).expand(1, rows, -1))[0]
    noise = uniform_symmetric(word, eps.dtype).view(rows, *x.shape[1:])
    start = _per_candidate(x, rows) + noise * _per_row(eps, x.dim())
    return _like(start.clamp(lo, hi).to(x.dtype), x)


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    if logits.is_cpu:
        checks.class_values(y, logits.shape[1])
        checks.logit_values(logits)
    wide = _wide(logits)
    plain, y = softmax_minus_onehot(wide, y), _per_candidate(y, len(logits)).view(-1, 1)
    missing = -plain.gather(1, y)  # 1 - p_y
    scaled = plain * _normalising_power(missing)

    others = wide.scatter(1, y, -math.inf)
    largest = others.amax(1, keepdim=True)
    shifted = torch.where(others == -math.inf, 0.0, exp_nonpositive(others - largest))
    # Summed in float64: exact in any order for the terms that matter, so that backends need not agree on one.
    shifted = shifted.scatter(1, y, -shifted.double().sum(1, keepdim=True).to(wide.dtype))
    return torch.where(missing <= SATURATION, shifted, scaled).to(logits.dtype)


def select_epsilon_(
    memory: Tensor,
    index: Tensor,
    logits: Tensor,
    y: Tensor,
    gamma: float,
    beta: float,
    eps_min: float,
    eps_max: float,
    clamp_candidate: bool = False,
    misclassified: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if logits.is_cpu:
        checks.index_values(index, memory.shape[0])
        checks.class_values(y, logits.shape[1])
        checks.logit_values(logits)
    robust = logits.view(3, y.shape[0], logits.shape[1]).argmax(2) == y
    choice = torch.where(robust[0], 0, torch.where(robust[1], 1, 2))
    prev = memory[index]
    candidate = torch.where(robust[0], prev + gamma, torch.where(robust[1], prev, prev - gamma))
    if clamp_candidate:
        candidate = candidate.clamp(min=0.0)
    if misclassified is not None:
        candidate = torch.where(misclassified, 0.0, candidate)
    eps = ((1 - beta) * prev + beta * candidate).clamp(eps_min, eps_max)
    memory[index] = eps
    return eps, choice


def random_crop_flip(
    images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
) -> Tensor:
    size, height, width, channels = images.shape
    if index.is_cpu:
        checks.index_values(index, size)
    key, stream = stream_of(seed, 2).unbind()
    words = philox(
        key, torch.zeros_like(index), index, stream, torch.full_like(index, AUGMENTATION)
    )
    down, right = ((word * (2 * padding + 1) >> 32) - padding for word in words[:2])
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device).expand(len(index), -1)
    if flip:
        column = torch.where((words[2] >> 31 == 1).view(-1, 1), width - 1 - column, column)
    row = _reflect(row + down.view(-1, 1), height)
    column = _reflect(column + right.view(-1, 1), width)
    place = (row.unsqueeze(2) * width + column.unsqueeze(1)).view(-1, 1, height * width)
    # Whole images first (one memcpy each), then single pixels of the small batch: 0.8 ms at [128, 3, 32, 32] on two
    # cores, where gathering pixels from the whole set took 6.7 ms.
    planes = images.index_select(0, index.clamp(0, size - 1)).permute(0, 3, 1, 2)
    planes = planes.reshape(-1, channels, height * width).gather(2, place.expand(-1, channels, -1))
    # By a tensor: on CUDA, torch divides by a number by multiplying with its reciprocal, which rounds twice.
    x = torch.empty((len(index), channels, height, width), device=images.device)
    x.copy_(planes.view_as(x)).div_(torch.full((1,), 255.0, device=images.device))
    if not index.is_cpu:  # nobody has looked at the numbers
        x = x.where(_per_row((index >= 0) & (index < size), 4), math.nan)
    return x


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    total = _wide(grad) if other is None else _wide(grad) + _wide(other)
    grad.copy_(torch.where(_blocked(out, floor, ceiling), 0.0, total))


def scale_shift_relu(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    if residual is not None:
        x.copy_(_wide(x) + _wide(residual))
    value = _wide(x) * _per_channel(scale, x.dim()) + _per_channel(shift, x.dim())
    return _like(value.clamp(floor, ceiling).to(x.dtype), x)


def scale_shift_relu_backward_(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    floor: float,
    ceiling: float,
) -> None:
    scaled = _wide(grad) * _per_channel(scale, grad.dim())
    passed = torch.where(_blocked(out, floor, ceiling), 0.0, scaled)
    grad.copy_(passed if residual is None else passed + _wide(residual))


def _blocked(out: Tensor, floor: float, ceiling: float) -> Tensor:
    """Where an activation with this output lets no gradient through. An infinite bound blocks nothing, as in autograd.

    The bounds are compared as the activation stored them, rounded to its dtype.
    """
    blocked = torch.zeros_like(out, dtype=torch.bool)
    if floor > -math.inf:
        blocked |= out <= torch.tensor(floor, dtype=out.dtype)
    if ceiling < math.inf:
        blocked |= out >= torch.tensor(ceiling, dtype=out.dtype)
    return blocked


def stem_conv_relu(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    images = normalised(x, mean, std).to(weight.dtype).float()
    sums = F.conv2d(images, weight.float(), bias.float(), padding=1)
    return convolved(x, weight).copy_(sums.clamp_(floor, ceiling))


def stem_conv_step_(
    x_adv: Tensor,
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    targeted: bool,
    stats: Tensor | None,
) -> None:
    slope = stem_gradient(grad, weight, torch.float32)
    pgd_step_linf_(x_adv, slope, x, eps, alpha, lo, hi, targeted, stats)


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std with a mean and a standard deviation for each channel."""
    return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def stem_gradient(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the normalised images, from that of the convolution's result: convolved in dtype."""
    return F.conv_transpose2d(grad.to(dtype), weight.to(dtype), padding=1)


# The last counter word of the augmentation's draws, where the attacks count their restarts from 0.
AUGMENTATION = 0xFFFFFFFF


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions up to `size - 1` outside 0 ... size - 1, mirrored about the edge pixels, which are not repeated."""
    last = size - 1
    return last - (last - position.abs()).abs()


# Below this 1 - p_y the plain gradient has lost too many bits of float32's 24 to be trusted.
SATURATION = 1 / 4096


def softmax_minus_onehot(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy, by the very kernel that autograd calls: the same bits.

    `y` names the class of row r at r modulo its length, so K candidates share their samples' classes.
    """
    y = _per_candidate(y, logits.shape[0]).view(-1, 1)
    return plus_softmax(torch.zeros_like(logits).scatter_(1, y, -1.0), logits)


def plus_softmax(minus_onehot: Tensor, logits: Tensor) -> Tensor:
    """softmax - onehot, from -onehot."""
    log_p = torch._log_softmax(logits, 1, False)
    return torch._log_softmax_backward_data(minus_onehot, log_p, 1, logits.dtype)


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0; in float32 out of single roundings only, so that every backend gives the same bits.

    Cody and Waite's reduction to |r| <= ln(2)/2, then the Taylor polynomial of degree 7 (error below 2**-24).
    """
    if x.dtype == torch.float64:
        return x.exp()
    n = (x * 1.44269504).round()
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = torch.full_like(x, 1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = p * r + coefficient
    return torch.where(x < -87.0, 0.0, p * torch.exp2(n.clamp(min=-126.0)))


def stream_of(seed: Tensor, entries: int = 3) -> Tensor:
    """[key, restart, first candidate], or as many of a seed tensor's entries; missing ones are 0."""
    if seed.shape == (entries,):
        return seed
    seed = seed.reshape(-1)
    return torch.cat([seed, seed.new_zeros(entries - seed.shape[0])])


def philox(
    key: Tensor, block: Tensor, sample: Tensor, candidate: Tensor, restart: Tensor
) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words; four words a block."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = torch.broadcast_tensors(
        block & mask, sample & mask, candidate & mask, restart & mask
    )
    key0, key1 = key & mask, (key >> 32) & mask
    for _ in range(10):
        # The int64 product wraps, but its 64 bits are those of the unsigned product.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & mask) ^ c1 ^ key0,
            p1 & mask,
            ((p0 >> 32) & mask) ^ c3 ^ key1,
            p0 & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    return [c0, c1, c2, c3]


def uniform_symmetric(word: Tensor, dtype: torch.dtype) -> Tensor:
    """The top 24 bits k as (2k + 1 - 2**24) / 2**24: symmetric, strictly inside (-1, 1), exact in float32."""
    return (2 * (word >> 8) + 1 - (1 << 24)).to(dtype) * 2.0**-24


def _normalising_power(value: Tensor) -> Tensor:
    """The power of two that brings |value| into [0.5, 1); 1 for zero, infinity and NaN."""
    exponent = torch.frexp(value).exponent
    ordinary = value.isfinite() & (value != 0)
    return torch.where(ordinary, torch.ldexp(torch.ones_like(value), -exponent), 1.0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_row(values: Tensor, dim: int) -> Tensor:
    return values.view(-1, *[1] * (dim - 1))


def _per_channel(values: Tensor, dim: int) -> Tensor:
    return values.view(-1, *[1] * (dim - 2))


def _per_candidate(x: Tensor, rows: int) -> Tensor:
    """x with its N rows repeated to K*N, widened for arithmetic where it is floating point."""
    copies = rows // max(x.shape[0], 1)
    if x.is_floating_point():
        x = _wide(x)
    return x.repeat(copies, *[1] * (x.dim() - 1)) if copies > 1 else x


def _like(value: Tensor, x: Tensor) -> Tensor:
    """value in the memory format of x."""
    return value.contiguous(memory_format=memory_format(x))
