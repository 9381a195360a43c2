"""The end of a run on the command line: closing evaluation, table, plots, commands to run next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from iaat_fast import methods, report
from iaat_fast.command_line import again, interpreter
from iaat_fast.evaluate import EvalTarget
from iaat_fast.evaluate.eval_target import describe_target
from iaat_fast.evaluate.evaluation import record_header
from iaat_fast.evaluate.parts.part import Settings
from iaat_fast.evaluate.progress import Progress
from iaat_fast.evaluate.record import natural_row, open_record, pgd_row
from iaat_fast.evaluate.suites import CLOSING, single
from iaat_fast.train.distributed import SINGLE, Ranks
from iaat_fast.train.flags import own_flags
from iaat_fast.train.hardware import in_words
from iaat_fast.train.loop import FitResult
from iaat_fast.train.metrics import radius_statistics
from iaat_fast.train.validation import shared_robust_accuracy, shared_verdicts


def evaluate_run(
    result: FitResult,
    ranks: Ranks = SINGLE,
    tell: Callable[[str, float, float], None] | None = None,
) -> dict[str, Any]:
    """Natural and robust test accuracy of a finished run, and mean and spread of its radii.

    The attack is that of `config.evaluation`, in eval mode and with a fixed step size under every protocol. All ranks
    take part; the first one writes a record of the suite "closing" (see `evaluate.record`) to the run folder. `tell` is
    called like `evaluate.progress.Progress`, in gradient passes of this rank's images.

    Returns:
        The first fields of that record: accuracies in [0, 1], radii and step size on the [0, 1] scale.
    """
    how, seed = result.config.evaluation, result.config.run.seed
    model, test = result.evaluated, result.data.test
    settings: dict[str, Any] = {
        "eps": how.eps,
        "alpha": how.alpha,
        "steps": how.steps,
        "restarts": how.restarts,
        "targeted": "random" if how.targeted == "random" else False,
    }
    started = time.perf_counter()
    natural = shared_verdicts(ranks, model, test, batch_size=how.batch_size)
    between = time.perf_counter()

    def attacked(done: int, whole: int) -> None:
        if tell is not None:
            tell("closing evaluation", done * how.steps, (whole - done) * how.steps)

    robust = shared_robust_accuracy(
        ranks,
        model,
        test,
        batch_size=how.batch_size,
        seed=seed,
        progress=attacked,
        **settings,
    )
    ended = time.perf_counter()
    results = {
        "natural_accuracy": int(natural.sum()) / len(test),
        "robust_accuracy": robust.accuracy,
        "attack": {name: value for name, value in settings.items() if value is not False},
        **_radii(result),
        "samples": len(test),
    }
    if not ranks.first:
        return results
    suite = single(name=CLOSING, **{**settings, "eps": (how.eps,)})
    (attack,) = suite.attacks_of("pgd")
    header = record_header(_target(result), suite, Settings(seed=seed, batch_size=how.batch_size))
    record = open_record(None, {**results, **header}, test.labels.cpu().numpy())
    for row, verdicts in (
        (natural_row(between - started), natural),
        (pgd_row(attack, robust.gradients, ended - between), robust.correct),
    ):
        record.add(row, {row["key"]: verdicts.numpy()})
    record.ask(suite.parts)
    for part in suite.parts:
        record.finish(part)
    # Saved only when it is complete: results.json marks a run that has ended.
    record.path = result.folder.path
    record.save()
    return results


def _target(result: FitResult) -> EvalTarget:
    config, folder = result.config, result.folder
    model, data = config.model, config.data
    return EvalTarget(
        result.evaluated,
        result.data.test,
        describe_target(
            run=str(folder.path),
            epoch=result.metrics[-1]["epoch"],
            model=(model.name, model.width, model.depth),
            weights=str(folder.checkpoint_path),
            is_average=result.evaluated is not result.model,
            data=(data.name, data.path),
            samples=len(result.data.test),
        ),
    )


def _radii(result: FitResult) -> dict[str, float | None]:
    """Mean, standard deviation and range of the radii; None for a method without radii."""
    values: dict[str, float | None] = {**radius_statistics(result.epsilon)}
    return values if methods.row(result.config.method).radius != "none" else dict.fromkeys(values)


def _fast(result: FitResult, ranks: Ranks) -> str | None:
    if not result.config.run.fast:
        return None
    return in_words(result.config, next(result.model.parameters()).device, ranks.count)


def close_run(result: FitResult, console: Console, ranks: Ranks = SINGLE) -> None:
    """Evaluate, draw the plots, and print the table, the paths of the results, and commands to run next.

    All ranks evaluate; the first one does the rest.
    """
    try:
        with Progress(quiet=not ranks.first) as tell:
            results = evaluate_run(result, ranks, tell)
    except ValueError as error:
        last = result.metrics[-1]
        where = f"closing evaluation, after step {last['step']}, epoch {last['epoch']}"
        raise ValueError(f"{error} ({where})") from error
    if not ranks.first:
        return
    plots = report.plot_run(result.folder)
    config, folder = result.config, result.folder.path
    own = methods.row(config.method).radius == "adaptive"
    summary = report.RunSummary(
        natural=results["natural_accuracy"],
        robust=results["robust_accuracy"],
        attack=results["attack"],
        **{name: value for name, value in results.items() if own and name.startswith("eps_")},
        fast=_fast(result, ranks),
    )
    console.print(report.closing_table(summary, title=f"{config.preset}, {config.method}"))
    others = [name for name in reversed(methods.COMPARED) if name != config.method]
    device = "" if config.run.device == "auto" else f" --device {config.run.device}"
    lines = [
        f"run folder  {folder}",
        f"plots       {', '.join(path.name for path in plots)} in {result.folder.plots_dir}",
        "next",
        f"  {again('evaluate')} {folder} --steps 100 --restarts 5{device}",
        *(
            [f"  {interpreter()} -m tensorboard.main --logdir {folder}"]
            if config.run.tensorboard
            else []
        ),
        *(
            f"  {again('train')} {config.preset} --method {method} "
            + shlex.join(own_flags(config, method))
            for method in others
        ),
    ]
    for line in lines:
        console.print(line.rstrip(), highlight=False, soft_wrap=True, markup=False)
