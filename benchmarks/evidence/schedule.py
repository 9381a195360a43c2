"""How many epochs fit into some minutes, from a short training on the same machine."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

from benchmarks.evidence.grid import Grid
from iaat_fast.plan.cost import images_of
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import read_json, write_json
from iaat_fast.train.cli import parse

PROBED_IMAGES = 12_800
PROBED_EPOCHS = 3  # the first one captures and warms up


def epochs_within(grid: Grid, minutes: float, out: Path) -> int:
    """The epochs that the training of the grid's first setting takes about `minutes` for, at least 1.

    They are kept in `out`/schedule.json, so that a run that is continued has the same number.

    Raises:
        ValueError: the file there is of other minutes, or the short training fails.
    """
    file = out / "schedule.json"
    if file.is_file():
        kept = read_json(file)
        if kept.get("minutes") != minutes:
            raise ValueError(
                f"--minutes: {minutes:g}, expected {kept.get('minutes')}, those of the runs in {out}; or another --out"
            )
        return int(kept["epochs"])
    words = [grid.preset, *grid.settings[0].flags, *grid.flags]
    images = images_of(parse(words).config).samples
    probed = min(PROBED_IMAGES, images)
    folder = out / "probe"
    command = [sys.executable, "-m", "iaat_fast.train", *words, "--limit", str(probed)]
    command += ["--epochs", str(PROBED_EPOCHS), "--eval-restarts", "1", "--eval-steps", "1"]
    command += ["--out", str(folder), "--overwrite"]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the short training that finds the epochs of --minutes failed: {last}")
    seconds = [row["seconds"] for row in RunFolder(folder).metrics()][-1]
    epoch = seconds * images / probed
    epochs = max(1, math.floor(60 * minutes / epoch))
    write_json(file, {"minutes": minutes, "seconds_per_epoch": epoch, "epochs": epochs})
    return epochs
