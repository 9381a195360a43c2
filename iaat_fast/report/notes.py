"""Captions and footnotes of tables: on what was measured, and how that differs from the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iaat_fast import units
from iaat_fast.evaluate.results import Evaluation, Measurement, targets
from iaat_fast.evaluate.suites import CLOSING
from iaat_fast.report import paper
from iaat_fast.report.groups import Group, Variant

MANY_ZEROS = 0.5
"""If more than this share of the gradient entries is zero, the robust accuracy is doubtful."""


def measured_on(group: Group) -> str:
    """`ResNet-18, width 16; the first 5,000 training images; 15 epochs (the paper: 200)`."""
    config = group.runs[0].config
    limit, epochs = config.get("data.limit"), config["optim.epochs"]
    images = f"the first {limit:,} training images" if limit is not None else "all training images"
    trained = f"{epochs} epochs"
    printed = paper.EPOCHS.get(group.network) if group.dataset in paper.TEST_IMAGES else None
    if printed is not None and printed != epochs:
        trained += f" (the paper: {printed})"
    parts = [group.title, images, trained]
    if config.get("protocol", "paper") != "paper":
        parts.append(f"protocol {config['protocol']}")
    return "; ".join(parts)


def unlike_paper(group: Group) -> list[str]:
    """How the trainings of a group differ from the paper's setting; [] if they do not, or the paper has none."""
    if group.dataset not in paper.TEST_IMAGES or group.network not in paper.EPOCHS:
        return []
    config = group.runs[0].config
    found = []
    if config.get("model.width") is not None or config.get("model.depth") is not None:
        found.append("another width or depth of the network")
    if config.get("data.limit") is not None:
        found.append("a part of the training images")
    if config["optim.epochs"] != paper.EPOCHS[group.network]:
        found.append("another number of epochs")
    return found


def attacks(measured: Sequence[Measurement]) -> str:
    """`PGD-10 × 5, PGD-1000 × 2 at ε = 8, step 2`: steps × restarts; the empty string without attacks."""
    settings: dict[str, list[str]] = {}
    for m in measured:
        if m.kind not in ("pgd", "transfer"):
            continue
        row = m.row
        how = f"step {units.to_text(row['alpha'])}"
        how += ", random targets" if targets(row) else ""
        name = units.pgd_name(row)
        name = f"transferred {name}" if m.kind == "transfer" else name
        found = settings.setdefault(f"at {units.radius_name(row['eps'])}, {how}", [])
        if name not in found:
            found.append(name)
    return "; ".join(f"{', '.join(names)} {where}" for where, names in settings.items())


def caption(
    chosen: Sequence[tuple[Group, Sequence[Variant]]],
    evaluation: Evaluation,
    measured: Sequence[Measurement],
) -> str:
    """On what was trained and measured, with which attacks, and how that differs from the paper's setting."""
    dataset = chosen[0][0].dataset
    samples = f"{evaluation.samples:,} {evaluation.split} images"
    printed = paper.TEST_IMAGES.get(dataset)
    if printed is not None and printed != evaluation.samples:
        samples += f" (the paper: {printed:,})"
    trained = ". ".join(measured_on(group) for group, _ in chosen)
    text = f"Measured on: {trained}. Evaluated on {samples}."
    if said := attacks(measured):
        text += f" Attacks (steps × restarts): {said}."
    unlike = list(dict.fromkeys(what for group, _ in chosen for what in unlike_paper(group)))
    if printed is not None and printed != evaluation.samples:
        unlike.append("another number of test images")
    if unlike:
        text += f" Not the paper's setting: {', '.join(unlike)}."
    if evaluation.rule != "last":
        text += (
            " A sample counts as fooled if any iterate fools the model, a stronger attack than the paper's,"
            " which judges the last."
        )
    return text


def setting_note(head: str, expected: dict[str, Any], found: Measurement) -> str | None:
    """How a column's attack differs from the paper's; None if it does not."""
    changed = []
    for name, value in expected.items():
        actual: Any = targets(found.row) if name == "targeted" else found.row[name]
        if name in ("eps", "alpha"):
            if round(255 * actual, 3) != round(255 * value, 3):
                label = "ε" if name == "eps" else "step"
                shown = units.to_text(actual), units.to_text(value)
                changed.append(f"{label} = {shown[0]} (the paper: {shown[1]})")
        elif actual != value:
            changed.append(f"{name} = {_said(actual)} (the paper: {_said(value)})")
    return f"{head} measured with {', '.join(changed)}." if changed else None


def _said(value: Any) -> str:
    return "no" if value is False else str(value)


def evaluation_notes(m: Measurement, evaluation: Evaluation) -> list[str]:
    """The footnotes of one measured accuracy."""
    notes = []
    if m.suite == CLOSING:
        notes.append("From the evaluation that closes the training, not from a suite.")
    if not evaluation.complete:
        done = len(evaluation.measurements)
        notes.append(f"Evaluation not complete: {done} measurements were in when this was written.")
    if m.kind == "corruptions":
        if m.row.get("source") == "generated":
            notes.append(
                "On generated corruptions, made from the test images by the project; not the official files."
            )
        if not m.row.get("complete", True):
            missing = "; ".join(str(name) for name in m.row.get("missing", []))
            notes.append(
                f"Corruptions not complete: {m.row.get('types')} types, without {missing or 'some'}."
            )
    entries = m.row.get("gradient_entries") or 0
    if entries:
        zero, nan = (
            (m.row.get(f"{kind}_gradient_entries") or 0) / entries for kind in ("zero", "nan")
        )
        if zero > MANY_ZEROS or nan > 0:
            notes.append(
                f"The attack may be blind: {zero:.0%} of its gradient entries were zero, {nan:.1%} NaN."
            )
    return notes
