"""--corruptions on the command line: the table, its footnotes, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iaat_fast.evaluate.cli import main

MAKER = """
import torch

class ReadsThePixel(torch.nn.Module):
    def forward(self, x):
        number = (x[:, 0, 0, 0] * 255).round().long()
        return torch.nn.functional.one_hot(number % 10, 10).float()
"""


@pytest.fixture
def command(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An evaluation of a user's own model on the images that were corrupted."""
    x, y = published.split.images.numpy(), published.split.labels.numpy()
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "pixel_model.py").write_text(MAKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = "--model pixel_model:ReadsThePixel --data images.npz --parts natural corruptions"
    return f"--suite cifar {options} --out out --device cpu".split()


def test_the_folder_next_to_the_data_is_measured(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert "  fog  " in capsys.readouterr().out
    rows = json.loads(Path("out/results.json").read_text())["measurements"]
    assert rows[-1]["types"] == 19
    assert rows[-1]["source"] == "official"


def test_a_short_file_is_named_under_the_table(
    command: list[str], published: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published.folder / "fog.npy"
    np.save(file, np.load(file)[:95])
    assert main([*command, "--corruptions", str(published.folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "corruptions: incomplete, 18 measured; fog: short: 95 images" in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "labels.npy").unlink(), "labels.npy: missing"),
        (
            lambda folder: np.save(folder / "labels.npy", np.zeros(100, dtype=np.int64)),
            "corruptions of another data set",
        ),
        (lambda folder: folder.rename(folder.parent / "gone"), "no such folder of corruptions"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(
    command: list[str], published: Any, capsys: pytest.CaptureFixture[str], damage: Any, said: str
) -> None:
    damage(published.folder)
    assert main([*command, "--corruptions", str(published.folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("out").exists()
