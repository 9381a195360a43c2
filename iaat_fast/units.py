"""How distances between images (in units of 1/255), numbers and attacks are read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

# Below these, in units of 1/255, a number was more likely meant on the [0, 1] scale: the smallest radius that
# experiments use is 0.5, and their steps go down to a tenth of a radius.
SMALL_RADIUS, SMALL_STEP = 0.5, 0.05


def from_text(text: str) -> float:
    """A distance on the [0, 1] scale from what is typed: `8`, in units of 1/255, or a fraction such as `8/255`.

    Raises:
        ValueError: neither.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 255)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{text!r}, expected a number of units of 1/255, or a fraction such as 8/255"
        ) from None


def to_text(value: float, digits: int = 6) -> str:
    """A distance on the [0, 1] scale in units of 1/255, as `from_text` reads it: `8`, `76.5`."""
    return f"{value * 255:.{digits}g}"


def radius_name(eps: float) -> str:
    """`ε = 8`, of a radius on the [0, 1] scale in units of 1/255."""
    return f"ε = {to_text(eps)}"


def pgd_name(attack: Mapping[str, Any]) -> str:
    """`PGD-10 × 5`: steps and restarts of an attack."""
    return f"PGD-{attack['steps']} × {attack['restarts']}"


def attack_name(attack: Mapping[str, Any]) -> str:
    """`PGD-10 × 5 at ε = 8/255`, or `targeted PGD-10 ...` if the attack aims at random classes."""
    aim = "targeted " if attack.get("targeted") == "random" else ""
    return f"{aim}{pgd_name(attack)} at {radius_name(attack['eps'])}/255"


def autoattack_name(attack: Mapping[str, Any]) -> str:
    """`AutoAttack`, or `AutoAttack (rand, bf16)`: its version, precision and engine where they are not the default."""
    version = attack.get("version")
    named = (
        None if version == "standard" else version,
        attack.get("precision"),
        attack.get("engine"),
    )
    how = [name for name in named if name is not None]
    return f"AutoAttack ({', '.join(how)})" if how else "AutoAttack"


def attack_key(steps: int, restarts: int, eps: float) -> str:
    """`pgd10x5-eps8`, the name of an attack in a record's keys and in names of files."""
    return f"pgd{steps}x{restarts}-eps{to_text(eps)}"


def too_small(flag: str, value: float, least: float) -> str | None:
    """A warning if a flag's value (on the [0, 1] scale) is above 0 and below `least` units of 1/255, else None."""
    units = value * 255
    if not 0 < units < least:
        return None
    return (
        f"{flag}: {units:g}/255, since numbers are in units of 1/255; "
        f"if {units:g} of the range of the pixels was meant, that is {units * 255:g}"
    )


def beyond(value: float, lo: float, hi: float) -> str | None:
    """What is expected in place of a distance larger than the width of the box [lo, hi]; None if it is not larger."""
    width = hi - lo
    if not value > width:
        return None
    return f"at most {width:g}, the width of [{lo:g}, {hi:g}]{likely(value, width)}"


def likely(value: float, width: float) -> str:
    """A hint, such as `; 8/255?`, if a distance beyond `width` looks like one in units of 1/255, else ""."""
    typed = math.isfinite(value) and value == round(value, 2)
    return f"; {value:g}/255?" if typed and width < value <= 255 * width else ""


def significant(value: float, digits: int = 4) -> str:
    """A number to `digits` significant digits, never with an exponent: `13,870`, `0.5`, `0.00001234`."""
    return f"{Decimal(f'{value:.{digits}g}'):,f}"
