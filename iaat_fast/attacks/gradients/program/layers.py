"""Convolutions, linear layers and pooling of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iaat_fast.attacks.gradients.program.operations import Gradients, Operation
from iaat_fast.attacks.gradients.program.parameters import Affine, Normalisation, Parameters

_scale_shift_relu = torch.ops.iaat_fast.scale_shift_relu.default
_stem_conv_relu = torch.ops.iaat_fast.stem_conv_relu.default
_stem_conv_step_ = torch.ops.iaat_fast.stem_conv_step_.default

_FUSED_CHANNELS = 8  # cuDNN's fused convolutions are used from so many input channels
# The dtypes of oneDNN's and cuDNN's fused convolutions.
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Convolution(Operation):
    """A convolution with bias, then the sum with an optional second input, then the clamp.

    All are one operation if a library has it: on CUDA cuDNN, if the clamp is a ReLU; on the CPU oneDNN. Otherwise, on
    CUDA, bias, sum and clamp are one kernel after the convolution.
    """

    name = "convolution"
    keeps = (0,)

    def __init__(
        self,
        affine: Affine,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        *,
        transposed: bool = False,
        output_padding: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.affine, self.groups = affine, groups
        self.kernel = list(affine.weight.meta["val"].shape[2:])
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.transposed = transposed
        self.gives_bias_away = False
        self._output_padding = list(output_padding) or [0] * len(self.stride)

    def bind(self, parameters: Parameters) -> None:
        weight = self.weight = parameters.weight(self.affine)
        relu = self.floor == 0 and self.ceiling == math.inf
        fuses = weight.dim() == 4 and not self.transposed and weight.dtype in _FUSED_DTYPES
        self._run = self._plain
        if fuses and weight.is_cuda and torch.version.hip is None:
            # For groups or few channels cuDNN's fused form may have no engine, or a slow one (17 times slower for a 7x7
            # stem), so torch chooses the convolution, and a second kernel does the rest.
            fast = self.groups == 1 and weight.shape[1] >= _FUSED_CHANNELS
            self._run = self._cudnn if relu and fast else self._then_pass
        elif fuses and weight.is_cpu and _onednn_computes(weight.dtype):
            self._run = self._onednn
        wide = self._run == self._then_pass
        self.bias = None
        if not self.gives_bias_away:
            self.bias = parameters.bias(self.affine, wide=wide)
        if wide:
            self._one = weight.new_ones(len(weight), dtype=torch.float32)
            self._zero = torch.zeros_like(self._one)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._run(x, residual)

    def _cudnn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        where = (self.stride, self.padding, self.dilation, self.groups)
        if residual is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *where)
        return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *where)

    def _then_pass(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = self._convolved(x, None)
        if residual is None and not self.clamps and self.bias is None:
            return out
        bias = self._zero if self.bias is None else self.bias
        passed: Tensor = _scale_shift_relu(out, residual, self._one, bias, self.floor, self.ceiling)
        return passed

    def _onednn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        where = (self.padding, self.stride, self.dilation, self.groups)
        after: str | None = None
        limits: list[float] = []
        hint: str | None = None
        if self.clamps:
            after, hint = "relu", ""
            if self.ceiling < math.inf or self.floor != 0:
                after, limits = "hardtanh", [self.floor, self.ceiling]
        pointwise = torch.ops.mkldnn._convolution_pointwise
        if residual is None:
            out: Tensor = pointwise.default(
                x, self.weight, self.bias, *where, after or "none", limits, hint or ""
            )
            return out
        summed: Tensor = pointwise.binary(
            x, residual, self.weight, self.bias, *where, "add", 1.0, after, limits, hint
        )
        return summed

    def _plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = self._convolved(x, self.bias)
        return self.clamp_(out if residual is None else out.add_(residual))

    def _convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            x,
            self.weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self._output_padding,
            self.groups,
        )

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        grad_x = torch.ops.aten.convolution_backward.default(
            grad,
            inputs[0],
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self._output_padding,
            self.groups,
            [True, False, False],
        )[0]
        return (grad_x, grad) if len(inputs) == 2 else (grad_x,)


class Stem(Convolution):
    """The first convolution, run in one kernel from the float32 images: `ops.stem_conv_relu`.

    Args:
        convolution: 3x3, stride and padding 1, the only reader of the images.
        normalisation: that of the images, whose shift is applied here (its scale is in the weight); None for none.
    """

    name = "stem"

    def __init__(self, convolution: Convolution, normalisation: Normalisation | None) -> None:
        super().__init__(
            convolution.affine,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            convolution.groups,
        )
        self.floor, self.ceiling = convolution.floor, convolution.ceiling
        self._normalisation = normalisation

    def bind(self, parameters: Parameters) -> None:
        weight = self.weight = parameters.weight(self.affine)
        bias = parameters.bias(self.affine)
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias
        self._one = weight.new_ones(weight.shape[1], dtype=torch.float32)
        self._shift = torch.zeros_like(self._one)
        if self._normalisation is not None:
            self._shift = parameters.shift(self._normalisation).view(-1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = _stem_conv_relu(
            x, self._shift, self._one, self.weight, self.bias, self.floor, self.ceiling
        )
        return out

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        x = inputs[0]
        assert x is not None
        return super().backward(grad, [x.to(grad.dtype)], output, extra)

    def step_(self, grad: Tensor, x_adv: Tensor, *rest: Any) -> None:
        """The gradient of the images and the PGD step along it: `ops.stem_conv_step_`, with arguments `rest`."""
        _stem_conv_step_(x_adv, grad, self.weight, *rest)


class Linear(Operation):
    """A linear layer over the last dimension."""

    name = "linear"

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.affine = affine

    def bind(self, parameters: Parameters) -> None:
        self.weight = parameters.weight(self.affine)
        self.bias = parameters.bias(self.affine)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and self.bias is not None:
            out = torch.addmm(self.bias, x, self.weight.t())
        else:
            out = torch.nn.functional.linear(x, self.weight, self.bias)
        return self.clamp_(out)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (grad @ self.weight,)


class MaxPool(Operation):
    """Maximum over windows of images."""

    name = "max_pool"
    keeps = (0,)
    has_extra = True

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil: bool,
    ) -> None:
        super().__init__()
        self._windows = (list(kernel), list(stride) or list(kernel), padding, dilation, ceil)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        out, places = torch.ops.aten.max_pool2d_with_indices.default(x, *self._windows)
        return out, places

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (
            torch.ops.aten.max_pool2d_with_indices_backward.default(
                grad, inputs[0], *self._windows, extra
            ),
        )


class AvgPool(Operation):
    """Average over windows of images."""

    name = "avg_pool"
    keeps = (0,)

    def __init__(self, *windows: Any) -> None:
        super().__init__()
        self._windows = windows

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten.avg_pool2d.default(x, *self._windows)
        return out

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (torch.ops.aten.avg_pool2d_backward.default(grad, inputs[0], *self._windows),)


class AdaptiveAvgPool(Operation):
    """Adaptive average pooling to an output of a given size (height, width)."""

    name = "adaptive_avg_pool"
    keeps = (0,)

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self._size = list(size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._adaptive_avg_pool2d.default(x, self._size)
        return out

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (torch.ops.aten._adaptive_avg_pool2d_backward.default(grad, inputs[0]),)


class UpsampleNearest(Operation):
    """Images enlarged by repeating the nearest pixel; `size` [height, width], or `scales` by which to enlarge."""

    name = "upsample_nearest"
    has_extra = True

    def __init__(self, size: Sequence[int] | None, scales: Sequence[float] | None) -> None:
        super().__init__()
        self._size, self._scales = size, scales

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        out = torch.ops.aten.upsample_nearest2d.vec(x, self._size, self._scales)
        return out, (out.shape[2:], x.shape)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        scales = self._scales or (None, None)
        return (torch.ops.aten.upsample_nearest2d_backward.default(grad, *extra, *scales),)


def _onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True
