"""Whether a provider does the attack that the plain loop does: signs, pixels, loss and verdicts from one start."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attacks.providers import Provider, Setting, plain_loop
from benchmarks.targets import Target

# Where the network is surer than this, the plain float32 gradient has lost its bits (`ops.ce_cotangent`).
_SATURATED = 1 - 2.0**-12


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A provider's images against those of the plain loop, both started at x.

    Pixels are compared on the samples that do not saturate, the rest on all. After many steps equal pixels become few
    wherever gradients round differently, because networks amplify a flipped sign; profile and loss do not.

    saturated: share of samples on which the plain loop's gradients are no reference.
    same_pixels: share of values equal after all steps, bit for bit.
    max_difference: the largest difference, in 1/255.
    flipped_signs: share of the first step's moves that went another way, or nowhere.
    profile_distance: total variation between the distributions of |x_adv - x|, counted in steps. One step left out
        changes which multiples occur.
    loss_gain: rise of the cross-entropy, over that of the plain loop.
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
    """The plain loop's answers for a target, computed once."""

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
        self.clean_loss, _ = _judge(target, x)
        self.loss, self.fooled = _judge(target, self.last)

    def compare(self, provider: Provider) -> tuple[Agreement | None, str | None]:
        """How far a provider agrees, and what is wrong with it: None if nothing is."""
        target, keep = self.target, self.compared
        first = provider.make(target, self.one_step)(target.x, target.y)
        last = provider.make(target, self.setting)(target.x, target.y)
        fault = outside(last, target.x, self.setting.eps)
        if fault is not None:
            return None, fault
        if not bool(keep.any()):
            return None, "all samples saturate: nothing to compare with"
        loss, fooled = _judge(target, last)
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
        """Shares of the pixels that are 0, 1, 2 ... steps from x."""
        alpha = self.setting.alpha
        most = round(self.setting.eps / alpha)
        distance = ((x_adv - x).abs() / alpha).round().long().clamp(max=most)
        return distance.flatten().bincount(minlength=most + 1) / distance.numel()


# Largest share of flipped signs, largest distance of profiles, smallest share of the plain loop's loss. Between the
# measured and the wrong: bfloat16 flips 3 % of the signs of a trained network and 6, 8 and 25 % of the random
# ResNet-18, WRN-32 and ResNet-50; float16, whose significand is as long as TF32's, 0.5 % and 2, 3 and 10 %; folding up
# to 0.8 %; a contrary or unrelated gradient 50 to 100 %. Half types move profiles by up to 0.012, a step left out by
# 0.16 or more.
_LIMITS = {
    "plain": (0.002, 0.01, 0.99),
    "fp32": (0.02, 0.02, 0.95),
    "tf32": (0.20, 0.05, 0.90),
    "fp16": (0.20, 0.05, 0.90),
    "bf16": (0.35, 0.05, 0.90),
}


def rounding(provider: Provider, device: torch.device) -> str:
    """Which limits hold: where TF32 is allowed, even a factor before the loss changes what it rounds to."""
    if provider.precision != "fp32":
        return provider.precision
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "tf32"
    return "plain" if provider.plain else "fp32"


def fault_of(agreement: Agreement, arithmetic: str) -> str | None:
    """What cannot be rounding of this arithmetic, in words; None where all can be."""
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
    """Whether images leave the ball, the box or the shape of x; rounding of a float32 difference is none."""
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


def _judge(target: Target, x: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy by the live network in float32, and whether each image fools it."""
    with torch.no_grad():
        logits = target.model(x).float()
    return float(F.cross_entropy(logits, target.y)), logits.argmax(1) != target.y


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())
