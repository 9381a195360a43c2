"""A case from its layouts to its profile: what runs in this process, and what in others."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

import torch

from benchmarks.attacks import networks
from benchmarks.attacks.contender import Contender, Setting
from benchmarks.attacks.engines import ladder
from benchmarks.attacks.layouts import Choice, Layout, candidates, choose
from benchmarks.attacks.measure import Case, Record, measure
from benchmarks.attacks.rates import matmul_rates
from benchmarks.attacks.target import Spec
from benchmarks.attacks.worker import Worker, WorkerError

# Images on which attacks are compared on the CPU; a GPU compares all.
_CHECKED = 32


class Race:
    """Case after case with the same contenders.

    Args:
        options, argv: the command line, parsed and as given.
        competing: who takes part.
        setting: of their attack.
        workers: ends the processes that are started here.

    Attributes:
        rates: floating-point operations per second of matrix products, by precision.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        argv: Sequence[str],
        competing: Sequence[Contender],
        setting: Setting,
        workers: contextlib.ExitStack,
    ) -> None:
        self.options, self.competing, self.setting = options, competing, setting
        self.layouts = candidates(
            options.device, contiguous=options.contiguous, cudnn_benchmark=options.cudnn_benchmark
        )
        self.peers = [each for each in competing if each.kind == "peer"]
        # Before the workers start: two of them importing torch on two cores made the rate of a CPU a third of itself.
        self.rates = matmul_rates(
            (each.precision for each in competing), torch.device(options.device)
        )
        searches = {layout.cudnn_benchmark for layout in self.layouts} if self._choosing else ()
        self._trying = {search: workers.enter_context(Worker([*argv])) for search in searches}
        self._profiling = None if options.no_profile else workers.enter_context(Worker([*argv]))

    @property
    def _choosing(self) -> bool:
        return bool(self.peers) and len(self.layouts) > 1

    def run(self, model: str, size: int) -> Case:
        """Choose layouts, check, and time."""
        options, spec = self.options, self._spec(model, size)
        choices, race = self._chosen(spec)
        torch.backends.cudnn.benchmark = race.cudnn_benchmark
        made, source = spec.build()
        targets = {str(each): each.of(made) for each in self.layouts}
        taken = {name: choice.taken for name, choice in choices.items()}
        target = targets[str(race)]
        flops, records, rungs, best = measure(
            target,
            self.competing,
            ladder(target.x.device, with_compile=options.compile),
            self.setting,
            rounds=options.rounds,
            rates=self.rates,
            check=_CHECKED if options.device == "cpu" else None,
            own={name: targets[layout] for name, layout in taken.items()},
            said=_say,
        )
        for record in records:
            record.layout = taken.get(record.name, str(race))
        return Case(
            model=model,
            width=spec.width,
            parameters=sum(p.numel() for p in target.model.parameters()),
            images=source,
            shape=list(target.x.shape),
            steps=self.setting.steps,
            flops=flops,
            best_peer=best,
            records=records,
            ladder=rungs,
            layouts=choices,
        )

    def profile(self, case: Case, record: Record) -> None:
        """Add to a record where its time goes; what goes wrong is told."""
        assert self._profiling is not None
        (layout,) = (each for each in self.layouts if str(each) == record.layout)
        spec = self._spec(case.model, case.shape[0])
        try:
            record.device_time = self._profiling.profile(spec, self.setting, record.name, layout)
        except WorkerError as error:
            print(f"{record.name}: no profile: {error}", file=sys.stderr)

    def _spec(self, model: str, size: int) -> Spec:
        own = model in (*networks.CHECKPOINTS, "resnet50")
        data = None if self.options.data is None else str(self.options.data.resolve())
        width = None if own else self.options.width
        return Spec(model=model, batch=size, device=self.options.device, width=width, data=data)

    def _chosen(self, spec: Spec) -> tuple[dict[str, Choice], Layout]:
        """The layout of each peer, and that of the best of them, in which all others attack the network."""
        names = [peer.name for peer in self.peers]
        seconds: dict[str, dict[str, float]] = {}
        for search, worker in self._trying.items():
            mine = [layout for layout in self.layouts if layout.cudnn_benchmark == search]
            _say(f"layouts of {len(names)} peers: {', '.join(map(str, mine))}")
            try:
                for name, tried in worker.try_out(spec, self.setting, names, mine).items():
                    seconds.setdefault(name, {}).update(tried)
            except WorkerError as error:
                print(f"layouts not tried: {error}", file=sys.stderr)
        plain = [peer.name for peer in self.peers if peer.precision == "fp32"]
        return choose(seconds, self.layouts, plain)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
