"""The ops of attacks and training: steps and projections, random starts, cotangents, radii, crops.

Images [N, ...] are float32, float64, float16 or bfloat16, contiguous or channels_last. Radii and step sizes are floats,
or tensors with one value per row, on the scale of the images; `lo` and `hi` bound the pixels. If `x_adv` (or `eps`) has
K*N rows for the N rows of `x`, row k*N + i is candidate k of sample i.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.ops import backends, checks

# Overloads (`.default`) of the ops: without them, torch chooses one in every call, which costs 0.5 us.
_project_linf = torch.ops.iaat_fast.project_linf.default
_pgd_step_linf_ = torch.ops.iaat_fast.pgd_step_linf_.default
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default
_ce_cotangent = torch.ops.iaat_fast.ce_cotangent.default
_select_epsilon_ = torch.ops.iaat_fast.select_epsilon_.default
_random_crop_flip = torch.ops.iaat_fast.random_crop_flip.default


def backend(device: str | torch.device = "cpu") -> str:
    """The name of the backend that serves a device: "native", "triton" or "reference".

    Raises:
        ImportError: IAAT_FAST_BACKEND forces a backend that does not serve the device; the message says why.
    """
    return backends.serving(torch.device(device))


def project_linf(
    x_adv: Tensor, x: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0
) -> Tensor:
    """Project x_adv onto the L-infinity ball of radius eps[i] around x[i], then onto [lo, hi].

    Args:
        x_adv: images [K*N, ...].
        x: centres [N, ...], of the dtype and device of x_adv.
        eps: radius, a float or a tensor [K*N]; 0 gives x itself.

    Returns:
        [K*N, ...] in the dtype and memory format of x_adv. Differentiable in x_adv: the gradient passes where an
        element lies strictly inside the ball and the box.

    Raises:
        TypeError: images that are not floating point, or of different dtypes.
        ValueError: eps negative, NaN or of another length; shapes or devices that differ; lo > hi.

    Source: the projection of Madry et al. 2018 (PGD), with the radius of each sample its own (IAAT, Eq. 2).
    """
    checks.images("x", x)
    checks.same_images("x_adv", x_adv, "x", x, candidates=True)
    validate.box(lo, hi)
    radius = checks.per_row("eps", eps, x_adv.shape[0], x)
    tracked = torch.is_grad_enabled() and (x_adv.requires_grad or x.requires_grad)
    if tracked or torch.compiler.is_compiling():
        return _project_linf(x_adv, x, radius, lo, hi)
    # Skip autograd's Python kernel, which has nothing to do here and costs 8 us.
    with torch._C._AutoDispatchBelowAutograd():
        return _project_linf(x_adv, x, radius, lo, hi)


def pgd_step_linf_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    alpha: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    stats: Tensor | None = None,
) -> Tensor:
    """One PGD step in place: x_adv + alpha * sign(grad), projected onto the ball around x and then onto [lo, hi].

    Args:
        x_adv: images [K*N, ...], overwritten.
        grad: gradient of the loss with respect to x_adv, same shape and dtype.
        x: centres [N, ...].
        eps: radius, a float or a tensor [K*N].
        alpha: step size > 0, a float or a tensor [K*N] (0 is accepted for a sample whose eps is 0).
        targeted: descend the loss instead of ascending it.
        stats: int64 [2], to which the numbers of zero and NaN entries of grad are added. Such entries move no pixel.

    Returns:
        x_adv.

    Raises:
        TypeError: images that are not floating point, or of different dtypes.
        ValueError: eps negative or NaN, alpha not positive, lengths, shapes or devices that differ, x_adv that
            requires grad, lo > hi.

    Source: Madry et al. 2018, Section 2.1; the loop body of PGD_k in Algorithms 1 and 2 of IAAT.
    """
    checks.images("x", x)
    checks.same_images("x_adv", x_adv, "x", x, candidates=True)
    checks.same_images("grad", grad, "x_adv", x_adv, candidates=False)
    checks.in_place("x_adv", x_adv)
    validate.box(lo, hi)
    rows = x_adv.shape[0]
    radius = checks.per_row("eps", eps, rows, x)
    step = checks.per_row("alpha", alpha, rows, x, positive=True)
    if stats is not None:
        checks.int64_vector("stats", stats, 2, x.device)
    # Without `constant` the reference backend would make x_adv part of their autograd graph.
    _pgd_step_linf_(
        x_adv, checks.constant(grad), checks.constant(x), radius, step, lo, hi, targeted, stats
    )
    return x_adv


def random_start_linf(
    x: Tensor,
    eps: float | Tensor,
    seed: int | Tensor,
    index: Tensor | None = None,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    restart: int = 0,
    candidate: int = 0,
) -> Tensor:
    """x plus uniform noise in (-eps, eps), clamped to [lo, hi].

    The noise is Philox4x32-10 with key = seed and counter = (element / 4, sample number, candidate, restart). So it
    does not depend on the backend, the memory format, or how a data set is split into batches.

    Args:
        x: images [N, ...].
        eps: radius, a float or a tensor [K*N]; with K*N entries K candidates are drawn for every sample.
        seed: an int, or an int64 tensor of 1 to 3 entries on the device of x: key, restart, first candidate.
        index: int64 [N], the number of each sample in its data set; default 0 ... N-1.
        restart: number of the restart, if seed is an int.
        candidate: number of the first candidate, if seed is an int.

    Returns:
        [K*N, ...] in the dtype and memory format of x, a constant to autograd.

    Raises:
        TypeError: images that are not floating point; an index or seed that is not integer.
        ValueError: eps negative, NaN or of a length that is no multiple of N; an index of another length; a seed that
            needs more than 64 bits.

    Source: the random start of Madry et al. 2018; Philox: Salmon et al., SC 2011.
    """
    checks.images("x", x)
    validate.box(lo, hi)
    n = x.shape[0]
    rows = eps.shape[0] if isinstance(eps, Tensor) and eps.dim() == 1 else n
    if not checks.is_multiple(rows, n):
        raise ValueError(f"eps: length {rows}, expected a multiple of the {n} samples")
    if index is None:
        index = torch.arange(n, device=x.device)
    else:
        checks.int64_vector("index", index, n, x.device)
    stream = _seed(seed, x.device, restart=restart, candidate=candidate)
    return _random_start_linf(
        checks.constant(x), checks.per_row("eps", eps, rows, x), stream, index, lo, hi
    )


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """The gradient of the cross-entropy with respect to the logits, up to a positive factor per row.

    Cross-entropy saturates: if p_y rounds to 1, its gradient rounds to 0 and an attack stops without a reason. A sign
    step is not changed by a positive factor per row, so each row is scaled to the size of its largest entry:
        p_y < 1 - 2**-12: softmax - onehot, times a power of two, which changes no sign in the network's backward pass.
        otherwise: exp(z_j - max of the others) for j != y, and minus the sum of these for y.

    Args:
        logits: [K*N, C].
        y: int64 [N], true classes or targets.
        targeted: whether y holds targets. It does not change the result: `pgd_step_linf_` chooses the direction.

    Returns:
        [K*N, C] in the dtype of the logits.

    Raises:
        TypeError: logits that are not floating point, labels that are not int64.
        ValueError: NaN logits, labels out of range or of another length.

    Source: derived from the softmax gradient; the failure it avoids: Carlini and Wagner 2017, Section IV-D.
    """
    checks.logits("logits", logits)
    checks.int64_vector("y", y, None, logits.device)
    if not checks.is_multiple(logits.shape[0], y.shape[0]):
        raise ValueError(
            f"y: length {y.shape[0]}, expected {logits.shape[0]}, or that over K for K candidates"
        )
    return _ce_cotangent(checks.constant(logits), y, targeted)


def select_epsilon_(
    memory: Tensor,
    index: Tensor,
    logits: Tensor,
    y: Tensor,
    gamma: float,
    beta: float,
    eps_min: float = 0.0,
    eps_max: float | None = None,
    clamp_candidate: bool = False,
    misclassified: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose, smooth, clamp and store the radius of every sample from its three candidates' logits, in place.

    Args:
        memory: float32 [size], the radius of every sample of the data set, updated at `index`.
        index: int64 [N], distinct rows of memory.
        logits: [3*N, C], of the adversarial images at prev + gamma, prev and prev - gamma, in this order.
        y: int64 [N], true classes.
        gamma: distance of the candidates, on the scale of the images.
        beta: smoothing constant in [0, 1].
        eps_min, eps_max: bounds of the result; None is no upper bound.
        clamp_candidate: clamp the chosen candidate to >= 0 before smoothing (the authors' released code).
        misclassified: bool [N], samples whose candidate is 0 for any logits (released code); None: no sample.

    Returns:
        The new radius, float32 [N], and the choice, int64 [N]: 0, 1 or 2.

    Raises:
        TypeError: a memory that is not float32, an index or labels that are not int64.
        ValueError: NaN logits, lengths that differ, index or labels out of range, gamma < 0, beta outside [0, 1],
            eps_min > eps_max, a memory that requires grad.

    Source: IAAT, Algorithm 2, lines 1-12.
    """
    checks.logits("logits", logits)
    if memory.dtype is not torch.float32 or memory.dim() != 1:
        raise TypeError(
            f"memory: {memory.dtype} of shape {tuple(memory.shape)}, expected float32 [size]"
        )
    checks.in_place("memory", memory)
    checks.int64_vector("index", index, None, memory.device)
    n = index.shape[0]
    checks.int64_vector("y", y, n, memory.device)
    if logits.shape[0] != 3 * n or logits.device != memory.device:
        raise ValueError(
            f"logits: {logits.shape[0]} rows on {logits.device}, expected 3 candidates of {n} samples "
            f"on {memory.device}"
        )
    if not gamma >= 0:
        raise ValueError(f"gamma: {gamma}, expected a number >= 0")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: {beta}, expected a number in [0, 1]")
    upper = math.inf if eps_max is None else eps_max
    if not 0 <= eps_min <= upper:
        raise ValueError(
            f"eps_min, eps_max: {eps_min}, {eps_max}, expected 0 <= eps_min <= eps_max"
        )
    if misclassified is not None and (
        misclassified.dtype is not torch.bool or misclassified.shape != (n,)
    ):
        raise ValueError(
            f"misclassified: {misclassified.dtype} of shape {tuple(misclassified.shape)}, "
            f"expected bool [{n}]"
        )
    return _select_epsilon_(
        memory,
        index,
        checks.constant(logits),
        y,
        gamma,
        beta,
        eps_min,
        upper,
        clamp_candidate,
        misclassified,
    )


