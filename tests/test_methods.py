"""A training method is one row of `iaat_fast.methods` and one file of `train/methods`: everything else follows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import iaat_fast
from iaat_fast.methods import COMPARED, NAMES, ROWS, reads, without_warmup
from iaat_fast.report.figures.drawing import PALETTE
from iaat_fast.report.naming import PIXEL_FIELDS
from iaat_fast.train.flags import _FLAGS
from iaat_fast.train.methods import METHODS

PACKAGE = Path(iaat_fast.__file__).parent

MAY_NAME_METHODS = ("methods.py", "report/paper.py")
"""The table, and the figures that the paper prints by method."""

OTHERS = {("report/naming.py", "cat"), ("attacks/gradients/program/views.py", "cat")}
"""The same words for something else: a class of CIFAR-10, an op of torch."""

ROW = """
    MethodRow(
        name="noise",
        label="Noise",
        about="uniform noise",
        reads=("attack.eps",),
        colour="sky",
        is_baseline=True,
    ),
"""
FILE = """
import torch
import torch.nn.functional as F

from iaat_fast.train.methods.method import Batch, Method, Outcome, is_correct
from iaat_fast.train.methods.passes import update


class Noise(Method):
    counts_clean = False

    @classmethod
    def passes(cls, config, phase, fooled):
        return (update(),)

    def _prepare(self, x, y, index, at):
        noise = (2 * torch.rand_like(x) - 1) * self.config.attack.eps
        return Batch(x=x, y=y, x_adv=(x + noise).clamp(0, 1))

    def outcome(self, forward, batch):
        logits = forward(batch.x_adv)
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        return Outcome(loss=loss, robust=is_correct(logits, batch.y))
"""
COMMANDS = """
from iaat_fast.plan.cli import main as plan
from iaat_fast.report.figures.drawing import PALETTE, series
from iaat_fast.report.groups import group
from iaat_fast.report.records import read_records
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.cli import main as sweep
from iaat_fast.train import fit
from iaat_fast.train.cli import main as train, parse

words = "digits --method noise --eps 30 --epochs 1 --limit 40 --width 2 --no-tensorboard --out run"
fit(parse(words.split()).config)
assert train("digits --method noise --gamma 3 --out other".split()) == 2
(runs,) = group(read_records([RunFolder("run")]))
assert runs.variants[0].name == "Noise"
assert series(["noise"])[0]["color"] == PALETTE["sky"]
assert plan("digits --method noise --gpus 1".split()) == 0
assert sweep("digits --methods noise adv --eps 2 4 --out sweep --dry-run".split()) == 0
"""


def strings(path: Path) -> list[tuple[int, str]]:
    """The string constants of a file with their lines."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [
        (node.lineno, node.value)
        for node in found
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_no_other_file_names_a_method() -> None:
    spelt = []
    for path in PACKAGE.rglob("*.py"):
        name, lines = path.relative_to(PACKAGE).as_posix(), path.read_text().splitlines()
        if name in MAY_NAME_METHODS:
            continue
        for line, text in strings(path):
            # "clean" is also an input that IAAT may train misclassified samples on.
            other = "misclassified_input" in lines[line - 1] or (name, text) in OTHERS
            if text in ROWS and not other:
                spelt.append(f"{name}:{line} {text!r}")
    assert spelt == []


def test_every_method_has_its_row_and_its_class() -> None:
    assert tuple(METHODS) == NAMES
    assert {name for name, row in ROWS.items() if row.variant_of is None} == set(NAMES)
    for name, method in METHODS.items():
        assert method.__module__ == f"iaat_fast.train.methods.{name}"


def test_rows_say_what_they_need_to() -> None:
    assert COMPARED == ("clean", "adv", "iaat")
    assert without_warmup("iaat") == "iaat-no-warmup"
    assert without_warmup("mma") is None
    for name, row in ROWS.items():
        assert row.colour is None or row.colour in PALETTE
        assert reads(name, "attack.eps") is (row.radius == "fixed")
    colours = [row.colour for row in ROWS.values() if row.colour]
    assert len(set(colours)) == len(colours)


def test_fields_in_pixel_values_are_named_in_units_of_1_255() -> None:
    pixels = {field for field, (_, in_pixels) in _FLAGS.items() if in_pixels}
    assert {field for field in pixels if not field.startswith("evaluation.")} == PIXEL_FIELDS


@pytest.mark.slow
def test_a_row_and_a_file_make_a_method(tmp_path: Path) -> None:
    """In a copy of the package: trained, named, planned and swept as any other."""
    package = tmp_path / "iaat_fast"
    for folder in (package, package / "train", package / "train/methods"):
        folder.mkdir()
        for path in (PACKAGE / folder.relative_to(package)).iterdir():
            if path.name not in ("__pycache__", "methods.py", "train", "methods"):
                (folder / path.name).symlink_to(path)
    table = (PACKAGE / "methods.py").read_text(encoding="utf-8")
    (package / "methods.py").write_text(table.replace("_ROWS = (\n", f"_ROWS = ({ROW}", 1))
    (package / "train/methods/noise.py").write_text(FILE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "--gamma 3: not read by method 'noise', expected --method iaat" in done.stderr
    assert "noise-eps2-seed0.train" in done.stdout
    assert "adv-eps4-seed0.train" in done.stdout
