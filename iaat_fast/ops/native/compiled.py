"""The ops with compiled kernels for both CPU and CUDA: make tensors dense, allocate results, call one kernel.

A CPU kernel that finds an invalid value returns False before it writes anything; `checks` then finds the value and
raises. A CUDA kernel does not check values, since the host would have to wait for the device; it returns None.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from iaat_fast.ops import checks
from iaat_fast.ops.layout import channels_of, in_one_layout, like, memory_format, written


class CompiledOps:
    """Eight of the ops, for one type of device.

    Args:
        kernels: from `signatures.callers`.
        stream_of: maps a seed tensor, and the number of entries that the op reads, to the kernel's argument.
    """

    def __init__(
        self, kernels: SimpleNamespace, stream_of: Callable[[Tensor, int], Tensor]
    ) -> None:
        self.kernels = kernels
        self.stream_of = stream_of

    def project_linf(self, x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
        x_adv, x = in_one_layout(x_adv, x)
        out = torch.empty_like(x_adv, memory_format=memory_format(x_adv))
        rows, samples = x_adv.shape[0], x.shape[0]
        eps = eps.contiguous()
        if rows:
            valid = self.kernels.project_linf(
                x.dtype, out, x_adv, x, eps, rows, samples, x.numel() // samples, lo, hi
            )
            if valid is False:
                checks.radii_values(eps)
        return out

    def pgd_step_linf_(
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        eps: Tensor,
        alpha: Tensor,
        lo: float,
        hi: float,
        targeted: bool,
        stats: Tensor | None,
    ) -> None:
        target, grad, x = in_one_layout(x_adv, grad, x)
        rows, samples = x_adv.shape[0], x.shape[0]
        if not rows:
            return
        each = x.numel() // samples
        eps, alpha = eps.contiguous(), alpha.contiguous()
        counts = None if stats is None else stats.contiguous()
        valid = self.kernels.pgd_step_linf(
            x.dtype, target, grad, x, eps, alpha, counts, rows, samples, each, lo, hi, targeted
        )
        if valid is False:
            checks.step_values(alpha, eps)
        written(x_adv, target)
        if stats is not None and counts is not None:
            written(stats, counts)

    def random_start_linf(
        self, x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
    ) -> Tensor:
        # Noise is drawn for contiguous images, whose memory format is restored at the end.
        layout, x = memory_format(x), x.contiguous()
        rows, samples = eps.shape[0], x.shape[0]
        out = x.new_empty((rows, *x.shape[1:]))
        eps, index = eps.contiguous(), index.contiguous()
        stream = self.stream_of(seed, 3).contiguous()
        if rows:
            each = x.numel() // samples
            valid = self.kernels.random_start_linf(
                x.dtype, out, x, eps, stream, index, rows, samples, each, lo, hi
            )
            if valid is False:
                checks.radii_values(eps)
        return out.contiguous(memory_format=layout)

    def select_epsilon_(
        self,
        memory: Tensor,
        index: Tensor,
        logits: Tensor,
        y: Tensor,
        gamma: float,
        beta: float,
        eps_min: float,
        eps_max: float,
        clamp_candidate: bool = False,
        misclassified: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        values, index = memory.contiguous(), index.contiguous()
        logits, y = logits.contiguous(), y.contiguous()
        mask = None if misclassified is None else misclassified.contiguous()
        eps, choice = memory.new_empty(index.shape), torch.empty_like(index)
        size, samples, classes = memory.shape[0], index.shape[0], logits.shape[1]
        if samples:
            valid = self.kernels.select_epsilon(
                logits.dtype,
                values,
                size,
                index,
                logits,
                y,
                eps,
                choice,
                mask,
                samples,
                classes,
                gamma,
                beta,
                eps_min,
                eps_max,
                clamp_candidate,
            )
            if valid is False:
                checks.index_values(index, size)
                checks.class_values(y, classes)
                checks.logit_values(logits)
            written(memory, values)
        return eps, choice

    def random_crop_flip(
        self, images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
    ) -> Tensor:
        images, index = images.contiguous(), index.contiguous()
        stream = self.stream_of(seed, 2).contiguous()
        size, height, width, channels = images.shape
        n = index.shape[0]
        out = images.new_empty((n, channels, height, width), dtype=torch.float32)
        valid = self.kernels.random_crop_flip(
            out, images, index, stream, n, size, height, width, channels, padding, flip
        )
        if valid is False:
            checks.index_values(index, size)
        return out

    def relu_backward_(
        self, grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
    ) -> None:
        target, out = in_one_layout(grad, out)
        other = like(target, other)
        n = grad.numel()
        if n:
            self.kernels.relu_backward(grad.dtype, target, out, other, n, floor, ceiling)
            written(grad, target)

    def scale_shift_relu(
        self,
        x: Tensor,
        residual: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        floor: float,
        ceiling: float,
    ) -> Tensor:
        (target,) = in_one_layout(x)
        residual, scale, shift = like(target, residual), scale.contiguous(), shift.contiguous()
        out = torch.empty_like(x, memory_format=memory_format(x))
        n = x.numel()
        if n:
            channels, inner = channels_of(target)
            self.kernels.scale_shift_relu(
                x.dtype, out, target, residual, scale, shift, n, channels, inner, floor, ceiling
            )
            if residual is not None:
                written(x, target)
        return out

    def scale_shift_relu_backward_(
        self,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        residual: Tensor | None,
        floor: float,
        ceiling: float,
    ) -> None:
        target, out = in_one_layout(grad, out)
        residual, scale = like(target, residual), scale.contiguous()
        n = grad.numel()
        if n:
            channels, inner = channels_of(target)
            self.kernels.scale_shift_relu_backward(
                grad.dtype, target, out, scale, residual, n, channels, inner, floor, ceiling
            )
            written(grad, target)
