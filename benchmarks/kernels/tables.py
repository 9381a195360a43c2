"""The records as tables, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.kernels.measure import Record

COLUMNS = (
    "op",
    "size",
    "dtype",
    "backend",
    "p50 [p20, p80] us",
    "graph us",
    "GB/s",
    "of copy",
    "launches",
    "x eager",
    "x compile",
)
FASTER = ("op", "sizes", "faster", "time relative to it", "problems")


def record_row(record: Record) -> list[str]:
    """A record's cells; a contender that was not timed says why in the place of its times."""
    op = record.op if record.counted else f"{record.op} (no stats)"
    row = [op, record.problem, record.dtype, record.backend]
    if record.p50_us is None:
        return [*row, f"{record.status}: {record.detail}", *[""] * (len(COLUMNS) - 5)]
    return [
        *row,
        f"{record.p50_us:.4g} [{record.p20_us:.4g}, {record.p80_us:.4g}]",
        _number(record.graph_us, ".4g"),
        _number(record.gigabytes_per_second, ".0f"),
        _number(record.share_of_copy, ".0%"),
        _number(record.launches, "g"),
        _number(record.over_eager, ".2f"),
        _number(record.over_compile, ".2f"),
    ]


def faster_row(row: dict[str, Any]) -> list[str]:
    relative = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["relative_time"].items())
    return [row["op"], row["sizes"], row["faster"], relative, str(row["problems"])]


def markdown(machine: dict[str, Any], records: Iterable[Record], rows: list[dict[str, Any]]) -> str:
    """Both tables, under what they were measured on."""
    parts = [
        "# Kernels\n",
        "".join(f"- {name}: {value}\n" for name, value in machine.items()),
        "## Which backend is faster\n",
        _markdown_table(FASTER, [faster_row(row) for row in rows]),
        "## All records\n",
        _markdown_table(COLUMNS, [record_row(record) for record in records]),
    ]
    return "\n".join(parts)


def show(console: Console, records: Iterable[Record], rows: list[dict[str, Any]]) -> None:
    """Both tables on the terminal."""
    for title, columns, cells in (
        ("kernels", COLUMNS, [record_row(record) for record in records]),
        ("which backend is faster", FASTER, [faster_row(row) for row in rows]),
    ):
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number < 4 else "right", overflow="fold")
        for row in cells:
            table.add_row(*row)
        console.print(table)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown_table(columns: Iterable[str], rows: list[list[str]]) -> str:
    lines = [list(columns), ["---"] * len(list(columns)), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
