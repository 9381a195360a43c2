"""An evaluation by a suite, from the settings to the finished record; killed at any moment, it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iaat_fast import units
from iaat_fast.attacks import inputs
from iaat_fast.environment import describe
from iaat_fast.evaluate.corruptions import can_be_generated, open_corruptions
from iaat_fast.evaluate.eval_target import EvalTarget, samples_sha256, weights_sha256
from iaat_fast.evaluate.parts import PARTS
from iaat_fast.evaluate.parts.adversarial import adversarial_key, check_adversarial
from iaat_fast.evaluate.parts.part import Context, Tell
from iaat_fast.evaluate.record import Record, open_record
from iaat_fast.evaluate.suites import SINGLE, Suite, suite_named
from iaat_fast.evaluate.transfer import Surrogate, check_surrogate
from iaat_fast.malloc import no_malloc_trim
from iaat_fast.storage import exclusive_lock


def folder_name(
    subject: EvalTarget, suite: str | Suite, *, seed: int = 0, any_iterate: bool = False
) -> str:
    """`cifar-cifar10-10000-seed0`, with `-any` where samples fall by any iterate.

    Of a single attack with all its settings, so that no other comes to lie there:
    `cifar10-10000-pgd100x5-eps2-8-alpha2-seed0`, before "pgd" "targeted-" where it has random targets.
    """
    suite = suite_named(suite) if isinstance(suite, str) else suite
    data = subject.description["data"]
    what = f"{data['name']}-{data['samples']}"
    if suite.name == SINGLE:
        ((steps, restarts),) = suite.attacks
        aim = "targeted-" if suite.targeted else ""
        radii = "-".join(f"{eps * 255:g}" for eps in suite.eps)
        name = f"{what}-{aim}pgd{steps}x{restarts}-eps{radii}-alpha{suite.alpha * 255:g}"
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
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure what a suite measures; returns the content of results.json.

        subject = load_target(run_source(RunFolder("runs/x")), torch.device("cuda"), folder=RunFolder("runs/x"))
        evaluate_suite(subject, "cifar", folder="runs/x/evaluation/mine")["measurements"]

    Called again with the same folder it measures what is not there yet: from where it was stopped, also in the middle
    of an attack, with the bits of an evaluation that never was; with further parts, those.

    Args:
        subject: model and samples.
        suite: a name of `SUITES`, or one of your own: `suites.single` makes one of a single attack.
        folder: where the record is kept, see `record`; None: nowhere, it is only returned.
        parts: of the suite; None: all but the transfer without a surrogate, and the corruptions of images that are
            too small for them.
        eps: radii on the [0, 1] scale, in place of the suite's.
        alpha: step size on the [0, 1] scale, in place of the suite's.
        seed: of random starts and targets. The noise of a start is a function of (seed, sample number, number of the
            restart), of "random" targets the class one of (seed, sample number): a sample keeps its target in all
            restarts, steps and radii.
        batch_size: samples attacked at once; changes no verdict, up to the rounding of the model's forward.
        any_iterate: a sample falls at the first iterate that fools the model (a stronger attack than the paper's), not
            only by the last of each restart. Transferred attacks are always scored by their last iterates.
        surrogate: the independently trained model of the part "transfer".
        corruptions: folder with the published files of CIFAR-10-C, CIFAR-100-C or ImageNet-C. None: the one in or
            beside the data set; where there is none, corruptions are generated, and every row says so.
        adversarial: files of saved examples, of the same samples, to score the model on.
        save_adversarial: keep the adversarial examples of every PGD measurement in the folder.
        overwrite: start anew whatever the folder holds.
        save_every: seconds between two saves of what is under way.
        tell: called as tell(name, done, remaining) while attacks run, in gradient passes.

    Raises:
        ValueError, TypeError: an argument is not as described, or the folder's record is damaged, of a newer version,
            or of other settings, weights or samples; or corruptions are those of another data set, or to be generated
            by a library that is not installed.
        BlockingIOError: another process measures into the folder.
        OSError: the folder cannot be written, or the one of corruptions holds none.
    """
    chosen = suite_named(suite) if isinstance(suite, str) else suite
    names = chosen.chosen(
        parts,
        surrogate=surrogate is not None,
        corruptible=corruptions is not None or can_be_generated(subject.split),
    )
    if parts is None and corruptions is not None and "corruptions" not in names:
        names = (*names, "corruptions")
    radii = tuple(eps) or chosen.eps
    alpha = chosen.alpha if alpha is None else alpha
    for radius in radii:
        if not 0 <= radius <= 1:
            likely = units.likely(radius, 1.0)
            raise ValueError(f"eps: {units.to_text(radius)}/255, expected 0 to 255{likely}")
    if not 0 < alpha <= 1:
        likely = units.likely(alpha, 1.0)
        raise ValueError(f"alpha: {units.to_text(alpha)}/255, expected above 0, up to 255{likely}")
    # As keys name them: two that read the same would share a row.
    if len(set(map(units.to_text, radii))) < len(radii):
        raise ValueError("eps: the same radius twice")
    inputs.whole_number("seed", seed, at_least=0)
    inputs.whole_number("batch_size", batch_size, at_least=1)
    if save_adversarial and folder is None:
        raise ValueError("save_adversarial: expected a folder to keep them in")
    if surrogate is not None:
        check_surrogate(subject, surrogate)
    files = tuple(Path(file) for file in adversarial)
    for file in files:
        check_adversarial(subject, file)
        if overwrite and folder is not None and Path(folder).resolve() in file.resolve().parents:
            raise ValueError(f"--adversarial {file}: lies in what --overwrite removes")
    if files:
        names = (*names, "adversarial")
        keys = [adversarial_key(file) for file in files]
        for file, key in zip(files, keys, strict=True):
            if keys.count(key) > 1:
                raise ValueError(f"--adversarial {file}: another file of that name, rename one")
    corrupted = None
    if "corruptions" in names:
        data = subject.description["data"]
        corrupted = open_corruptions(
            subject.split,
            dataset=data["name"],
            folder=None if corruptions is None else Path(corruptions),
            data=None if data["path"] is None else Path(data["path"]).expanduser(),
            seed=seed,
        )
    elif corruptions is not None:
        raise ValueError(f"corruptions: {corruptions}, but that part is not among those asked for")
    header = record_header(
        subject,
        chosen,
        eps=radii,
        alpha=alpha,
        seed=seed,
        batch_size=batch_size,
        any_iterate=any_iterate,
        surrogate=surrogate,
    )
    with contextlib.nullcontext() if folder is None else exclusive_lock(Path(folder)):
        record = open_record(
            None if folder is None else Path(folder),
            header,
            subject.split.labels.cpu().numpy(),
            overwrite=overwrite,
        )
        _refuse_other_files(record, files)
        keeps = _keeps_examples(record, save_adversarial)
        rows = len(record.rows)
        record.ask(names)
        if rows and not record.content["complete"]:
            record.content.setdefault("resumed", []).append(header["environment"])
        record.save()
        context = Context(
            target=subject,
            suite=chosen,
            parts=names,
            record=record,
            eps=radii,
            alpha=alpha,
            seed=seed,
            batch_size=batch_size,
            any_iterate=any_iterate,
            surrogate=surrogate,
            corrupted=corrupted,
            adversarial=files,
            save_adversarial=keeps,
            save_every=save_every,
            tell=tell,
        )
        with no_malloc_trim(subject.split.labels.device):
            for measure in dict.fromkeys(PARTS[name] for name in names):
                measure(context)
                for name in names:
                    if PARTS[name] is measure and not record.is_finished(name):
                        record.finish(name)
    return record.content


