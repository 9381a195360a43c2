"""The folder of one training run: what lies where, and how it survives a kill at any moment.

    config.json           the resolved configuration, nested by part, floats on the [0, 1] scale
    env.json              versions, hardware, commit, and when the run was resumed
    metrics.jsonl         one row per epoch, see `append_metrics`
    checkpoint.pt         the last good state, see `save_checkpoint`
    checkpoint-previous.pt    the one before it
    epsilon/epoch-0005.npy    the radii of all training samples after 5 epochs, float32 [size]
    tensorboard/          TensorBoard events
    plots/                figures
    results.json          the closing evaluation, a record as those below `evaluation`
    verdicts.npz          its verdicts by sample
    evaluation/           later evaluations, a folder each: see `iaat_fast.evaluate.record`

Whole files are replaced atomically (written under another name, flushed to disk, renamed).
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iaat_fast.storage import (
    content_hash,
    is_temporary,
    load_tensors,
    naming,
    read_json,
    replace,
    write_json,
)

CUSTOM = "custom"
"""The recorded name of a model or data set that was passed from Python."""

SWEEP_FILES = ("sweep.json", "sweep.lock", "logs", "report")
"""What the folder of a sweep holds next to its run folders; the first says that it is one."""

CHECKPOINT_KEYS = ("model", "epsilon", "optimizer", "epoch", "step", "config")


def _checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there yet")
    state = load_tensors(path)
    missing = [k for k in CHECKPOINT_KEYS if not isinstance(state, dict) or k not in state]
    if missing:
        raise ValueError(f"{path}: not a checkpoint of a run, it lacks {', '.join(missing)}")
    recorded = state.pop("sha256", None)  # checkpoints of earlier versions have none
    if recorded is not None and recorded != content_hash(state):
        raise ValueError(f"{path}: damaged, its content is not what was saved (sha256 differs)")
    return dict(state)


class RunFolder:
    """A run folder by its path; nothing is read or written until a method asks for it.

    Reading methods raise FileNotFoundError where the file is missing and ValueError where it is
    there but not what it should be, both naming the path. Writing methods raise OSError naming the
    path and leave the previous content as it was.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.env_path = self.path / "env.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_path = self.path / "checkpoint.pt"
        self.previous_path = self.path / "checkpoint-previous.pt"
        self.results_path = self.path / "results.json"
        self.verdicts_path = self.path / "verdicts.npz"
        self.epsilon_dir = self.path / "epsilon"
        self.tensorboard_dir = self.path / "tensorboard"
        self.plots_dir = self.path / "plots"
        self.evaluation_dir = self.path / "evaluation"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def is_run(self) -> bool:
        """Whether a run has been started here (it has a configuration)."""
        return self.config_path.is_file()

    @property
    def is_free(self) -> bool:
        """Whether a run may be started here: nothing there, or an empty folder.

        The temporary file of a run killed while it wrote its configuration does not count.
        """
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            return False
        return all(is_temporary(entry) for entry in self.path.iterdir())

    def create(self, config: dict[str, Any], env: dict[str, Any]) -> None:
        """Start a run here: make the folder, write the configuration and the environment.

        Removes what an earlier run wrote, and only that; anything else in the folder stays.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # config.json is replaced, never removed: after a kill this is still the folder of a run.
        outputs = (self.epsilon_dir, self.tensorboard_dir, self.plots_dir, self.evaluation_dir)
        for folder in outputs:
            shutil.rmtree(folder, ignore_errors=True)
        files = (self.checkpoint_path, self.previous_path, self.metrics_path, self.results_path)
        for file in (*files, self.verdicts_path):
            file.unlink(missing_ok=True)
        self.remove_temporary()
        write_json(self.config_path, config)
        write_json(self.env_path, env)

    def extend(self, epochs: int) -> None:
        """Let a run that has ended, and may have been evaluated, continue to `epochs`.

        The closing evaluation is removed; later ones are moved to `evaluation-epoch-N`, where N is the epochs so far.
        """
        config = self.config()
        for file in (self.results_path, self.verdicts_path):
            file.unlink(missing_ok=True)
        if self.evaluation_dir.exists():
            so_far = config["optim"]["epochs"]
            self.evaluation_dir.rename(self.path / f"evaluation-epoch-{so_far:04d}")
        config["optim"]["epochs"] = epochs
        write_json(self.config_path, config)  # last: if killed before, the run is extended again

    def remove_temporary(self) -> None:
        """Remove the temporary files that a killed run may have left."""
        for folder in (self.path, self.epsilon_dir, self.evaluation_dir):
            if folder.is_dir():
                for entry in folder.iterdir():
                    if is_temporary(entry):
                        entry.unlink(missing_ok=True)

    def config(self) -> dict[str, Any]:
        """The configuration, nested by part."""
        return read_json(self.config_path)

    def env(self) -> dict[str, Any]:
        """The environment the run was started in, and under "resumed" those it was continued in."""
        return read_json(self.env_path)

    def add_resumption(self, env: dict[str, Any], *, step: int) -> None:
        """Record in `env.json` that the run was continued from `step` in the environment `env`."""
        recorded = self.env() if self.env_path.is_file() else dict(env)
        recorded.setdefault("resumed", []).append({"step": step, **env})
        write_json(self.env_path, recorded)

    def results(self) -> dict[str, Any]:
        """The closing evaluation."""
        return read_json(self.results_path)

    def save_results(self, results: dict[str, Any]) -> None:
        """Write the closing evaluation."""
        write_json(self.results_path, results)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically; the one it replaces becomes the previous one.

        What is written holds its own `content_hash` under "sha256".

        Args:
            state: tensors and plain values only; at least the keys of `CHECKPOINT_KEYS`: "model"
                (state dict), "epsilon" (float32 [size], [0, 1] scale), "optimizer" (state dict),
                "epoch" (epochs finished), "step" (steps finished), "config" (as in config.json);
                with "ema" (state dict) where the run keeps an average of the weights, which is then
                what counts.

        Raises:
            ValueError: a key is missing.
            OSError: the disk is full or not writable; the last good checkpoint is still there.
        """
        missing = [key for key in CHECKPOINT_KEYS if key not in state]
        if missing:
            raise ValueError(f"state: lacks {missing}, expected at least {list(CHECKPOINT_KEYS)}")
        # Serialised in memory first: torch's own writer does not report a full disk as OSError.
        buffer = io.BytesIO()
        torch.save({**state, "sha256": content_hash(state)}, buffer)
        replace(self.checkpoint_path, buffer.getbuffer(), keep=self.previous_path)

    def checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, on the CPU, without running any code it may hold.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: the file is cut short or altered, is no checkpoint, or holds more than
                tensors and plain values (it is loaded with `weights_only=True`).
        """
        return _checkpoint(self.checkpoint_path)

    def last_good_checkpoint(self) -> tuple[dict[str, Any], Path, str | None] | None:
        """The checkpoint to continue from: the last one, or if that is damaged the one before it.

        Returns:
            The checkpoint, its file, and what is wrong with the newer file (None: nothing is); None where no checkpoint
            was saved yet.

        Raises:
            ValueError: every file is damaged; the message names each.
        """
        wrong: list[str] = []
        for path in (self.checkpoint_path, self.previous_path):
            if path.is_file():
                try:
                    return _checkpoint(path), path, "; ".join(wrong) or None
                except ValueError as error:
                    wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        return None

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one row, flushed to disk.

        A row has "epoch" (from 1, epochs finished), "step" (steps finished), "lr", "train_loss",
        "train_clean_accuracy" (share classified correctly before the attack),
        "train_robust_accuracy" (share still correct on its adversarial image), both None for
        methods that do not measure it, "eps_mean", "eps_std", "eps_min", "eps_max" (radii, [0, 1]
        scale), "test_accuracy" and "seconds". Accuracies are in [0, 1].
        """
        line = json.dumps(row) + "\n"
        with naming(self.metrics_path), open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows written so far, oldest first; [] before the first epoch ends.

        A last line cut short by a kill is left out.
        """
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break
                raise ValueError(f"{self.metrics_path}: line {number} is not JSON") from error
        return rows

    def cut_metrics(self, step: int) -> None:
        """Drop the rows of steps after `step`: those a resumed run will write again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        replace(self.metrics_path, text.encode())

    def save_epsilon(self, epoch: int, values: Tensor) -> None:
        """Write the snapshot of the radii, float32 [size], after `epoch` epochs."""
        self.epsilon_dir.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, values.detach().cpu().numpy(), allow_pickle=False)
        replace(self.epsilon_dir / f"epoch-{epoch:04d}.npy", buffer.getbuffer())

    def epsilon_snapshots(self) -> dict[int, Path]:
        """The snapshots by epochs finished, in rising order; read one with `numpy.load`."""
        paths = sorted(self.epsilon_dir.glob("epoch-*.npy"))
        return {int(path.stem.removeprefix("epoch-")): path for path in paths}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration nested by part, as in `config.json`, with one name per field: `{"optim.lr": 0.1}`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            fields.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            fields[name] = value
    return fields
