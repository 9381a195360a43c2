"""`python -m iaat_fast.report RUN...`: runs side by side, as a Markdown table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROG = "python -m iaat_fast.report"
DESCRIPTION = """Compare finished runs: one Markdown row per method, mean ± standard deviation over \
seeds.

Runs must agree in everything but the seed, the method and the fields of its attack and radii.

Exit status: 0 done; 2 bad usage or bad input, with one line on standard error."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    import tyro

    from iaat_fast import command_line
    from iaat_fast.report.comparison import read_run, summary_table
    from iaat_fast.run_folder import RunFolder

    @dataclass(frozen=True)
    class Command:
        runs: tyro.conf.Positional[tuple[Path, ...]]
        """Run folders."""

    def parse(words: Sequence[str]) -> Command:
        return tyro.cli(Command, prog=PROG, description=DESCRIPTION, args=list(words))

    try:
        command = command_line.parse(parse, argv)
        print(summary_table([read_run(RunFolder(path)) for path in command.runs]))
    except (ValueError, OSError) as error:
        print(f"{PROG}: error: {command_line.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
