"""The surrogate that transferred attacks are crafted on: an independently trained model of the same task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iaat_fast.attacks.model import attacked, logits_of
from iaat_fast.data import Samples, fetch
from iaat_fast.evaluate.eval_target import EvalTarget, load_target, run_source, weights_sha256
from iaat_fast.run_folder import RunFolder


@dataclass(frozen=True)
class Surrogate:
    """A model over the target's images, on its device; `description` says, in plain values, where it came from."""

    model: nn.Module
    description: dict[str, Any]


def load_surrogate(folder: RunFolder, target: EvalTarget, *, data: str | None = None) -> Surrogate:
    """The surrogate of a run folder.

    Args:
        folder: of a run of the same configuration and another seed.
        target: what the attacks are transferred to.
        data: path of the images, if it is not the one that the runs recorded.

    Raises:
        FileNotFoundError: no such run, or no checkpoint in it.
        ValueError: it is the target's own run, one of the same configuration and seed, or of another data set.
    """
    about, config = target.description, folder.config() if folder.path.is_dir() else {}
    if about["run"] is not None:
        own = RunFolder(about["run"])
        if own.path.resolve() == folder.path.resolve():
            raise ValueError(
                f"--against {folder.path}: is the run itself; expected one trained independently, with another seed"
            )
        if config and _arithmetic(own.config()) == _arithmetic(config):
            raise ValueError(
                f"--against {folder.path}: has the configuration and seed of {own.path}; expected one trained "
                "independently, with another seed"
            )
    source = run_source(folder, data=data or about["data"]["path"], limit=len(target.split))
    if source.dataset != about["data"]["name"]:
        raise ValueError(
            f"--against {folder.path}: trained on {source.dataset}, expected {about['data']['name']} as {about['run']}"
        )
    found = load_target(source, target.split.labels.device, folder=folder)
    description = {
        **{name: found.description[name] for name in ("run", "model", "weights", "epoch")},
        "seed": config.get("run", {}).get("seed"),
    }
    return Surrogate(found.model, description)


def check_surrogate(target: EvalTarget, surrogate: Surrogate) -> None:
    """Raise ValueError if a surrogate has another number of classes, or the target's own weights."""
    own, other = (_classes(model, target.split) for model in (target.model, surrogate.model))
    if own != other:
        raise ValueError(
            f"surrogate: has {other} classes, expected {own} as the model it is to fool"
        )
    if weights_sha256(target.model) == weights_sha256(surrogate.model):
        raise ValueError(
            "surrogate: has the model's own weights, expected an independently trained one"
        )


def _classes(model: nn.Module, split: Samples) -> int:
    x, _ = fetch(split, torch.zeros(1, dtype=torch.int64, device=split.labels.device))
    with attacked(model, "eval"), torch.no_grad():
        return int(logits_of(model, x).shape[1])


def _arithmetic(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that decide which weights a training ends with."""
    parts = ("method", "protocol", "model", "attack", "epsilon", "optim")
    seed = config.get("run", {}).get("seed")
    free = ("path", "workers", "on_bad_image")
    data = {name: value for name, value in config.get("data", {}).items() if name not in free}
    return {**{part: config.get(part) for part in parts}, "seed": seed, "data": data}
