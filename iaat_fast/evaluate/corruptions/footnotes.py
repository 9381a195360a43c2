"""What has to be said beside a figure for corruptions: that they were generated, and which are missing."""

from __future__ import annotations

from typing import Any


def footnotes(row: dict[str, Any]) -> list[str]:
    """Lines for under a table, of the row that `summarise` made; none where there is nothing to say."""
    notes = []
    if row["source"] == "generated":
        notes.append(
            "corruptions: generated from the test images, with ImageNet-C's strengths; not the published files"
        )
    if row["mce"] is not None:
        notes.append(f"mCE {row['mce']:.1f}, AlexNet is 100")
    if not row["complete"]:
        notes.append(
            f"corruptions: incomplete, {row['types']} measured; {'; '.join(row['missing'])}"
        )
    return notes
