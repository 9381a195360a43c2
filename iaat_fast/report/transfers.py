"""Tables of transfer: crafted on the model of a row, shown to that of a column; from runs, or saved matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iaat_fast.evaluate.results import Evaluation, Measurement, wilson
from iaat_fast.evaluate.transfer_matrix import TransferMatrix
from iaat_fast.report.formats import Cell, Row, Section, Table
from iaat_fast.report.groups import Group, slug
from iaat_fast.report.notes import evaluation_notes, measured_on
from iaat_fast.report.paper import ROUNDING
from iaat_fast.report.tables import attack_head, footnote_marks

NATURAL, ROWS_ARE = "natural images", "Crafted on"

Found = tuple[Measurement, Evaluation]


def transfer_tables(
    groups: Sequence[Group], files: Sequence[str | os.PathLike[str]] = ()
) -> list[Table]:
    """A table for every attack that was transferred between the runs of a group, and for every saved matrix.

    Args:
        groups: the runs. Two of them must have been shown images that were crafted on another model.
        files: of `TransferMatrix.save`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or no matrix; the message names it.
    """
    tables: list[Table] = []
    for group in groups:
        for (what, _, _), cells in _transferred(group).items():
            targets = list(dict.fromkeys(target for _, target in cells))
            if len(targets) > 1:
                tables.append(
                    _of_runs(group, what, targets, cells, _stem(tables, group.stem, what))
                )
    for file in files:
        tables.append(_of_file(Path(file), _stem(tables, slug(Path(file).stem))))
    return tables


def _stem(tables: Sequence[Table], *parts: str) -> str:
    """A name for the next table's files, with a number where an earlier table has it."""
    stem = f"transfer-{'-'.join(slug(part) for part in parts)}"
    taken = {table.stem for table in tables}
    numbered = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in numbered if name not in taken)


def _transferred(group: Group) -> dict[tuple[str, int, str], dict[tuple[str, str], Found]]:
    """By attack, number of images and split: what was found for a source and a target, and the target's own attack."""
    names = {
        run.folder.path.resolve(): f"{variant.name}, seed {run.seed}"
        for variant in group.variants
        for run in variant.runs
    }
    found: dict[tuple[str, int, str], dict[tuple[str, str], Found]] = {}
    for run in group.runs:
        target, e = names[run.folder.path.resolve()], run.evaluation
        for m, attack, crafted_on in _crafted(e) if e is not None else ():
            assert e is not None
            head = attack_head("pgd", attack, with_step=True)
            what = head if m.kind == "transfer" else f"saved examples of {head}"
            source = names.get(Path(crafted_on["run"]).resolve(), _other(crafted_on))
            cells = found.setdefault((what, e.samples, e.split), {})
            cells.setdefault((source, target), (m, e))
            own = next((o for o in e.of("pgd", "pgd") if _same(o.row, attack)), None)
            if own is not None:
                cells.setdefault((target, target), (own, e))
    return found


def _crafted(e: Evaluation) -> Iterator[tuple[Measurement, dict[str, Any], dict[str, Any]]]:
    """Measurements on images crafted on a run, with the row of that attack and what is known of the run."""
    for m in e.of("transfer", "transfer"):
        crafted_on = m.row.get("surrogate") or {}
        if crafted_on.get("run"):
            yield m, m.row, crafted_on
    for m in e.of("adversarial"):
        attack = m.row.get("crafted_on") or {}
        crafted_on = attack.get("crafted_on") or {}
        if crafted_on.get("run") and attack.get("kind") in ("pgd", "transfer"):
            yield m, attack, crafted_on


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of the same attack."""
    return all(
        abs(one[name] - other[name]) <= ROUNDING
        if name in ("eps", "alpha")
        else one.get(name, False) == other.get(name, False)
        for name in ("eps", "alpha", "steps", "restarts", "targeted")
    )


def _other(crafted_on: dict[str, Any]) -> str:
    """The name of a run that is not in the report."""
    seed = crafted_on.get("seed")
    return f"{crafted_on['run']}" + (f", seed {seed}" if seed is not None else "")


def _of_runs(
    group: Group,
    what: str,
    targets: Sequence[str],
    cells: dict[tuple[str, str], Found],
    stem: str,
) -> Table:
    notes: list[str] = []

    def cell(found: Found | None) -> Cell:
        if found is None:
            return Cell()
        m, e = found
        marks = footnote_marks(notes, evaluation_notes(m, e))
        return _cell(m.accuracy, m.interval, marks)

    evaluations = {target: e for (_, target), (_, e) in cells.items()}
    natural = [
        next(((m, e) for m in e.of("natural")), None) for e in (evaluations[t] for t in targets)
    ]
    # Runs of the report first, in its order.
    sources = dict.fromkeys([*targets, *(source for source, _ in cells)])
    rows = [Row(method=NATURAL, seeds=1, cells=tuple(map(cell, natural)))]
    rows += [
        Row(method=source, seeds=1, cells=tuple(cell(cells.get((source, t))) for t in targets))
        for source in sources
        if any((source, target) in cells for target in targets)
    ]
    e = evaluations[targets[0]]
    return Table(
        number=None,
        stem=stem,
        title=f"Transfer of {what}",
        caption=(
            f"{group.name}. Trained on: {measured_on(group)}. Accuracy of the model of a column on {e.samples:,}"
            f" {e.split} images that were attacked on the model of a row; where both are the same run, under its own"
            " attack."
        ),
        columns=tuple(targets),
        heads=tuple((target, ()) for target in targets),
        sections=(Section(network=group.title, rows=tuple(rows)),),
        notes=tuple(notes),
        rows_are=ROWS_ARE,
    )


def _of_file(file: Path, stem: str) -> Table:
    matrix = TransferMatrix.load(file)
    lines = [(NATURAL, matrix.natural.tolist())]
    lines += list(zip(matrix.sources, matrix.accuracies.tolist(), strict=True))
    return Table(
        number=None,
        stem=stem,
        title=f"Transfer of {matrix.attack or 'attacks'}",
        caption=(
            f"From {file}. Accuracy of the model of a column on {matrix.n:,} images that were attacked on the model of"
            " a row."
        ),
        columns=matrix.targets,
        heads=tuple((target, ()) for target in matrix.targets),
        sections=(
            Section(
                network="",
                rows=tuple(
                    Row(
                        method=source,
                        seeds=1,
                        cells=tuple(
                            _cell(value, wilson(round(value * matrix.n), matrix.n), ())
                            for value in values
                        ),
                    )
                    for source, values in lines
                ),
            ),
        ),
        notes=(),
        rows_are=ROWS_ARE,
    )


def _cell(accuracy: float, interval: tuple[float, float] | None, marks: tuple[int, ...]) -> Cell:
    low, high = (None, None) if interval is None else (100 * end for end in interval)
    return Cell(value=100 * accuracy, low=low, high=high, marks=marks)
