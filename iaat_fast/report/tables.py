"""Tables from groups of runs: measured cells next to the paper's, captions and footnotes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from iaat_fast import methods, units
from iaat_fast.evaluate.results import Evaluation, Measurement, targets
from iaat_fast.evaluate.suites import CLOSING
from iaat_fast.report import naming, paper
from iaat_fast.report.formats import Cell, Row, Section, Table
from iaat_fast.report.groups import Group, Variant, refuse, slug
from iaat_fast.report.notes import caption, evaluation_notes, setting_note
from iaat_fast.report.paper import (
    CORRUPTIONS,
    NATURAL,
    PLANS,
    Column,
    Plan,
    attacks_of,
    pick_attack,
    version_of,
)
from iaat_fast.report.records import RunRecord


def build_tables(groups: Sequence[Group]) -> list[Table]:
    """The tables for which something was measured, in the paper's order, then those of other data sets.

    Raises:
        ValueError: runs of one table that were not measured in the same way; the message names both.
    """
    tables = [_table(plan, _of(groups, plan.dataset)) for plan in PLANS]
    planned = {plan.dataset for plan in PLANS}
    for dataset in dict.fromkeys(group.dataset for group in groups if group.dataset not in planned):
        tables.append(_unplanned(dataset, _of(groups, dataset)))
    return [table for table in tables if table is not None]


def _of(groups: Sequence[Group], dataset: str) -> list[Group]:
    return [group for group in groups if group.dataset == dataset]


def _table(plan: Plan, groups: Sequence[Group]) -> Table | None:
    rest = {p.needs for p in PLANS if p.dataset == plan.dataset and p.needs is not None}

    def takes(variant: Variant) -> bool:
        return variant.key in plan.methods if plan.methods else variant.key not in rest

    chosen = [(group, [v for v in group.variants if takes(v)]) for group in groups]
    chosen = [(group, variants) for group, variants in chosen if variants]
    if plan.needs is not None:
        chosen = [(g, vs) for g, vs in chosen if any(v.key == plan.needs for v in vs)]
    return _filled(
        chosen,
        number=plan.number,
        stem=f"table-{plan.number}",
        title=plan.title,
        columns=plan.columns,
    )


def _unplanned(dataset: str, groups: Sequence[Group]) -> Table | None:
    """The table of a data set that the paper does not have: a column for each attack that was measured."""
    evaluations = [run.evaluation for group in groups for run in group.runs if run.evaluation]
    columns = (NATURAL, *measured_columns(evaluations, ("pgd", "transfer")), CORRUPTIONS)
    return _filled(
        [(group, list(group.variants)) for group in groups],
        number=None,
        stem=f"table-{slug(dataset)}",
        title=f"Robustness on {naming.dataset_name(dataset)}",
        columns=columns,
        empty_columns=False,
    )


def _filled(
    chosen: Sequence[tuple[Group, Sequence[Variant]]],
    *,
    number: int | None,
    stem: str,
    title: str,
    columns: tuple[Column, ...],
    empty_columns: bool = True,
) -> Table | None:
    runs = [run for _, variants in chosen for variant in variants for run in variant.runs]
    reported = _reported(runs)
    if not reported:
        return None
    kept = (
        *(c for c in columns if empty_columns or any(c.pick(e) for _, e in reported)),
        *measured_columns([e for _, e in reported], ("autoattack",)),
    )
    _refuse_unlike(reported, kept)
    notes: list[str] = []
    evaluations = {run.name: evaluation for run, evaluation in reported}
    sections = [
        Section(
            network=group.title,
            rows=tuple(_rows(group, variants, kept, number, evaluations, notes)),
        )
        for group, variants in chosen
    ]
    if not any(c.value is not None for s in sections for r in s.rows if r.seeds for c in r.cells):
        return None
    heads = []
    measured = [next((m for _, e in reported if (m := column.pick(e))), None) for column in kept]
    for column, found in zip(kept, measured, strict=True):
        note = setting_note(column.head, column.settings, found) if found is not None else None
        heads.append((column.head, footnote_marks(notes, [note] if note else [])))
    return Table(
        number=number,
        stem=stem,
        title=title,
        caption=caption(chosen, reported[0][1], [m for m in measured if m is not None]),
        columns=tuple(column.key for column in kept),
        heads=tuple(heads),
        sections=tuple(sections),
        notes=tuple(notes),
    )


def _reported(runs: Sequence[RunRecord]) -> list[tuple[RunRecord, Evaluation]]:
    """The evaluations of a table: suites if some run has one, else those at the end of the trainings."""
    found = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    suites = [(run, evaluation) for run, evaluation in found if evaluation.suite != CLOSING]
    return suites or found


def _refuse_unlike(
    reported: Sequence[tuple[RunRecord, Evaluation]], columns: Sequence[Column]
) -> None:
    """Raise ValueError unless all were measured on the same images, by the same rule, with the same settings."""
    seen: dict[str, tuple[RunRecord, Any]] = {}
    for run, evaluation in reported:
        facts: dict[str, Any] = {
            "samples": evaluation.samples,
            "split": evaluation.split,
            "rule": evaluation.rule,
        }
        for column in columns:
            if (m := column.pick(evaluation)) is not None:
                facts[column.head] = _settings(m)
        for name, value in facts.items():
            first, expected = seen.setdefault(name, (run, value))
            if value != expected:
                refuse(first, run, [f"{name} ({expected}, {value})"])


def _settings(m: Measurement) -> str:
    row = m.row
    if m.kind in ("pgd", "transfer"):
        step = units.to_text(row["alpha"])
        attack = f"{units.pgd_name(row)}, {units.radius_name(row['eps'])}"
        return f"{attack}, step {step}, targeted: {targets(row)}"
    if m.kind == "autoattack":
        return units.radius_name(row["eps"]) + units.autoattack_name(row).removeprefix("AutoAttack")
    if m.kind == "corruptions":
        return f"{row.get('types')} types, {row.get('source')}"
    return ""


def _rows(
    group: Group,
    variants: Sequence[Variant],
    columns: Sequence[Column],
    number: int | None,
    evaluations: dict[str, Evaluation],
    notes: list[str],
) -> list[Row]:
    """The measured rows of each method, followed by the paper's row of that method."""
    printed = paper.figures(number, group.network) if number is not None else {}
    keys = sorted({*(v.key for v in variants), *printed}, key=naming.method_order)
    rows = []
    for key in keys:
        own = [variant for variant in variants if variant.key == key]
        for variant in own:
            rows.append(_measured(variant, columns, evaluations, notes))
        name = _paper_name(key, number)
        if key in printed:
            if not own:
                rows.append(Row(method=name, seeds=0, cells=tuple(Cell() for _ in columns)))
            where = (number or 0, group.network, key)
            remarks = [paper.REMARKS.get((*where, column.key)) for column in columns]
            cells = tuple(
                Cell(
                    value=printed[key].get(column.key),
                    marks=footnote_marks(notes, [remark] if remark else []),
                )
                for column, remark in zip(columns, remarks, strict=True)
            )
            rows.append(Row(method=name, seeds=None, cells=cells))
    return rows


