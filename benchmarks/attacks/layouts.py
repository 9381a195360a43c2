"""Finds the layout in which a peer is fastest: its weights contiguous or channels last, cuDNN's search off or on.

It would be unfair to compare with a peer that must copy every gradient into another layout. So each peer is timed in
every layout, and then compared in its best.

torch keeps cuDNN's plan of a convolution for the life of the process, even if `cudnn.benchmark` is changed later. So
each value of it is tried in a process of its own, and the comparison, which is one process, uses the best peer's value.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch

from benchmarks.attacks.providers import Missing, Provider, Setting
from benchmarks.interleave import interleave, wait
from benchmarks.targets import Target

ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Layout:
    """How weights are stored, and whether cuDNN tries its algorithms (`torch.backends.cudnn.benchmark`)."""

    channels_last: bool
    cudnn_benchmark: bool = False

    def __str__(self) -> str:
        name = "channels last" if self.channels_last else "contiguous"
        return f"{name}, cudnn.benchmark" if self.cudnn_benchmark else name

    def of(self, target: Target) -> Target:
        """The target with a copy of its network in this layout."""
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        net = copy.deepcopy(target.model).to(memory_format=memory)  # type: ignore[call-overload]
        return dataclasses.replace(target, model=net)


@dataclasses.dataclass
class Choice:
    """A peer's layouts: median seconds in each that was tried, the best one, and the one taken for the comparison."""

    seconds: dict[str, float]
    best: str
    taken: str


def candidates(device: str, *, contiguous: bool, cudnn_benchmark: bool) -> list[Layout]:
    """The layouts in which peers are tried: two on a CPU, four on a GPU, fewer if one is asked for."""
    searches = [True] if cudnn_benchmark else [False, True] if device == "cuda" else [False]
    weights = [False] if contiguous else [False, True]
    return [Layout(last, search) for search in searches for last in weights]


def try_out(
    target: Target, peers: Iterable[Provider], layouts: Sequence[Layout], setting: Setting
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every peer in every layout, interleaved; a peer that is missing or fails is left out.

    All layouts have the same `cudnn_benchmark`, to which the process is set.
    """
    (torch.backends.cudnn.benchmark,) = {layout.cudnn_benchmark for layout in layouts}
    calls, places = {}, {}
    for layout in layouts:
        own = layout.of(target)
        for peer in peers:
            try:
                attack = peer.make(own, setting)
                attack(own.x, own.y)
            except Missing:
                continue
            # Errors of a provider are reported by the comparison.
            except Exception:
                continue

            def call(attack=attack, own=own) -> None:  # type: ignore[no-untyped-def]
                attack(own.x, own.y)
                wait(own.x.device)

            key = f"{peer.name}, {layout}"
            calls[key], places[key] = call, (peer.name, str(layout))
    found: dict[str, dict[str, list[float]]] = {}
    timings = interleave(calls, rounds=ROUNDS, untimed=1)
    for key, (name, layout_name) in places.items():
        found.setdefault(name, {})[layout_name] = timings.seconds[key].tolist()
    return found


def choose(
    seconds: Mapping[str, Mapping[str, float]], layouts: Sequence[Layout], plain: Iterable[str]
) -> tuple[dict[str, Choice], Layout]:
    """Each peer's choice, and the layout of the best of the `plain` peers (those in fp32), which the comparison uses.

    All providers run with that layout's `cudnn_benchmark`, each peer with the weights with which it is then fastest.
    Without peers, the weights are channels last and cuDNN does not search, unless no such layout is there.
    """
    known = {str(layout): layout for layout in layouts}
    best = {name: min(tried, key=tried.__getitem__) for name, tried in seconds.items()}
    leaders = [name for name in plain if name in best] or list(best)
    if not leaders:
        return {}, [each for each in layouts if each.cudnn_benchmark == layouts[0].cudnn_benchmark][
            -1
        ]
    race = known[best[min(leaders, key=lambda name: seconds[name][best[name]])]]
    choices = {}
    for name, tried in seconds.items():
        raced = [each for each in tried if known[each].cudnn_benchmark == race.cudnn_benchmark]
        taken = min(raced, key=tried.__getitem__) if raced else str(race)
        choices[name] = Choice(dict(tried), best[name], taken)
    return choices, race
