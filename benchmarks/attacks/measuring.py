"""Measures one network at one batch size: every provider is checked, timed in turn with all others, and profiled."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from benchmarks import targets
from benchmarks.attacks.agreement import Reference, outside
from benchmarks.attacks.engines import Ablation, ablations
from benchmarks.attacks.layouts import Choice, Layout, candidates, choose
from benchmarks.attacks.profiling import flops_per_gradient, matmul_rates
from benchmarks.attacks.providers import Missing, Provider, Setting
from benchmarks.attacks.worker import Worker, WorkerError
from benchmarks.interleave import Timings, interleave, wait
from benchmarks.record import Record, Row, say
from benchmarks.targets import Spec, Target

# Number of images on which attacks are compared on the CPU; on a GPU all are.
_CHECKED = 32
ABLATION = "time, option by option"
# Aims on an H100: how many times bf16 is faster than the best peer, and its share of the rate of bf16 matrix products.
AIMS = {
    ("resnet18", 128): {"over_best_peer": 3.5},
    ("resnet18", 512): {"over_best_peer": 4.2},
    ("wrn32-10", 128): {"over_best_peer": 2.9, "share_of_matmul": 0.52},
}


@dataclasses.dataclass
class Measured:
    """The results of a case: floating-point operations of the attack, the rows, and the best peer in fp32.

    Figures of a row of "time": `over`, how many times faster than each peer and the expert's loop; `over_best_peer`,
    than the fastest peer in fp32 (medians over rounds of the ratio within a round); `peak_bytes`, on CUDA, most memory
    above that allocated before the provider was made; `compile_s`, compile time of the expert's loop, which is not in
    other figures; `agreement` with the plain loop.
    """

    flops: float
    rows: list[Row]
    ablations: list[Row]
    best_peer: str | None


def measure(
    case: str,
    target: Target,
    providers: Sequence[Provider],
    added: Sequence[Ablation],
    setting: Setting,
    *,
    rounds: int,
    rates: Mapping[str, float],
    check: int | None = None,
    own: Mapping[str, Target] | None = None,
) -> Measured:
    """Check and time all providers.

    Args:
        case: name of the case.
        target: what is attacked.
        providers: the implementations that attack it.
        added: ablation of the engine's options, which follows the loops.
        setting: of the timed attack; checks start at x instead of at random.
        rounds: timed calls of each provider.
        rates: of matrix products by precision, to express speeds as shares.
        check: number of images on which results are compared; None: all.
        own: for some providers, the same target with the network in another layout; others have `target`.
    """
    own, references = own or {}, {}
    flops = flops_per_gradient(target) * len(target.x) * setting.steps
    rows, calls = {}, {}
    for provider in providers:
        say(f"checking {provider.name}")
        mine = own.get(provider.name, target)
        # Compared with the plain loop in the same layout, since another layout may round differently.
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
    return Measured(flops, list(rows.values()), ablation_rows(case, added, timings), best)


def aims(model: str, width: int | None, batch: int, steps: int) -> dict[str, float]:
    """The aims of bf16 in a case on an H100, for information only; {} if there are none."""
    return AIMS.get((model, batch), {}) if width is None and steps == 10 else {}


def ablation_rows(case: str, added: Sequence[Ablation], timings: Timings) -> list[Row]:
    """The timed rows from the loop that computes gradients of weights up to the engine's last option."""
    steps = [("start", "authors-loop"), ("no gradients of weights", "plain-loop")]
    steps += [(step.adds, step.provider.name) for step in added]
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
    """The call to time; None if it must not be timed, and then the row says why."""
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
    # Whatever a provider raises, running out of memory for example, is a result and does not end the run.
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


