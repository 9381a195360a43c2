"""Argument checks: each rule once, with an error of one line, `name: value, expected ...`.

The values inside tensors are checked where they are read: `ops/checks.py`, `attacks/findings.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from iaat_fast import units


def integer(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """An int, numpy's included, of at least `least`, or None if `optional`; True and 2.0 are refused."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: {value!r}, expected an int")
    if int(value) < least:
        raise ValueError(f"{name}: {value}, expected at least {least}")


def int64(name: str, value: object) -> None:
    """An int that fits into 64 bits, such as a seed."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {value!r}, expected an int")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: {value}, expected a number in -2**63 ... 2**63 - 1")


def number(
    name: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """A finite number, numpy's included, in [low, high], without `low` if `above`, without `high` if `below`."""
    if high == math.inf:
        expected = f"a number {'>' if above else '>='} {low:g}"
    else:
        expected = f"a number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: {value!r}, expected {expected}")
    real = float(value)
    inside = (low < real if above else low <= real) and (real < high if below else real <= high)
    if not (inside and math.isfinite(real)):
        finite = ", finite" if inside else ""
        raise ValueError(f"{name}: {value}, expected {expected}{finite}")


def distance(name: str, value: object, lo: float, hi: float, *, positive: bool = False) -> None:
    """A radius or step size: a number up to the width of the box [lo, hi], or a tensor, whose values calls check."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {value!r}, expected a float or a Tensor")
    if not (value > 0 or (value == 0 and not positive)):
        raise ValueError(f"{name}: {value}, expected a number {'>' if positive else '>='} 0")
    problem = units.beyond(value, lo, hi)
    if problem:
        raise ValueError(f"{name}: {value}, expected {problem}")


def pixel_distance(name: str, value: object, *, positive: bool = False) -> None:
    """A radius or step size on the [0, 1] scale, which users type, and errors show, in units of 1/255."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {value!r}, expected a number in [0, 1]")
    if not (value > 0 if positive else value >= 0) or not value <= 1:
        expected = "above 0, up to 255" if positive else "0 to 255"
        likely = units.likely(value, 1.0)
        raise ValueError(f"{name}: {units.to_text(value)}/255, expected {expected}{likely}")


def box(lo: Any, hi: Any) -> None:
    """The bounds of the pixels, numbers lo <= hi; NaN is refused."""
    for name, value in (("lo", lo), ("hi", hi)):
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.dim() == 0):
            raise TypeError(f"{name}: {type(value).__name__}, expected a number")
    if not lo <= hi:
        raise ValueError(f"lo, hi: {lo}, {hi}, expected lo <= hi")


def one_box(name: str, attack: Any, reason: str) -> tuple[float, float]:
    """lo and hi of an attack, which must be numbers, not one per channel; `reason` says what would not fit."""
    if any(isinstance(bound, tuple) for bound in (attack.lo, attack.hi)):
        raise ValueError(f"{name}: lo, hi per channel, expected a number each: {reason}")
    return attack.lo, attack.hi


def choice(name: str, value: object, known: Collection[object]) -> None:
    """One of the `known` values, and of the same type; the error names the nearest."""
    if not any(value is one or (type(value) is type(one) and value == one) for one in known):
        listed = ", ".join(map(repr, known))
        close = _closest(value, known)
        meant = f"; did you mean {close!r}?" if close else ""
        raise ValueError(f"{name}: {value!r}, expected one of {listed}{meant}")


def nearest(name: object, known: Collection[str]) -> str:
    """`"did you mean 'x'?"` for the known name closest to `name`, or all of them if none is."""
    close = _closest(name, known)
    return f"did you mean {close!r}?" if close else f"expected one of {', '.join(known)}"


def _closest(name: object, known: Collection[object]) -> str | None:
    names = [one for one in known if isinstance(one, str)]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return close[0] if close else None


def one_line(error: Exception) -> str:
    """The message of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
