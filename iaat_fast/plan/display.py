"""The table of plans, and remarks on what limits each plan and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from iaat_fast import methods
from iaat_fast.plan.estimate import COMMUNICATION, Plan
from iaat_fast.plan.hardware import ARITHMETIC, LAUNCHES, TRAFFIC
from iaat_fast.train.config import TrainConfig
from iaat_fast.units import significant

# With fewer images per GPU than this, a remark says that BatchNorm's statistics are poor.
_FEW = 8


def table(plans: Sequence[Plan], title: str) -> Table:
    """A column for each plan, and a row for each number, with its unit and its source."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for plan in plans:
        shown.add_column(_name(plan), justify="right")
    shown.add_column("unit")
    shown.add_column("source")
    columns = [{(f.group, f.name): f for f in plan.figures()} for plan in plans]
    group = ""
    for key in dict.fromkeys(key for column in columns for key in column):
        known = next(column[key] for column in columns if key in column)
        if known.group != group:
            group = known.group
            shown.add_section()
            shown.add_row(f"[bold]{group}")
        values = [significant(column[key].value) if key in column else "0" for column in columns]
        shown.add_row(f"  {known.name}", *values, known.unit, known.source)
    return shown


def remarks(plans: Iterable[Plan], config: TrainConfig) -> list[str]:
    """What limits each plan, and what helps, a line each."""
    lines = []
    for plan in plans:
        if any(source.startswith("modelled") for source in plan.sources.values()):
            lines += [
                f"{_name(plan)}, steps of phase {step.phase}: "
                + (
                    "replayed from a graph"
                    if step.captured
                    else "launched by the host, but for attacks"
                )
                for step in plan.steps
            ]
        what, share = next(iter(plan.spent.items()))
        remedies = "; ".join(_remedies(what, config))
        lines.append(f"{_name(plan)}: {share:.0%} (modelled) of the time is {what}: {remedies}")
        if not plan.fits:
            lines.append(
                f"{_name(plan)}: at least {plan.held_bytes / 1e9:.1f} GB (modelled) of "
                f"{plan.capacity / 1e9:.0f} GB (given): smaller batches per GPU, --amp, or --strategy lazy"
            )
        batch = plan.batch_size // plan.gpus
        if batch < _FEW:
            lines.append(
                f"{_name(plan)}: {batch} images per GPU (given) are few for BatchNorm's statistics: synchronise "
                "them, take fewer GPUs, or larger batches with their learning rate"
            )
    return lines


def _name(plan: Plan) -> str:
    return "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"


def _remedies(what: str, config: TrainConfig) -> Iterator[str]:
    """What would reduce the time spent on `what`, and is not done yet."""
    has_attack = methods.row(config.method).radius != "none"
    in_half = config.attack.precision in ("fp16", "bf16", "auto")
    if what in (ARITHMETIC, TRAFFIC):
        if has_attack and not in_half:
            yield "attack in half precision, from a folded copy (--precision bf16)"
        if methods.reads(config.method, "epsilon.strategy") and config.epsilon.strategy != "lazy":
            yield "attack the second candidate only where it is needed (--strategy lazy)"
        if config.optim.amp == "off":
            yield "update in half precision (--amp bf16)"
        yield "more GPUs"
    elif what == LAUNCHES:
        yield "larger batches per GPU (--batch-per-gpu)"
        yield "fewer GPUs"
    elif what == COMMUNICATION:
        yield "larger batches per GPU (--batch-per-gpu)"
        yield "a faster network between nodes"
        yield "fewer GPUs"
    else:
        yield "passes were timed whole, what they are spent on is not known"