class Race:
    """Measures cases with the same providers, one after the other.

    Args:
        options: the command line, from which worker processes make the same providers.
        competing: the providers.
        setting: of their attack.
        record: to whose facts the results about all rows are added.
        workers: ends the processes that are started here.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        competing: Sequence[Provider],
        setting: Setting,
        record: Record,
        workers: contextlib.ExitStack,
    ) -> None:
        self.options, self.competing, self.setting, self.record = (
            options,
            competing,
            setting,
            record,
        )
        self.layouts = candidates(
            options.device, contiguous=options.contiguous, cudnn_benchmark=options.cudnn_benchmark
        )
        self.peers = [each for each in competing if each.kind == "peer"]
        # Before the workers start: two of them importing torch on two cores reduced a CPU's rate to a third.
        self.rates = matmul_rates(
            (each.precision for each in competing), torch.device(options.device)
        )
        record.facts["matmul_flops_per_s"] = self.rates
        record.facts["targets"] = {}
        choosing = bool(self.peers) and len(self.layouts) > 1
        searches = {layout.cudnn_benchmark for layout in self.layouts} if choosing else ()
        argv = record.argv
        self._trying = {search: workers.enter_context(Worker(argv)) for search in searches}
        self._profiling = None
        if not options.no_profile:
            # The layouts of a single case have been tried before anything is profiled: on a CPU one process does both.
            alone = options.device == "cpu" and len(options.cases) == 1
            tried = self._trying.get(False) if alone else None
            self._profiling = tried or workers.enter_context(Worker(argv))

    def run(self, model: str, size: int) -> Iterator[Row]:
        """Choose layouts, check, and time."""
        options, spec = self.options, self._spec(model, size)
        case = self._title(spec)
        seconds = self._tried(spec)
        for name, tried in seconds.items():
            for layout, samples in tried.items():
                row = Row(case=case, provider=f"{name}, {layout}", metric="time by layout")
                yield row.sampled(samples)
        choices, race = self._chosen(seconds)
        torch.backends.cudnn.benchmark = race.cudnn_benchmark
        made, source = spec.build()
        placed = {str(each): each.of(made) for each in self.layouts}
        taken = {name: choice.taken for name, choice in choices.items()}
        target = placed[str(race)]
        found = measure(
            case,
            target,
            self.competing,
            ablations(target.x.device, with_compile=options.compile),
            self.setting,
            rounds=options.rounds,
            rates=self.rates,
            check=_CHECKED if options.device == "cpu" else None,
            own={name: placed[layout] for name, layout in taken.items()},
        )
        self.record.facts["targets"][case] = {
            "parameters": sum(p.numel() for p in target.model.parameters()),
            "images": source,
            "shape": list(target.x.shape),
            "flops": found.flops,
            "best_peer": found.best_peer,
            "layouts": {name: dataclasses.asdict(choice) for name, choice in choices.items()},
        }
        for row in found.rows:
            aim = aims(model, spec.width, size, self.setting.steps)
            row.figures = {
                "model": model,
                "width": spec.width,
                **row.figures,
                "layout": taken.get(row.provider, str(race)),
                **({"aim": aim} if row.provider == "bf16" and aim else {}),
            }
        yield from found.rows
        yield from found.ablations

    def profile(self, model: str, size: int, row: Row) -> Row | None:
        """The row of where a provider's time goes, by kind of kernel; None, with a message, if the profile fails."""
        assert self._profiling is not None
        (layout,) = (each for each in self.layouts if str(each) == row.figures["layout"])
        spec = self._spec(model, size)
        try:
            found = self._profiling.profile(spec, self.setting, row.provider, layout)
        except WorkerError as error:
            say(f"{row.provider}: no profile: {error}")
            return None
        spent = Row(case=row.case, provider=row.provider, metric="device time")
        spent.sampled([found.device_s])
        spent.figures = {"wall_s": found.wall_s, **found.kinds}
        return spent

    def _title(self, spec: Spec) -> str:
        width = "" if spec.width is None else f" of width {spec.width}"
        return f"{spec.model}{width}, batch {spec.batch}, PGD-{self.setting.steps}"

    def _spec(self, model: str, size: int) -> Spec:
        own = model in (*targets.CHECKPOINTS, targets.SMALL, "resnet50")
        data = None if self.options.data is None else str(self.options.data.resolve())
        width = None if own else self.options.width
        return Spec(model=model, batch=size, device=self.options.device, width=width, data=data)

    def _tried(self, spec: Spec) -> dict[str, dict[str, list[float]]]:
        """Seconds of each peer in each layout."""
        names = [peer.name for peer in self.peers]
        seconds: dict[str, dict[str, list[float]]] = {}
        for search, worker in self._trying.items():
            mine = [layout for layout in self.layouts if layout.cudnn_benchmark == search]
            say(f"layouts of {len(names)} peers: {', '.join(map(str, mine))}")
            try:
                for name, tried in worker.try_out(spec, self.setting, names, mine).items():
                    seconds.setdefault(name, {}).update(tried)
            except WorkerError as error:
                say(f"layouts not tried: {error}")
        return seconds

    def _chosen(
        self, seconds: dict[str, dict[str, list[float]]]
    ) -> tuple[dict[str, Choice], Layout]:
        """The layout of each peer, and that of the best peer, which all other providers have."""
        medians = {
            name: {layout: float(np.median(samples)) for layout, samples in tried.items()}
            for name, tried in seconds.items()
        }
        plain = [peer.name for peer in self.peers if peer.precision == "fp32"]
        return choose(medians, self.layouts, plain)
