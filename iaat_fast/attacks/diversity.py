"""DI- and TI-FGSM: MI-FGSM with gradients at randomly resized images, and with smoothed gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import validate
from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.options import PGDOptions, StepSize
from iaat_fast.attacks.pgd import Run
from iaat_fast.attacks.transfer import TransferAttack, uniform

KERNELS = ("gaussian", "linear", "uniform")


class DIFGSM(TransferAttack):
    """DI-FGSM: `MIFGSM` whose gradient is taken, with some probability, at a randomly resized and padded image.

    An image with sides of S pixels is resized bilinearly to r pixels, r uniform in [resize_rate * S, S), and placed at
    a uniform position on a black (`lo`) canvas of S pixels. With `resize_rate` above 1, r is in [S, resize_rate * S),
    and the canvas of resize_rate * S pixels is resized to S, so that the network gets images of its usual size.

    Every sample has its own draws in every step. They depend on the seed, the step, the sample's number and the
    restart, so that restarts need no random start. The paper's code and torchattacks draw once per step for the whole
    batch. Also unlike torchattacks, the last position is possible, height and width may differ, and a `resize_rate`
    above 1 does not enlarge the network's input.

    Args:
        model: maps images [N, C, H, W] in [lo, hi] to logits [N, classes].
        eps, alpha, steps: as `MIFGSM`'s.
        decay: as `MIFGSM`'s; 0, the default as in torchattacks, is the paper's DI-FGSM, 1 its M-DI-FGSM.
        resize_rate: the smallest size, or above 1 the largest, relative to the image's.
        diversity_prob: probability that a step resizes a sample, p in the paper, in [0, 1].
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Xie et al. 2019, "Improving transferability of adversarial examples with input diversity",
        arXiv:1803.06978, Equations 5 to 7 and Section 4.1.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        validate.number("resize_rate", resize_rate, above=True)
        validate.number("diversity_prob", diversity_prob, high=1.0)
        self._draws = diversity_prob > 0
        super().__init__(
            model, eps, alpha, steps, decay=decay, random_start=random_start, **options
        )
        self.resize_rate, self.diversity_prob = resize_rate, diversity_prob

    def _attack(self, call: Call) -> Tensor:
        if call.x.dim() != 4:
            raise ValueError(f"x: shape {tuple(call.x.shape)}, expected [N, C, H, W]")
        return super()._attack(call)

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._draws:
            return super()._gradient(run, cotangent)
        assert run.momentum is not None
        x, wide = run.x_adv, run.momentum.dtype
        # In float64, because float32 might round a draw to 1.
        half = torch.full((len(x), 4), 0.5, dtype=torch.float64, device=x.device)
        resize, size, top, left = uniform(run, half, half[:, 0].contiguous()).unbind(1)
        resized = as_column(resize < self.diversity_prob, x)
        down = _resizing(x.shape[2], self.resize_rate, size, top).to(wide).unsqueeze(1)
        across = _resizing(x.shape[3], self.resize_rate, size, left).to(wide).unsqueeze(1)
        seen = down @ (x.to(wide) - self._lo) @ across.mT + self._lo
        seen = torch.where(resized, seen.to(x.dtype), x)
        grad = self.network.gradient(seen, cotangent).to(wide)
        return torch.where(resized, down.mT @ grad @ across, grad)


