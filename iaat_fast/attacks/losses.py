"""The losses of the attacks: values per sample, and their gradients with respect to the logits in closed form.

Each is a function of the logits z and a goal: the true class y, whose loss an attack raises, or a target t, whose loss
it lowers. The goal of "kl" is the prediction at the clean image; an attack raises the divergence from it.

    "ce"   cross-entropy
    "cw"   the margin max_{j != goal} z_j - z_goal (Carlini and Wagner 2017, Section V-A, f_6 without its floor)
    "dlr"  difference of logits ratio: the margin over z_(1) - z_(3), of the logits in descending order; for a target
           z_source - z_t over z_(1) - (z_(3) + z_(4)) / 2 (Croce and Hein 2020, Equations 6 and 7)
    "kl"   the divergence KL(p || softmax(z)) from the prediction p at the clean image (Zhang et al. 2019)

The source of a targeted loss is the true class, or, if that is not given, the largest class other than the target.

A logit of -infinity masks its class. For a sample with too few finite logits for the DLR, which would be 0 or NaN, the
margin is used instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.ops.primitives import SATURATION, softmax_minus_onehot, widened

CLASS_LOSSES = ("ce", "cw", "dlr")
"""The losses whose goal is a class."""
LOSSES = (*CLASS_LOSSES, "kl")

_DLR_CLASSES = {False: 3, True: 4}  # {targeted: number of classes that the DLR needs}

_TINY = 1e-12  # as in the released code: avoids 0/0 if the largest logits are all equal

# The largest power of two that rows are scaled by; 2**126 is finite in float32.
_LARGEST_POWER = 126

# The registered op, without the public function's checks.
_ce_cotangent = torch.ops.iaat_fast.ce_cotangent.default


def value(
    loss: str, logits: Tensor, goal: Tensor, *, targeted: bool, source: Tensor | None = None
) -> Tensor:
    """The value by which a sample's iterates are ordered: the loss, or for "ce" a growing function of it.

    Args:
        loss: one of LOSSES.
        logits: [K*N, C].
        goal: int64 [N], true classes or targets; for "kl" log-probabilities [N, C].
        targeted: the goals are targets.
        source: int64 [N], the true classes, if the goals are targets.

    Returns:
        [K*N]. For "ce" the log-odds v = log((1 - p_goal) / p_goal): the cross-entropy, log(1 + exp(v)), saturates.

    Raises:
        ValueError: the loss needs more classes than the logits have.
    """
    if loss == "kl":
        log_p = _per_candidate(goal, logits)
        terms = log_p.exp() * (log_p - logits.log_softmax(1))
        return terms.masked_fill(log_p == -torch.inf, 0.0).sum(1)  # lim p log p, not 0 * inf
    _check_classes(loss, logits, targeted)
    goal = _per_candidate(goal, logits).view(-1, 1)
    if loss == "ce":
        others = logits.scatter(1, goal, -torch.inf)
        return others.logsumexp(1) - logits.gather(1, goal)[:, 0]
    rival = _rival(loss, logits, goal, source)
    margin = logits.gather(1, rival) - logits.gather(1, goal)
    if loss == "dlr":
        spread, _ = _spread(logits, targeted)
        margin = torch.where(_is_infinite(margin, spread), margin, margin / spread)
    return margin[:, 0]


def per_sample(
    loss: str, logits: Tensor, goal: Tensor, *, targeted: bool, source: Tensor | None = None
) -> Tensor:
    """The loss itself, [K*N]: as `value`, but for "ce" the cross-entropy."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if loss == "ce":
        return F.cross_entropy(logits, _per_candidate(goal, logits), reduction="none")
    return value(loss, logits, goal, targeted=targeted, source=source)


def zero(loss: str) -> float:
    """The `value` that stands for a loss of 0."""
    return -torch.inf if loss == "ce" else 0.0


def last_of_dlr(logits: Tensor, *, targeted: bool) -> Tensor:
    """[K*N], the smallest logit that the DLR reads; -infinity for samples where the margin replaces it.

    Raises:
        ValueError: the DLR needs more classes than the logits have.
    """
    _check_classes("dlr", logits, targeted)
    return logits.topk(_DLR_CLASSES[targeted], dim=1).values[:, -1]


