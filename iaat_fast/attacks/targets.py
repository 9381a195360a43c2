"""Targets for targeted attacks: random ones, the most and the least likely wrong classes, and a caller's choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.ops import primitives

# Philox counter block of the targets; the noise of an image of fewer than 2**34 elements does not reach it.
_TARGET_BLOCK = 2**32 - 1


def target_draws(seed: Tensor, index: Tensor) -> Tensor:
    """Uniform 32-bit words, int64 [N], for `random_targets`; they depend on the seed and the sample number only.

    Args:
        seed: int64 [1] to [3]; its first entry is the attack's key.
        index: int64 [N], sample numbers.
    """
    key = primitives.stream_of(seed)[0]
    zero = index.new_zeros(())
    return primitives.philox(key, zero + _TARGET_BLOCK, index, zero, zero)[0]


def random_targets(logits: Tensor, y: Tensor, draws: Tensor) -> Tensor:
    """A random class other than y for every sample, uniform over the classes whose logit is not -infinity.

    Args:
        logits: [N, C], C at least 2.
        y: int64 [N], true classes.
        draws: int64 [N], of `target_draws`.

    Returns:
        int64 [N]; y + 1, modulo C, where all others are masked.

    Raises:
        ValueError: fewer than 2 classes.

    Source: IAAT, Section 4.2: targets uniform over the other classes, fixed for the whole attack.
    """
    classes = logits.shape[1]
    others = (y.view(-1, 1) + torch.arange(1, classes, device=y.device)) % classes
    number = (logits.gather(1, others) != -torch.inf).cumsum(
        1
    )  # number of each unmasked class, from 1
    chosen = (draws.view(-1, 1) * number[:, -1:] >> 32) + 1
    return others.gather(1, torch.searchsorted(number, chosen).clamp(max=classes - 2))[:, 0]


def least_likely(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong class with the smallest logit, those of -infinity left out: int64 [N]; y + 1, modulo C, without one.

    Args:
        logits: [N, C], at the clean images.
        y: int64 [N], true classes.

    Source: Kurakin, Goodfellow and Bengio 2017, "Adversarial examples in the physical world", Section 2.3.
    """
    others = logits.scatter(1, y.view(-1, 1), torch.inf)
    others = others.masked_fill(logits == -torch.inf, torch.inf)
    smallest, chosen = others.min(1)
    return torch.where(smallest == torch.inf, (y + 1) % logits.shape[1], chosen)


def chosen_by(choose: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """The targets, int64 [N], that a caller's function of the logits [N, C] at x and the true classes [N] chooses.

    Waits for the device, to check them.

    Raises:
        TypeError, ValueError: it returns anything but int64 [N] of existing wrong classes.
    """
    target = choose(logits.clone(), y.clone())
    if not isinstance(target, Tensor) or target.dtype is not torch.int64:
        found = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"targeted: returned {found}, expected int64 [{len(y)}]")
    if target.shape != y.shape or target.device != y.device:
        raise ValueError(
            f"targeted: returned {tuple(target.shape)} on {target.device}, expected [{len(y)}] on {y.device}"
        )
    classes = logits.shape[1]
    bad = target[(target < 0) | (target >= classes) | (target == y)]
    if len(bad):
        raise ValueError(
            f"targeted: returned class {int(bad[0])}, expected one of 0 ... {classes - 1} other than the sample's y"
        )
    return target.detach()


def likely_targets(logits: Tensor, y: Tensor, most: int) -> Tensor:
    """The wrong classes in descending order of their logits, int64 [N, T].

    Classes masked by a logit of -infinity are left out: T is `most`, or less if no sample has so many wrong classes
    left. A sample with fewer than T repeats its classes from the first. Reads one number from the device.

    Args:
        logits: [N, C], at the clean images.
        y: int64 [N], true classes.
        most: the largest T.

    Raises:
        ValueError: no sample has a wrong class left.
    """
    wrong = logits.scatter(1, y.view(-1, 1), -torch.inf)
    left = (wrong != -torch.inf).sum(1, keepdim=True)
    tried = min(most, int(left.max()))
    if tried == 0:
        raise ValueError(
            "model: its logits are finite for the true classes alone, expected another class to attack towards"
        )
    place = torch.arange(tried, device=y.device) % left.clamp(min=1)
    return wrong.argsort(dim=1, descending=True, stable=True).gather(1, place)
