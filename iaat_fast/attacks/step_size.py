"""Step sizes that follow the radius."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def scaled_step(steps: int, floor: float = 2 / 255) -> Callable[[Tensor], Tensor]:
    """The step size max(eps / (steps / 2), floor): the whole ball can be crossed in `steps` steps.

    Pass it as `PGD(alpha=scaled_step(10))`. Source: the authors' released code for IAAT.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps}, expected at least 1")
    if not floor > 0:
        raise ValueError(f"floor: {floor}, expected a number > 0")

    def alpha(eps: Tensor) -> Tensor:
        return (eps / (0.5 * steps)).clamp(min=floor)

    return alpha