def random_crop_flip(
    images: Tensor,
    index: Tensor,
    seed: int | Tensor,
    *,
    padding: int = 4,
    flip: bool = True,
    stream: int = 0,
) -> Tensor:
    """Gather uint8 images as a float batch, each randomly cropped from the reflect-padded image and randomly flipped.

    The padding mirrors the image about its edge pixels, which are not repeated. All (2*padding + 1)**2 positions of the
    crop are equally likely; padded images are not stored. Crop and flip are words of Philox4x32-10 with key = seed and
    counter = (0, sample number, stream, 2**32 - 1): they do not depend on the batch or the backend, and differ from the
    words of the attacks' noise for the same seed.

    Args:
        images: uint8 [size, H, W, C], contiguous: a whole data set.
        index: int64 [N], the numbers of the samples to gather, on the device of images.
        seed: an int, or an int64 tensor of 1 or 2 entries on the device of images: key, stream.
        padding: how far, in pixels, a crop may reach beyond the image; less than H and W. With 0 and flip=False the
            images are only gathered.
        flip: flip left and right with probability 1/2.
        stream: number of the random stream, if seed is an int; the streams of one seed are independent.

    Returns:
        float32 [N, C, H, W] in [0, 1], contiguous: pixel / 255, correctly rounded.

    Raises:
        TypeError: images that are not uint8, an index or seed that is not int64, a padding that is not an int.
        ValueError: images that are not contiguous [size, H, W, C] or too small for the padding, a negative padding, an
            index that is not [N] or out of range (on an accelerator that gives an image of NaN instead), a seed that
            needs more than 64 bits, devices that differ.

    Source: the standard augmentation of CIFAR (He et al. 2016, Section 4.2), with reflection in place of zeros.
    """
    checks.pixels("images", images, padding)
    checks.int64_vector("index", index, None, images.device)
    if not len(images) and len(index):
        raise ValueError(f"index: {len(index)} samples of a data set of 0")
    return _random_crop_flip(
        images, index, _seed(seed, images.device, stream=stream), padding, flip
    )


def _seed(seed: int | Tensor, device: torch.device, **numbers: int) -> Tensor:
    """The seed tensor of an op, int64: the key, then `numbers`, which a given tensor already contains."""
    if not isinstance(seed, Tensor):
        validate.int64("seed", seed)
        for name, number in numbers.items():
            validate.int64(name, number)
        words = (seed, *numbers.values())
        if device.type == "cpu" and not torch.compiler.is_compiling():
            return _stream(words)
        return torch.tensor(words, device=device)
    checks.int64_vector("seed", seed.reshape(-1), None, device)
    if not 1 <= seed.numel() <= 1 + len(numbers):
        raise ValueError(f"seed: {seed.numel()} entries, expected 1 to {1 + len(numbers)}")
    return seed


@functools.lru_cache(maxsize=64)
def _stream(words: tuple[int, ...]) -> Tensor:
    """The words as an int64 tensor on the CPU, which is never written to; cached, because a new one costs 5 us."""
    return torch.from_numpy(np.array(words))
