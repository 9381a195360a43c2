"""The part "corruptions": a row for each corruption; those whose files were missing can be added later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from iaat_fast.data import Samples
from iaat_fast.evaluate.corruptions import (
    CorruptedImages,
    can_be_generated,
    measure_corruptions,
    open_corruptions,
    summarise,
)
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.parts.part import Context, Part, Settings
from iaat_fast.evaluate.record import Record

SUMMARY = "corruptions"
"""Key of the row over all corruptions."""


def measure(context: Context) -> None:
    """Add a row and verdicts for each corruption that the record does not have, then the summary.

    Finished rows stay: an evaluation that was stopped continues with the next corruption, and one that lacked files
    measures those that are there now. Rows of published files replace those of generated images, never the reverse.
    """
    record, images = context.record, context.prepared["corruptions"]
    if images.origin == "generated" and _has(record, "official"):
        return
    if images.origin == "official" and _has(record, "generated"):
        _forget(record)
    done = {row["corruption"] for row in record.rows if row["kind"] == "corruption"}
    summary = next((row for row in record.rows if row["key"] == SUMMARY), None)
    if summary is not None and done.issuperset(images.names):
        return
    ahead = 5.0 * len(images.labels) * len(set(images.names) - done)
    behind = 0.0

    def progress(name: str) -> Callable[[int, int], None]:
        def told(images_done: int, of: int) -> None:
            nonlocal behind
            context.tell(f"corruption {name}", behind + images_done, ahead - behind - images_done)
            if images_done == of:
                behind += of

        return told

    for one in measure_corruptions(
        context.target.model,
        images,
        device=context.target.split.labels.device,
        done=done,
        batch_size=context.settings.batch_size,
        progress=progress,
    ):
        record.add(one.row, {one.row["key"]: one.verdicts})
    if summary is not None:
        record.rows.remove(summary)
    record.add(summarise(record.rows, images), {})


def _has(record: Record, origin: str) -> bool:
    return any(row["kind"] == "corruption" and row["source"] == origin for row in record.rows)


def _forget(record: Record) -> None:
    """Remove all corruptions from the record."""
    for row in [row for row in record.rows if row["part"] == "corruptions"]:
        record.rows.remove(row)
        record.verdicts.pop(row["key"], None)


def _lacks(given: Collection[str], split: Samples | None) -> str | None:
    if "corruptions" in given or split is None or can_be_generated(split):
        return None
    return "published files, or images that corruptions can be generated from"


def _open(target: EvalTarget, settings: Settings) -> CorruptedImages:
    data = target.description["data"]
    return open_corruptions(
        target.split,
        dataset=data["name"],
        folder=settings.corruptions,
        data=None if data["path"] is None else Path(data["path"]).expanduser(),
        seed=settings.seed,
    )


CORRUPTIONS = Part(
    name="corruptions",
    help="accuracy under common corruptions, published or generated",
    measure=measure,
    lacks=_lacks,
    prepare=_open,
)
