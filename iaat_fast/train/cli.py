"""The command line `python -m iaat_fast.train`: from arguments to a run, and errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated

import tyro
from rich.console import Console

from iaat_fast import command_line, units, validate
from iaat_fast.command_line import Help, UsageError, again
from iaat_fast.entry import prog
from iaat_fast.methods import NAMES, reads
from iaat_fast.run_folder import RunFolder
from iaat_fast.train.config import PROTOCOLS, TrainConfig
from iaat_fast.train.distributed import Ranks, is_lost_connection, joined
from iaat_fast.train.finish import close_run
from iaat_fast.train.flags import FLAGS
from iaat_fast.train.loop import FitResult, fit
from iaat_fast.train.overrides import STEP_DECAY, override, refuse_unread
from iaat_fast.train.presets import PRESETS, preset
from iaat_fast.train.setup import recorded_config
from iaat_fast.train.signals import Interrupted
from iaat_fast.validate import one_line

PROG = prog("train")
DESCRIPTION = f"""Train a network: clean, adversarially, instance adaptively (Balaji et al. 2019), or by \
a baseline.

Presets: {", ".join(PRESETS)}. The defaults shown are those of the preset and the --protocol given.

N/255 is in units of 1/255, as in the paper's tables: --eps 8 is a radius of 8/255, and so is --eps 8/255.

--resume --out DIR continues the run in DIR as its config.json says. Flags given again must \
agree with it; only --data, --workers, --on-bad-image, --device, --accumulate, --graph, \
--checkpoint-steps, --checkpoint-minutes, --snapshot-epochs and --tensorboard may differ. A flag \
that is auto agrees with whatever the run has. --epochs may be larger: that extends the run, also one \
that has ended, and its closing evaluation is made again.

--fast changes defaults, so flags take precedence over it. What it chose is in config.json, and is \
printed at the start and below the closing table.

On K GPUs, or K processes: torchrun --nproc-per-node K -m iaat_fast.train ..., see docs/scaling.md.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C and 143 after SIGTERM, both with a checkpoint."""
EXAMPLES = (
    ("", "IAAT on the embedded digits"),
    (
        "cifar10-resnet18 --method adv --eps 8 --out runs/adv",
        "adversarial training at 8/255 on CIFAR-10, into the folder runs/adv",
    ),
    ("--resume --out runs/adv", "continue that run where it was stopped"),
)
HELP = Help(PROG, DESCRIPTION, EXAMPLES)


@dataclass(frozen=True, kw_only=True)
class Command(TrainConfig):
    """A training run."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the run in --out."""

    @property
    def config(self) -> TrainConfig:
        """The configuration, without `resume` and `overwrite`."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})


def parse(argv: Sequence[str]) -> Command:
    """The configuration that the arguments ask for, and whether to resume or overwrite a run.

    Raises:
        ValueError: bad arguments (UsageError) or a run folder that cannot be read.
        SystemExit: with status 0, after --help was printed.
    """
    config = _defaults(argv)
    default = Command(**{f.name: getattr(config, f.name) for f in fields(config)})
    command = command_line.parse(partial(_tyro, default=default), argv, HELP)
    if command.preset != default.preset and not command.resume:
        raise UsageError(f"PRESET comes before the flags: {command.preset} ...")
    refuse_unread(command.config, _given(argv), FLAGS.__getitem__)
    return command


_BY_FLAG = {
    flag: field
    for field, flag in FLAGS.items()
    if field.startswith(("attack.", "epsilon.", "baseline.", "run.", *STEP_DECAY))
}


def _field(flag: str) -> str:
    """The field of a flag that only some methods or schedules read; "" for other flags."""
    return _BY_FLAG.get(flag) or _BY_FLAG.get(flag.replace("--no-", "--", 1), "")


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The fields in these arguments that only some methods or schedules read, each with the words that give it."""
    found = [(_field(flag), " ".join(words)) for flag, words in _split(argv)]
    return {field: words for field, words in found if field}


