"""Which folder a run writes to, and whether it starts there or goes on."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from iaat_fast.run_folder import RunFolder
from iaat_fast.train.config import TrainConfig, differences, override


def recorded_config(folder: RunFolder) -> TrainConfig:
    """The configuration in a run folder, with the folder itself as `run.out`.

    Raises:
        ValueError: config.json is damaged or holds fields this version does not know.
    """
    try:
        config = override(TrainConfig(), folder.config())
        return override(config, {"run": {"out": str(folder.path)}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.config_path}: {error}") from error


def open_folder(config: TrainConfig, *, resume: bool, overwrite: bool) -> tuple[RunFolder, bool]:
    """The run folder of `config`, and whether the run goes on there (True) or starts (False).

    Nothing is written or removed yet.

    Raises:
        FileExistsError: the folder holds a run and neither `resume` nor `overwrite` is set, or it
            holds something that is no run.
        ValueError: both are set; `resume` without a folder; or the run there has another
            configuration, with the fields and both values.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if config.run.out is None:
        if resume:
            raise ValueError("--resume needs the run folder: --out DIR")
        return RunFolder(_fresh(config)), False
    folder = RunFolder(config.run.out)
    if folder.is_free:
        return folder, False
    if not folder.is_run:
        raise FileExistsError(f"{folder.path}: exists and is no run folder (no config.json in it)")
    if resume:
        changed = differences(recorded_config(folder), config)
        if changed:
            raise ValueError(
                f"{folder.path}: holds a run with another configuration: {', '.join(changed)}"
            )
        return folder, True
    if overwrite:
        return folder, False
    raise FileExistsError(
        f"{folder.path}: holds a run already; --resume goes on with it, --overwrite replaces it"
    )


def _fresh(config: TrainConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.preset}-{config.method}-{stamp}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path
