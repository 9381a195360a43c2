"""One network at one batch size: every provider checked, then timed, interleaved with all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.attacks.agreement import Reference, outside
from benchmarks.attacks.engines import Ablation
from benchmarks.attacks.providers import Missing, Provider, Setting
from benchmarks.attacks.rates import flops_per_gradient, wait
from benchmarks.interleave import Timings, interleave
from benchmarks.record import Row, say
from benchmarks.targets import Target

ABLATION = "time, option by option"
# On an H100, bf16 against the best peer in its best layout; and its share of the rate of bf16 matrix products.
AIMS = {
    ("resnet18", 128): {"over_best_peer": 3.5},
    ("resnet18", 512): {"over_best_peer": 4.2},
    ("wrn32-10", 128): {"over_best_peer": 2.9, "share_of_matmul": 0.52},
}


@dataclasses.dataclass
class Measured:
    """A case: floating-point operations of the attack, the rows, and the best peer in fp32.

    Figures of a row of "time": `over`, how many times faster than each peer and the expert's loop, `over_best_peer`
    than the fastest peer in fp32 (medians over rounds of the ratio within a round); `peak_bytes`, most memory above
    what was allocated before the provider was made, on CUDA; `compile_s` of the expert's loop, which no other figure
    contains; `agreement` with the plain loop.
    """

    flops: float
    rows: list[Row]
    ablations: list[Row]
    best_peer: str | None


def measure(
    case: str,
    target: Target,
    providers: Sequence[Provider],
    ablations: Sequence[Ablation],
    setting: Setting,
    *,
    rounds: int,
    rates: Mapping[str, float],
    check: int | None = None,
    own: Mapping[str, Target] | None = None,
) -> Measured:
    """Check and time.

    Args:
        case: names the rows.
        target: what is attacked.
        providers: who attacks it.
        ablations: the engine's options one by one, on top of the loops.
        setting: of the timed attack; checks start at x instead of at random.
        rounds: timed calls of each provider.
        rates: of matrix products by precision, to express speeds as shares.
        check: images on which attacks are compared; None: all.
        own: by provider, the same target with the network in another layout; `target` for all others.
    """
    own, references = own or {}, {}
    flops = flops_per_gradient(target) * len(target.x) * setting.steps
    rows, calls = {}, {}
    for provider in providers:
        say(f"checking {provider.name}")
        mine = own.get(provider.name, target)
        # Compared with the plain loop in the same layout, for another one may round differently.
        if id(mine) not in references:
            some = dataclasses.replace(mine, x=mine.x[:check], y=mine.y[:check])
            references[id(mine)] = Reference(some, setting)
        row = rows[provider.name] = Row(case=case, provider=provider.name)
        row.figures = {"kind": provider.kind, "precision": provider.precision}
        call = _prepared(row, provider, mine, references[id(mine)], setting)
        if call is not None:
            calls[provider.name] = call
    if not calls:
        return Measured(flops, list(rows.values()), [], None)
    say(f"timing {len(calls)} attacks, {rounds} rounds")
    timings = interleave(calls, rounds=rounds)
    kinds = {name: rows[name].figures["kind"] for name in calls}
    fp32 = [
        name
        for name, kind in kinds.items()
        if kind == "peer" and rows[name].figures["precision"] == "fp32"
    ]
    best = min(fp32, key=timings.median, default=None)
    for name in calls:
        row = rows[name].sampled(timings.seconds[name])
        speed, figures = flops / timings.median(name), row.figures
        figures["images_per_second"] = len(target.x) / timings.median(name)
        figures["over_best_peer"] = None if best is None else timings.ratio(best, name)
        figures["over"] = {
            other: timings.ratio(other, name) for other, kind in kinds.items() if kind != "engine"
        }
        figures["flops_per_second"] = speed
        rate = rates.get(figures["precision"])
        figures["share_of_matmul"] = None if rate is None else speed / rate
    return Measured(flops, list(rows.values()), climb(case, ablations, timings), best)


def aims(model: str, width: int | None, batch: int, steps: int) -> dict[str, float]:
    """What bf16 is to reach there on an H100: ratios to read, which decide nothing."""
    return AIMS.get((model, batch), {}) if width is None and steps == 10 else {}


def climb(case: str, ablations: Sequence[Ablation], timings: Timings) -> list[Row]:
    """From the loop that computes gradients of weights to the engine's last option, as far as it was timed."""
    steps = [("start", "authors-loop"), ("no gradients of weights", "plain-loop")]
    steps += [(step.adds, step.provider.name) for step in ablations]
    timed = [(adds, name) for adds, name in steps if name in timings.seconds]
    rows = []
    for number, (adds, name) in enumerate(timed):
        row = Row(case=case, provider=name, metric=ABLATION).sampled(timings.seconds[name])
        row.figures = {
            "adds": adds if number else "start",
            "over_previous": timings.ratio(timed[max(number - 1, 0)][1], name),
            "over_first": timings.ratio(timed[0][1], name),
        }
        rows.append(row)
    return rows


def _prepared(
    row: Row, provider: Provider, target: Target, reference: Reference, setting: Setting
) -> Callable[[], object] | None:
    """The call to time, None where it must not be timed; the row says why."""
    device = target.x.device
    try:
        agreement, fault = reference.compare(provider)
        row.figures["agreement"] = agreement and dataclasses.asdict(agreement)
        before = _reset_peak(device)
        attack = provider.make(target, setting)
        found = attack(target.x, target.y)
        fault = fault or outside(found, target.x, setting.eps)
        row.figures["peak_bytes"] = _peak(device, before)
        row.figures["compile_s"] = getattr(attack, "compile_s", None)
    except Missing as error:
        row.refused("missing", str(error))
        return None
    # Whatever a provider raises, running out of memory among it, is a result and not the end of the run.
    except Exception as error:
        row.failed(error)
        _reset_peak(device)
        return None
    if fault is not None:
        row.refused("wrong", fault)
        return None

    def call() -> None:
        attack(target.x, target.y)
        wait(device)

    return call


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
