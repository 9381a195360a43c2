"""The command line `python -m iaat_fast.evaluate`: from arguments to a table and JSON."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from iaat_fast import command_line, units, validate
from iaat_fast.command_line import Help, PixelList, Pixels, again, optional, warn
from iaat_fast.entry import prog
from iaat_fast.environment import resolve_device
from iaat_fast.evaluate.eval_target import EvalTarget, Source, load_target, run_source
from iaat_fast.evaluate.evaluation import folder_name, measure
from iaat_fast.evaluate.parts import PARTS, choose
from iaat_fast.evaluate.parts.part import Settings
from iaat_fast.evaluate.progress import Progress
from iaat_fast.evaluate.suites import Suite, single, suite_named
from iaat_fast.evaluate.table import suite_table
from iaat_fast.evaluate.transfer import Surrogate, load_surrogate
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import check_folder, check_writable, write_json

PROG = prog("evaluate")
DESCRIPTION = """Natural accuracy and accuracy under PGD with random restarts, on the test images.

A training run: RUN is its folder; model, images and attack are by default those of its config.json.

A suite: --suite cifar, imagenet or quick measures what the paper reports.

The results of a run are kept in a folder below RUN/evaluation, one for each attack and each suite. The same command \
again continues where it was stopped, or shows what is finished.

Your own checkpoint: --model NAME --weights FILE, or --model package.module:function for a \
function without arguments that returns a torch.nn.Module over images in [0, 1].

N/255 is in units of 1/255, as in the paper's tables: --eps 8 is a radius of 8/255, and so is --eps 8/255.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C and 143 after SIGTERM."""
EXAMPLES = (
    ("runs/adv --steps 100 --restarts 5", "a run, under PGD with 100 steps and 5 restarts"),
    ("runs/adv --suite cifar", "the same run, by all that the paper reports"),
    (
        "--model net:make --dataset cifar10 --eps 8",
        "your own network: what make() of net.py returns",
    ),
)
HELP = Help(PROG, DESCRIPTION, EXAMPLES)


DEFAULTS: dict[str, Any] = {
    "eps": 8 / 255,
    "alpha": 2 / 255,
    "steps": 10,
    "restarts": 5,
    "targeted": "no",
}
"""The single attack, if neither flags nor the run set it."""


