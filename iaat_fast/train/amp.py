"""The forward and backward of the weight update in half precision: autocast, and the scaling of the loss in fp16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Weights, optimizer and loss stay in float32; `amp` "off" changes nothing.

        amp.backward(cross_entropy(amp.forward(model, x), y))
        amp.step(optimizer)

    In fp16 the loss is scaled, by a factor that falls where gradients overflow (their step is left out) and rises
    where they have not for long.

    Args:
        amp: "off", "bf16" or "fp16".
        device: of the model.

    Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        self._device, self._dtype = device.type, _DTYPES.get(amp)
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled, and a step left out where that was too much, which the host asks for."""
        return self._scaler.is_enabled()

    def forward(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `model` makes of x under autocast, in float32 again; without one, as it is."""
        if self._dtype is None:
            return model(x)
        # Weights are read once a forward, so that a cache of their casts saves nothing; in a captured step it would
        # hold what the capture, and not the replay, has cast.
        with torch.autocast(self._device, self._dtype, cache_enabled=False):
            return model(x).float()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled."""
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling, and take the step unless a gradient has overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty where nothing is scaled."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a checkpoint."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
