"""The record of an evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from iaat_fast import units
from iaat_fast.evaluate.corruptions import footnotes
from iaat_fast.evaluate.suites import SINGLE


def suite_table(content: dict[str, Any]) -> Table:
    """One row per measurement of results.json, grouped by part; radii and steps in units of 1/255."""
    data, rule = content["data"], content["rule"]
    title = f"{data['samples']} test images of {data['name']}"
    title += "" if content["suite"] == SINGLE else f", suite {content['suite']}"
    state = "" if content["complete"] else ", incomplete"
    steps = {row["alpha"] for row in content["measurements"] if "alpha" in row}
    step = f", attack step {units.to_text(steps.pop())}/255" if len(steps) == 1 else ""
    result = Table(title=f"{title}, {rule} iterate{step}{state}")
    result.add_column("measurement")
    for column in ("accuracy", "95 % interval", "correct"):
        result.add_column(column, justify="right")
    parts = list(content["parts"])
    rows = sorted(
        content["measurements"],
        key=lambda row: (parts.index(row["part"]), row.get("eps", 0), row.get("steps", 0)),
    )
    part = None
    for row in rows:
        accuracy = row.get("accuracy", row.get("mean_accuracy"))
        low, high = row.get("interval_95", (None, None))
        name = escape(_name(row))
        # The part has a line of its own: a column would leave too little room for an attack's name in 80 characters.
        if row["part"] != part:
            part = row["part"]
            result.add_section()
            if name != part:
                result.add_row(f"[bold]{part}")
        result.add_row(
            f"[bold]{name}" if name == part else f"  {name}",
            "–" if accuracy is None else f"{accuracy:.2%}",
            "" if low is None else f"{low:.2%} – {high:.2%}",
            f"{row['correct']} / {row['samples']}" if "correct" in row else "",
        )
    notes = [note for row in rows if row["kind"] == "corruptions" for note in footnotes(row)]
    surrogates = dict.fromkeys(row["surrogate"]["run"] for row in rows if "surrogate" in row)
    notes += [f"transfer: crafted on {escape(str(run))}" for run in surrogates]
    attacks = [row for row in rows if "gradients_planned" in row]
    planned = sum(row["gradients_planned"] for row in attacks)
    taken = sum(row["gradients"] for row in attacks)
    if taken < planned:
        saved = 1 - taken / planned
        how = "attacks share their steps, and no sample is attacked whose verdict is known"
        notes.append(f"{saved:.0%} of the passes saved: {how}")
    result.caption = "\n".join(notes) or None
    return result


def _name(row: dict[str, Any]) -> str:
    match row["kind"]:
        case "pgd" | "transfer":
            return units.attack_name(row)
        case "autoattack":
            return f"{units.autoattack_name(row)} at {units.radius_name(row['eps'])}/255"
        case "corruption":
            return str(row["corruption"])
        case "corruptions":
            return "mean"
        case _:
            return str(row["key"])
