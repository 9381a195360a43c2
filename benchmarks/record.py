"""`Row`, one measurement of any benchmark, and `Record`, the rows of a run: as JSON, Markdown and a figure."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks import machine
from iaat_fast.storage import replace

# Okabe and Ito's colours, told apart with any colour vision, and a marker each for print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
MARKERS = "osv^DPXd<>*ph"
PER_PANEL = 8


@dataclasses.dataclass(kw_only=True)
class Row:
    """A measurement of one provider (an implementation that is compared) in one case.

    Attributes:
        case: what was measured, in words and sizes. Case, provider and metric identify a row in every run.
        provider: the implementation that was measured.
        metric, unit: the quantity of which p20, p50 and p80 are percentiles, over n samples, and its unit: "s"
            (seconds), "B" (bytes) or "" (a share or a ratio).
        status: "ok", "wrong" (its times are never kept), "missing" or "failed"; `detail` says why.
        figures: other results of the benchmark, by name. If one is a mapping, each key is a column of the table.
    """

    case: str
    provider: str
    metric: str = "time"
    unit: str = "s"
    status: str = "ok"
    detail: str = ""
    n: int | None = None
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.provider, self.metric

    def sampled(self, values: Iterable[float]) -> Self:
        """The row with the percentiles of these samples."""
        samples = np.array(list(values), dtype=float)
        self.n = len(samples)
        self.p20, self.p50, self.p80 = np.percentile(samples, (20, 50, 80)).tolist()
        return self

    def refused(self, status: str, detail: str) -> Self:
        """The row without times, with a status ("wrong", "missing" or "failed") and the reason."""
        self.status, self.detail = status, detail
        self.n = self.p20 = self.p50 = self.p80 = None
        return self

    def failed(self, error: Exception) -> Self:
        """The row of a provider that raised `error`, which does not end the run."""
        return self.refused("failed", one_line(error))


def one_line(error: Exception) -> str:
    """The error's type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