_PARTS_HELP = "Parts of the suite: " + "; ".join(
    f"{part.name}, {part.help}" for part in PARTS.values() if part.name != "adversarial"
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """An evaluation; flags that are not given are the run's own settings."""

    run: tyro.conf.Positional[Annotated[Path | None, optional("[RUN]", "none")]] = None
    """Run folder of a training."""
    eps: Annotated[PixelList, optional("N/255 [N/255 ...]", "the run's, or 8")] = ()
    """Radius of the attack, one or several."""
    alpha: Annotated[Pixels | None, optional("N/255", "the run's, or 2")] = None
    """Step size of the attack, the same at every radius."""
    steps: Annotated[int | None, optional("INT", "the run's, or 10")] = None
    """Steps of the attack."""
    restarts: Annotated[int | None, optional("INT", "the run's, or 5")] = None
    """Random restarts; a sample counts as robust if it withstands all of them."""
    targeted: Annotated[
        Literal["no", "random"] | None, optional("{no,random}", "the run's, or no")
    ] = None
    """random: the attack aims at a class drawn from the others, once per image."""
    seed: int = 0
    """Seed of the random starts and targets."""
    limit: Annotated[int | None, optional("INT", "the run's, or all")] = None
    """Take the first N test images."""
    batch_size: Annotated[int | None, optional("INT", "the run's, or 256")] = None
    """Images attacked at once; changes no verdict."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    json: Annotated[Path | None, optional("FILE", "none")] = None
    """Write the record's results.json to this file too."""
    suite: Annotated[str | None, optional("SUITE", "none")] = None
    """cifar, imagenet or quick: several measurements in one record, in place of a single attack."""
    parts: Annotated[
        tuple[str, ...],
        optional("PART [PART ...]", "the suite's"),
        tyro.conf.arg(help=_PARTS_HELP),
    ] = ()
    against: Annotated[Path | None, optional("RUN2", "none")] = None
    """Surrogate of the part transfer: a run of the same configuration and another seed."""
    corruptions: Annotated[
        Path | None,
        optional("FOLDER", "CIFAR-10-C or the like in or next to the data, else generated"),
    ] = None
    """Published files of CIFAR-10-C, CIFAR-100-C or ImageNet-C, for the part corruptions."""
    autoattack_precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the gradients of the part autoattack; verdicts are the model's own."""
    autoattack_engine: Literal["auto", "exact", "fast"] = "auto"
    """fast: a lowered copy of the model gives the gradients of the part autoattack."""
    any_iterate: bool = False
    """Any iterate that fools the model counts, not only the last of a restart."""
    adversarial: Annotated[tuple[Path, ...], optional("FILE [FILE ...]", "none")] = ()
    """Score the model on saved adversarial examples of the same images, made on any model."""
    save_adversarial: bool = False
    """Keep the adversarial examples of every attack, float32, in the folder of the evaluation."""
    out: Annotated[Path | None, optional("DIR", "below RUN/evaluation")] = None
    """Folder of the record."""
    overwrite: bool = False
    """Start the record again, whatever its folder holds."""
    save_every: Annotated[float, optional("SECONDS", "30")] = 30.0
    """Seconds between two saves of the measurement in progress."""
    model: Annotated[str | None, optional("MODEL", "the run's")] = None
    """digits-cnn, resnet18, wrn32-10, imagenet-resnet18 (-34, -50, -101, -152), or
    package.module:function."""
    weights: Annotated[Path | None, optional("FILE", "the run's")] = None
    """Weights of --model: a state dict, or one under a key such as "state_dict", "model" or "net";
    never run as code."""
    width: Annotated[int | None, optional("INT", "the run's, or the network's own")] = None
    """Channels of the first stage, or the widening factor, of a slim --model."""
    depth: Annotated[int | None, optional("INT", "the run's, or the network's own")] = None
    """Depth of --model."""
    dataset: Annotated[str | None, optional("NAME", "the run's, or cifar10")] = None
    """Data set: digits, cifar10, cifar100 or imagenet."""
    data: Annotated[str | None, optional("PATH", "the run's, or where training looks for it")] = (
        None
    )
    """Folder that holds the data set (imagenet: train/CLASS/IMAGE and val/CLASS/IMAGE), or an .npz
    with x_train, y_train, x_test, y_test."""
    on_bad_image: Annotated[
        Literal["stop", "skip"] | None, optional("{stop,skip}", "the run's, or stop")
    ] = None
    """imagenet: at an image that cannot be decoded, stop, or leave it out."""


FLAGS = {**command_line.flags_of(Command), "surrogate": "--against", "path": "--data"}
"""The flag of each name that errors use, see `with_flags`."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        command = command_line.parse(_tyro, argv, HELP)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            evaluate(command, Console())
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"{PROG}: warning: {message}", file=sys.stderr)
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, FLAGS)
    return 0


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description="", args=list(argv))


def evaluate(command: Command, console: Console) -> dict[str, Any]:
    """Measure what the record lacks, print the table and where the record is; returns the record's content."""
    run = None if command.run is None else RunFolder(command.run)
    defaults = {} if run is None or not run.is_run else run.config().get("evaluation", {})
    _check(command)
    suite = _suite(command, defaults)
    if command.json is not None:
        check_writable("--json", command.json)
    if command.out is not None:
        check_folder("--out", command.out)
    target = _target(command, run, resolve_device(command.device))
    _warn_of_units(command, suite)
    if _asks_for_suite(command) and target.description["data"]["name"] == "digits":
        # A suite's 8/255 is a radius for photographs: on digits the run's own is taken.
        suite = suite.at(
            command.eps or ((defaults["eps"],) if "eps" in defaults else ()),
            command.alpha or defaults.get("alpha"),
        )
    surrogate: Surrogate | None = None
    if command.against is not None:
        surrogate = load_surrogate(RunFolder(command.against), target, data=command.data)
    folder = command.out
    if folder is None and run is not None:
        folder = run.evaluation_dir / folder_name(
            target, suite, seed=command.seed, any_iterate=command.any_iterate
        )
    settings = Settings(
        folder=folder,
        parts=_parts(command),
        seed=command.seed,
        batch_size=command.batch_size or defaults.get("batch_size", 256),
        any_iterate=command.any_iterate,
        surrogate=surrogate,
        corruptions=command.corruptions,
        adversarial=command.adversarial,
        save_adversarial=command.save_adversarial,
        overwrite=command.overwrite,
        save_every=command.save_every,
        autoattack_precision=command.autoattack_precision,
        autoattack_engine=command.autoattack_engine,
    )
    content = _measure(target, suite, settings)
    # Written before the table is printed, which may end in a closed pipe.
    if command.json is not None:
        write_json(command.json, content)
    console.print(suite_table(content))
    for path in (folder, command.json):
        if path is not None:
            console.print(f"written to {path}", highlight=False, soft_wrap=True, markup=False)
    return content


def _measure(target: EvalTarget, suite: Suite, settings: Settings) -> dict[str, Any]:
    """`measure`; if it is stopped or runs out of memory, print how to continue."""
    try:
        with Progress() as tell:
            return measure(target, suite, replace(settings, tell=tell))
    except (KeyboardInterrupt, SystemExit) as stop:
        words = shlex.join(word for word in sys.argv[1:] if word != "--overwrite")
        kept = "nothing was kept" if settings.folder is None else f"kept in {settings.folder}"
        command = f"{again('evaluate')} {words}"
        print(f"interrupted, {kept}; continue with: {command}", file=sys.stderr)
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{error}; a smaller --batch-size continues from here"
        ) from error


