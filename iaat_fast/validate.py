"""Argument checks: each rule once, its error one line, `name: value, expected ...`."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(name: object, known: Collection[str]) -> str:
    """`"did you mean 'x'?"` for the known name closest to `name`, or all of them if none is."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError naming the nearest known name unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}: unknown, {nearest(value, known)}")


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