class Record:
    """The rows of a run, and their file, which is replaced atomically while it grows.

    Args:
        benchmark, argv: its name and arguments, as given.
        options: the parsed arguments.
        path: file of the record.

    Attributes:
        facts: what the benchmark reports about all rows together, each as a key of the file.
        left_out: what was left out because of the time limit.
    """

    def __init__(
        self, benchmark: str, argv: Sequence[str], options: argparse.Namespace, path: Path
    ) -> None:
        self.benchmark, self.argv, self.options, self.path = benchmark, [*argv], options, path
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.left_out: list[str] = []
        self.machine = machine.describe(getattr(options, "device", "cpu"))
        self._started, self._written = time.perf_counter(), -1.0
        self._head = {
            "benchmark": benchmark,
            "command": ["python", "-m", "benchmarks", benchmark, *argv],
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def out_of_time(self, what: str) -> bool:
        """Whether the time limit is reached; if so, `what` is noted as left out."""
        over = self.seconds > self.options.time_limit
        if over:
            self.left_out.append(what)
        return over

    def add(self, row: Row) -> None:
        """Add a row. The file is written at most every second, so that a killed run leaves its rows."""
        self.rows.append(row)
        if self.seconds > self._written + 1:
            self.write()

    def content(self) -> dict[str, Any]:
        """The content of the file so far, as plain values."""
        return {
            **self._head,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "setting": {name: _plain(value) for name, value in vars(self.options).items()},
            "left_out": self.left_out,
            **self.facts,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace(self.path, (json.dumps(self.content(), indent=1) + "\n").encode())
        self._written = self.seconds

    def markdown(self) -> str:
        """The machine and a table per metric."""
        on = "".join(f"- {name}: {value}\n" for name, value in self.machine.items())
        head = f"# {self.benchmark}\n\n- command: `{' '.join(self._head['command'])}`\n{on}"
        metrics = dict.fromkeys(row.metric for row in self.rows)
        tables = [
            f"## {name}\n\n{table([row for row in self.rows if row.metric == name])}"
            for name in metrics
        ]
        return "\n".join([head, *tables])


def numbered(folder: Path, machine_name: str) -> Path:
    """`<machine>-<n>.json` in a folder, where n is one more than the largest there."""
    numbers = [
        int(number)
        for path in folder.glob(f"{machine_name}-*")
        if (number := path.stem.removeprefix(f"{machine_name}-")).isdecimal()
    ]
    return folder / f"{machine_name}-{max(numbers, default=0) + 1}.json"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, its columns padded for reading as text: case, provider, percentiles, then the figures."""
    figures = [_flat(row.figures) for row in rows]
    names = list(dict.fromkeys(name for some in figures for name in some))
    lines = [["case", "provider", "p50 [p20, p80]", *(name.replace("_", " ") for name in names)]]
    before = None
    for row, some in zip(rows, figures, strict=True):
        case = "" if row.case == before else row.case
        cells = (_cell(name, some.get(name)) for name in names)
        lines.append([case, row.provider, _percentiles(row), *cells])
        before = row.case
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def quantity(value: float, unit: str) -> str:
    """A value to four digits, in a readable multiple of its unit."""
    if unit == "s":
        power = next((p for p in (0, 3, 6) if abs(value) * 10**p >= 1), 9) if value else 0
        return f"{value * 10**power:.4g} {({0: 's', 3: 'ms', 6: 'µs', 9: 'ns'})[power]}"
    if unit == "B":
        return f"{value / 2**20:.4g} MiB"
    return f"{value:.4g}{unit and ' ' + unit}"


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def _percentiles(row: Row) -> str:
    if row.p20 is None or row.p50 is None or row.p80 is None:
        return f"{row.status}: {row.detail}" if row.status != "ok" else ""
    low, middle, high = (quantity(value, row.unit) for value in (row.p20, row.p50, row.p80))
    return f"{middle} [{low}, {high}]"


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for the table: each key of a mapping is one; lists, which only the record has, are left out."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}: {key}": part for key, part in value.items()}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _cell(name: str, value: Any) -> str:
    """A figure to four digits; in seconds or bytes if its name ends in `_s` or `bytes`."""
    if value is None:
        return ""
    if name.endswith("bytes"):
        return quantity(value, "B")
    if name.endswith("_s"):
        return quantity(value, "s")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """A value of the command line for JSON, which has no infinity."""
    if isinstance(value, Path) or value in (float("inf"), float("-inf")):
        return str(value)
    return value


def draw(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> None:
    """Draw a figure with panels of a few cases of one metric, on a logarithmic scale; none if nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.p20 is not None]
    panels = [
        (metric, cases[first : first + PER_PANEL])
        for metric in dict.fromkeys(row.metric for row in timed)
        for cases in [list(dict.fromkeys(row.case for row in timed if row.metric == metric))]
        for first in range(0, len(cases), PER_PANEL)
    ]
    if not panels:
        return
    providers = list(dict.fromkeys(row.provider for row in timed))
    style = {
        name: (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, name in enumerate(providers)
    }
    figure = Figure(figsize=(12, 3.6 * len(panels) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    shown: dict[str, Any] = {}
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for (metric, cases), axis in zip(panels, grid, strict=True):
        some = [row for row in timed if row.metric == metric and row.case in cases]
        names = list(dict.fromkeys(row.provider for row in some))
        for row in some:
            assert row.p20 is not None
            assert row.p50 is not None
            assert row.p80 is not None
            offset = 0.7 * ((names.index(row.provider) + 0.5) / len(names) - 0.5)
            colour, marker = style[row.provider]
            shown[row.provider] = axis.errorbar(
                cases.index(row.case) + offset,
                row.p50,
                yerr=[[row.p50 - row.p20], [row.p80 - row.p50]],
                linestyle="none",
                marker=marker,
                color=colour,
                elinewidth=1,
            )
        axis.set_xticks(range(len(cases)), [_wrapped(case) for case in cases], fontsize="small")
        axis.set_xlim(-0.5, len(cases) - 0.5)
        axis.set_ylabel(f"{metric} [{some[0].unit or '1'}]")
        if all((row.p20 or 0) > 0 for row in some):
            axis.set_yscale("log")
        axis.grid(axis="y", which="both", alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5)
    figure.suptitle(
        f"{machine.get('gpu') or machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}; "
        "medians, whiskers p20 to p80"
    )
    figure.savefig(path, dpi=130)


def _wrapped(case: str) -> str:
    return case.replace(", ", "\n").replace(" ", "\n", 1)
