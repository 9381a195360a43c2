"""A network that keeps the images it is called with."""

from __future__ import annotations

from torch import Tensor, nn


class Watched(nn.Module):
    """Keeps all images a network is called with."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)
