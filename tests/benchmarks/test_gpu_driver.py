"""`make gpu`: it stops at once without a GPU, and a stage that goes wrong does not stop the others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, registry
from benchmarks.gpu import Stage, run_stages

ROOT = Path(gpu.__file__).resolve().parents[1]

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def python(name: str, code: str, seconds: float = 30) -> Stage:
    return Stage(name, ("{python}", "-c", code), seconds)


@pytest.mark.slow
def test_the_other_stages_run_whatever_happens_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A shell has said its first words long before the time is up, also on a busy machine.
    grandchild = ("sh", "-c", "echo first words; sleep 600 & wait")
    started = time.monotonic()
    rows = run_stages(
        [
            python("broken", "import sys; print('what went wrong'); sys.exit(3)"),
            Stage("endless", grandchild, 0.5),
            python("sound", "open(r'{out}/made.txt', 'w').write('{seconds}')", seconds=20),
            Stage("absent", ("{out}/no_such_program",), 5),
        ],
        tmp_path,
    )
    assert time.monotonic() - started < 300
    assert [(row["stage"], row["status"], row["exit"]) for row in rows] == [
        ("broken", "failed", 3),
        ("endless", "timed out", -2),
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


@pytest.mark.slow
def test_a_stage_that_is_cut_off_writes_what_it_has_and_so_does_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C, also where the driver itself was started with Ctrl-C ignored; one that does not listen is killed."""
    notes: list[list[str]] = []
    ready = tmp_path / "ready"

    class UnderWay(subprocess.Popen[bytes]):
        """Whose time runs from when the stage is ready for what comes, which on a busy machine takes a while."""

        def wait(self, timeout: float | None = None) -> int:
            while not ready.exists() and self.poll() is None:
                time.sleep(0.01)
            return super().wait(timeout)

    def note(rows: list[dict[str, object]]) -> None:
        notes.append([str(row["stage"]) for row in rows])
        ready.unlink()
        monkeypatch.setattr(gpu, "PATIENCE", 0.5)  # the second will not listen

    monkeypatch.setattr(gpu.subprocess, "Popen", UnderWay)
    monkeypatch.setattr(gpu, "PATIENCE", 60)
    now_ready = f"open({str(ready)!r}, 'w').close()"
    tests = tmp_path / "test_slow.py"
    tests.write_text(
        f"import time\ndef test_done(): pass\ndef test_endless(): {now_ready}; time.sleep(600)\n"
    )
    deaf = f"import signal, time; signal.signal(2, 1); signal.signal(15, 1); {now_ready}; time.sleep(600)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        rows = run_stages(
            [
                Stage(
                    "tests",
                    tuple(f"{{python}} -m pytest -q --junitxml={{out}}/t.xml {tests}".split()),
                    0.1,
                ),
                python("deaf", deaf, seconds=0.1),
            ],
            tmp_path,
            note=note,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(row["status"], row["exit"]) for row in rows] == [("timed out", 2), ("timed out", -9)]
    assert "test_done" in (tmp_path / "t.xml").read_text()
    assert notes == [["tests"], ["tests", "deaf"]]


def test_the_stages_fit_what_comes_back_from_a_run() -> None:
    """Eight files at most, none deeper than the folder itself, each stage's name fit for a file."""
    named = [word for stage in gpu.STAGES for word in stage.command if "{out}/" in word]
    assert len(named) + len(["summary.json", "logs.txt"]) <= 8
    assert all(stage.name.isidentifier() for stage in gpu.STAGES)
    benchmarks = [s for s in gpu.STAGES if "benchmarks" in s.command]
    assert [s.name for s in benchmarks] == ["attacks", "training", "kernels"]
    # No other files, and a time limit of its own, so that the record is closed before the stage is.
    for stage in benchmarks:
        assert f"{{out}}/{stage.name}.json" == stage.command[stage.command.index("--record") + 1]
        assert {"--time-limit", "{seconds}"} <= set(stage.command)


def test_what_is_wanted_first_comes_first_within_seven_minutes() -> None:
    names = [stage.name for stage in gpu.STAGES]
    assert names == [
        *("build", "tests", "attacks", "training", "kernels", "tests_triton", "sanitizer"),
    ]
    assert gpu.SECONDS + 15 <= 7 * 60
    limits = {stage.name: stage.seconds for stage in gpu.STAGES}
    assert sum(limits[name] for name in names[:3]) < gpu.SECONDS
    words = next(stage.command for stage in gpu.STAGES if stage.name == "attacks")
    place = words.index("--cases")
    assert words[place + 1 : place + 4] == ("resnet18:128", "resnet18:512", "wrn32-10:128")


@pytest.mark.parametrize("name", ["attacks", "training", "kernels"])
def test_the_benchmarks_take_the_words_of_their_stages(name: str) -> None:
    stage = next(stage for stage in gpu.STAGES if stage.name == name)
    words = [word.format(python="", out="x", seconds="9") for word in stage.command]
    assert words[1:4] == ["-m", "benchmarks", name]
    options = registry.parse(name, [word if word != "cuda" else "cpu" for word in words[4:]])
    assert options.record == Path(f"x/{name}.json")
    assert options.time_limit == 9


def test_no_old_extension_outlives_a_build_that_fails(tmp_path: Path) -> None:
    package = tmp_path / "iaat_fast"
    package.mkdir()
    mine, others = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_C.cpython-27-other.so"
    for name in (mine, others, "_C.pyi"):
        (package / name).touch()
    gpu.remove_extension(tmp_path)
    assert sorted(path.name for path in package.iterdir()) == sorted([others, "_C.pyi"])


@pytest.mark.slow
@needs_no_gpu
def test_without_a_gpu_nothing_is_built() -> None:
    before = sorted(ROOT.glob("iaat_fast/_C*"))
    # A make that runs these tests hands its own ARGS down, in MAKEFLAGS too.
    own = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS")}
    made = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=own,
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
