"""Everything a run carries from step to step, to and from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.evaluate.weights import fitted_names, plain_state_dict
from iaat_fast.train import optimizer
from iaat_fast.train.step import TrainingStep


@dataclass(kw_only=True)
class TrainState:
    """The live objects of a run and where it stands.

    `step` counts the steps done, `seconds` the time spent in the epoch under way. Orders,
    augmentation and attack noise are functions of the seed and the step and need no state; the
    generators saved are for models that draw (dropout).
    """

    model: nn.Module
    memory: EpsilonMemory
    optimizer: torch.optim.Optimizer
    training_step: TrainingStep
    device: torch.device
    steps_per_epoch: int
    average: AveragedModel | None = None
    step: int = 0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    def to_checkpoint(self, config: dict[str, Any]) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`.

        The tensors are the live ones: copy them before the next step.
        "ema", the average of the weights, and "ema_updates" are there where the run keeps one.
        """
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        average: dict[str, Any] = {}
        if self.average is not None:
            average = {
                "ema": plain_state_dict(self.average.module),
                "ema_updates": int(self.average.n_averaged),
            }
        return {
            "model": plain_state_dict(self.model),
            **average,
            "epsilon": self.memory.values.detach(),
            "optimizer": optimizer.to_checkpoint(self.optimizer),
            "epoch": self.epoch,
            "step": self.step,
            "config": config,
            "seconds": self.seconds,
            "totals": self.training_step.totals,
            "scaler": self.training_step.update.amp.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_checkpoint(self, checkpoint: dict[str, Any], path: object) -> None:
        """Take over a checkpoint; `path` names it in errors.

        Raises:
            ValueError: its weights or radii are not those of this model and data set.
        """
        try:
            _load(self.model, checkpoint["model"])
            if self.average is not None:
                _load(self.average.module, checkpoint["ema"])
                self.average.n_averaged.fill_(checkpoint["ema_updates"])
            optimizer.load_checkpoint(self.optimizer, checkpoint["optimizer"])
            self.memory.load(checkpoint["epsilon"])
            self.training_step.totals.copy_(checkpoint["totals"])
            self.training_step.update.amp.load_state_dict(checkpoint["scaler"])
            self.step = int(checkpoint["step"])
            self.seconds = float(checkpoint["seconds"])
            rng = checkpoint["rng"]
            torch.set_rng_state(rng["cpu"])
            if self.device.type == "cuda" and rng["cuda"] is not None:
                torch.cuda.set_rng_state(rng["cuda"], self.device)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            detail = " ".join(str(error).split())
            raise ValueError(f"{path}: does not fit this run's model and data: {detail}") from error


def _load(model: nn.Module, state: dict[str, Any]) -> None:
    """Load what `to_checkpoint` saved: with plain names, also of a model that torch.compile has wrapped."""
    model.load_state_dict(fitted_names(state, model.state_dict()))
