"""What an attack's gradients looked like, and the warning where they could not have found anything."""

from __future__ import annotations

import dataclasses
import warnings

# ReLU networks on real images give less than 1 % exact zeros; a masked gradient gives nearly all.
SUSPICIOUS_ZEROS = 0.5


@dataclasses.dataclass(frozen=True)
class AttackStats:
    """Entries of the input gradients of one call: how many there were, how many were 0 and how many NaN."""

    total: int
    zero: int
    nan: int

    def warn(self) -> None:
        """Warn where the attack was blind: torch.sign gives 0 for a NaN as for a 0, and the pixel stays put."""
        if self.nan:
            warnings.warn(
                f"{self.nan} of {self.total} gradient entries are NaN and moved no pixel, so robustness looks "
                "higher than it is; likely cause: NaN or huge weights, or a function in the model without a "
                "gradient where it was evaluated (a square root or norm at 0, 0/0)",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.zero > SUSPICIOUS_ZEROS * self.total:
            warnings.warn(
                f"{self.zero} of {self.total} gradient entries are 0 and moved no pixel, so robustness looks "
                "higher than it is; likely cause: masked gradients (a quantised, thresholded or detached input, "
                "or units that are all saturated)",
                RuntimeWarning,
                stacklevel=3,
            )
