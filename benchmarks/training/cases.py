"""Which steps of training are timed, the most wanted first; new options of the configuration become further cases."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from iaat_fast.train import TrainConfig, override, preset

NETWORKS = ("resnet18", "wrn32-10")
FINALS = ("exact", "reuse")
PRECISIONS = ("bf16", "fp32")
# Of these figures the others are variations.
WANTED = (
    "iaat batched exact bf16",
    "iaat batched reuse bf16",
    "adv bf16",
    "iaat lazy exact fp32",
    "clean bf16",
    "iaat lazy exact bf16",
    "adv fp32",
    "clean fp32",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of training: its name, the method, and what it changes in the configuration of the network's preset."""

    name: str
    method: Any  # "clean", "adv" or "iaat"
    changes: Mapping[str, Mapping[str, Any]]

    def config(self, network: str, common: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
        """The configuration on a network, with changes that all cases share."""
        base = preset(f"cifar10-{network}", method=self.method)
        return override(override(base, common), self.changes)


def cases(config: TrainConfig | None = None) -> list[Case]:
    """All cases, in the order in which they are timed.

    "fp32" is the arithmetic of the preset, "bf16" attacks in bfloat16 and autocast in the weights' update. Strategies
    are those that the configuration knows. Where it has `optim.graph` and `run.fast`, the most wanted also come
    without the graph, and IAAT with what `--fast` chooses.

    Args:
        config: whose fields are looked at; TrainConfig's by default.
    """
    config = TrainConfig() if config is None else config
    precisions: dict[str, dict[str, dict[str, Any]]] = {
        "bf16": {"attack": {"precision": "bf16"}, "optim": {"amp": "bf16"}},
        "fp32": {},
    }
    found = [
        Case(f"{method} {precision}", method, precisions[precision])
        for method, precision in itertools.product(("clean", "adv"), PRECISIONS)
    ]
    for precision, final, strategy in itertools.product(PRECISIONS, FINALS, _strategies(config)):
        changes = {**precisions[precision], "epsilon": {"strategy": strategy, "final": final}}
        found.append(Case(f"iaat {strategy} {final} {precision}", "iaat", changes))
    found.sort(key=lambda case: _place(case.name))
    if hasattr(config.run, "fast"):
        found.insert(1, Case("iaat --fast", "iaat", {"run": {"fast": True}}))
    if hasattr(config.optim, "graph"):
        some = [case for case in found if case.name in WANTED[:3]]
        found += [_without_graph(case) for case in some]
    return found


def _strategies(config: TrainConfig) -> Iterable[str]:
    """Those with a way of their own: "auto" is one of the others."""
    known = typing.get_args(typing.get_type_hints(type(config.epsilon))["strategy"])
    return [name for name in known if name != "auto"]


def _without_graph(case: Case) -> Case:
    optim = {**case.changes.get("optim", {}), "graph": False}
    return Case(f"{case.name}, no graph", case.method, {**case.changes, "optim": optim})


def _place(name: str) -> int:
    return WANTED.index(name) if name in WANTED else len(WANTED)
