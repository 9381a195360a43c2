"""What the documents show: snippets of Python, lines of tables that are code, and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"(?:<!-- needs: ([\w ]+) -->\n)?```python\n(.*?)^```$", re.M | re.S)
_ROW = re.compile(r"^\| `([^`|]+)` \| `([^`|]+)` \|$", re.M)


class Snippet(NamedTuple):
    """Code of a document: where it starts, in lines, and the package or "gpu" or "data" that it needs."""

    line: int
    code: str
    needs: str | None


def python(document: Path) -> list[Snippet]:
    """Fenced blocks, and rows of tables whose two cells are code, in their order."""
    text = document.read_text()
    found = [(m.start(2), m[2], m[1]) for m in _FENCE.finditer(text)]
    if document.name == "coming-from.md":
        found += [(m.start(1), f"({m[1]})\n({m[2]})\n", None) for m in _ROW.finditer(text)]
    return [Snippet(text.count("\n", 0, at) + 1, *rest) for at, *rest in sorted(found)]


def commands(document: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each command in an indented or fenced block that is one of this project, with its line.

    What stands before it (torchrun, srun, NAME=...) is left out, lines that end in a backslash are joined, and shell
    variables have the value, or the first of the values, that the document gives them.
    """
    lines = document.read_text().splitlines()
    number, fence, variables = 0, "", dict[str, str]()
    while number < len(lines):
        first, line = number, lines[number]
        if line.startswith("```"):
            fence = "" if fence else line[3:].strip() or "text"
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line[:-1] + " " + lines[number].strip()
        number += 1
        if fence in ("sh", "console", "bash") or (not fence and line.startswith("    ")):
            line = line.strip()
            if given := re.match(r'for (\w+) in (\S+)|(\w+)="(.*)"$', line):
                variables |= {given[1] or given[3]: given[2] or given[4]}
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            if found := _own(line):
                yield first + 1, found


def _own(line: str) -> list[str] | None:
    """The words of a line that starts a command of this project, from its name on."""
    if not re.match(r"(?:[A-Z_]+=\S* )*(?:\S*python3? |torchrun |srun |make |\S*iaat-fast )", line):
        return None
    match = re.search(r"-m (?=iaat_fast\b|benchmarks\b)|\b(?=iaat-fast )|^(?=make )", line)
    if match is None:
        return None
    return shlex.split(re.split(r"\s(?:\|\||&&|#)", line[match.end() :])[0])
