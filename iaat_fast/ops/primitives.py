"""Functions shared by several ops, backends and attacks: random words (Philox), softmax - onehot, parts of the stem.

Plain torch on any device. csrc/math and ops/triton contain the same arithmetic with the same roundings.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# The last Philox counter word of the augmentation; attacks use it for the restart, counted from 0.
AUGMENTATION = 0xFFFFFFFF

# If 1 - p_y is at most this, the plain gradient has lost too many of float32's 24 bits.
SATURATION = 1 / 4096


def stream_of(seed: Tensor, entries: int = 3) -> Tensor:
    """A seed tensor as int64 [entries]: key, restart, first candidate; missing entries are 0."""
    if seed.shape == (entries,):
        return seed
    seed = seed.reshape(-1)
    return torch.cat([seed, seed.new_zeros(entries - seed.shape[0])])


def philox(
    key: Tensor, block: Tensor, sample: Tensor, candidate: Tensor, restart: Tensor
) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011): four int64 tensors of random 32-bit words per counter.

    Args:
        key: int64 [], 64 bits.
        block, sample, candidate, restart: the counter, int64 tensors that broadcast; their lower 32 bits are used.
    """
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
    """Uniform noise from 32-bit words: (2k + 1 - 2**24) / 2**24 for the top 24 bits k.

    Symmetric about 0, strictly inside (-1, 1), exact in float32.
    """
    return (2 * (word >> 8) + 1 - (1 << 24)).to(dtype) * 2.0**-24


def softmax_minus_onehot(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy, bit for bit autograd's, as it calls the same kernel.

    Args:
        logits: [K*N, C].
        y: int64 [N]; row r has class y[r % N].
    """
    y = per_candidate(y, logits.shape[0]).view(-1, 1)
    return plus_softmax(torch.zeros_like(logits).scatter_(1, y, -1.0), logits)


def plus_softmax(minus_onehot: Tensor, logits: Tensor) -> Tensor:
    """softmax - onehot, given -onehot."""
    log_p = torch._log_softmax(logits, 1, False)
    return torch._log_softmax_backward_data(minus_onehot, log_p, 1, logits.dtype)


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0; in float32 by elementary operations, so that every backend gives the same bits.

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


def normalising_power(value: Tensor) -> Tensor:
    """The power of two that scales |value| into [0.5, 1); 1 for zero, infinity and NaN."""
    exponent = torch.frexp(value).exponent
    ordinary = value.isfinite() & (value != 0)
    return torch.where(ordinary, torch.ldexp(torch.ones_like(value), -exponent), 1.0)


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std for images x [N, C, H, W]; mean and std are [C]."""
    return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def stem_gradient(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the normalised images, given that of the stem's convolution; computed in dtype."""
    return F.conv_transpose2d(grad.to(dtype), weight.to(dtype), padding=1)


def widened(x: Tensor) -> Tensor:
    """x in the dtype of the arithmetic: float64 stays, everything else is float32."""
    return x if x.dtype == torch.float64 else x.float()


def per_candidate(x: Tensor, rows: int) -> Tensor:
    """x [N, ...] repeated to `rows` = K*N rows, and `widened` if it is floating point."""
    copies = rows // max(x.shape[0], 1)
    if x.is_floating_point():
        x = widened(x)
    return x.repeat(copies, *[1] * (x.dim() - 1)) if copies > 1 else x
