"""The grids: fixed radii and IAAT with and without its warm-up, and the methods, as flags of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.evidence.grid import OPTIONS, Grid, PGDs, Setting
from iaat_fast.methods import base_key, row

_GREEK = {"beta": "β", "gamma": "γ"}


def _fixed(eps: float) -> Setting:
    return Setting(
        name=f"adv-eps{eps:g}",
        label=f"ε = {eps:g}",
        flags=("--method", "adv", "--eps", f"{eps:g}", *_step(eps)),
        eps=eps / 255,
    )


def _iaat(eps_w: float, **changed: float) -> Setting:
    suffix, label, flags = _changed(changed)
    return Setting(
        name=f"iaat-epsw{eps_w:g}{suffix}",
        label=f"IAAT, ε_w = {eps_w:g}{label}",
        flags=("--method", "iaat", "--eps-w", f"{eps_w:g}", *_step(eps_w), *flags),
    )


def _no_warmup(**changed: float) -> Setting:
    suffix, label, flags = _changed(changed)
    return Setting(
        name=f"iaat-no-warmup{suffix}",
        label=f"IAAT, no warm-up{label}",
        flags=("--method", "iaat", "--warmup-epochs", "0", *flags),
    )


def _step(radius: float) -> tuple[str, str]:
    """A step of a quarter of the radius, as in the paper's Table 7 and in the preset."""
    return "--alpha", f"{radius / 4:.10g}"


def _changed(values: Mapping[str, float]) -> tuple[str, str, tuple[str, ...]]:
    """What other values of gamma and beta than the preset's add to a name, to a label and to the flags."""
    suffix = "".join(f"-{name}{value:g}" for name, value in values.items())
    label = "".join(f", {_GREEK[name]} = {value:g}" for name, value in values.items())
    flags = (word for name, value in values.items() for word in (f"--{name}", f"{value:g}"))
    return suffix, label, tuple(flags)


def _cosine(setting: Setting) -> Setting:
    return Setting(
        name=f"{setting.name}-cosine",
        label=f"{setting.label}, cosine",
        flags=(*setting.flags, "--lr-schedule", "cosine"),
    )


def _methods(of_iaat: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """Every method that attacks (mixup aside) with its preset's or its paper's settings, and `adv` with AWP."""
    flags = {
        "adv": (),
        "iaat": of_iaat,
        "cat": (),
        "trades": (),
        "mart": (),
        "mma": (),
        "nfgsm": (),
        "fast-at": ("--nfgsm-noise", "1", "--nfgsm-step", "1.25", "--nfgsm-project"),
        "adv-awp": ("--awp-gamma", "0.005"),
    }
    return tuple(
        Setting(
            name=name,
            label=row(name).label,
            flags=("--method", row(name).variant_of or base_key(name), *added),
        )
        for name, added in flags.items()
    )


# The fixed radii reach beyond where robust accuracy falls again; IAAT warms up at the radius that is evaluated,
# somewhat above it and far above it. A radius grows by at most gamma * beta a visit, with the preset's beta by
# 25.5/255 in 20 epochs: without a warm-up only a larger beta takes it to 51/255. With the fast engine a training takes
# 11 to 16 % less processor time and AutoAttack 9 to 21 %.
DIGITS = Grid(
    title="Fixed radii and IAAT, digits",
    folder="digits",
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
    flags=("--engine", "fast", "--no-tensorboard"),
    engine="fast",
)

# What a radius can change by in a visit, gamma * beta, from 1.3/255 to 25.5/255, and another schedule of the rate; of
# `digits` the fixed radii, and their runs.
DIGITS_MORE = replace(
    DIGITS,
    title="Fixed radii and more settings of IAAT, digits",
    settings=(
        *(setting for setting in DIGITS.settings if setting.eps is not None),
        *(_iaat(51, gamma=gamma, beta=beta) for gamma in (6.375, 12.75, 25.5) for beta in (0.2, 1)),
        _cosine(_fixed(51)),
        _cosine(_iaat(51)),
    ),
)

METHODS = Grid(
    title="The methods on digits",
    folder="methods",
    preset="digits",
    settings=_methods(),
    eps=51 / 255,
    alpha=12.75 / 255,
    flags=("--no-tensorboard",),
    baseline="adv",
)

# Table 1's rows, and further radii for the curve, which ends in the network without an attack. A schedule for few
# epochs: the rate rises and falls once, and an average of the weights over about the last 1,000 steps is evaluated.
CIFAR10 = Grid(
    title="Fixed radii and IAAT, cifar10",
    folder="cifar10",
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
    seeds=(0,),
    processes=1,
    reads=OPTIONS,
)

# Not the paper's setting, but one for hours on a CPU. With beta = 0.5 a radius can travel in 10 visits what the
# schedule of 200 epochs allows it.
METHODS_CIFAR10 = Grid(
    title="The methods on CIFAR-10, a slim ResNet-18",
    folder="methods-cifar10",
    preset="cifar10-resnet18",
    settings=_methods(
        ("--gamma", "1.9", "--beta", "0.5", "--warmup-epochs", "2", "--snapshot-epochs", "1")
    ),
    eps=8 / 255,
    alpha=2 / 255,
    flags=(
        *("--width", "8", "--limit", "8000", "--epochs", "10", "--batch-size", "64"),
        *("--lr", "0.05", "--decay-epochs", "6", "8", "--weight-decay", "0.0005"),
        *("--eval-restarts", "1"),
        *("--engine", "fast", "--no-tensorboard"),
    ),
    precision="bf16",
    images=500,
    baseline="adv",
    seeds=(0,),
    reads=("data", "width", "limit"),
)

GRIDS = {
    "digits": DIGITS,
    "digits-more": DIGITS_MORE,
    "cifar10": CIFAR10,
    "methods": METHODS,
    "methods-cifar10": METHODS_CIFAR10,
}
"""The grids by name."""
