"""The suites, as data: the paper's attacks on CIFAR and on ImageNet, a quick estimate, and a single attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from iaat_fast import units, validate

SWEEP_STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000)
"""Steps of the attacks in the part "steps-sweep", of one restart each: the paper's Figure 9 goes to 2,000."""

SWEEP_EIGHTHS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
"""Radii of the part "eps-sweep" (Figure 4), in eighths of the suite's radius: at 8/255 they are 1 ... 16 in 1/255."""

SWEEP_EPS_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class PGDMeasurement:
    """A white-box or transferred PGD attack.

    Args:
        part: the part of the suite that it belongs to.
        eps, alpha: radius and step size, on the [0, 1] scale.
        steps, restarts: steps of each restart, random starts.
        targeted: False, or "random".
    """

    part: str
    eps: float
    alpha: float
    steps: int
    restarts: int
    targeted: Literal[False, "random"] = False

    @property
    def key(self) -> str:
        """`pgd10x5-eps8`; in another part than "pgd" it follows the part's name, `transfer-pgd10x5-eps8`."""
        name = units.attack_key(self.steps, self.restarts, self.eps)
        return name if self.part == "pgd" else f"{self.part}-{name}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named choice of measurements.

    Args:
        name: how it is asked for.
        parts: those measured by default, unless one lacks something it needs, such as a surrogate.
        on_request: further parts that may be asked for.
        eps, alpha: radii and step size, on the [0, 1] scale.
        attacks: (steps, restarts) of the part "pgd", at each radius.
        targeted: of all its attacks, False or "random".

    Raises:
        ValueError: a radius or step size beyond the scale, or the same radius twice.
    """

    name: str
    parts: tuple[str, ...]
    on_request: tuple[str, ...]
    eps: tuple[float, ...]
    alpha: float
    attacks: tuple[tuple[int, int], ...]
    targeted: Literal[False, "random"] = False

    def __post_init__(self) -> None:
        for eps in self.eps:
            validate.pixel_distance("eps", eps)
        validate.pixel_distance("alpha", self.alpha, positive=True)
        for steps, restarts in self.attacks:
            validate.integer("steps", steps, 0)
            validate.integer("restarts", restarts, 1)
        # Compared as keys write them: two radii with the same text would share a row.
        if len(set(map(units.to_text, self.eps))) < len(self.eps):
            raise ValueError("eps: the same radius twice")

    def at(self, eps: Sequence[float] = (), alpha: float | None = None) -> Suite:
        """The suite at these radii and with this step size; those that are not given are its own."""
        return dataclasses.replace(
            self, eps=tuple(eps) or self.eps, alpha=self.alpha if alpha is None else alpha
        )

    def attacks_of(self, part: str) -> tuple[PGDMeasurement, ...]:
        """The PGD attacks of a part; the sweeps and the transfer are at the largest radius."""
        top = max(self.eps)
        radii: Sequence[float] = (top,)
        if part == "pgd":
            radii, attacks = self.eps, self.attacks
        elif part == "transfer":
            attacks = self.attacks[-1:]
        elif part == "eps-sweep":
            # Rounded, so that 3/8 of 8/255 is exactly 3/255.
            radii = [round(top * 255 * eighths / 8, 9) / 255 for eighths in SWEEP_EIGHTHS]
            attacks = ((SWEEP_EPS_STEPS, 1),)
        elif part == "steps-sweep":
            attacks = tuple((steps, 1) for steps in SWEEP_STEPS)
        else:
            raise ValueError(f"part: {part!r}, expected one that attacks by PGD")
        return tuple(
            PGDMeasurement(
                part=part,
                eps=radius,
                alpha=self.alpha,
                steps=int(steps),
                restarts=int(restarts),
                targeted=self.targeted,
            )
            for radius in radii
            for steps, restarts in attacks
        )


SUITES = {
    "cifar": Suite(
        name="cifar",
        parts=("natural", "pgd", "transfer", "corruptions", "eps-sweep", "steps-sweep"),
        on_request=("autoattack", "autoattack-rand"),
        eps=(8 / 255,),
        alpha=2 / 255,
        attacks=((10, 5), (100, 5), (1000, 2)),
    ),
    "imagenet": Suite(
        name="imagenet",
        parts=("natural", "pgd", "corruptions", "steps-sweep"),
        on_request=("transfer", "autoattack", "autoattack-rand"),
        eps=(4 / 255, 8 / 255, 12 / 255, 16 / 255),
        alpha=1 / 255,
        # The paper names a number of restarts for CIFAR but none for ImageNet: one.
        attacks=((1000, 1),),
        targeted="random",
    ),
    "quick": Suite(
        name="quick",
        parts=("natural", "pgd"),
        on_request=(
            "transfer",
            "corruptions",
            "eps-sweep",
            "steps-sweep",
            "autoattack",
            "autoattack-rand",
        ),
        eps=(8 / 255,),
        alpha=2 / 255,
        attacks=((10, 5),),
    ),
}
"""Source: Balaji et al. 2019, Sections 4.1 (Tables 1 and 2) and 4.2 (Table 3), Appendix C."""

SINGLE, CLOSING = "pgd", "closing"
"""Names of the suites of one attack: that of a command line without --suite, and that of the end of a training."""


def single(
    *,
    eps: Sequence[float],
    alpha: float,
    steps: int,
    restarts: int,
    targeted: Literal[False, "random"] = False,
    name: str = SINGLE,
) -> Suite:
    """One attack as a suite: natural accuracy, and PGD of these steps and restarts at each radius.

    Args:
        eps, alpha: radii and step size, on the [0, 1] scale.
        steps, restarts: steps of each restart, random starts.
        targeted: False, or "random".
        name: what the record calls it.
    """
    return Suite(
        name=name,
        parts=("natural", "pgd"),
        on_request=(),
        eps=tuple(eps),
        alpha=alpha,
        attacks=((steps, restarts),),
        targeted=targeted,
    )


def suite_named(name: str) -> Suite:
    """The suite of this name; ValueError names the nearest to an unknown one."""
    validate.choice("suite", name, SUITES)
    return SUITES[name]