def _paper_name(key: str, number: int | None) -> str:
    radius = 16 if number == 3 else 8
    label = methods.row(key).label
    return f"{label}, ε = {radius}" if key == methods.ADV else label


def _measured(
    variant: Variant,
    columns: Sequence[Column],
    evaluations: dict[str, Evaluation],
    notes: list[str],
) -> Row:
    cells = []
    reported = [evaluations[run.name] for run in variant.runs if run.name in evaluations]
    for column in columns:
        found = [(m, e) for e in reported if (m := column.pick(e)) is not None]
        said = [note for run in variant.runs if (note := _unreported(run, evaluations))]
        for m, evaluation in found:
            said += evaluation_notes(m, evaluation)
        cells.append(_cell(column, [m for m, _ in found], footnote_marks(notes, said)))
    return Row(method=variant.name, seeds=len(reported), cells=tuple(cells))


def _unreported(run: RunRecord, evaluations: dict[str, Evaluation]) -> str | None:
    if run.name in evaluations:
        return None
    if run.evaluation is None:
        return f"{run.name} has not been evaluated."
    return f"{run.name} has been evaluated at the end of its training alone."


def _cell(column: Column, found: Sequence[Measurement], marks: tuple[int, ...]) -> Cell:
    if not found:
        return Cell(marks=marks)
    if column.key == "mce":
        values, interval = [float(m.row["mce"]) for m in found], None
    else:
        values, interval = [100 * m.accuracy for m in found], found[0].interval
    mean = statistics.fmean(values)
    if len(values) > 1:
        return Cell(value=mean, std=statistics.stdev(values), marks=marks)
    if interval is None:
        return Cell(value=mean, marks=marks)
    return Cell(value=mean, low=100 * interval[0], high=100 * interval[1], marks=marks)


def footnote_marks(notes: list[str], said: Sequence[str]) -> tuple[int, ...]:
    """The numbers of these footnotes, from 1; new ones are added to `notes`."""
    numbers = []
    for note in dict.fromkeys(said):
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    return tuple(sorted(numbers))


def measured_columns(evaluations: Sequence[Evaluation], kinds: Sequence[str]) -> tuple[Column, ...]:
    """A column for every setting of attacks of these kinds that some evaluation has measured."""
    columns: list[Column] = []
    for kind in kinds:
        found = {m.setting: m for e in evaluations for m in attacks_of(e, kind)}
        steps = {units.to_text(m.row["alpha"]) for m in found.values() if "alpha" in m.row}
        settings: dict[str, dict[str, Any]] = {}
        for _, m in sorted(found.items(), key=lambda item: _order(item[1])):
            setting: dict[str, Any]
            if kind == "autoattack":
                how = {name: m.row.get(name) for name in ("precision", "engine")}
                setting = {"eps": m.row["eps"], "version": version_of(m), **how}
            else:
                setting = {name: m.row[name] for name in SETTINGS} | {"targeted": targets(m.row)}
            settings.setdefault(attack_head(kind, setting, with_step=len(steps) > 1), setting)
        columns += [
            Column(
                key=kind if kind != "pgd" and len(settings) == 1 else slug(head),
                head=head,
                pick=pick_attack(kind, exactly=setting),
            )
            for head, setting in settings.items()
        ]
    return tuple(columns)


SETTINGS = ("eps", "alpha", "steps", "restarts")


def _order(m: Measurement) -> tuple[float, ...]:
    return tuple(m.row[name] for name in ("eps", "steps", "restarts", "alpha") if name in m.row)


def attack_head(kind: str, setting: dict[str, Any], *, with_step: bool) -> str:
    """`PGD-10 × 5, ε = 8`."""
    radius = units.radius_name(setting["eps"])
    if kind == "autoattack":
        return f"{units.autoattack_name(setting)}, {radius}"
    head = f"{units.pgd_name(setting)}, {radius}"
    head = f"Transfer {head}" if kind == "transfer" else head
    head += f", step {units.to_text(setting['alpha'])}" if with_step else ""
    return f"{head}, random targets" if setting["targeted"] else head
