"""`iaat-fast COMMAND`, or `python -m iaat_fast COMMAND`: what `python -m iaat_fast.COMMAND` is, and the list of them.

The list and the versions are there at once: nothing here imports torch.
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from pathlib import Path

from iaat_fast.entry import COMMANDS, explain_early_errors, versions

SCRIPT = "iaat-fast"


def main() -> int:
    """Run the command that is named first; returns the exit status, unless the command itself exits."""
    called = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m iaat_fast"
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_help(called))
    elif name == "--version" or (name in COMMANDS and "--version" in words):
        print(versions())
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        expected = (
            f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        )
        print(f"{called}: error: {name!r}: unknown command, {expected}", file=sys.stderr)
        return 2
    else:
        explain_early_errors()
        # As with `python -m`, modules of the user's are searched for in the working directory first.
        if called == SCRIPT and not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        sys.argv = [f"{SCRIPT} {name}" if called == SCRIPT else f"{called}.{name}", *words]
        runpy.run_module(f"iaat_fast.{name}", run_name="__main__")
    return 0


def _help(called: str) -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {called} COMMAND ...",
            "",
            "Fast L-infinity attacks, and instance adaptive adversarial training.",
            "",
            *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
            "",
            f"{called} COMMAND --help has the flags of each, examples first.",
            f"{called} --version has the versions of iaat_fast and torch, and the backends.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