class TIFGSM(DIFGSM):
    """TI-FGSM: `DIFGSM` whose gradient is convolved with a kernel, channel by channel, before it enters the momentum.

    With the defaults, which are those of torchattacks, it is the paper's TI-DIM without momentum; `diversity_prob=0`
    gives TI-FGSM without input diversity.

    Args:
        model, eps, alpha, steps, decay, resize_rate, diversity_prob: as `DIFGSM`'s.
        kernel_name: "gaussian", "linear" or "uniform".
        len_kernel: side of the kernel in pixels, odd.
        nsig: number of standard deviations of the Gaussian from the kernel's centre to its edge.
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Dong et al. 2019, "Evading defenses to transferable adversarial examples by translation-invariant attacks",
        arXiv:1904.02884, Equation 7 and Section 3.2.2.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        decay: float = 0.0,
        kernel_name: str = "gaussian",
        len_kernel: int = 15,
        nsig: float = 3,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        validate.choice("kernel_name", kernel_name, KERNELS)
        validate.integer("len_kernel", len_kernel, 1)
        if len_kernel % 2 == 0:
            raise ValueError(
                f"len_kernel: {len_kernel}, expected an odd number, which has a centre"
            )
        validate.number("nsig", nsig, above=True)
        super().__init__(
            model,
            eps,
            alpha,
            steps,
            decay=decay,
            resize_rate=resize_rate,
            diversity_prob=diversity_prob,
            random_start=random_start,
            **options,
        )
        self.kernel_name, self.len_kernel, self.nsig = kernel_name, len_kernel, nsig
        self._kernels: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        assert run.momentum is not None
        # Cached, because copying from the host makes a call wait for the device.
        where = run.momentum.device, run.momentum.dtype
        if where not in self._kernels:
            kernel = _kernel(self.kernel_name, self.len_kernel, self.nsig).astype(np.float32)
            self._kernels[where] = torch.as_tensor(kernel, device=where[0], dtype=where[1])
        return run

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        assert run.momentum is not None
        grad = super()._gradient(run, cotangent).to(run.momentum.dtype)
        channels = grad.shape[1]
        kernel = self._kernels[grad.device, grad.dtype].expand(channels, 1, -1, -1)
        return F.conv2d(grad, kernel, padding="same", groups=channels)


def _resizing(side: int, rate: float, size: Tensor, place: Tensor) -> Tensor:
    """Resizing and padding along one axis as matrices [n, side, side], which map input pixels to output pixels.

    Args:
        side: number of the image's pixels along the axis.
        rate: `resize_rate`.
        size, place: float64 [n], uniform in (0, 1): they choose the size and the position.
    """
    smallest, canvas = max(int(side * min(rate, 1)), 1), max(int(side * rate), side)
    size = smallest + (size * (canvas - smallest)).floor()
    first = (place * (canvas - size + 1)).floor()
    taken = _bilinear(side, size, canvas, first)
    if canvas == side:
        return taken
    return _bilinear(canvas, torch.full_like(size, side), side, torch.zeros_like(first)) @ taken


def _bilinear(side: int, size: Tensor, canvas: int, first: Tensor) -> Tensor:
    """Matrices [n, canvas, side] of bilinear `F.interpolate` from `side` to `size` [n] pixels, placed at `first` [n].

    With align_corners=False; outside the resized image they are 0.
    """
    number = torch.arange(canvas, device=size.device) - first.view(-1, 1)
    inside = (number >= 0) & (number < size.view(-1, 1))
    centre = (number + 0.5) * (side / size.view(-1, 1)) - 0.5
    centre = centre.clamp(0, side - 1).unsqueeze(2)
    weight = (1 - (centre - torch.arange(side, device=size.device)).abs()).clamp(min=0)
    return weight * inside.unsqueeze(2)


def _kernel(name: str, length: int, nsig: float) -> np.ndarray:
    """The smoothing kernel, float64 [length, length] with sum 1, bit for bit that of torchattacks."""
    if name == "uniform":
        return np.full((length, length), 1.0 / length**2)
    if name == "gaussian":
        at = np.linspace(-nsig, nsig, length)
        line = np.exp(-(at**2) / 2.0) / np.sqrt(2 * np.pi)
    else:
        at = np.linspace((-length + 1) / 2, (length - 1) / 2, length)
        line = 1 - np.abs(at / (length + 1) * 2)
    raw = np.outer(line, line)
    return np.asarray(raw / raw.sum())
