"""The losses that attacks climb: per-sample values, and their gradients with respect to the logits in closed form.

Each is a function of the logits z and a goal: the true class y, whose loss an attack ascends, or a target t, whose loss
it descends. The goal of "kl" is a prediction, from which an attack moves away.

    "ce"   cross-entropy
    "cw"   the margin max_{j != goal} z_j - z_goal (Carlini and Wagner 2017, Section V-A, f_6 without its floor)
    "dlr"  difference of logits ratio: the margin over z_(1) - z_(3), of the logits in descending order; for a target
           z_source - z_t over z_(1) - (z_(3) + z_(4)) / 2 (Croce and Hein 2020, Equations 6 and 7)
    "kl"   the divergence KL(p || softmax(z)) from a prediction p, the one at the clean image (Zhang et al. 2019)

Where a targeted loss is not told the true class, the strongest class other than the target is the source.

A logit of -infinity masks its class. A DLR without the finite logits that it is made of would be 0, or NaN, and is the
margin instead, sample by sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iaat_fast.ops.primitives import SATURATION, softmax_minus_onehot

CLASS_LOSSES = ("ce", "cw", "dlr")
"""The losses whose goal is a class."""
LOSSES = (*CLASS_LOSSES, "kl")

_DLR_CLASSES = {False: 3, True: 4}  # that it needs; True: targeted

_TINY = (
    1e-12  # of the released code: keeps 0/0, where the largest logits are all equal, from being NaN
)

# Of float32: 2 to this power is finite, and so is what it scales, which it brings below 1.
_LARGEST_POWER = 126

# The op itself, behind the checks of the public function.
_ce_cotangent = torch.ops.iaat_fast.ce_cotangent.default


def value(
    loss: str, logits: Tensor, goal: Tensor, *, targeted: bool, source: Tensor | None = None
) -> Tensor:
    """What orders a sample's iterates by the loss.

    Args:
        loss: one of LOSSES.
        logits: [K*N, C].
        goal: int64 [N], true classes or targets; for "kl" log-probabilities [N, C].
        targeted: the goals are targets.
        source: int64 [N], the true classes, next to targets.

    Returns:
        [K*N]. For "ce" the log-odds log((1 - p_goal) / p_goal), of which the cross-entropy log(1 + exp(.)) is a growing
        function: unlike it they do not saturate.

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


def zero(loss: str) -> float:
    """What `value` gives where the loss is 0."""
    return -torch.inf if loss == "ce" else 0.0


def last_of_dlr(logits: Tensor, *, targeted: bool) -> Tensor:
    """[K*N], the smallest logit that a DLR is made of; -infinity where masks leave too few, so that it is the margin.

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
) -> Tensor:
    """The gradient of the summed loss with respect to the logits, [K*N, C], with the bits that autograd gives.

    Args: as of `value`, and
        saturation_proof: "ce" by `ops.ce_cotangent` and "kl" likewise, each row times a positive factor; the others do
            not saturate.

    Raises:
        ValueError: the loss needs more classes than the logits have.
    """
    if loss == "ce" and saturation_proof:
        return _ce_cotangent(logits, goal, targeted)
    # The op above widens what it reads.
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


def _kl_cotangent(logits: Tensor, log_p: Tensor, *, saturation_proof: bool) -> Tensor:
    """softmax(z) - p, by the very kernel that autograd calls: the same bits.

    Where p saturates in the class that it predicts, the difference there has lost its bits, and the others may be too
    small to be told from 0. If `saturation_proof`, such rows are made of exponentials shifted by the largest of the
    other classes, with minus their differences' sum where p is largest; the other rows are scaled by a power of two.
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
    # Finite also where all others are masked: their differences are 0, not NaN.
    largest = largest.clamp(min=torch.finfo(largest.dtype).min)
    shifted = (others_q - largest).exp() - (others_p - largest).exp()
    shifted = shifted.scatter(1, top, -shifted.sum(1, keepdim=True))
    # 1 - p of the class predicted; without cancellation, for p itself rounds to 1.
    missing = others_p.exp().sum(1, keepdim=True)
    return torch.where(missing <= SATURATION, shifted, scaled)


def _rival(loss: str, logits: Tensor, goal: Tensor, source: Tensor | None) -> Tensor:
    """[K*N, 1], the class that the goal is compared with: the source of a DLR, else the strongest other one."""
    if source is not None and loss == "dlr":
        return _per_candidate(source, logits).view(-1, 1)
    return logits.scatter(1, goal, -torch.inf).argmax(1, keepdim=True)


def _spread(logits: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """The denominator of the DLR, [K*N, 1], and the classes with the largest logits in descending order."""
    largest, order = logits.topk(_DLR_CLASSES[targeted], dim=1)
    low = largest[:, 2:].sum(1, keepdim=True) / 2 if targeted else largest[:, 2:]
    return largest[:, :1] - low + _TINY, order


def _is_infinite(margin: Tensor, spread: Tensor) -> Tensor:
    """bool [K*N, 1], where a masked class is part of a DLR, which has no gradient there: the margin alone has one."""
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
