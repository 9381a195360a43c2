"""The folder of a sweep: the grid that it holds, its lock, and the logs.

sweep.json            the runs planned so far: their training commands and configurations
sweep.lock            locked by the running sweep and by the jobs it has started
logs/                 what the jobs print, one file per job
<run>/                the run folders
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from iaat_fast.run_folder import SWEEP_FILES, RunFolder
from iaat_fast.storage import is_temporary, read_json, write_json
from iaat_fast.sweep.grid import Run
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import adopt, differences, override
from iaat_fast.train.setup import recorded_config

SCHEMA = 1
AXES = ("method", "attack.eps", "epsilon.warmup_epochs", "run.seed")
"""Fields in which the runs of one sweep may differ."""


class SweepFolder:
    """A sweep's folder by its path; nothing is read or written until a method asks for it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.sweep_path = self.path / SWEEP_FILES[0]
        self.lock_path = self.path / "sweep.lock"
        self.logs_dir = self.path / "logs"

    def recorded(self) -> list[Run]:
        """The runs planned so far, in the order of planning; [] if there are none.

        Raises:
            ValueError: sweep.json is damaged, or written by a newer version.
        """
        if not self.sweep_path.is_file():
            return []
        content = read_json(self.sweep_path)
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.sweep_path}: schema {content.get('schema')!r}, expected {SCHEMA}; "
                "written by a newer version?"
            )
        try:
            return [self._run(name, entry) for name, entry in content["runs"].items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.sweep_path}: not the grid of a sweep ({error})") from error

    def _run(self, name: str, entry: dict[str, Any]) -> Run:
        return Run(
            name=name,
            setting=str(entry["setting"]),
            seed=int(entry["seed"]),
            folder=self.path / name,
            words=tuple(entry["train"]),
            config=override(TrainConfig(), entry["config"]),
        )

    def extended(self, runs: Sequence[Run]) -> list[Run]:
        """The runs recorded here and, after them, those of `runs` that are new.

        Nothing is written yet.

        Raises:
            ValueError: the grid here, or a run folder, contradicts `runs` (the message names the
                fields), or a file is damaged.
            FileExistsError: the folder, or that of a run, exists and is not a sweep or a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path}: exists and is no folder")
        recorded = self.recorded()
        for old in recorded:
            for new in runs:
                refuse_contradiction(self.path, old, new)
        for run in runs:
            refuse_foreign(run)
        if not self.sweep_path.is_file() and self.path.exists():
            self._refuse_other_files()
        known = {run.name for run in recorded}
        return recorded + [run for run in runs if run.name not in known]

    def _refuse_other_files(self) -> None:
        """Raise FileExistsError unless the folder may become a sweep's: it is empty or has only run folders."""
        for entry in self.path.iterdir():
            own = entry.name in SWEEP_FILES or is_temporary(entry)
            if not (own or RunFolder(entry).is_run or RunFolder(entry).is_free):
                raise FileExistsError(
                    f"{self.path}: exists and is no sweep's folder (no {SWEEP_FILES[0]} in it, but {entry.name})"
                )

    def record(self, runs: Sequence[Run]) -> None:
        """Write the grid, and make the folders that the jobs need."""
        self.logs_dir.mkdir(parents=True, exist_ok=True)
        entries = {
            run.name: {
                "setting": run.setting,
                "seed": run.seed,
                "train": list(run.words),
                "config": run.config.to_dict(),
            }
            for run in runs
        }
        write_json(self.sweep_path, {"schema": SCHEMA, "runs": entries})

    @contextlib.contextmanager
    def lock(self, wait_s: float, say: Callable[[str], None]) -> Iterator[int]:
        """Lock the folder against other sweeps; gives the file descriptor of the lock, for jobs to inherit.

        The lock ends with the last process that holds it, the sweep or a job. Jobs of a sweep that
        was killed get `wait_s` seconds to save their state.

        Raises:
            BlockingIOError: another sweep, or a job of a killed one, is still at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            deadline, said = time.monotonic() + wait_s, False
            while not _locked(descriptor):
                if _alive(owner):
                    raise BlockingIOError(f"{self.path}: a sweep is at work here, process {owner}")
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        f"{self.path}: a job of an earlier sweep is still at work here; "
                        "wait until it has ended"
                    )
                if not said:
                    say(f"{self.path}: waiting for jobs of an earlier sweep to save and end")
                    said = True
                time.sleep(0.1)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)


def refuse_contradiction(path: Path, old: Run, new: Run) -> None:
    """Raise ValueError, naming the fields that differ, if `old` and `new` cannot be runs of one sweep."""
    same = {"run.seed"} if old.setting == new.setting else set(AXES)
    found = [
        text
        for text in differences(old.config, adopt(new.config, old.config))
        if text.partition(" ")[0] not in same or old.name == new.name
    ]
    if found:
        raise ValueError(
            f"{path}: holds a sweep with another configuration: {', '.join(found)}; "
            "take another --out"
        )


def refuse_foreign(run: Run) -> None:
    """Raise unless a run's folder is free or already holds that run."""
    folder = RunFolder(run.folder)
    if folder.is_free:
        return
    if not folder.is_run:
        raise FileExistsError(f"{folder.path}: exists and is no run folder (no config.json in it)")
    recorded = recorded_config(folder)
    found = differences(recorded, adopt(run.config, recorded))
    if found:
        raise ValueError(
            f"{folder.path}: holds a run with another configuration: {', '.join(found)}"
        )


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(process: str) -> bool:
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
