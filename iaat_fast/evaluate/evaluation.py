"""`evaluate_suite`: measures a suite, from its settings to the finished record; can be stopped and continued."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iaat_fast import units, validate
from iaat_fast.environment import describe
from iaat_fast.evaluate.accuracies import warn_if_random
from iaat_fast.evaluate.eval_target import EvalTarget, samples_sha256, weights_sha256
from iaat_fast.evaluate.parts import PARTS, choose
from iaat_fast.evaluate.parts.adversarial import keeps_examples, refuse_other_files
from iaat_fast.evaluate.parts.part import Context, Settings, Tell
from iaat_fast.evaluate.record import open_record
from iaat_fast.evaluate.suites import SINGLE, Suite, suite_named
from iaat_fast.evaluate.transfer import Surrogate, check_surrogate
from iaat_fast.malloc import no_malloc_trim
from iaat_fast.storage import exclusive_lock


def folder_name(
    target: EvalTarget, suite: str | Suite, *, seed: int = 0, any_iterate: bool = False
) -> str:
    """The name of the folder of an evaluation: `cifar-cifar10-10000-seed0`, plus `-any` under the rule `any_iterate`.

    That of a single attack holds all its settings, so that no other attack shares its folder:
    `cifar10-10000-pgd100x5-eps2-8-alpha2-seed0`, with "targeted-" before "pgd" if the targets are random.
    """
    suite = suite_named(suite) if isinstance(suite, str) else suite
    data = target.description["data"]
    what = f"{data['name']}-{data['samples']}"
    if suite.name == SINGLE:
        ((steps, restarts),) = suite.attacks
        aim = "targeted-" if suite.targeted else ""
        radii = "-".join(map(units.to_text, suite.eps))
        name = f"{what}-{aim}pgd{steps}x{restarts}-eps{radii}-alpha{units.to_text(suite.alpha)}"
    else:
        name = f"{suite.name}-{what}"
    return f"{name}-seed{seed}-any" if any_iterate else f"{name}-seed{seed}"


def evaluate_suite(
    subject: EvalTarget,
    suite: str | Suite = "cifar",
    *,
    folder: Path | str | None = None,
    parts: Sequence[str] | None = None,
    eps: Sequence[float] = (),
    alpha: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    any_iterate: bool = False,
    surrogate: Surrogate | None = None,
    corruptions: Path | str | None = None,
    adversarial: Sequence[Path | str] = (),
    save_adversarial: bool = False,
    overwrite: bool = False,
    save_every: float = 30.0,
    autoattack_precision: str = "fp32",
    autoattack_engine: str = "auto",
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure a suite on a model; returns the content of results.json.

        run = RunFolder("runs/x")
        target = load_target(run_source(run), torch.device("cuda"), folder=run)
        evaluate_suite(target, "cifar", folder="runs/x/evaluation/mine")["measurements"]

    A second call with the same folder measures only what is missing: it continues where the first was stopped, even in
    the middle of an attack, with the same bits as if it had not been stopped, and adds further parts asked for.

    Args:
        subject: model and samples.
        suite: a name of `SUITES`, or one of your own: `suites.single` makes one of a single attack.
        folder: where the record is kept, see `record`; None: nowhere, it is only returned.
        parts: of the suite; None: all that can be measured (transfer needs a surrogate, generated corruptions need
            images that are large enough).
        eps: radii on the [0, 1] scale, in place of the suite's.
        alpha: step size on the [0, 1] scale, in place of the suite's.
        seed: of random starts and targets. The noise of a start is a function of (seed, sample number, number of the
            restart), a random target one of (seed, sample number): a sample has the same target in all restarts and at
            all steps and radii.
        batch_size: samples attacked at once; changes no verdict, up to the rounding of the model's forward.
        any_iterate: a sample is not robust if any iterate fools the model (a stronger attack than the paper's); False:
            only the last iterate of each restart counts, as it always does for transferred attacks.
        surrogate: the independently trained model of the part "transfer".
        corruptions: folder with the published files of CIFAR-10-C, CIFAR-100-C or ImageNet-C. None: the one in or
            next to the data set; if there is none, corruptions are generated, and every row says so.
        adversarial: files of saved examples, of the same samples, to score the model on.
        save_adversarial: keep the adversarial examples of every PGD measurement in the folder.
        overwrite: start again, whatever the folder holds.
        save_every: seconds between two saves of the measurement in progress.
        autoattack_precision: of AutoAttack's gradients, "fp32", "tf32", "bf16" or "fp16"; verdicts are the model's.
        autoattack_engine: of AutoAttack's gradients, "auto", "exact" or "fast", as in `PGD`.
        tell: called as tell(name, done, remaining) while attacks run, in gradient passes.

    Raises:
        ValueError, TypeError: an argument is not as described; the folder's record is damaged, of a newer version, or
            of other settings, weights or samples; the corruptions are those of another data set; or generating them
            needs a library that is not installed.
        BlockingIOError: another process is measuring into the folder.
        OSError: the folder cannot be written, or the folder of corruptions holds none.
    """
    chosen = suite_named(suite) if isinstance(suite, str) else suite
    settings = Settings(
        folder=None if folder is None else Path(folder),
        parts=None if parts is None else tuple(parts),
        seed=seed,
        batch_size=batch_size,
        any_iterate=any_iterate,
        surrogate=surrogate,
        corruptions=None if corruptions is None else Path(corruptions),
        adversarial=tuple(map(Path, adversarial)),
        save_adversarial=save_adversarial,
        overwrite=overwrite,
        save_every=save_every,
        autoattack_precision=autoattack_precision,
        autoattack_engine=autoattack_engine,
        tell=tell,
    )
    return measure(subject, chosen.at(eps, alpha), settings)