def _warn_of_units(command: Command, suite: Suite) -> None:
    """Warn about what is valid but probably not meant: numbers on the [0, 1] scale, one step size for several radii."""
    for eps in command.eps:
        warn(PROG, units.too_small("--eps", eps, units.SMALL_RADIUS))
    if command.alpha is not None:
        warn(PROG, units.too_small("--alpha", command.alpha, units.SMALL_STEP))
    if len(set(command.eps)) > 1:
        radii = " ".join(map(units.to_text, command.eps))
        known = command.suite is None or command.alpha is not None  # a suite has a step of its own
        alpha = command.alpha or suite.alpha
        step = f", {units.to_text(alpha)}/255" if known else ""
        warn(
            PROG,
            f"--eps {radii}: every radius is attacked with the same step{step}; for another, evaluate it by itself "
            "with its --alpha",
        )


def _asks_for_suite(command: Command) -> bool:
    """Whether a suite is named, or saved examples are to be scored, which is a part of every suite."""
    return command.suite is not None or bool(command.adversarial)


def _parts(command: Command) -> tuple[str, ...] | None:
    """The parts asked for; None: the suite's. Saved examples without a suite need only natural accuracy."""
    if command.suite is None and command.adversarial:
        return command.parts or ("natural",)
    return command.parts or None


def _check(command: Command) -> None:
    """Raise ValueError for wrong flags, as far as they can be checked before anything is loaded."""
    named = _asks_for_suite(command)
    for name in ("parts", "against", "corruptions"):
        if getattr(command, name) and not named:
            raise ValueError(f"{FLAGS[name]}: belongs to a suite, expected --suite")
    for name in ("autoattack_precision", "autoattack_engine"):
        given = getattr(command, name)
        of_parts = any(part.startswith("autoattack") for part in command.parts)
        if given != getattr(Settings, name) and not of_parts:
            raise ValueError(f"{FLAGS[name]}: {given}, expected --parts with autoattack")
    for name in ("steps", "restarts", "targeted"):
        if getattr(command, name) is not None and named:
            raise ValueError(f"{FLAGS[name]}: a suite has its own, leave one of them out")
    if named:
        given = () if command.against is None else ("surrogate",)
        choose(suite_named(command.suite or "quick"), _parts(command), given=given)
    for name, least in (
        ("steps", 1),
        ("restarts", 1),
        ("seed", 0),
        ("limit", 1),
        ("batch_size", 1),
    ):
        validate.integer(FLAGS[name], getattr(command, name), least, optional=True)
    validate.number("--save-every", command.save_every, above=True)
    if command.run is None and command.out is None:
        for name in ("suite", "save_adversarial", "overwrite"):
            if getattr(command, name):
                raise ValueError(
                    "--out: expected the folder for the record, there is no run folder for it"
                )


def _suite(command: Command, defaults: dict[str, Any]) -> Suite:
    """The suite that is named, or the single attack, with the flags' radii and step or the run's own."""
    if _asks_for_suite(command):
        return suite_named(command.suite or "quick").at(command.eps, command.alpha)
    given = {name: getattr(command, name) for name in ("alpha", "steps", "restarts", "targeted")}
    chosen = {**DEFAULTS, **defaults, **{k: v for k, v in given.items() if v is not None}}
    return single(
        eps=command.eps or (chosen["eps"],),
        alpha=chosen["alpha"],
        steps=chosen["steps"],
        restarts=chosen["restarts"],
        targeted="random" if chosen["targeted"] == "random" else False,
    )


def _target(command: Command, folder: RunFolder | None, device: torch.device) -> EvalTarget:
    if folder is not None:
        for name in ("weights", "width", "depth"):
            if getattr(command, name) is not None:
                raise ValueError(f"--{name}: a run folder has its own, leave one of them out")
        source = run_source(
            folder,
            model=command.model,
            dataset=command.dataset,
            data=command.data,
            limit=command.limit,
            on_bad_image=command.on_bad_image,
        )
        return load_target(source, device, folder=folder)
    if command.model is None:
        raise ValueError("expected a run folder RUN, or --model with --weights")
    if command.weights is None and ":" not in command.model:
        raise ValueError(f"--weights: expected the file with the weights of {command.model}")
    source = Source(
        model=command.model,
        weights=command.weights,
        width=command.width,
        depth=command.depth,
        dataset=command.dataset or "cifar10",
        data=command.data,
        limit=command.limit,
        on_bad_image=command.on_bad_image or "stop",
    )
    return load_target(source, device)
