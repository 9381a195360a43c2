"""An evaluation as data: what was asked, what was found, with 95 % intervals; its JSON and table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from iaat_fast import units
from iaat_fast.evaluate.accuracies import accuracy, robust_accuracy
from iaat_fast.evaluate.interval import share
from iaat_fast.evaluate.subject import Subject
from iaat_fast.report import attack_name


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """PGD with random restarts at one or several radii.

    Args:
        eps: radii, on the [0, 1] scale.
        alpha: step size, on the [0, 1] scale.
        steps: steps of each restart.
        restarts: random starts.
        seed: of the random starts and targets.
        targeted: False, or "random", see `robust_accuracy`.

    Raises:
        ValueError: a number out of range.
    """

    eps: tuple[float, ...] = (8 / 255,)
    alpha: float = 2 / 255
    steps: int = 10
    restarts: int = 5
    seed: int = 0
    targeted: Literal[False, "random"] = False

    def __post_init__(self) -> None:
        if not self.eps:
            raise ValueError("--eps: expected at least one radius")
        for eps in self.eps:
            if not 0 <= eps <= 1:
                raise ValueError(f"--eps: {units.to_text(eps)}/255, expected 0 to 255")
        if not 0 < self.alpha <= 1:
            text = units.to_text(self.alpha)
            raise ValueError(f"--alpha: {text}/255, expected above 0, up to 255")
        for name, least in (("steps", 1), ("restarts", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}: {getattr(self, name)}, expected at least {least}")

    @property
    def name(self) -> str:
        """Short and free of blanks, for file names: `pgd10x5-eps2-8-alpha2-seed0`; "targeted-" goes before."""
        radii = "-".join(f"{eps * 255:g}" for eps in self.eps)
        aim = "targeted-" if self.targeted else ""
        return f"{aim}pgd{self.steps}x{self.restarts}-eps{radii}-alpha{self.alpha * 255:g}-seed{self.seed}"


def measure(
    subject: Subject,
    attacks: Attacks,
    *,
    batch_size: int,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> dict[str, Any]:
    """Natural accuracy and accuracy at each radius, as the plain values that the JSON holds.

    Args:
        subject: model and samples.
        attacks: what to attack with.
        batch_size: samples at once.
        progress: called with the name of each attack, returns the callback of `robust_accuracy`.
    """
    samples = len(subject.split)
    natural = accuracy(subject.model, subject.split, batch_size=batch_size)
    robust = []
    for eps in attacks.eps:
        started = time.perf_counter()
        result = robust_accuracy(
            subject.model,
            subject.split,
            eps=eps,
            alpha=attacks.alpha,
            steps=attacks.steps,
            restarts=attacks.restarts,
            batch_size=batch_size,
            seed=attacks.seed,
            targeted=attacks.targeted,
            progress=progress(f"ε = {eps * 255:g}/255") if progress is not None else None,
        )
        robust.append(
            {
                "attack": "PGD",
                "eps": eps,
                "alpha": attacks.alpha,
                "steps": attacks.steps,
                "restarts": attacks.restarts,
                "seed": attacks.seed,
                "targeted": attacks.targeted,
                **share(int(result.correct.sum()), samples),
                "gradients": result.gradients.gradients,
                "gradients_planned": result.gradients.planned,
                "gradient_entries": result.gradients.total,
                "zero_gradient_entries": result.gradients.zero,
                "nan_gradient_entries": result.gradients.nan,
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    return {
        **subject.description,
        "natural": share(round(natural * samples), samples),
        "robust": robust,
    }


def table(measured: dict[str, Any]) -> Table:
    """The evaluation for a terminal; radii and steps in units of 1/255."""
    data = measured["data"]
    step = f"attack step {measured['robust'][0]['alpha'] * 255:g}/255"
    result = Table(title=f"{data['samples']} test images of {data['name']}, {step}")
    result.add_column("attack")
    for column in ("accuracy", "95 % interval", "correct"):
        result.add_column(column, justify="right")
    rows = [("none (natural)", measured["natural"])]
    for row in measured["robust"]:
        rows.append((attack_name(row), row))
    for attack, found in rows:
        low, high = found["interval_95"]
        result.add_row(
            attack,
            f"{found['accuracy']:.2%}",
            f"{low:.2%} – {high:.2%}",
            f"{found['correct']} / {found['samples']}",
        )
    taken, planned = (
        sum(row[count] for row in measured["robust"])
        for count in ("gradients", "gradients_planned")
    )
    if taken < planned:
        result.caption = (
            f"{1 - taken / planned:.0%} of the passes saved: restarts attack only who still stands"
        )
    return result
