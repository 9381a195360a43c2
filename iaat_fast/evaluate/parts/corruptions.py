"""The part "corruptions" of an evaluation: rows into its record as they come, and again where files were missing."""

from __future__ import annotations

from collections.abc import Callable

from iaat_fast.evaluate.corruptions import CorruptedImages, measure_corruptions, summarise
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.parts.part import Context
from iaat_fast.evaluate.record import Record

SUMMARY = "corruptions"
"""Key of the row over all corruptions."""


def corruptions(context: Context) -> None:
    """Accuracy under each corruption, and their summary."""
    assert context.corrupted is not None
    record_corruptions(
        context.target,
        context.corrupted,
        context.record,
        batch_size=context.batch_size,
        tell=context.tell,
    )


def record_corruptions(
    target: EvalTarget,
    images: CorruptedImages,
    record: Record,
    *,
    batch_size: int = 256,
    tell: Callable[[str, float, float], None] | None = None,
) -> None:
    """Add a row and verdicts for each corruption that the record does not have, then the summary.

    What is there already stays: an evaluation that was stopped goes on with the next corruption, and one that lacked
    files measures those that have come. Published files take the place of generated images, never the reverse.

    Args:
        target: whose model is measured.
        images: what on; of the target's samples.
        record: where rows go.
        batch_size: samples per forward.
        tell: called as tell(name, done, remaining), in images.
    """
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
            assert tell is not None
            tell(f"corruption {name}", behind + images_done, ahead - behind - images_done)
            if images_done == of:
                behind += of

        return told

    for one in measure_corruptions(
        target.model,
        images,
        device=target.split.labels.device,
        done=done,
        batch_size=batch_size,
        progress=None if tell is None else progress,
    ):
        record.add(one.row, {one.row["key"]: one.verdicts})
    if summary is not None:
        record.rows.remove(summary)
    record.add(summarise(record.rows, images), {})


def _has(record: Record, origin: str) -> bool:
    return any(row["kind"] == "corruption" and row["source"] == origin for row in record.rows)


def _forget(record: Record) -> None:
    """Take all corruptions out of the record."""
    for row in [row for row in record.rows if row["part"] == "corruptions"]:
        record.rows.remove(row)
        record.verdicts.pop(row["key"], None)
