"""The command line of a suite: its flags to `evaluate_suite`, the work still expected, the table."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from iaat_fast.evaluate.evaluation import evaluate_suite, folder_name
from iaat_fast.evaluate.progress import Progress
from iaat_fast.evaluate.subject import Subject
from iaat_fast.evaluate.suites import suite_named
from iaat_fast.evaluate.table import suite_table
from iaat_fast.evaluate.transfer import Surrogate, load_surrogate
from iaat_fast.files import write_json
from iaat_fast.run_folder import RunFolder

if TYPE_CHECKING:
    from iaat_fast.evaluate.cli import Command

SUITE_FLAGS = (
    "parts",
    "against",
    "corruptions",
    "any_iterate",
    "save_adversarial",
    "out",
    "overwrite",
)
"""Flags that only a suite has."""


def asks_for_suite(command: Command) -> bool:
    """Whether a suite is measured: it is named, or saved examples are to be scored.

    Raises:
        ValueError: flags of a suite without one, or of a single attack with one.
    """
    if command.suite is None and not command.adversarial:
        for name in SUITE_FLAGS:
            if getattr(command, name):
                raise ValueError(f"{_flag(name)}: belongs to a suite, expected --suite")
        return False
    for name in ("steps", "restarts", "targeted"):
        if getattr(command, name) is not None:
            raise ValueError(f"{_flag(name)}: a suite has its own, leave one of them out")
    return True


def check_flags(command: Command) -> None:
    """What can be said of a suite's flags before anything is loaded."""
    suite = suite_named(command.suite or "quick")
    suite.chosen(command.parts or None, surrogate=command.against is not None)
    if not command.save_every > 0:  # nan is not
        raise ValueError(f"--save-every: {command.save_every:g}, expected above 0")
    if command.run is None and command.out is None and command.suite is not None:
        raise ValueError("--out: expected the folder for the record, there is no run folder for it")


def run_suite(
    command: Command,
    folder: RunFolder | None,
    subject: Subject,
    defaults: dict[str, Any],
    batch_size: int,
    console: Console,
) -> dict[str, Any]:
    """Measure, resuming what is there, print the table and say where the record is."""
    suite = suite_named(command.suite or "quick")
    eps, alpha = command.eps, command.alpha
    if subject.description["data"]["name"] == "digits":
        # 8/255 is a radius for photographs: on digits the run's own is meant.
        eps = eps or ((defaults["eps"],) if "eps" in defaults else ())
        alpha = alpha if alpha is not None else defaults.get("alpha")
    surrogate: Surrogate | None = None
    if command.against is not None:
        surrogate = load_surrogate(RunFolder(command.against), subject, data=command.data)
    parts = command.parts or (("natural",) if command.suite is None else None)
    kept = command.out
    if kept is None and folder is not None:
        kept = folder.evaluation_dir / folder_name(
            subject, suite.name, seed=command.seed, any_iterate=command.any_iterate
        )
    try:
        with Progress() as tell:
            content = evaluate_suite(
                subject,
                suite.name,
                folder=kept,
                parts=parts,
                eps=eps,
                alpha=alpha,
                seed=command.seed,
                batch_size=batch_size,
                any_iterate=command.any_iterate,
                surrogate=surrogate,
                corruptions=command.corruptions,
                adversarial=command.adversarial,
                save_adversarial=command.save_adversarial,
                overwrite=command.overwrite,
                save_every=command.save_every,
                tell=tell,
            )
    except (KeyboardInterrupt, SystemExit) as stop:
        words = shlex.join(word for word in sys.argv[1:] if word != "--overwrite")
        where = "nothing was kept" if kept is None else f"kept in {kept}"
        print(
            f"interrupted, {where}; go on with: python -m iaat_fast.evaluate {words}",
            file=sys.stderr,
        )
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{error}; a smaller --batch-size goes on from here"
        ) from error
    console.print(suite_table(content))
    for path in (kept, command.json):
        if path is not None:
            console.print(f"written to {path}", highlight=False, soft_wrap=True, markup=False)
    if command.json is not None:
        write_json(command.json, content)
    return content


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
