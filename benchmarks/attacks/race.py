"""A case from its layouts to its profile: what runs in this process, and what in others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks import targets
from benchmarks.attacks.engines import ablations
from benchmarks.attacks.layouts import Choice, Layout, candidates, choose
from benchmarks.attacks.measuring import aims, measure
from benchmarks.attacks.providers import Provider, Setting
from benchmarks.attacks.rates import matmul_rates
from benchmarks.attacks.worker import Worker, WorkerError
from benchmarks.record import Record, Row, say
from benchmarks.targets import Spec

# Images on which attacks are compared on the CPU; a GPU compares all.
_CHECKED = 32


class Race:
    """Case after case with the same providers.

    Args:
        options: the command line, from which worker processes make the same providers.
        competing: who takes part.
        setting: of their attack.
        record: whose facts get what is told of all rows together.
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
        # Before the workers start: two of them importing torch on two cores made the rate of a CPU a third of itself.
        self.rates = matmul_rates(
            (each.precision for each in competing), torch.device(options.device)
        )
        record.facts["matmul_flops_per_s"] = self.rates
        record.facts["targets"] = {}
        choosing = bool(self.peers) and len(self.layouts) > 1
        searches = {layout.cudnn_benchmark for layout in self.layouts} if choosing else ()
        argv = record.argv
        self._trying = {search: workers.enter_context(Worker(argv)) for search in searches}
        self._profiling = None if options.no_profile else workers.enter_context(Worker(argv))

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
        """Where the time of a row goes; what goes wrong is told."""
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
        own = model in (*targets.CHECKPOINTS, "resnet50")
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
        """The layout of each peer, and that of the best of them, in which all others attack the network."""
        medians = {
            name: {layout: float(np.median(samples)) for layout, samples in tried.items()}
            for name, tried in seconds.items()
        }
        plain = [peer.name for peer in self.peers if peer.precision == "fp32"]
        return choose(medians, self.layouts, plain)
