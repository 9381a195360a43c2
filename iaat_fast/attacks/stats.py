"""What an attack's gradients looked like, and the warning where they could not have found anything."""

from __future__ import annotations

import dataclasses
import warnings

# ReLU networks on real images give less than 1 % exact zeros; a masked gradient gives nearly all.
SUSPICIOUS_ZEROS = 0.5


@dataclasses.dataclass(frozen=True)
class AttackStats:
    """The input gradients of one call.

    total, zero, nan: entries of all gradients, and how many of them were 0 and NaN.
    gradients: gradients taken, one image each, that is passes through the network and back.
    planned: what they would have been with every sample in every step of every restart.
    """

    total: int = 0
    zero: int = 0
    nan: int = 0
    gradients: int = 0
    planned: int = 0

    def plus(self, call: AttackStats) -> AttackStats:
        """These and those of one more call, of a plan that stays as it is."""
        return dataclasses.replace(
            self,
            total=self.total + call.total,
            zero=self.zero + call.zero,
            nan=self.nan + call.nan,
            gradients=self.gradients + call.gradients,
        )

    def warn(self, *, zeros: bool = True) -> None:
        """Warn where the attack was blind: torch.sign gives 0 for a NaN as for a 0, and the pixel stays put.

        `zeros` says whether many zeros are suspicious.

        The texts hold no counts, so that Python's own filter shows each of them once per place and not at every step.
        """
        if self.nan:
            warnings.warn(
                "some gradient entries are NaN and moved no pixel (`stats` counts them), so robustness looks higher "
                "than it is; likely cause: NaN or huge weights, or a function in the model without a gradient where it "
                "was evaluated (a square root or norm at 0, 0/0)",
                RuntimeWarning,
                stacklevel=3,
            )
        if zeros and self.zero > SUSPICIOUS_ZEROS * self.total:
            warnings.warn(
                "more than half of the gradient entries are 0 and moved no pixel (`stats` counts them), so "
                "robustness looks higher than it is; likely cause: masked gradients (a quantised, thresholded or "
                "detached input) or dead units (training that has collapsed)",
                RuntimeWarning,
                stacklevel=3,
            )
