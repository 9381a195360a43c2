"""Checks that a provider runs the same attack as the plain loop: signs, pixels, loss and verdicts from one start."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attacks.providers import Provider, Setting, plain_loop
from benchmarks.targets import Target

# Above this probability of the class, the plain float32 gradient has lost its precision (see `ops.ce_cotangent`).
_SATURATED = 1 - 2.0**-12


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A provider's images compared with those of the plain loop, both started at x.

    Pixels are compared on the samples that do not saturate, the rest on all. After many steps few pixels are equal if
    gradients round differently, because networks amplify a flipped sign; profile and loss are not affected.

    saturated: share of samples on which the plain loop's gradients cannot serve as a reference.
    same_pixels: share of values that are equal after all steps, bit for bit.
    max_difference: the largest difference, in 1/255.
    flipped_signs: share of the pixels that the first step moves in the opposite direction, or not at all.
    profile_distance: total variation between the distributions of |x_adv - x|, in multiples of a step. A step left out
        changes which multiples occur.
    loss_gain: increase of the cross-entropy, divided by that of the plain loop.
    fooled: share of samples that fool the network.
    same_verdicts: share of samples with the plain loop's verdict.
    """

    saturated: float
    same_pixels: float
    max_difference: float
    flipped_signs: float
    profile_distance: float
    loss_gain: float
    fooled: float
    same_verdicts: float


class Reference:
    """The plain loop's results for a target, computed once."""

    def __init__(self, target: Target, setting: Setting) -> None:
        self.target = target
        self.setting = dataclasses.replace(setting, random_start=False)
        self.one_step = dataclasses.replace(self.setting, steps=1)
        x, y = target.x, target.y
        with torch.no_grad():
            sure = target.model(x).float().softmax(1).gather(1, y[:, None])[:, 0]
        self.compared = sure < _SATURATED
        self.first = plain_loop(target, self.one_step)(x, y)
        self.last = plain_loop(target, self.setting)(x, y)
        self.clean_loss, _ = _loss_and_fooled(target, x)
        self.loss, self.fooled = _loss_and_fooled(target, self.last)

    def compare(self, provider: Provider) -> tuple[Agreement | None, str | None]:
        """A provider's agreement, and what is wrong with it (None: nothing)."""
        target, keep = self.target, self.compared
        first = provider.make(target, self.one_step)(target.x, target.y)
        last = provider.make(target, self.setting)(target.x, target.y)
        fault = outside(last, target.x, self.setting.eps)
        if fault is not None:
            return None, fault
        if not bool(keep.any()):
            return None, "all samples saturate: nothing to compare with"
        loss, fooled = _loss_and_fooled(target, last)
        x, mine, theirs = target.x[keep], last[keep], self.last[keep]
        moves, expected = (first[keep] - x).sign(), (self.first[keep] - x).sign()
        agreement = Agreement(
            saturated=1 - _share(keep),
            same_pixels=_share(mine == theirs),
            max_difference=255 * float((mine - theirs).abs().max()),
            flipped_signs=_share((moves != expected)[expected != 0]),
            profile_distance=float((self._profile(mine, x) - self._profile(theirs, x)).abs().sum())
            / 2,
            loss_gain=(loss - self.clean_loss) / (self.loss - self.clean_loss),
            fooled=_share(fooled),
            same_verdicts=_share(fooled == self.fooled),
        )
        return agreement, fault_of(agreement, rounding(provider, x.device))

    def _profile(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The shares of the pixels at a distance of 0, 1, 2 ... steps from x."""
        alpha = self.setting.alpha
        most = round(self.setting.eps / alpha)
        distance = ((x_adv - x).abs() / alpha).round().long().clamp(max=most)
        return distance.flatten().bincount(minlength=most + 1) / distance.numel()


# The largest share of flipped signs, the largest profile distance and the smallest loss gain, by arithmetic. They lie
# between what was measured and what is wrong: bfloat16 flips 3 % of the signs of a trained network and 6, 8 and 25 % of
# the random ResNet-18, WRN-32 and ResNet-50; float16, whose significand is as long as TF32's, 0.5 % and 2, 3 and 10 %;
# folding up to 0.8 %; an opposite or unrelated gradient 50 to 100 %. Half precision changes profiles by up to 0.012, a
# step left out by 0.16 or more.
_LIMITS = {
    "plain": (0.002, 0.01, 0.99),
    "fp32": (0.02, 0.02, 0.95),
    "tf32": (0.20, 0.05, 0.90),
    "fp16": (0.20, 0.05, 0.90),
    "bf16": (0.35, 0.05, 0.90),
}


def rounding(provider: Provider, device: torch.device) -> str:
    """The key of a provider's limits. If TF32 is allowed, even a constant factor of the loss changes rounding."""
    if provider.precision != "fp32":
        return provider.precision
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "tf32"
    return "plain" if provider.plain else "fp32"


def fault_of(agreement: Agreement, arithmetic: str) -> str | None:
    """Text: which differences cannot be rounding of this arithmetic; None if all can."""
    flips, distance, gain = _LIMITS[arithmetic]
    faults = []
    if not agreement.flipped_signs <= flips:
        faults.append(
            f"{agreement.flipped_signs:.2%} of the first step's signs are flipped, at most {flips:.1%} expected"
        )
    if not agreement.profile_distance <= distance:
        faults.append(
            f"pixels lie other numbers of steps from x (distance {agreement.profile_distance:.3f}, at most "
            f"{distance} expected)"
        )
    if not agreement.loss_gain >= gain:
        faults.append(
            f"the loss rises {agreement.loss_gain:.2f} times as far as by the plain loop, at least {gain} expected"
        )
    return "; ".join(faults) or None


def outside(x_adv: Tensor, x: Tensor, eps: float) -> str | None:
    """Text: how images leave the ball or the box, or differ in shape, dtype or device from x; None if they do not."""
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype or x_adv.device != x.device:
        return (
            f"returned {x_adv.dtype} {list(x_adv.shape)} on {x_adv.device}, expected {x.dtype} {list(x.shape)} on "
            f"{x.device}"
        )
    slack = 1e-6
    distance = float((x_adv - x).abs().max())
    low, high = (float(bound) for bound in torch.aminmax(x_adv))
    if not distance <= eps + slack:
        return f"{255 * distance:.3f}/255 from x, at most {255 * eps:g}/255 expected"
    if not (low >= -slack and high <= 1 + slack):
        return f"pixels from {low:.4f} to {high:.4f}, expected 0 to 1"
    return None


def _loss_and_fooled(target: Target, x: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy by the live network in float32, and whether each image fools it."""
    with torch.no_grad():
        logits = target.model(x).float()
    return float(F.cross_entropy(logits, target.y)), logits.argmax(1) != target.y


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())
