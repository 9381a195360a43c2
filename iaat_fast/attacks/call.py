"""The tensors of one call of an attack, checked and completed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.attacks import inputs
from iaat_fast.ops import checks

StepSize = float | Tensor | Callable[[Tensor], Tensor]


@dataclasses.dataclass
class Call:
    """One call's tensors: x, y, index of N samples; eps, alpha of K*N rows."""

    x: Tensor
    y: Tensor
    eps: Tensor
    alpha: Tensor
    start: Tensor | None
    index: Tensor
    stream: Tensor
    stats: Tensor
    coupled: bool
    restart: int
    goal: Tensor | None = None
    largest_class: int = -1
    entries: int = 0
    gradients: int = 0
    planned: int = 0

    @property
    def rows(self) -> int:
        return len(self.eps)

    def count(self, grad: Tensor, times: int = 1) -> None:
        """Take note of gradients [rows, ...] that were taken."""
        self.entries += times * grad.numel()
        self.gradients += times * len(grad)

    def check_classes(self, classes: int) -> None:
        """Raise ValueError where y holds a class that the model does not have."""
        if self.largest_class >= classes:
            raise ValueError(f"y: {self.largest_class}, expected a class in 0 ... {classes - 1}")

    def per_row(self, x: Tensor) -> Tensor:
        """x repeated for the candidates."""
        copies = self.rows // len(x)
        return x.repeat(copies, *[1] * (x.dim() - 1)) if copies > 1 else x


def prepare_call(
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: StepSize | None,
    start: Tensor | None,
    index: Tensor | None,
    seed: int | None,
    candidate: int,
    restart: int,
    box: tuple[float, float],
    moves: bool,
    coupled: bool,
) -> Call:
    """Check the arguments of `PGD.__call__` and fill in what they leave out.

    Their values are read from the device once, here. `moves` says whether the attack takes a step, `coupled` whether
    the samples share batch statistics.
    """
    checks.images("x", x)
    n = x.shape[0]
    checks.int64_vector("y", y, n, x.device)
    if index is not None:
        checks.int64_vector("index", index, n, x.device)
    rows = eps.shape[0] if isinstance(eps, Tensor) and eps.dim() == 1 else n
    if not checks.is_multiple(rows, n):
        raise ValueError(f"eps: length {rows}, expected a multiple of the {n} samples")
    radii = checks.per_row("eps", eps, rows, x)
    step = alpha(radii) if callable(alpha) else radii if alpha is None else alpha
    if isinstance(step, Tensor) and step.shape == (n,) and rows != n:
        step = step.repeat(rows // n)
    steps = checks.per_row("alpha", step, rows, x)
    if start is not None:
        checks.same_images("start", start, "x", x, candidates=rows != n)
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    checks.int64_number("seed", seed)
    checks.int64_number("candidate", candidate)
    checks.int64_number("restart", restart)
    call = Call(
        x=x.detach().clone() if x.is_inference() else x.detach(),
        y=y,
        eps=radii,
        alpha=steps,
        start=start,
        index=torch.arange(n, device=x.device) if index is None else index,
        stream=torch.tensor([seed, 0, candidate], device=x.device),
        stats=torch.zeros(2, dtype=torch.int64, device=x.device),
        coupled=coupled,
        restart=restart,
    )
    if rows:
        call.largest_class = inputs.values(call.x, y, radii, steps, *box, moves=moves)
    return call
