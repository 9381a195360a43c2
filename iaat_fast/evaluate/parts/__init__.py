"""The parts that suites are made of, a file per kind of measurement.

A new part is a `Part` in a file of its own, an entry in `PARTS`, and its name in the suites that have it.
"""

from __future__ import annotations

from collections.abc import Collection

from iaat_fast import validate
from iaat_fast.data import Samples
from iaat_fast.evaluate.parts.adversarial import ADVERSARIAL
from iaat_fast.evaluate.parts.autoattack import AUTOATTACK, AUTOATTACK_RAND
from iaat_fast.evaluate.parts.corruptions import CORRUPTIONS
from iaat_fast.evaluate.parts.part import Part
from iaat_fast.evaluate.parts.pgd import EPS_SWEEP, NATURAL, PGD, STEPS_SWEEP, TRANSFER
from iaat_fast.evaluate.suites import Suite

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        *(NATURAL, PGD, TRANSFER, CORRUPTIONS, EPS_SWEEP, STEPS_SWEEP),
        *(AUTOATTACK, AUTOATTACK_RAND, ADVERSARIAL),
    )
}
"""All parts by name; ADVERSARIAL belongs to no suite and is added if files are given."""


def choose(
    suite: Suite,
    asked: Collection[str] | None,
    *,
    given: Collection[str],
    split: Samples | None = None,
) -> tuple[str, ...]:
    """The parts to measure, in the suite's order.

    Args:
        suite: whose parts they are.
        asked: their names; None: those that the suite measures by default and that lack nothing they need.
        given: fields of `Settings` that are given, see `Part.lacks`.
        split: the samples, if they are known.

    Raises:
        ValueError: a part that the suite does not have, or that lacks something it needs, such as a surrogate.
    """
    if asked is None:
        return tuple(name for name in suite.parts if PARTS[name].lacks(given, split) is None)
    known = (*suite.parts, *suite.on_request)
    for name in asked:
        validate.choice(f"part of suite {suite.name}", name, known)
        lack = PARTS[name].lacks(given, None)
        if lack is not None:
            raise ValueError(f"{name}: expected {lack}")
    return tuple(name for name in known if name in asked)