def cotangent(
    loss: str,
    logits: Tensor,
    goal: Tensor,
    *,
    targeted: bool,
    source: Tensor | None = None,
    saturation_proof: bool = False,
    scaled: bool = True,
) -> Tensor:
    """The gradient of the summed loss with respect to the logits, [K*N, C], bit for bit autograd's.

    Args: as `value`'s, and
        saturation_proof: compute "ce" by `ops.ce_cotangent`, and "kl" in a similar way: exact where the loss saturates,
            with each row scaled by a positive factor. The other losses do not saturate.
        scaled: False: `saturation_proof` scales no row, because gradients of several rows will be added.

    Raises:
        ValueError: the loss needs more classes than the logits have.
    """
    if saturation_proof and not scaled and loss in ("ce", "kl"):
        return _unscaled(loss, logits, goal)
    if loss == "ce" and saturation_proof:
        return _ce_cotangent(logits, goal, targeted)
    # ce_cotangent above does this itself.
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if loss == "kl":
        return _kl_cotangent(
            logits, _per_candidate(goal, logits), saturation_proof=saturation_proof
        )
    _check_classes(loss, logits, targeted)
    if loss == "ce":
        return softmax_minus_onehot(logits, goal)
    goal = _per_candidate(goal, logits).view(-1, 1)
    rival = _rival(loss, logits, goal, source)
    one, result = logits.new_ones(len(logits), 1), torch.zeros_like(logits)
    if loss == "cw":
        return result.scatter_add_(1, rival, one).scatter_add_(1, goal, -one)
    spread, order = _spread(logits, targeted)
    margin = logits.gather(1, rival) - logits.gather(1, goal)
    masked = _is_infinite(margin, spread)
    spread = spread.masked_fill(masked, 1.0)
    pull = (margin / spread / spread).masked_fill(masked, 0.0)
    result.scatter_add_(1, rival, one / spread).scatter_add_(1, goal, -one / spread)
    result.scatter_add_(1, order[:, :1], -pull)
    if not targeted:
        return result.scatter_add_(1, order[:, 2:3], pull)
    return result.scatter_add_(1, order[:, 2:4], (pull / 2).expand(-1, 2))


def _unscaled(loss: str, logits: Tensor, goal: Tensor) -> Tensor:
    """softmax(z) - p [K*N, C], its entry for the class that "ce" or "kl" can saturate in minus the sum of the others.

    So no entry loses its bits to 1 - p; only those below the range of floats become 0.
    """
    probabilities = widened(logits).softmax(1)
    goal = _per_candidate(goal, logits)
    if loss == "kl":
        difference, top = probabilities - goal.exp(), goal.argmax(1, keepdim=True)
    else:
        difference, top = probabilities, goal.view(-1, 1)
    others = difference.scatter(1, top, 0.0)
    return others.scatter(1, top, -others.sum(1, keepdim=True))


def _kl_cotangent(logits: Tensor, log_p: Tensor, *, saturation_proof: bool) -> Tensor:
    """softmax(z) - p [K*N, C], by the kernel that autograd calls, so that the bits are the same.

    If the largest entry of p rounds to 1, the difference in its class has lost its bits, and the others may be too
    small to differ from 0. With `saturation_proof`, such rows are differences of exponentials that are shifted by the
    largest log-probability of the other classes, and the predicted class gets minus the sum of the others; the
    remaining rows are scaled by a power of two.
    """
    log_q = torch._log_softmax(logits, 1, False)
    plain = torch._log_softmax_backward_data(-log_p.exp(), log_q, 1, logits.dtype)
    if not saturation_proof:
        return plain
    _, exponent = torch.frexp(plain.abs().amax(1, keepdim=True))
    scaled = torch.ldexp(plain, -exponent.clamp(-_LARGEST_POWER, _LARGEST_POWER))
    top = log_p.argmax(1, keepdim=True)
    others_p, others_q = (log.scatter(1, top, -torch.inf) for log in (log_p, log_q))
    largest = torch.maximum(others_p, others_q).amax(1, keepdim=True)
    # Finite even if all other classes are masked: their differences are then 0, not NaN.
    largest = largest.clamp(min=torch.finfo(largest.dtype).min)
    shifted = (others_q - largest).exp() - (others_p - largest).exp()
    shifted = shifted.scatter(1, top, -shifted.sum(1, keepdim=True))
    # 1 - p of the predicted class, as a sum, because p itself rounds to 1.
    missing = others_p.exp().sum(1, keepdim=True)
    return torch.where(missing <= SATURATION, shifted, scaled)


def _rival(loss: str, logits: Tensor, goal: Tensor, source: Tensor | None) -> Tensor:
    """[K*N, 1], the class that the goal is compared with: a given source for "dlr", else the largest other one."""
    if source is not None and loss == "dlr":
        return _per_candidate(source, logits).view(-1, 1)
    return logits.scatter(1, goal, -torch.inf).argmax(1, keepdim=True)


def _spread(logits: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """The denominator of the DLR, [K*N, 1], and the classes with the largest logits in descending order."""
    largest, order = logits.topk(_DLR_CLASSES[targeted], dim=1)
    low = largest[:, 2:].sum(1, keepdim=True) / 2 if targeted else largest[:, 2:]
    return largest[:, :1] - low + _TINY, order


def _is_infinite(margin: Tensor, spread: Tensor) -> Tensor:
    """bool [K*N, 1], whether the DLR reads a masked class, so that the margin replaces it."""
    return margin.isinf() | spread.isinf()


def _per_candidate(goal: Tensor, logits: Tensor) -> Tensor:
    """Classes [N] or log-probabilities [N, C], repeated for the logits [K*N, C] of K candidates."""
    return goal.repeat(len(logits) // max(len(goal), 1), *[1] * (goal.dim() - 1))


def _check_classes(loss: str, logits: Tensor, targeted: bool) -> None:
    needed = {"ce": 1, "cw": 2, "dlr": _DLR_CLASSES[targeted]}[loss]
    if logits.shape[1] < needed:
        kind = "targeted " if targeted else ""
        raise ValueError(
            f"loss: {kind}{loss!r} needs at least {needed} classes, the model has {logits.shape[1]}"
        )
