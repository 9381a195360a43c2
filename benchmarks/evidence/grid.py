"""What a grid is: settings of training, their runs over seeds, and how these are attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iaat_fast import units
from iaat_fast.sweep.grid import Run
from iaat_fast.train.cli import parse

OPTIONS = ("data", "epochs", "minutes", "width", "limit")
"""Of the command line, those that only some grids take."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of training, with a run per seed.

    Args:
        name: of its run folders, without the seed.
        label: in tables and figures.
        flags: of `python -m iaat_fast.train`, after the preset.
        eps: of a fixed radius that is a point of the curve, on the [0, 1] scale; None: compared with the curve.
    """

    name: str
    label: str
    flags: tuple[str, ...]
    eps: float | None = None


@dataclass(frozen=True, kw_only=True)
class PGDs:
    """PGD of these steps and restarts at each of these radii, on the [0, 1] scale."""

    steps: int
    restarts: int
    radii: tuple[float, ...]

    @property
    def name(self) -> str:
        """`pgd10x5`."""
        return f"pgd{self.steps}x{self.restarts}"

    @property
    def keys(self) -> list[str]:
        """Names of its measurements in records."""
        return [units.attack_key(self.steps, self.restarts, eps) for eps in self.radii]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is trained, and how it is attacked.

    Args:
        title: of its tables.
        folder: of the runs, below --out.
        preset: of all runs.
        settings: fixed radii and others.
        eps: the radius of AutoAttack and of PGD-10 × 5, on the [0, 1] scale, as all radii and steps here.
        alpha: step of PGD.
        attacks: further attacks.
        flags: further flags of every training.
        precision, engine: of AutoAttack's gradients; verdicts are always the model's own, in fp32.
        images: test images that are attacked, the first ones; None: all.
        baseline: the setting that the others are compared with, in a table of methods; None: they are compared with the
            curve of fixed radii.
        seeds, processes: if the command line has none; None: a process for each core.
        reads: which of `OPTIONS` it takes.
    """

    title: str
    folder: str
    preset: str
    settings: tuple[Setting, ...]
    eps: float
    alpha: float
    attacks: tuple[PGDs, ...] = ()
    flags: tuple[str, ...] = ()
    precision: str = "fp32"
    engine: str = "auto"
    images: int | None = None
    baseline: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    processes: int | None = None
    reads: tuple[str, ...] = ()

    def runs(self, out: Path, seeds: Sequence[int]) -> list[Run]:
        """The runs, with their folders below `out`, all settings of the first seed first."""
        return [self._run(out, setting, seed) for seed in seeds for setting in self.settings]

    def _run(self, out: Path, setting: Setting, seed: int) -> Run:
        words = (self.preset, *setting.flags, *self.flags, "--seed", str(seed))
        name = f"{setting.name}-seed{seed}"
        return Run(
            name=name,
            setting=setting.name,
            seed=seed,
            folder=out / name,
            words=words,
            config=parse(list(words)).config,
        )
