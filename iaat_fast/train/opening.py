"""Which folder a run writes to, and whether it starts there or goes on."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from iaat_fast.files import check_folder
from iaat_fast.run_folder import RunFolder
from iaat_fast.train.changes import adopt, differences, override
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.ranks import Ranks
from iaat_fast.train.state import TrainState

logger = logging.getLogger("iaat_fast")


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
            configuration, with the fields and both values. (More epochs are no other one: they extend the run.)
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
        recorded = recorded_config(folder)
        changed = differences(recorded, _as_short(adopt(config, recorded), recorded))
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


def open_on_first(
    config: TrainConfig, ranks: Ranks, *, resume: bool, overwrite: bool
) -> tuple[RunFolder, bool]:
    """`open_folder` by the first rank, for all of them.

    A run that torchrun has started before goes on without being asked to.
    """

    def opened() -> tuple[RunFolder, bool] | None:
        if not ranks.first:
            return None
        if _restarted(config, ranks):
            return open_folder(config, resume=True, overwrite=False)
        folder, going_on = open_folder(config, resume=resume, overwrite=overwrite)
        check_folder("run.out", folder.path)
        return folder, going_on

    found = ranks.broadcast(ranks.together(opened))
    assert found is not None
    return found


def _restarted(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether torchrun has started this run before, which then goes on without being asked to.

    Raises:
        ValueError: torchrun may do so, and the configuration names no folder to find the run in.
    """
    if config.run.out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise ValueError("torchrun --max-restarts needs the run folder, to go on there: --out DIR")
    return ranks.restarts > 0 and config.run.out is not None and RunFolder(config.run.out).is_run


def go_on(
    config: TrainConfig, folder: RunFolder, state: TrainState, env: dict[str, Any], ranks: Ranks
) -> None:
    """Bring `state` and the files of the run to the last checkpoint, or to the start if none.

    With more epochs than before, the files become those of a run that has not ended. Only the first rank reads and
    writes.

    Raises:
        ValueError: no checkpoint is whole, or it is of another configuration, model or data set.
    """
    found = ranks.together(lambda: folder.last_good_checkpoint() if ranks.first else None)
    found = ranks.broadcast(found)
    if found is not None:
        checkpoint, path, damage = found
        _check_same_run(checkpoint, path, config)
        state.load_checkpoint(checkpoint, path)
        if damage is not None and ranks.first:
            logger.warning("%s; going on from %s, step %d", damage, path.name, state.step)

    def bring() -> None:
        if ranks.first:
            folder.remove_temporary()
            if config.optim.epochs > recorded_config(folder).optim.epochs:
                folder.extend(config.optim.epochs)
            folder.cut_metrics(state.step)
            folder.add_resumption(env, step=state.step)

    ranks.together(bring)


def _check_same_run(checkpoint: dict[str, Any], path: Path, config: TrainConfig) -> None:
    try:
        saved = override(TrainConfig(), checkpoint["config"])
        changed = differences(saved, _as_short(config, saved))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its configuration is not of this version: {error}") from error
    if changed:
        raise ValueError(f"{path}: a checkpoint of another configuration: {', '.join(changed)}")


def _as_short(config: TrainConfig, recorded: TrainConfig) -> TrainConfig:
    """`config` with no more epochs than recorded: rate and warm-up follow the epoch, not how many there are."""
    epochs = min(config.optim.epochs, recorded.optim.epochs)
    return override(config, {"optim": {"epochs": epochs}})


def _fresh(config: TrainConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.preset}-{config.method}-{stamp}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path
