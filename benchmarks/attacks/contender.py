"""What is compared: an attack by somebody, made for a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]


class Missing(Exception):
    """A contender that cannot be had here; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """PGD's parameters, on the [0, 1] scale, and whether it starts at a random point of the ball or at x."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    random_start: bool = True


@dataclasses.dataclass(frozen=True)
class Target:
    """A network in eval mode, images [N, C, H, W] in [0, 1], and its own predictions on them, int64 [N]."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """`make(target, setting)` gives a function of images and classes; it raises `Missing` where it cannot.

    kind: "peer", "expert" for the loop that an expert would write, or "engine" for iaat_fast.
    precision: of the gradients: "fp32", "tf32", "bf16", "fp16".
    plain: its arithmetic is that of the plain loop, so that rounding cannot excuse another result.
    """

    name: str
    kind: str
    make: Callable[[Target, Setting], Attack]
    what: str
    precision: str = "fp32"
    plain: bool = False
