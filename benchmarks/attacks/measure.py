"""One network at one batch size: every contender checked, then timed, interleaved with all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.attacks.agreement import Agreement, Reference, outside
from benchmarks.attacks.contender import Contender, Missing, Setting, Target
from benchmarks.attacks.engines import Rung
from benchmarks.attacks.kinds import DeviceTime
from benchmarks.attacks.layouts import Choice
from benchmarks.attacks.rates import flops_per_gradient, wait
from benchmarks.interleave import Timings, interleave


@dataclasses.dataclass
class Record:
    """A contender at a case. `status`: ok, wrong (never timed), missing, failed; `detail` says why.

    Seconds are percentiles over n calls. `over`: how many times faster than each peer and the expert's loop,
    `over_best_peer` than the fastest peer in fp32; medians over rounds of the ratio within a round. `peak_bytes`: most
    memory above what was allocated before the contender was made, on CUDA. `layout`: the peer's own choice, of which
    `Case.layouts` has the figures, for all others the best peer's. `compile_s`: of the expert's loop, which no other
    figure contains. `device_time`: by kind, from a process of its own.
    """

    name: str
    kind: str
    precision: str
    what: str
    status: str = "ok"
    detail: str = ""
    agreement: Agreement | None = None
    n: int | None = None
    p20_s: float | None = None
    p50_s: float | None = None
    p80_s: float | None = None
    images_per_second: float | None = None
    over: dict[str, float] = dataclasses.field(default_factory=dict)
    over_best_peer: float | None = None
    peak_bytes: int | None = None
    flops_per_second: float | None = None
    share_of_matmul: float | None = None
    layout: str | None = None
    compile_s: float | None = None
    device_time: DeviceTime | None = None


@dataclasses.dataclass
class RungRecord:
    """A rung of the ladder: what it adds, and how many times faster that is than the rung before and than the first."""

    adds: str
    name: str
    p50_s: float
    over_previous: float
    over_first: float


@dataclasses.dataclass
class Case:
    """What was attacked, and what came of it."""

    model: str
    width: int | None
    parameters: int
    images: str
    shape: list[int]
    steps: int
    flops: float
    best_peer: str | None
    records: list[Record]
    ladder: list[RungRecord]
    layouts: dict[str, Choice] = dataclasses.field(default_factory=dict)


def measure(
    target: Target,
    contenders: Sequence[Contender],
    rungs: Sequence[Rung],
    setting: Setting,
    *,
    rounds: int,
    rates: Mapping[str, float],
    check: int | None = None,
    own: Mapping[str, Target] | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> tuple[float, list[Record], list[RungRecord], str | None]:
    """Check and time.

    Args:
        target: what is attacked.
        contenders: who attacks it.
        rungs: the ladder of iaat_fast's levers, on top of the loops.
        setting: of the timed attack; checks start at x instead of at random.
        rounds: timed calls of each contender.
        rates: of matrix products by precision, to express speeds as shares.
        check: images on which attacks are compared; None: all.
        own: by contender, the same target with the network in another layout; `target` for all others.
        said: called with what is being done.

    Returns:
        Floating-point operations of the attack, a record per contender, the ladder, and the best peer in fp32.
    """
    own, references = own or {}, {}
    flops = flops_per_gradient(target) * len(target.x) * setting.steps
    records, calls = {}, {}
    for contender in contenders:
        said(f"checking {contender.name}")
        mine = own.get(contender.name, target)
        # Compared with the plain loop in the same layout, for another one may round differently.
        if id(mine) not in references:
            some = dataclasses.replace(mine, x=mine.x[:check], y=mine.y[:check])
            references[id(mine)] = Reference(some, setting)
        reference = references[id(mine)]
        records[contender.name], call = _prepared(contender, mine, reference, setting)
        if call is not None:
            calls[contender.name] = call
    if not calls:
        return flops, list(records.values()), [], None
    said(f"timing {len(calls)} attacks, {rounds} rounds")
    timings = interleave(calls, rounds=rounds)
    peers = [name for name in calls if records[name].kind == "peer"]
    others = peers + [name for name in calls if records[name].kind == "expert"]
    best = min(
        (name for name in peers if records[name].precision == "fp32"),
        key=timings.median,
        default=None,
    )
    for name in calls:
        record = records[name]
        record.n = rounds
        record.p20_s, record.p50_s, record.p80_s = timings.percentiles(name)
        record.images_per_second = len(target.x) / record.p50_s
        record.over = {other: timings.ratio(other, name) for other in others}
        record.over_best_peer = None if best is None else record.over[best]
        record.flops_per_second = flops / record.p50_s
        if record.precision in rates:
            record.share_of_matmul = record.flops_per_second / rates[record.precision]
    return flops, list(records.values()), climb(rungs, timings), best


def climb(rungs: Sequence[Rung], timings: Timings) -> list[RungRecord]:
    """The ladder from the loop that computes gradients of weights to the last lever, as far as it was timed."""
    steps = [("", "authors-loop"), ("no gradients of weights", "plain-loop")]
    steps += [(rung.adds, rung.contender.name) for rung in rungs]
    timed = [(adds, name) for adds, name in steps if name in timings.seconds]
    rows = []
    for number, (adds, name) in enumerate(timed):
        rows.append(
            RungRecord(
                adds=adds if number else "start",
                name=name,
                p50_s=timings.median(name),
                over_previous=timings.ratio(timed[max(number - 1, 0)][1], name),
                over_first=timings.ratio(timed[0][1], name),
            )
        )
    return rows


def _prepared(
    contender: Contender, target: Target, reference: Reference, setting: Setting
) -> tuple[Record, Callable[[], object] | None]:
    """The record of a contender and the call to time, None where it must not be timed."""
    record = Record(contender.name, contender.kind, contender.precision, contender.what)
    device = target.x.device
    try:
        record.agreement, fault = reference.compare(contender)
        before = _reset_peak(device)
        attack = contender.make(target, setting)
        found = attack(target.x, target.y)
        fault = fault or outside(found, target.x, setting.eps)
        record.peak_bytes = _peak(device, before)
        record.compile_s = getattr(attack, "compile_s", None)
    except Missing as error:
        record.status, record.detail = "missing", str(error)
        return record, None
    # Whatever a contender raises, running out of memory among it, is a result and not the end of the run.
    except Exception as error:
        record.status, record.detail = "failed", _one_line(error)
        _reset_peak(device)
        return record, None
    if fault is not None:
        record.status, record.detail = "wrong", fault
        return record, None

    def call() -> None:
        attack(target.x, target.y)
        wait(device)

    return record, call


def _reset_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before: int) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
