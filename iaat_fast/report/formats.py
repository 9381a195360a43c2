"""`Table`, a table ready to be written, and writing it as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number, in the unit of its column.

    Args:
        value: None if nothing was measured.
        low, high: 95 % interval of a single run.
        std: sample standard deviation over several seeds.
        marks: numbers of the footnotes.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: what was measured of a method (in `seeds` runs), or what the paper prints (`seeds` is None)."""

    method: str
    seeds: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """The rows of a network; of models of any network, whose name is empty."""

    network: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, ready to be written in any format.

    Args:
        number: in the paper; None for a data set that the paper does not have.
        stem: of its files, `table-1`.
        title: what it shows.
        caption: what was measured, and how that differs from the paper.
        columns: their short names, `pgd10`.
        heads: of the columns, each with the numbers of its footnotes.
        rows_are: heading of the rows' names.
    """

    number: int | None
    stem: str
    title: str
    caption: str
    columns: tuple[str, ...]
    heads: tuple[tuple[str, tuple[int, ...]], ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    rows_are: str = "Method"

    @property
    def name(self) -> str:
        """`Table 1`, or `Table` for one that the paper does not have."""
        return f"Table {self.number}" if self.number is not None else "Table"


MISSING = "–"
FIELDS = (
    *("table", "network", "method", "figures", "seeds"),
    *("column", "value", "low_95", "high_95", "std", "notes"),
)
"""Columns of the CSV."""


def source(row: Row) -> str:
    """Where the numbers of a row are from: `paper`, `measured`, or `measured, 3 seeds`."""
    if row.seeds is None:
        return "paper"
    return f"measured, {row.seeds} seeds" if row.seeds > 1 else "measured"


def spread(cell: Cell) -> str:
    """What follows a number: `± 0.20`, `86.59–87.90`, or nothing."""
    if cell.std is not None:
        return f"± {cell.std:.2f}"
    if cell.low is not None and cell.high is not None:
        return f"{cell.low:.2f}–{cell.high:.2f}"
    return ""


def legend(tables: Sequence[Table]) -> str:
    """How to read the numbers of some tables."""
    rows = [row for table in tables for section in table.sections for row in section.rows]
    several = any((row.seeds or 0) > 1 for row in rows)
    single = any(cell.low is not None for row in rows for cell in row.cells)
    parts = ["Accuracies in percent"]
    if single:
        parts.append("of a single run with the 95 % Wilson interval over its test images")
    if several:
        parts.append("of several seeds as mean ± sample standard deviation")
    return ", ".join(parts) + "."


def markdown(table: Table) -> str:
    """The table with its caption and footnotes, in GitHub's Markdown."""
    marked = _marked(lambda number: f"<sup>{number}</sup>", ",")
    names = ["network", table.rows_are.lower(), "figures"]
    heads = [*names, *(_in_cell(head) + marked(marks) for head, marks in table.heads)]
    lines = [
        f"**{table.name}. {table.title}.** {table.caption} {legend([table])}",
        "",
        f"| {' | '.join(heads)} |",
        f"|---|---|---|{'---:|' * len(table.heads)}",
    ]
    for network, row in _rows(table):
        cells = [_text(cell, " (", ")") + marked(cell.marks) for cell in row.cells]
        line = " | ".join([network, _in_cell(row.method), source(row), *cells])
        lines.append(f"| {line} |")
    if table.notes:
        lines.append("")
    lines += [f"{number}. {note}" for number, note in enumerate(table.notes, start=1)]
    return "\n".join(lines) + "\n"


def _in_cell(name: str) -> str:
    """A name that came from elsewhere, which must not end its cell."""
    return name.replace("|", r"\|")


def csv_text(table: Table) -> str:
    """One line per number, with its interval, deviation and notes; a field that does not apply is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for section in table.sections:
        for row in section.rows:
            for column, (_, head_marks), cell in zip(
                table.columns, table.heads, row.cells, strict=True
            ):
                measured = row.seeds is not None
                marks = sorted({*cell.marks, *(head_marks if measured else ())})
                writer.writerow(
                    [
                        table.number if table.number is not None else table.stem,
                        section.network,
                        row.method,
                        "measured" if measured else "paper",
                        row.seeds if measured else None,
                        column,
                        *(_exact(v) for v in (cell.value, cell.low, cell.high, cell.std)),
                        " ".join(table.notes[number - 1] for number in marks),
                    ]
                )
    return text.getvalue()


def latex(table: Table) -> str:
    """A table environment for a document with the package booktabs."""
    marked = _marked(str, ",")

    def mark(marks: tuple[int, ...]) -> str:
        return rf"\textsuperscript{{{marked(marks)}}}" if marks else ""

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(f'{table.title}. {table.caption} {legend([table])}')}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.heads)}}}",
        r"\toprule",
        " & ".join(
            [table.rows_are, ""] + [_escape(head) + mark(marks) for head, marks in table.heads]
        )
        + r" \\",
    ]
    for section in table.sections:
        lines.append(r"\midrule")
        if section.network:
            width = 2 + len(table.heads)
            lines += [
                rf"\multicolumn{{{width}}}{{c}}{{{_escape(section.network)}}} \\",
                r"\midrule",
            ]
        for row in section.rows:
            cells = [_escape(_text(cell, " (", ")")) + mark(cell.marks) for cell in row.cells]
            lines.append(" & ".join([_escape(row.method), _escape(source(row)), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        notes = [
            rf"\textsuperscript{{{number}}} {_escape(note)}"
            for number, note in enumerate(table.notes, start=1)
        ]
        lines += ["", r"\smallskip", r"\footnotesize " + r" \\ ".join(notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
"""Writers by the suffix of their file."""


def _rows(table: Table) -> Iterator[tuple[str, Row]]:
    """All rows, the first of each network with its name."""
    for section in table.sections:
        for number, row in enumerate(section.rows):
            yield (section.network if number == 0 else ""), row


def _text(cell: Cell, before: str, after: str) -> str:
    if cell.value is None:
        return MISSING
    behind = spread(cell)
    if cell.std is not None:
        return f"{cell.value:.2f} {behind}"
    return f"{cell.value:.2f}" + (f"{before}{behind}{after}" if behind else "")


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _marked(one: Callable[[int], str], between: str) -> Callable[[tuple[int, ...]], str]:
    return lambda marks: between.join(one(number) for number in marks)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\varepsilon$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "–": "--",
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