def record_header(
    subject: EvalTarget,
    suite: Suite,
    *,
    eps: Sequence[float],
    alpha: float,
    seed: int,
    batch_size: int,
    any_iterate: bool = False,
    surrogate: Surrogate | None = None,
) -> dict[str, Any]:
    """What a record says before its first row; arguments as of `evaluate_suite`."""
    settings: dict[str, Any] = {
        "eps": list(eps),
        "alpha": alpha,
        "targeted": suite.targeted,
        "weights_sha256": weights_sha256(subject.model),
        "data_sha256": samples_sha256(subject.split),
    }
    if surrogate is not None:
        settings["surrogate_sha256"] = weights_sha256(surrogate.model)
    return {
        "suite": suite.name,
        "rule": "any" if any_iterate else "last",
        "seed": seed,
        **subject.description,
        "settings": settings,
        "batch_size": batch_size,
        "environment": describe(subject.split.labels.device),
    }


def _refuse_other_files(record: Record, files: Sequence[Path]) -> None:
    """Raise ValueError where a row is of another file of the same name as one that is to be scored."""
    scored = {row["key"]: row["file"] for row in record.rows if row["kind"] == "adversarial"}
    for file in files:
        other = scored.get(adversarial_key(file), file)
        if Path(other).resolve() != file.resolve():
            raise ValueError(
                f"--adversarial {file}: {record.path} has {other}, of the same name; rename one, or give another --out"
            )


def _keeps_examples(record: Record, asked: bool) -> bool:
    """Whether adversarial examples are kept: from the beginning of a record, or never."""
    settings = record.content["settings"]
    if asked and not settings.get("save_adversarial"):
        if any(row["kind"] in ("pgd", "transfer") for row in record.rows) or record.has_progress:
            raise ValueError(
                f"{record.path}: measured without keeping adversarial examples; --overwrite starts anew"
            )
        settings["save_adversarial"] = True
    return bool(settings.get("save_adversarial"))
