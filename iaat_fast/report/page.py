"""The page of a report: one HTML file that needs no other file."""

from __future__ import annotations

import base64
import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iaat_fast
from iaat_fast.evaluate.results import Evaluation
from iaat_fast.evaluate.suites import CLOSING, SINGLE
from iaat_fast.report import naming
from iaat_fast.report.figures import Drawing
from iaat_fast.report.formats import FORMATS, MISSING, Table, legend, source, spread
from iaat_fast.report.groups import Group, Variant
from iaat_fast.report.notes import measured_on, unlike_paper
from iaat_fast.report.records import RunRecord
from iaat_fast.units import significant

TEMPLATES = Path(__file__).parent / "templates"
FORMAT_NAMES = {"md": "Markdown", "csv": "CSV", "tex": "LaTeX"}


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """A drawing with its SVG."""

    drawing: Drawing
    svg: bytes

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, which reserve its place while it loads."""
        width, height = self.drawing.figure.get_size_inches()
        return round(96 * width), round(96 * height)

    @property
    def wide(self) -> bool:
        """Whether it takes the page's full width, as figures of sample images do."""
        return self.drawing.number in (2, 6, 7)


def render(
    groups: Sequence[Group],
    tables: Sequence[Table],
    figures: Sequence[PageFigure],
    *,
    missing: Sequence[str],
) -> str:
    """The page as HTML.

    Args:
        groups: the runs.
        tables, figures: what it shows.
        missing: what could not be drawn, and why.

    Raises:
        ImportError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the page needs jinja2: pip install 'iaat-fast[train]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # No line break within `ε = 8`.
    environment.filters["whole"] = lambda text: text.replace(
        "ε = ", "ε\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )
    by_number = [
        (number, list(members))
        for number, members in itertools.groupby(figures, key=lambda f: f.drawing.number)
    ]
    return environment.get_template("page.html.j2").render(
        # <style> is not escaped, which is safe for the package's own file.
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        tables=tables,
        printed=any(row.seeds is None for t in tables for s in t.sections for row in s.rows),
        figures=by_number,
        runs=[
            (v, run, dict(run_facts(v, run))) for g in groups for v in g.variants for run in v.runs
        ],
        summary=[(g, summary(g)) for g in groups],
        unlike=[(g, unlike_paper(g)) for g in groups if unlike_paper(g)],
        shortfalls=[*shortfalls(groups), *missing],
        version=iaat_fast.__version__,
        formats=[(suffix, FORMAT_NAMES[suffix]) for suffix in FORMATS],
        legend=legend,
        source=source,
        spread=spread,
        missing=MISSING,
    )


def summary(group: Group) -> list[tuple[str, str]]:
    """What was run in a group, as pairs of a label and a text."""
    runs = group.runs
    seeds = sorted({run.seed for run in runs})
    evaluated = [run.evaluation for run in runs if run.evaluation is not None]
    records = sorted({_evaluation_text(evaluation) for evaluation in evaluated})
    return [
        ("methods", "; ".join(_methods(group.variants))),
        ("runs", f"{len(runs)}, {'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}"),
        ("trained on", measured_on(group)),
        ("evaluated", "; ".join(records) or "no run"),
        ("hardware", "; ".join(sorted({_hardware(run.env) for run in runs}))),
    ]


def _methods(variants: Sequence[Variant]) -> list[str]:
    """The names of the variants; those that differ only in ε are one, `Adversarial, ε = 1, 2, 4`."""
    found: dict[str, list[str]] = {}
    for variant in variants:
        name, sign, radius = variant.name.partition(", ε = ")
        whole = not sign or "," in radius
        found.setdefault(variant.name if whole else name + sign, []).append("" if whole else radius)
    return [name + ", ".join(radii) for name, radii in found.items()]


def shortfalls(groups: Sequence[Group]) -> list[str]:
    """What the runs lack (the end of the training, an evaluation or a part of it), and what of them is not shown."""
    found = []
    for run in (run for group in groups for run in group.runs):
        epochs = run.config["optim.epochs"]
        if run.epochs_done < epochs:
            found.append(f"{run.name}: training not finished, {run.epochs_done} of {epochs} epochs")
        if run.evaluation is None:
            found.append(f"{run.name}: not evaluated")
        elif not run.evaluation.complete:
            done = len(run.evaluation.measurements)
            found.append(f"{run.name}: evaluation not complete, {done} measurements so far")
        found += run.left_out
    return found


def run_facts(variant: Variant, run: RunRecord) -> Iterator[tuple[str, str]]:
    """What is known about a run, as pairs of a label and a text."""
    env = run.env
    yield "method", variant.name
    yield "data set", naming.dataset_name(run.config["data.name"])
    yield "network", naming.network_name(run.config)
    yield "seed", str(run.seed)
    yield "epochs", f"{run.epochs_done} of {run.config['optim.epochs']}"
    seconds = sum(row.get("seconds") or 0 for row in run.metrics)
    if seconds:
        yield "training time", _duration(seconds)
    if run.evaluation is not None:
        yield "evaluation", f"{_evaluation_text(run.evaluation)} ({run.evaluation.path})"
        tested = run.evaluation.environment
        if tested:
            yield "evaluated with", f"{_commit(tested)}; {_hardware(tested)}"
    else:
        yield "evaluation", "none"
    if env:
        packages = env.get("packages") or {}
        versions = [f"{name} {version}" for name, version in packages.items() if version]
        yield "hardware", _hardware(env)
        yield "commit", _commit(env)
        yield "versions", ", ".join([f"Python {env.get('python')}", *versions])
        yield "started", str(env.get("time"))
        if env.get("resumed"):
            yield "resumed", f"{len(env['resumed'])} times"
        if env.get("command"):
            yield "command", shlex.join(str(word) for word in env["command"])


def _evaluation_text(evaluation: Evaluation) -> str:
    names = {CLOSING: "closing evaluation", SINGLE: "single attacks"}
    suites = dict.fromkeys([evaluation.suite, *(m.suite for m in evaluation.measurements)])
    suite = " and ".join(names.get(suite, f"suite {suite}") for suite in suites)
    state = "" if evaluation.complete else ", not complete"
    return f"{suite} on {evaluation.samples:,} {evaluation.split} images{state}"


def _hardware(env: dict[str, Any]) -> str:
    if not env:
        return "not recorded"
    if env.get("gpu"):
        return str(env["gpu"])
    count = env.get("threads")
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    return f"CPU {env.get('cpu') or 'unknown'}{threads}"


def _commit(env: dict[str, Any]) -> str:
    return str(env.get("commit") or "commit not recorded")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