def _split(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The arguments by flag: each flag with its words, the first of which is itself; first "" with those before any."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in argv:
        if word.startswith("--"):
            found.append((word.partition("=")[0].replace("_", "-"), []))
        found[-1][1].append(word)
    return found


def flags_for(method: str, argv: Sequence[str], methods: Sequence[str]) -> tuple[str, ...]:
    """`argv`, given for runs of several `methods`, without the flags that only other methods than `method` read."""
    kept: list[str] = []
    for flag, words in _split(argv):
        field = _field(flag)
        if reads(method, field) or not any(reads(other, field) for other in methods):
            kept += words
    return tuple(kept)


def _tyro(argv: Sequence[str], default: Command) -> Command:
    return tyro.cli(
        Command,
        prog=PROG,
        description="",
        args=list(argv),
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _defaults(argv: Sequence[str]) -> TrainConfig:
    """The defaults for these arguments: those of the run to resume, or of preset and protocol."""
    name = argv[0] if argv and not argv[0].startswith("-") else None
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=None)
    for flag in ("--method", "--protocol", "--out"):
        peek.add_argument(flag, nargs="?")
    peek.add_argument("--resume", action="store_true")
    peek.add_argument("--fast", action=argparse.BooleanOptionalAction)
    given, others = peek.parse_known_args(list(argv))
    if name is not None:
        validate.choice("preset", name, PRESETS)
    if given.method is not None:
        validate.choice("--method", given.method, NAMES)
    if given.protocol is not None:
        validate.choice("--protocol", given.protocol, PROTOCOLS)
    if given.resume and given.out is not None:
        folder = RunFolder(given.out)
        if folder.is_run:
            return recorded_config(folder)
        if not (others or given.method or given.protocol or given.fast):
            raise FileNotFoundError(f"{folder.path}: no run there to resume")
    config = preset(name or "digits", protocol=given.protocol or "paper")
    # Flags replace these defaults, also those that --fast sets.
    changes = {"method": given.method or config.method, "run": {"fast": bool(given.fast)}}
    return override(config, changes)


class _Ended(Exception):
    """The run has ended with an exit status other than 0, and has printed why."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        with joined() as ranks:
            status = _main(argv, ranks)
            if status:
                # An exception leaves `joined` without waiting for the other ranks.
                raise _Ended(status)
    except _Ended as ended:
        return int(ended.args[0])
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, FLAGS)
    return 0


def _main(argv: Sequence[str], ranks: Ranks) -> int:
    result = None

    def end(status: int, text: str) -> int:
        ranks.print_once(partial(print, text, file=sys.stderr, flush=True))
        return status

    try:
        with contextlib.redirect_stdout(sys.stdout if ranks.first else io.StringIO()):
            command = parse(argv)
            for text in _unit_warnings(command) if ranks.first else ():
                command_line.warn(PROG, text)
            result = fit(command.config, resume=command.resume, overwrite=command.overwrite)
            close_run(result, Console(), ranks)
    except KeyboardInterrupt as stop:
        status = stop.status if isinstance(stop, Interrupted) else 130
        return end(status, _where(stop, result))
    except command_line.REFUSALS as error:
        ranks.print_once(partial(command_line.refuse, PROG, error, FLAGS))
        return 2
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        return end(2, f"{PROG}: error: rank {ranks.rank} has lost another: {one_line(error)}")
    return 0


def _unit_warnings(config: TrainConfig) -> list[str]:
    """Warnings about numbers too small to be meant in units of 1/255."""
    radii = {
        "--eps": config.attack.eps,
        "--eps-w": config.epsilon.eps_w,
        "--eps-min": config.epsilon.eps_min,
        "--mma-d-max": config.baseline.mma_d_max,
        "--cat-eps-max": config.baseline.cat_eps_max,
        "--eval-eps": config.evaluation.eps,
    }
    steps = {
        "--alpha": config.attack.alpha,
        "--gamma": config.epsilon.gamma,
        "--cat-eta": config.baseline.cat_eta,
        "--eval-alpha": config.evaluation.alpha,
    }
    found = [units.too_small(flag, value, units.SMALL_RADIUS) for flag, value in radii.items()]
    found += [units.too_small(flag, value, units.SMALL_STEP) for flag, value in steps.items()]
    return [text for text in found if text is not None]


def _where(stop: KeyboardInterrupt, result: FitResult | None) -> str:
    """What was interrupted, and how to continue it."""
    if result is not None:
        command = f"{again('train')} --resume --out {result.folder.path}"
        return f"training is complete; {command} evaluates it"
    return str(stop) or "interrupted before the first step of training"
