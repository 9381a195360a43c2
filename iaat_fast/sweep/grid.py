"""The grid of a sweep: methods x radii x seeds, each point a run with a name and a training command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from iaat_fast import units, validate
from iaat_fast.command_line import UsageError
from iaat_fast.methods import COMPARED, NAMES, row, without_warmup
from iaat_fast.train.cli import flags_for, parse
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.presets import PRESETS

Warmup = Literal["on", "off", "both"]
_DIGITS = 10  # of a radius in names and commands: enough to read back the same radius
OWN_FLAGS = {
    "--method": "--methods",
    "--eps": "--eps before the --",
    "--seed": "--seeds",
    "--data": "--data before the --",
    "--out": "--out before the --",
    "--resume": "nothing, a sweep always continues",
    "--overwrite": "another --out",
}
"""Training flags that the sweep sets, and what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of runs that a sweep trains.

    Args:
        preset: a name of `train.presets.PRESETS`.
        methods: names of `iaat_fast.methods.NAMES`.
        eps: radii of the methods that train at a fixed radius, on the [0, 1] pixel scale; (): that of
            the preset.
        seeds: one run for each.
        warmup: of the method iaat: the preset's ("on"), none ("off"), or a run of each ("both").
        data: folder or .npz with the images; None: the default of training.
        flags: further flags of `python -m iaat_fast.train`, for every run whose method reads them.

    Raises:
        ValueError: an unknown name, a value given twice, a flag that the sweep sets itself, or radii
            or a warm-up that none of the methods has.
    """

    preset: str = "digits"
    methods: tuple[str, ...] = COMPARED
    eps: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    warmup: Warmup = "on"
    data: str | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate.choice("preset", self.preset, PRESETS)
        validate.choice("--warmup", self.warmup, get_args(Warmup))
        for method in self.methods:
            validate.choice("--methods", method, NAMES)
        axes: dict[str, Sequence[object]] = {
            "--methods": self.methods,
            "--seeds": self.seeds,
            "--eps": [units.to_text(eps, _DIGITS) for eps in self.eps],
        }
        for name, values in axes.items():
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise UsageError(f"{name}: {twice[0]} is given twice")
            if not values and name != "--eps":
                raise UsageError(f"{name}: none given, expected at least one")
        if self.eps and not any(row(method).radius == "fixed" for method in self.methods):
            raise UsageError(f"--eps: {', '.join(self.methods)} trains at no fixed radius")
        warming = [method for method in NAMES if without_warmup(method)]
        if self.warmup != "on" and not set(warming) & set(self.methods):
            expected = " or ".join(warming)
            raise UsageError(
                f"--warmup {self.warmup}: the method {expected} is not among --methods"
            )
        for word in self.flags:
            flag = word.partition("=")[0].replace("_", "-")
            if flag in OWN_FLAGS:
                raise UsageError(f"{flag}: set by the sweep, give {OWN_FLAGS[flag]}")
            if flag == "--warmup-epochs" and self.warmup == "off":
                raise UsageError("--warmup-epochs: contradicts --warmup off")

    def runs(self, out: Path) -> list[Run]:
        """The runs, with their folders below `out`, seed by seed: the whole grid is run for the first seed first.

        Raises:
            ValueError: a training flag is unknown, its value is bad, or no method reads it.
        """
        return [
            self._run(out, method, variant, seed)
            for seed in self.seeds
            for method in self.methods
            for variant in self._variants(method)
        ]

    def _variants(self, method: str) -> list[dict[str, Any]]:
        if without_warmup(method):
            with_it, without = {"warmup": True}, {"warmup": False}
            return {"on": [with_it], "off": [without], "both": [with_it, without]}[self.warmup]
        # A method without a fixed radius has one run per seed, however many radii are given.
        fixed = row(method).radius == "fixed"
        return [{"eps": eps} for eps in self.eps or (None,)] if fixed else [{}]

    def _run(self, out: Path, method: str, variant: dict[str, Any], seed: int) -> Run:
        eps = variant.get("eps")
        words = [self.preset, "--method", method, "--seed", str(seed)]
        words += ["--data", self.data] if self.data is not None else []
        no_warmup = None if variant.get("warmup", True) else without_warmup(method)
        key = no_warmup or method
        words += flags_for(key, self.flags, self.methods)
        # After the flags, because training takes the last of a flag given twice.
        words += ["--eps", units.to_text(eps, _DIGITS)] if eps is not None else []
        words += ["--warmup-epochs", "0"] if no_warmup else []
        config = parse(words).config
        if config.preset != self.preset:
            raise UsageError(f"{config.preset}: unexpected after the --, expected flags")
        name = key
        if "eps" in variant:
            name += f"-eps{units.to_text(config.attack.eps, _DIGITS)}"
        return Run(
            name=f"{name}-seed{seed}",
            setting=name,
            seed=seed,
            folder=out / f"{name}-seed{seed}",
            words=tuple(words),
            config=config,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One point of the grid.

    `setting` is the name without the seed, shared by runs that differ only in their seed; `words` are
    the arguments of `python -m iaat_fast.train`, without the run folder, and `config` their configuration.
    """

    name: str
    setting: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    config: TrainConfig

    @property
    def command(self) -> tuple[str, ...]:
        """The command that starts or continues the training: --resume starts a run if there is none yet."""
        where = ("--out", str(self.folder), "--resume")
        return (sys.executable, "-m", "iaat_fast.train", *self.words, *where)


def surrogate(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run that transfer attacks on `run` are crafted on: the same setting, another seed.

    The first seed takes the second one, every other seed the one before it, so that adding seeds later
    changes no surrogate (except that a single first seed gets one). None: there is no other seed.
    """
    peers = [peer for peer in runs if peer.setting == run.setting]
    place = [peer.seed for peer in peers].index(run.seed)
    if len(peers) == 1:
        return None
    return peers[place - 1 if place else 1]
