"""A case as tables, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from benchmarks.attacks import kinds
from benchmarks.attacks.measure import Case, Record

LADDER = ("adds", "attack", "s", "× before", "× first")
# On an H100, bf16 against the best peer in its best layout; and its share of the rate of bf16 matrix products.
AIMS = {
    ("resnet18", 128): (3.5, None),
    ("resnet18", 512): (4.2, None),
    ("wrn32-10", 128): (2.9, 0.52),
}


def title(case: Case) -> str:
    """`resnet18, 64 x 3x32x32, PGD-10`."""
    width = "" if case.width is None else f" of width {case.width}"
    size = "x".join(map(str, case.shape[1:]))
    return f"{case.model}{width}, batch {case.shape[0]} of {size}, PGD-{case.steps}"


def columns(case: Case) -> list[str]:
    """Headings of `rows`; a column for every peer that was timed, and for the expert's loop."""
    peers = [f"× {peer}" for peer in _peers(case)]
    return [
        *("attack", "precision", "s p50 [p20, p80]", "images/s", "× best peer", *peers),
        *("of matmul", "peak MiB", "same pixels", "flipped signs", "verdicts"),
    ]


def rows(case: Case) -> list[list[str]]:
    """A row per contender; `remarks` says why one was not timed."""
    return [_row(record, _peers(case), record.name == case.best_peer) for record in case.records]


def remarks(case: Case) -> list[str]:
    """Why contenders were not timed, and which promise of the same bits is not kept."""
    found = [f"{r.name}: {r.status}: {r.detail}" for r in case.records if r.status != "ok"]
    for record in case.records:
        agreement = record.agreement
        if record.name == "exact" and agreement is not None and agreement.same_pixels < 1:
            found.append("exact: not bit-identical to the plain loop")
        if record.compile_s is not None:
            found.append(f"{record.name}: compiled in {record.compile_s:.1f} s, in no other figure")
    return found + aims(case)


def aims(case: Case) -> list[str]:
    """How far the networks that have an aim are from it: ratios to read, which decide nothing."""
    aim = AIMS.get((case.model, case.shape[0])) if case.width is None and case.steps == 10 else None
    found = next((r for r in case.records if r.name == "bf16" and r.over_best_peer), None)
    if aim is None or found is None:
        return []
    lines = [f"bf16: {found.over_best_peer:.2f} × the best peer (on an H100: aim {aim[0]} ×)"]
    if aim[1] is not None and found.share_of_matmul is not None:
        lines.append(f"bf16: {found.share_of_matmul:.1%} of the matmul rate (aim {aim[1]:.0%})")
    return lines


def layout_columns(case: Case) -> list[str]:
    """Headings of `layout_rows`: seconds in each layout that was tried."""
    tried = dict.fromkeys(layout for choice in case.layouts.values() for layout in choice.seconds)
    return ["peer", *tried, "raced in"]


def layout_rows(case: Case) -> list[list[str]]:
    """A row per peer whose layouts were tried."""
    tried = layout_columns(case)[1:-1]
    return [
        [
            name,
            *(f"{choice.seconds[t]:.4g}" if t in choice.seconds else "" for t in tried),
            choice.taken,
        ]
        for name, choice in case.layouts.items()
    ]


def kind_rows(case: Case) -> list[list[str]]:
    """Milliseconds of a call by kind, a row per contender that was profiled."""
    return [kinds.row(r.name, r.device_time) for r in case.records if r.device_time is not None]


def ladder_rows(case: Case) -> list[list[str]]:
    """A row per rung."""
    return [
        [r.adds, r.name, f"{r.p50_s:.4g}", f"{r.over_previous:.2f}", f"{r.over_first:.2f}"]
        for r in case.ladder
    ]


def markdown(machine: Mapping[str, Any], settings: Mapping[str, Any], cases: Iterable[Case]) -> str:
    """The tables of every case, under what they were measured on and how."""
    parts = ["# Attacks\n", facts({**machine, **settings})]
    for case in cases:
        parts += [
            f"## {title(case)}\n",
            f"{case.parameters:,} parameters; images: {case.images}; best peer: {case.best_peer or 'none'}\n",
            table(columns(case), rows(case)),
            "".join(f"- {remark}\n" for remark in remarks(case)),
        ]
        if case.layouts:
            parts += ["Seconds of each peer in each layout:\n"]
            parts += [table(layout_columns(case), layout_rows(case))]
        if kind_rows(case):
            parts += ["Where the time of a call goes, in ms:\n"]
            parts += [table(kinds.COLUMNS, kind_rows(case))]
        if case.ladder:
            parts += ["What each lever adds:\n", table(LADDER, ladder_rows(case))]
    return "\n".join(parts)


def show(case: Case) -> None:
    """The tables of a race on the terminal."""
    write(title(case), columns(case), rows(case))
    if case.layouts:
        write("s of each peer in each layout", layout_columns(case), layout_rows(case))
    if case.ladder:
        write("what each lever adds", LADDER, ladder_rows(case))
    for remark in remarks(case):
        print(remark)


def show_kinds(case: Case) -> None:
    """Where the time goes, on the terminal."""
    if kind_rows(case):
        write(f"{title(case)}: ms of a call by kind", kinds.COLUMNS, kind_rows(case))


def write(heading: str, names: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Folded in a narrow log, a table is of no use.
    console = console if console.is_terminal else Console(width=240)
    shown = Table(title=heading, title_justify="left")
    for number, name in enumerate(names):
        justify: Literal["left", "right"] = "left" if number < 2 else "right"
        shown.add_column(name.replace(" ", "\n", 1), justify=justify, no_wrap=number in (0, 2))
    for row in cells:
        shown.add_row(*row)
    console.print(shown)


def facts(known: Mapping[str, Any]) -> str:
    """A Markdown list."""
    return "".join(f"- {name}: {value}\n" for name, value in known.items())


def table(names: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(names), ["---"] * len(names), *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _peers(case: Case) -> list[str]:
    return [r.name for r in case.records if r.kind in ("peer", "expert") and r.p50_s is not None]


def _row(record: Record, peers: Sequence[str], best: bool) -> list[str]:
    name = f"{record.name} (best peer)" if best else record.name
    found = record.agreement
    compared = ["", "", ""]
    if found is not None:
        compared = [
            f"{found.same_pixels:.2%}",
            f"{found.flipped_signs:.2%}",
            f"{found.same_verdicts:.1%}",
        ]
    if record.p50_s is None:
        return [name, record.precision, record.status, *[""] * (len(peers) + 4), *compared]
    peak = "" if record.peak_bytes is None else f"{record.peak_bytes / 2**20:.0f}"
    return [
        name,
        record.precision,
        f"{record.p50_s:.4g} [{record.p20_s:.4g}, {record.p80_s:.4g}]",
        f"{record.images_per_second:.4g}",
        _ratio(record.over_best_peer),
        *[_ratio(record.over[peer]) for peer in peers],
        "" if record.share_of_matmul is None else f"{record.share_of_matmul:.1%}",
        peak,
        *compared,
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
