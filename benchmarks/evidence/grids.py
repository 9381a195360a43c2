"""The runs that are compared: fixed radii, and IAAT with and without its warm-up, as flags of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iaat_fast.sweep.grid import Run
from iaat_fast.train.cli import parse


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of training, with a run per seed.

    Args:
        name: of its run folders, without the seed.
        label: in tables and figures.
        flags: of `python -m iaat_fast.train`, after the preset.
        eps: a fixed radius, on the [0, 1] scale; None: each sample has its own.
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


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is trained, and how it is attacked.

    Args:
        preset: of all runs.
        settings: fixed radii and others.
        eps: the radius of AutoAttack and of PGD-10 × 5, on the [0, 1] scale, as all radii and steps here.
        alpha: step of PGD.
        attacks: further attacks.
        flags: further flags of every training.
        precision: of AutoAttack's gradients; verdicts are always in fp32.
    """

    preset: str
    settings: tuple[Setting, ...]
    eps: float
    alpha: float
    attacks: tuple[PGDs, ...]
    flags: tuple[str, ...] = ()
    precision: str = "fp32"

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


def _fixed(eps: float) -> Setting:
    return Setting(
        name=f"adv-eps{eps:g}",
        label=f"ε = {eps:g}",
        flags=("--method", "adv", "--eps", f"{eps:g}", *_step(eps)),
        eps=eps / 255,
    )


def _iaat(eps_w: float, *, beta: float | None = None) -> Setting:
    suffix, changed, flags = _beta(beta)
    return Setting(
        name=f"iaat-epsw{eps_w:g}{suffix}",
        label=f"IAAT, ε_w = {eps_w:g}{changed}",
        flags=("--method", "iaat", "--eps-w", f"{eps_w:g}", *_step(eps_w), *flags),
    )


def _no_warmup(*, beta: float | None = None) -> Setting:
    suffix, changed, flags = _beta(beta)
    return Setting(
        name=f"iaat-no-warmup{suffix}",
        label=f"IAAT, no warm-up{changed}",
        flags=("--method", "iaat", "--warmup-epochs", "0", *flags),
    )


def _step(radius: float) -> tuple[str, str]:
    """A step of a quarter of the radius, as in the paper's Table 7 and in the preset."""
    return "--alpha", f"{radius / 4:.10g}"


def _beta(beta: float | None) -> tuple[str, str, tuple[str, ...]]:
    """What another beta than the preset's adds to a name, to a label and to the flags."""
    if beta is None:
        return "", "", ()
    return f"-beta{beta:g}", f", β = {beta:g}", ("--beta", f"{beta:g}")


# The fixed radii reach beyond where robust accuracy falls again; IAAT warms up at the radius that is evaluated,
# somewhat above it and far above it. A radius grows by at most gamma * beta a visit, with the preset's beta by
# 25.5/255 in 20 epochs: without a warm-up only a larger beta takes it to 51/255.
DIGITS = Grid(
    preset="digits",
    settings=(
        *(_fixed(eps) for eps in (12.75, 25.5, 38.25, 51, 60, 68, 76.5, 89.25)),
        _iaat(51),
        _iaat(60),
        _iaat(76.5),
        _iaat(60, beta=0.5),
        _no_warmup(),
        _no_warmup(beta=0.5),
    ),
    eps=51 / 255,
    alpha=12.75 / 255,
    attacks=(PGDs(steps=10, restarts=5, radii=(25.5 / 255, 76.5 / 255, 102 / 255)),),
    flags=("--no-tensorboard",),
)

# Table 1's rows, and further radii for the curve, which ends in the network without an attack. A schedule for few
# epochs: the rate rises and falls once, and an average of the weights over about the last 1,000 steps is evaluated.
CIFAR10 = Grid(
    preset="cifar10-resnet18",
    settings=(
        _fixed(8),
        _iaat(8),
        _no_warmup(),
        _fixed(4),
        _fixed(2),
        Setting(name="clean", label="no attack", flags=("--method", "clean"), eps=0.0),
    ),
    eps=8 / 255,
    alpha=2 / 255,
    attacks=(PGDs(steps=100, restarts=5, radii=(8 / 255,)),),
    flags=(
        *("--fast", "--no-tensorboard", "--weight-decay", "0.0005"),
        *("--lr-schedule", "one-cycle", "--lr", "0.2", "--ema-decay", "0.999"),
    ),
    precision="bf16",
)
