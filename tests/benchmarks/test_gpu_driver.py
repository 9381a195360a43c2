"""`make gpu`: it stops at once without a GPU, and a stage that goes wrong does not stop the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Stage, run_stages

ROOT = Path(gpu.__file__).resolve().parents[1]

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def python(name: str, code: str, seconds: float = 30) -> Stage:
    return Stage(name, ("{python}", "-c", code), seconds)


def test_the_other_stages_run_whatever_happens_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grandchild = (
        "import subprocess, sys; print('first words', flush=True);"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    started = time.monotonic()
    rows = run_stages(
        [
            python("broken", "import sys; print('what went wrong'); sys.exit(3)"),
            python("endless", grandchild, seconds=0.5),
            python("sound", "open(r'{out}/made.txt', 'w').write('{seconds}')", seconds=20),
            Stage("absent", ("{out}/no_such_program",), 5),
        ],
        tmp_path,
    )
    assert time.monotonic() - started < 30
    assert [(row["stage"], row["status"], row["exit"]) for row in rows] == [
        ("broken", "failed", 3),
        ("endless", "timed out", -15),
        ("sound", "ok", 0),
        ("absent", "failed", None),
    ]
    assert (tmp_path / "made.txt").read_text() == "16"
    logs = (tmp_path / "logs.txt").read_text()
    assert logs.index("==== broken") < logs.index("what went wrong") < logs.index("==== endless")
    assert logs.index("first words") < logs.index("==== sound")
    printed = capsys.readouterr().out
    assert "== broken: failed" in printed
    assert "what went wrong" in printed
    assert json.loads(json.dumps(rows)) == rows


def test_stages_share_the_time_that_is_there(tmp_path: Path) -> None:
    rows = run_stages(
        [python("long", "import time; time.sleep(60)"), python("late", "")], tmp_path, seconds=0.3
    )
    assert [row["status"] for row in rows] == ["timed out", "no time left"]


def test_the_stages_fit_what_comes_back_from_a_run() -> None:
    """Eight files at most, none deeper than the folder itself, each stage's name fit for a file."""
    named = [word for stage in gpu.STAGES for word in stage.command if "{out}/" in word]
    records = ["kernels.json", "kernels.md", "kernels.png", "attacks.json"]
    assert len(named) + len(records) + len(["summary.json", "logs.txt"]) <= 8
    assert all(stage.name.isidentifier() for stage in gpu.STAGES)
    assert gpu.SECONDS < 9 * 60
    assert gpu.STAGES[0].name == "build"


def test_no_old_extension_outlives_a_build_that_fails(tmp_path: Path) -> None:
    package = tmp_path / "iaat_fast"
    package.mkdir()
    mine, others = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_C.cpython-27-other.so"
    for name in (mine, others, "_C.pyi"):
        (package / name).touch()
    gpu.remove_extension(tmp_path)
    assert sorted(path.name for path in package.iterdir()) == sorted([others, "_C.pyi"])


@needs_no_gpu
def test_without_a_gpu_nothing_is_built() -> None:
    before = sorted(ROOT.glob("iaat_fast/_C*"))
    # A make that runs these tests hands its own ARGS down in MAKEFLAGS.
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    made = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    # make adds a line of its own, which counts the makes that it runs in.
    lines = [
        line for line in made.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\*", line)
    ]
    assert len(lines) == 1
    assert lines[0].startswith("make gpu: no CUDA device: ")
    assert made.stdout == ""
    assert sorted(ROOT.glob("iaat_fast/_C*")) == before


@needs_no_gpu
def test_a_python_without_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.no_device() == f"{sys.executable} has no torch to see one with"
    assert {"torch", "xdist", "pybind11"} <= set(gpu.missing())