def measure(target: EvalTarget, suite: Suite, settings: Settings) -> dict[str, Any]:
    """`evaluate_suite` with its keywords as `Settings`, at the suite's own radii and step size."""
    names = _parts(target, suite, settings)
    validate.choice(
        "autoattack_precision", settings.autoattack_precision, ("fp32", "tf32", "bf16", "fp16")
    )
    validate.choice("autoattack_engine", settings.autoattack_engine, ("auto", "exact", "fast"))
    validate.integer("seed", settings.seed, 0)
    validate.integer("batch_size", settings.batch_size, 1)
    # Plain numbers, for the record, if they were numpy's.
    seed, batch_size = int(settings.seed), int(settings.batch_size)
    settings = dataclasses.replace(settings, seed=seed, batch_size=batch_size)
    if settings.save_adversarial and settings.folder is None:
        raise ValueError("save_adversarial: expected a folder to keep them in")
    if settings.surrogate is not None:
        check_surrogate(target, settings.surrogate)
    prepared = {name: PARTS[name].prepare(target, settings) for name in names}
    header = record_header(target, suite, settings)
    labels = target.split.labels
    folder = settings.folder
    lock = contextlib.nullcontext() if folder is None else exclusive_lock(folder)
    with lock, no_malloc_trim(labels.device):
        record = open_record(folder, header, labels.cpu().numpy(), overwrite=settings.overwrite)
        refuse_other_files(record, settings.adversarial)
        keeps = keeps_examples(record, settings.save_adversarial)
        record.ask(names)
        if record.rows and not record.content["complete"]:
            record.content.setdefault("resumed", []).append(header["environment"])
        record.save()
        # Every other part takes one draw of the model.
        if any(name != "autoattack-rand" and not record.is_finished(name) for name in names):
            warn_if_random(target.model, target.split)
        context = Context(
            target=target,
            suite=suite,
            settings=dataclasses.replace(settings, parts=names, save_adversarial=keeps),
            record=record,
            prepared=prepared,
        )
        # Parts that share a function (the PGD attacks) are measured by one call of it.
        for measure_parts in dict.fromkeys(PARTS[name].measure for name in names):
            measure_parts(context)
            for name in names:
                if PARTS[name].measure is measure_parts and not record.is_finished(name):
                    record.finish(name)
    return record.content


def _parts(target: EvalTarget, suite: Suite, settings: Settings) -> tuple[str, ...]:
    """Names of the parts to measure; parts whose files are given are added to the default ones."""
    optional = ("surrogate", "corruptions", "adversarial")
    given = {name for name in optional if getattr(settings, name)}
    names = choose(suite, settings.parts, given=given, split=target.split)
    if settings.corruptions is not None and "corruptions" not in names:
        if settings.parts is not None:
            raise ValueError(
                f"corruptions: {settings.corruptions}, but that part is not among those asked for"
            )
        names = (*names, "corruptions")
    return (*names, "adversarial") if settings.adversarial else names


def record_header(target: EvalTarget, suite: Suite, settings: Settings) -> dict[str, Any]:
    """The content of results.json before the first row."""
    fixed: dict[str, Any] = {
        "eps": list(suite.eps),
        "alpha": suite.alpha,
        "targeted": suite.targeted,
        "weights_sha256": weights_sha256(target.model),
        "data_sha256": samples_sha256(target.split),
    }
    if settings.surrogate is not None:
        fixed["surrogate_sha256"] = weights_sha256(settings.surrogate.model)
    return {
        "suite": suite.name,
        "rule": "any" if settings.any_iterate else "last",
        "seed": settings.seed,
        **target.description,
        "settings": fixed,
        "batch_size": settings.batch_size,
        "environment": describe(target.split.labels.device),
    }
