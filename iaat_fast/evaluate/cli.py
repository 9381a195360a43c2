"""The command line `python -m iaat_fast.evaluate`: arguments to a table and JSON."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from tqdm import tqdm

from iaat_fast import command_line, units
from iaat_fast.command_line import PixelList, Pixels, optional, warn
from iaat_fast.environment import describe, resolve_device
from iaat_fast.evaluate.cli_suite import asks_for_suite, check_flags, run_suite
from iaat_fast.evaluate.measure import Attacks, measure, table
from iaat_fast.evaluate.subject import Source, Subject, load_subject, run_source
from iaat_fast.files import check_folder, check_writable, write_json
from iaat_fast.run_folder import RunFolder

PROG = "python -m iaat_fast.evaluate"
DESCRIPTION = """Natural accuracy and accuracy under PGD with random restarts, on the test images.

Of a training run: RUN is its folder; model, images and attack are by default those of its \
config.json.

By a suite: --suite cifar, imagenet or quick measures what the paper reports, into a folder. The same \
command again goes on where it was stopped, or shows what is finished.

Of your own checkpoint: --model NAME --weights FILE, or --model package.module:function for a \
function without arguments that returns a torch.nn.Module over images in [0, 1].

N/255 is in units of 1/255, as in the paper's tables: --eps 8 is a radius of 8/255, and so is --eps 8/255.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C and 143 after SIGTERM; without --suite nothing is written then."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """An evaluation; what is not given is the run's own setting."""

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
    """Write the result to this file; that of a run is always kept in its folder too."""
    suite: Annotated[str | None, optional("SUITE", "none")] = None
    """cifar, imagenet or quick: several measurements, recorded and resumed."""
    parts: Annotated[tuple[str, ...], optional("PART [PART ...]", "the suite's")] = ()
    """Parts of the suite: natural, pgd, transfer, corruptions, eps-sweep, steps-sweep, autoattack."""
    against: Annotated[Path | None, optional("RUN2", "none")] = None
    """Surrogate of the part transfer: a run of the same configuration and another seed."""
    corruptions: Annotated[
        Path | None,
        optional("FOLDER", "CIFAR-10-C or the like in or beside the data, else generated"),
    ] = None
    """Published files of CIFAR-10-C, CIFAR-100-C or ImageNet-C, for the part corruptions."""
    any_iterate: bool = False
    """A sample falls at the first iterate that fools the model, not only by the last of a restart."""
    adversarial: Annotated[tuple[Path, ...], optional("FILE [FILE ...]", "none")] = ()
    """Score the model on saved adversarial examples, of whatever model, of the same images."""
    save_adversarial: bool = False
    """Keep the adversarial examples of every attack, float32, in the folder of the evaluation."""
    out: Annotated[Path | None, optional("DIR", "RUN/evaluation/SUITE-...")] = None
    """Folder of a suite's record."""
    overwrite: bool = False
    """Start the suite's record anew."""
    save_every: Annotated[float, optional("SECONDS", "30")] = 30.0
    """Seconds between two saves of the attack under way."""
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
"""Flags by what errors call them, see `with_flags`."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        command = command_line.parse(_tyro, argv)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            evaluate(command, Console())
        for warning in caught:
            print(f"{PROG}: warning: {warning.message}", file=sys.stderr)
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, FLAGS)
    return 0


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description=DESCRIPTION, args=list(argv))


def evaluate(command: Command, console: Console) -> dict[str, Any]:
    """Load, measure, print the table and write the JSON, whose content is returned."""
    folder = None if command.run is None else RunFolder(command.run)
    defaults = {} if folder is None or not folder.is_run else folder.config().get("evaluation", {})
    as_suite = asks_for_suite(command)
    attacks = _attacks(command, defaults)
    if as_suite:
        check_flags(command)
    batch_size = command.batch_size or defaults.get("batch_size", 256)
    for name in ("limit", "batch_size"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {value}, expected at least 1")
    if command.json is not None:
        check_writable("--json", command.json)
    if command.out is not None:
        check_folder("--out", command.out)
    device = resolve_device(command.device)
    subject = _subject(command, folder, device)
    _warn_of_units(command, attacks)
    if as_suite:
        return run_suite(command, folder, subject, defaults, batch_size, console)
    measured = measure(subject, attacks, batch_size=batch_size, progress=_bar)
    measured["batch_size"] = batch_size
    measured["environment"] = describe(device)
    outputs = _outputs(command, folder, subject, attacks)
    # Written first: a pipe closed on the table costs nothing.
    for path in outputs:
        path.parent.mkdir(exist_ok=True)
        write_json(path, measured)
    console.print(table(measured))
    for path in outputs:
        console.print(f"written to {path}", highlight=False, soft_wrap=True, markup=False)
    return measured


def _warn_of_units(command: Command, attacks: Attacks) -> None:
    """What is right but hardly meant: numbers on the [0, 1] scale, and one step for radii of all sizes."""
    for eps in command.eps:
        warn(PROG, units.too_small("--eps", eps, units.SMALL_RADIUS))
    if command.alpha is not None:
        warn(PROG, units.too_small("--alpha", command.alpha, units.SMALL_STEP))
    if len(set(command.eps)) > 1:
        radii = " ".join(map(units.to_text, command.eps))
        known = command.suite is None or command.alpha is not None  # a suite has a step of its own
        step = f", {units.to_text(attacks.alpha)}/255" if known else ""
        warn(
            PROG,
            f"--eps {radii}: every radius is attacked with the same step{step}; for another, evaluate it by itself "
            "with its --alpha",
        )


def _attacks(command: Command, defaults: dict[str, Any]) -> Attacks:
    chosen: dict[str, Any] = {"seed": command.seed}
    if command.eps or "eps" in defaults:
        chosen["eps"] = command.eps or (defaults["eps"],)
    for name in ("alpha", "steps", "restarts"):
        value = getattr(command, name)
        if value is None:
            value = defaults.get(name)
        if value is not None:
            chosen[name] = value
    if (command.targeted or defaults.get("targeted")) == "random":
        chosen["targeted"] = "random"
    return Attacks(**chosen)


def _subject(command: Command, folder: RunFolder | None, device: torch.device) -> Subject:
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
        return load_subject(source, device, folder=folder)
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
    return load_subject(source, device)


def _outputs(
    command: Command, folder: RunFolder | None, subject: Subject, attacks: Attacks
) -> list[Path]:
    paths = [] if command.json is None else [command.json]
    if folder is not None:
        data = subject.description["data"]
        name = f"{data['name']}-{data['samples']}-{attacks.name}.json"
        paths.append(folder.evaluation_dir / name)
    return paths


def _bar(name: str) -> Callable[[int, int], None]:
    """A bar for one attack on a terminal; elsewhere nothing."""
    bar = tqdm(desc=name, unit="attack", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress
