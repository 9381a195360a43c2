"""`make gpu`: runs everything that needs a GPU, in stages, and writes the results to a few files.

It downloads nothing, installs nothing and needs no git: torch, pytest and the build tools are those of the machine's
own Python. A stage that fails or runs out of time is reported, and the others still run.

The most important stages come first, because a GPU may be available for minutes only; `--stages` chooses some.
Written to --out while it runs: summary.json (stages, machine), logs.txt, and the files of the stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 405.0
"""Seconds for all stages together: 15 less than the seven minutes that a run may take."""
PATIENCE = 5.0
"""Seconds that a stage may take to end after a signal, before it gets a stronger one."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command with a time limit in seconds; `{python}`, `{out}` and `{seconds}` (four fifths of the time it gets) are
    filled in. The last `tail` lines of its output are printed."""

    name: str
    command: tuple[str, ...]
    seconds: float
    env: tuple[tuple[str, str], ...] = ()
    tail: int = 15


def _module(words: str) -> tuple[str, ...]:
    return ("{python}", "-m", *words.split())


def _pytest(words: str) -> tuple[str, ...]:
    return _module(f"pytest -q -m gpu -p no:cacheprovider --timeout=120 {words}")


# On an H100 the build took 18 s and the tests 90 s. With the other stages at their limits, the sanitizer gets the time
# that is left; asked for alone, it gets all.
STAGES = (
    Stage(
        "build",
        ("{python}", "setup.py", "build_ext", "--inplace"),
        120,
        env=(("IAAT_CUDA", "1"),),
        tail=5,
    ),
    # In several processes: after an illegal memory access a process can no longer use the device.
    Stage(
        "tests",
        _pytest("-n 12 --junitxml={out}/tests.xml tests/gpu --ignore=tests/gpu/test_sanitizer.py"),
        110,
        tail=40,
    ),
    # The most important case first; cases for which there is no time are named in the record. ART, by far the slowest
    # peer, is measured only by the whole benchmark.
    Stage(
        "attacks",
        _module(
            "benchmarks attacks --device cuda --cases resnet18:128 resnet18:512 wrn32-10:128 --rounds 6 --only "
            "plain-loop torchattacks foolbox expert-loop exact fast bf16 --record {out}/attacks.json "
            "--time-limit {seconds}"
        ),
        140,
        tail=60,
    ),
    Stage(
        "training",
        _module(
            "benchmarks training --device cuda --rounds 4 --record {out}/training.json --time-limit {seconds}"
        ),
        70,
        tail=40,
    ),
    Stage(
        "kernels",
        _module(
            "benchmarks kernels --device cuda --backends native triton eager --dtypes float32 bfloat16 "
            "--record {out}/kernels.json --time-limit {seconds}"
        ),
        60,
        tail=40,
    ),
    # The public functions again with Triton's kernels, which are not the default if CUDA's are built.
    Stage(
        "tests_triton",
        _pytest(
            "-n 12 --junitxml={out}/tests_triton.xml tests/gpu/test_public.py tests/gpu/test_attack.py"
        ),
        50,
        env=(("IAAT_FAST_BACKEND", "triton"),),
        tail=20,
    ),
    Stage("sanitizer", _pytest("-n 2 -rs tests/gpu/test_sanitizer.py"), 300),
)

MODULES = (
    "torch",
    "numpy",
    "matplotlib",
    "pytest",
    "pytest_timeout",
    "rich",
    "sklearn",
    "tqdm",
    "xdist",
)
TOOLS = ("cmake", "ninja", "nvcc", "c++")
PROBE = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '', end='')"
DESCRIBE = (
    "import json; from benchmarks import machine; print(json.dumps(machine.describe('cuda')))"
)


def no_device() -> str:
    """Why no GPU can be used, or "". Another process finds out, so that this one has no CUDA context."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch to see one with"
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if probe.returncode:
        return probe.stderr.strip().splitlines()[-1]
    return "" if probe.stdout else "torch.cuda.is_available() is False"


def missing() -> list[str]:
    """The modules, tools and headers that the stages need and this machine lacks."""
    lacking = [name for name in MODULES if importlib.util.find_spec(name) is None]
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    lacking += [tool for tool in TOOLS if shutil.which(tool, path=scripts) is None]
    if importlib.util.find_spec("pybind11") is None:
        lacking.append("pybind11")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacking.append("Python.h")
    return lacking


def remove_extension(root: Path) -> None:
    """Remove the extension built for this Python, so that no old one is tested if the build fails."""
    for old in root.glob(f"iaat_fast/_C*{sysconfig.get_config_var('EXT_SUFFIX')}"):
        old.unlink()


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    *,
    seconds: float = SECONDS,
    note: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Run the stages one after the other, for at most `seconds` in all; returns a row of the summary for each.

    Args:
        stages: to run.
        out: folder of the logs.
        note: called with the rows so far, after every stage.
    """
    started, rows = time.monotonic(), []
    with (out / "logs.txt").open("w") as logs:
        for stage in stages:
            left = seconds - (time.monotonic() - started)
            row = _run(stage, out, min(stage.seconds, left), logs)
            output = row.pop("output")
            rows.append(row)
            note(rows)
            print(f"== {stage.name}: {row['status']}, {row['seconds']:.1f} s", flush=True)
            for line in output.splitlines()[-stage.tail :]:
                print(f"   {line}", flush=True)
    return rows


def _run(stage: Stage, out: Path, granted: float, logs: TextIO) -> dict[str, Any]:
    filled = {"python": sys.executable, "out": str(out), "seconds": f"{0.8 * granted:.0f}"}
    command = [word.format(**filled) for word in stage.command]
    row = {"stage": stage.name, "command": command, "limit": round(granted, 1), "seconds": 0.0}
    if granted <= 0:
        return {**row, "status": "no time left", "exit": None, "output": ""}
    logs.write(f"==== {stage.name}: {' '.join(command)}\n")
    logs.flush()
    begins, started = logs.tell(), time.monotonic()
    # A session of its own, so that what the stage started can be stopped with it.
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_environment(), **dict(stage.env)},
            stdin=subprocess.DEVNULL,
            stdout=logs,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_enable_ctrl_c,
        )
    except OSError as error:
        return {**row, "status": "failed", "exit": None, "output": str(error)}
    try:
        status = "failed" if process.wait(timeout=granted) else "ok"
    except subprocess.TimeoutExpired:
        status = "timed out"
    finally:
        _stop(process)
    logs.seek(0, os.SEEK_END)
    output = (out / "logs.txt").read_bytes()[begins:].decode(errors="replace")
    took = round(time.monotonic() - started, 1)
    return {**row, "seconds": took, "status": status, "exit": process.returncode, "output": output}


def _environment() -> dict[str, str]:
    """The environment of stages: PYTHONPATH has this checkout first, then the caller's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _enable_ctrl_c() -> None:
    """In the child: let SIGINT, by which a stage is ended, have its effect; a shell's `make gpu &` ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its session: first by SIGINT, on which pytest writes its results, at last by SIGKILL."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _machine() -> dict[str, Any]:
    command = [sys.executable, "-c", DESCRIBE]
    try:
        found = subprocess.run(
            command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=60
        )
        described: dict[str, Any] = json.loads(found.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        return {"error": str(error)}
    return described


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns 0 if every stage succeeded, 1 if one did not, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "build/gpu"))
    parser.add_argument("--stages", nargs="+", choices=[s.name for s in STAGES], metavar="NAME")
    options = parser.parse_args(argv)
    if reason := no_device():
        print(f"make gpu: no CUDA device: {reason}", file=sys.stderr)
        return 2
    if lacking := missing():
        print(f"make gpu: this machine lacks {', '.join(lacking)}", file=sys.stderr)
        if set(lacking) & set(MODULES):
            return 2
    stages = [s for s in STAGES if options.stages is None or s.name in options.stages]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if stages[0].name == "build":
        remove_extension(ROOT)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    summary: dict[str, Any] = {"time": started, "machine": None, "stages": []}

    def note(rows: list[dict[str, Any]]) -> None:
        summary["stages"] = rows
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    rows = run_stages(stages, out, note=note)
    # After the stages, because it reports the backend, which is built by one of them.
    summary["machine"] = _machine()
    note(rows)
    bad = [row["stage"] for row in rows if row["status"] != "ok"]
    print(
        f"summary.json and logs.txt are in {out}; "
        + (f"not ok: {', '.join(bad)}" if bad else "all ok")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
