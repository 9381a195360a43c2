"""What the commands share: flags in units of 1/255, and errors in one line, in terms of the flags."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import torch
import tyro

from iaat_fast import units
from iaat_fast.entry import output_is_gone, prog, what_to_install
from iaat_fast.validate import nearest, one_line

T = TypeVar("T")

Pixels = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N/255",
        instance_from_str=lambda words: units.from_text(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [units.to_text(value)],
    ),
]
"""A distance in pixel values: [0, 1] in Python, on the command line 1/255 units or a fraction such as 8/255."""


def _distances(words: list[str]) -> tuple[float, ...]:
    if not words:
        raise ValueError("expected one or several numbers")
    return tuple(map(units.from_text, words))


PixelList = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="N/255 [N/255 ...]",
        instance_from_str=_distances,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [units.to_text(distance) for distance in value],
    ),
]
"""One or several `Pixels`."""


def optional(metavar: str, default: str) -> Any:
    """Annotation of a flag whose default is None; the help shows `default` in its place."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


class UsageError(ValueError):
    """The arguments are wrong; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Help:
    """What --help prints above the flags: examples first, then the text.

    Attributes:
        prog: how the command was called.
        text: paragraphs, an empty line between them.
        examples: arguments, and what they do.
    """

    prog: str
    text: str
    examples: Sequence[tuple[str, str]]

    def lines(self, width: int) -> list[str]:
        """The help in lines of at most `width`; a long example has a backslash at the end of a line."""
        found = ["Examples:"]
        for words, what in self.examples:
            call = textwrap.wrap(
                f"{self.prog} {words}", width - 4, subsequent_indent="    ", break_on_hyphens=False
            )
            found += [f"  # {what}", "  " + " \\\n  ".join(call)]
        for paragraph in self.text.split("\n\n"):
            found += ["", *textwrap.wrap(paragraph, width, break_on_hyphens=False)]
        return found


def parse(command: Callable[[Sequence[str]], T], argv: Sequence[str], about: Help) -> T:
    """Call `command(argv)`, which calls `tyro.cli`; what tyro prints in boxes becomes a UsageError.

    --help prints `about` above the flags: tyro would not break its lines.

    Raises:
        UsageError: bad arguments; the message names them, and the nearest flag to an unknown one.
        SystemExit: with status 0, after --help was printed.
    """
    shown = _Shown(sys.stdout)
    with contextlib.redirect_stderr(io.StringIO()) as boxes:
        try:
            with contextlib.redirect_stdout(shown):
                return command(argv)
        except SystemExit as stop:
            if stop.code in (0, None):
                print(_help(shown.getvalue(), about), end="")
                raise
            raise UsageError(_explain(boxes.getvalue(), command)) from None


class _Shown(io.StringIO):
    """What tyro prints, in the colours and with the boxes that `output` can show."""

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self._output = output

    def isatty(self) -> bool:
        return self._output.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property in typeshed too, of io.StringIO's type
        return self._output.encoding


def _help(of_tyro: str, about: Help) -> str:
    """tyro's help, with what it is about below the usage, and --version among the options."""
    usage, _, flags = of_tyro.partition("\n\n")
    lines = []
    for line in flags.splitlines():
        lines.append(line)
        if "-h, --help " in line:
            texts = ("show this help message and exit", "show the versions and exit")
            line = line.replace(texts[0], texts[1].ljust(len(texts[0])))
            lines.append(line.replace("-h, --help ", "--version  "))
    width = min(shutil.get_terminal_size().columns, 100)
    usage_lines = textwrap.wrap(
        usage, width, subsequent_indent=" " * len("usage: "), break_on_hyphens=False
    )
    return "\n".join([*usage_lines, "", *about.lines(width), "", *lines, ""])


def _explain(boxes: str, command: Callable[[Sequence[str]], object]) -> str:
    """What tyro's error boxes say, in one line."""
    lines = [line.strip("│╭╮╰╯─| ") for line in boxes.splitlines()]
    # Where the output's encoding is not UTF-8, boxes are drawn with hyphens.
    text = " ".join(re.sub("-{3,}", " ", " ".join(lines)).split())
    unknown = re.match(r".*Unrecognized options: (--[^\s,=]+)", text)
    if unknown:
        with (
            contextlib.redirect_stdout(io.StringIO()) as text_of_help,
            contextlib.suppress(SystemExit),
        ):
            command(["--help"])
        flags = sorted(set(re.findall(r"--[a-z][a-z0-9-]+", text_of_help.getvalue())))
        return f"{unknown[1]}: unknown flag, {nearest(unknown[1], flags)}"
    mistyped = re.search(r"(--\S+): no type matching \{None\}\|(\S+) .*? from \['(.*?)'\]", text)
    if mistyped:
        return f"{mistyped[1]}: {mistyped[3]!r}, expected {mistyped[2]}"
    text = re.sub(r"(Argument helptext:|For full helptext).*", "", text)
    text = re.sub(r"^(Value error|Missing argument|Invalid choice|Parsing error) ", "", text)
    return re.sub(r"^Error parsing (\w+: )?", "", text).strip()


def warn(prog: str, text: str | None) -> None:
    """One line on standard error, where there is something to say."""
    if text is not None:
        print(f"{prog}: warning: {text}", file=sys.stderr, flush=True)


REFUSALS = (
    *(ValueError, TypeError, OSError, ImportError),
    *(FloatingPointError, torch.OutOfMemoryError),
)
"""Errors that a command reports in one line, with exit status 2. Any other is a bug and keeps its traceback."""


def refuse(prog: str, error: Exception, flags: Mapping[str, str]) -> int:
    """Print `error` on standard error, in terms of the command's flags (see `with_flags`); returns the exit status.

    Raises:
        BrokenPipeError: `error` itself, where nothing reads the output any more; `entry.start` ends silently then.
    """
    if isinstance(error, BrokenPipeError) and output_is_gone():
        raise error
    text = what_to_install(error) or with_flags(one_line(error), flags)
    print(f"{prog}: error: {text}", file=sys.stderr)
    return 2


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """An error's text with flags in place of the names of arguments and fields.

    Args:
        text: one line. A name with a dot, such as `optim.epochs`, is replaced anywhere; one without, such as `limit`,
            only where the line begins with it (`limit: 0, expected ...`). A line about the content of a JSON file
            (`config.json: ...`) stays as it is, since a file has fields, not flags.
        flags: the flag of each name.
    """
    if ".json: " in text:
        return text
    first = re.match(r"(\w+)(?=: | is | \S+: )", text)
    if first and first[1] in flags:
        text = flags[first[1]] + text[first.end() :]
    dotted = "|".join(re.escape(name) for name in sorted(flags, reverse=True) if "." in name)
    if not dotted:
        return text
    return re.sub(rf"(?<![\w./-])({dotted})(?![\w/-]|\.\w)", lambda found: flags[found[1]], text)


def flags_of(command: type) -> dict[str, str]:
    """The flag of each field of a dataclass that tyro turns into a command line."""
    names = (field.name for field in dataclasses.fields(command))
    return {name: f"--{name.replace('_', '-')}" for name in names}


def again(command: str) -> str:
    """How to call a command where this one was called: `iaat-fast train`, `.venv/bin/python -m iaat_fast.train`."""
    return prog(command).replace("python -m", f"{interpreter()} -m", 1)


def interpreter() -> str:
    """The word for this Python in a command line: its path if below the working directory (.venv), else "python"."""
    executable, here = Path(sys.executable), Path.cwd()
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"
