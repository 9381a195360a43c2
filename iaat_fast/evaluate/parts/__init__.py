"""The parts of an evaluation.

A part is a function of a `Context` in the table `PARTS`. It adds a row to `context.record` for each
measurement that the record does not have yet, may keep its state by `context.save`, and tells how far it is
by `context.tell`, where that is given. It may be stopped at any moment by an exception, and is then called again,
with the record as it was left.
"""

from __future__ import annotations

from collections.abc import Callable

from iaat_fast.evaluate.parts.adversarial import adversarial
from iaat_fast.evaluate.parts.autoattack import measure_autoattack
from iaat_fast.evaluate.parts.corruptions import corruptions
from iaat_fast.evaluate.parts.part import Context
from iaat_fast.evaluate.parts.pgd import WHITE_BOX, natural, transfer, white_box

PARTS: dict[str, Callable[[Context], None]] = {
    "natural": natural,
    **dict.fromkeys(WHITE_BOX, white_box),
    "transfer": transfer,
    "autoattack": measure_autoattack,
    "corruptions": corruptions,
    "adversarial": adversarial,
}
"""What measures a part. Parts with the same function are measured by one call of it."""
