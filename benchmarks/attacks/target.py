"""What is attacked, made alike in every process: a network in a layout, images, the network's own predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.attacks import images, networks
from benchmarks.attacks.contender import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Names a target, in words that fit a line of JSON.

    width: of "resnet18" and "wrn32-10", None for their own.
    data: an .npz of images, None for those that `images.load` finds.
    """

    model: str
    batch: int
    device: str
    width: int | None = None
    data: str | None = None

    def build(self) -> tuple[Target, str]:
        """The target with weights as they come, and what its images are."""
        pixels, source = networks.image_size(self.model), Path(self.data) if self.data else None
        x, _, described = images.load(self.batch, pixels, source)
        calibration, _, _ = images.load(64 if pixels == 32 else 16, pixels, source)
        net = networks.make(self.model, calibration.to(self.device), width=self.width)
        x = x.to(self.device)
        with torch.no_grad():
            logits = torch.cat([net(part) for part in x.split(64)])
        # The network's own predictions: every sample starts unfooled, so that the attack has all the way to go.
        return Target(net, x, logits.argmax(1), logits.shape[1]), described

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
