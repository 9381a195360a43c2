"""The parameters of a program: twins, made from the live weights in the program's precision.

Everything that depends only on the model's tensors is computed when a program is refreshed, not in its steps: BatchNorm
folded into the layer before it, the images' normalisation folded into the first layer, and parametrised weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from iaat_fast.attacks.gradients.program.exported import ExportedForward


@dataclasses.dataclass(eq=False)
class Norm:
    """BatchNorm in eval mode: the nodes of its weights and statistics.

    channels: (start, end) of those that it is for, if it is divided among layers; None for all.
    """

    weight: Node | None
    bias: Node | None
    mean: Node
    variance: Node
    eps: float
    channels: tuple[int, int] | None = None

    def of(self, node: Node, values: dict[Node, Any]) -> Tensor:
        """The channels' share of one of its nodes' values [C]."""
        value: Tensor = values[node]
        return value if self.channels is None else value[slice(*self.channels)]


@dataclasses.dataclass(eq=False)
class Normalisation:
    """The operations on each channel of the images before the first layer: ("add" | "sub" | "mul" | "div", value).

    Together they are (x - shift) * scale. The scale is folded into the layer's weight; the shift is not, because the
    layer pads with zeros after it.
    """

    channels: int
    steps: list[tuple[str, Node | float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Affine:
    """Weight and bias of a convolution or linear layer, and what is folded into them.

    weight, bias: nodes of the layer's weight and bias.
    norm: the BatchNorm after the layer.
    normalisation: that of the images, if the layer reads them.
    added: a layer whose output is added to this one's; its bias is folded into this one's too.
    out_dim: the weight's dimension of output channels.
    image: (C, H * W) if the layer reads a flattened channels_last tensor, whose features are in another order.
    """

    weight: Node
    bias: Node | None
    norm: Norm | None = None
    normalisation: Normalisation | None = None
    added: Affine | None = None
    out_dim: int = 0
    image: tuple[int, int] | None = None

    @property
    def has_bias(self) -> bool:
        own = self.bias is not None or self.norm is not None
        return own or (self.added is not None and self.added.has_bias)


class Parameters:
    """The twins of a program: made one by one when its operations ask for them, refreshed together.

    Args:
        exported: the graph and its live tensors.
        static: its nodes that depend on these tensors only, in order.
        dtype: of the twins of floating-point tensors; None for that of the live tensors.
        channels_last: store weights of convolutions over images channels last.
    """

    def __init__(
        self,
        exported: ExportedForward,
        static: list[Node],
        dtype: torch.dtype | None,
        *,
        channels_last: bool,
    ) -> None:
        self._live, self._static = exported.live, [n for n in static if n.op != "placeholder"]
        images = exported.images.meta["val"]
        self._like_images = torch.empty(0, dtype=images.dtype, device=images.device)
        self._dtype, self._channels_last = dtype, channels_last
        self._plain: dict[tuple[Node, bool], Tensor] = {}
        self._norms: dict[Norm, tuple[Tensor, Tensor]] = {}
        self._weights: dict[Affine, Tensor] = {}
        self._biases: dict[Affine, Tensor] = {}
        self._shifts: dict[Normalisation, Tensor] = {}
        with torch.no_grad():
            self._values: dict[Node, Any] = self._evaluate_static()

    def plain(self, node: Node, *, keep_dtype: bool = False) -> Any:
        """The twin of a static node's value, or the value itself if it is not a tensor."""
        value = self._values[node]
        if not isinstance(value, Tensor):
            return value
        if (node, keep_dtype) not in self._plain:
            self._plain[node, keep_dtype] = self._twin(value, keep_dtype)
        return self._plain[node, keep_dtype]

    def norm(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """A BatchNorm's scale and shift [C], float32 (float64 for a model in float64)."""
        if norm not in self._norms:
            ((scale, shift),) = _scales_and_shifts([norm], self._values)
            wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
            self._norms[norm] = (scale.to(wide).clone(), shift.to(wide).clone())
        return self._norms[norm]

    def weight(self, affine: Affine) -> Tensor:
        """The folded weight."""
        if affine not in self._weights:
            # `refresh` sets its values: more may be folded into it until then.
            self._weights[affine] = self._twin(self._values[affine.weight], False)
        return self._weights[affine]

    def bias(self, affine: Affine, *, wide: bool = False) -> Tensor | None:
        """The folded bias [C], in float32 if `wide`; None if there is none."""
        if not affine.has_bias:
            return None
        if affine not in self._biases:
            weight = self._values[affine.weight]
            dtype = torch.float32 if wide else self._dtype or weight.dtype
            self._biases[affine] = weight.new_empty(weight.shape[affine.out_dim], dtype=dtype)
        return self._biases[affine]

    def shift(self, normalisation: Normalisation) -> Tensor:
        """The shift subtracted from the images, [C, 1, 1], in their dtype."""
        if normalisation not in self._shifts:
            shift, _ = self._shift_and_scale(normalisation, self._values)
            self._shifts[normalisation] = shift.clone()
        return self._shifts[normalisation]

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute all twins from the live tensors: a launch per folded weight, and a few for all others."""
        values = self._evaluate_static()
        folded = list({a.norm: None for a in self._folding() if a.norm is not None} | self._norms)
        norms = dict(zip(folded, _scales_and_shifts(folded, values), strict=True))
        twins, sources = list(self._plain.values()), [values[node] for node, _ in self._plain]
        for norm, (scale, shift) in self._norms.items():
            twins += [scale, shift]
            sources += norms[norm]
        for normalisation, twin in self._shifts.items():
            twins.append(twin)
            sources.append(self._shift_and_scale(normalisation, values)[0])
        for affine, twin in self._weights.items():
            factor = None if affine.norm is None else norms[affine.norm][0]
            weight = _columns_in_memory_order(values[affine.weight], affine)
            scales = [] if factor is None else [_along(factor, affine.out_dim, weight.dim())]
            if affine.normalisation is not None:
                _, scale = self._shift_and_scale(affine.normalisation, values)
                scales.append(_along(scale, 1 - affine.out_dim, weight.dim()))
            if not scales:
                twins.append(twin)
                sources.append(weight)
                continue
            torch.mul(weight, scales[0] if len(scales) == 1 else scales[0] * scales[1], out=twin)
        for affine, twin in self._biases.items():
            twins.append(twin)
            sources.append(_bias(affine, values, norms))
        if twins:
            torch._foreach_copy_(twins, sources)
        self._values = {}

    def tensors(self) -> list[Tensor]:
        """All twins."""
        norms = [tensor for pair in self._norms.values() for tensor in pair]
        rest = (self._plain, self._weights, self._biases, self._shifts)
        return [*norms, *(tensor for twins in rest for tensor in twins.values())]

    def _folding(self) -> list[Affine]:
        """The layers with a twin, and those whose bias is folded into theirs."""
        found, waiting = [], list({**self._weights, **self._biases})
        while waiting:
            affine = waiting.pop()
            found.append(affine)
            if affine.added is not None:
                waiting.append(affine.added)
        return found

    def _evaluate_static(self) -> dict[Node, Any]:
        """The values of the static nodes, from the present live tensors."""
        values: dict[Node, Any] = dict(self._live)

        def value(node: Node) -> Any:
            """A node's value; of one that is not static only dtype and device are read (`calls.CREATIONS`)."""
            if node in values:
                return values[node]
            return self._like_images.to(node.meta["val"].dtype)

        for node in self._static:
            assert callable(node.target)
            arguments = map_arg(node.args, value)
            keywords = map_arg(node.kwargs, value)
            values[node] = node.target(*arguments, **keywords)
        return values

    def _shift_and_scale(
        self, normalisation: Normalisation, values: dict[Node, Any]
    ) -> tuple[Tensor, Tensor]:
        """The shift [C, 1, 1] and scale [C] of (x - shift) * scale."""
        channels = normalisation.channels
        scale = self._like_images.new_ones(channels)
        offset = self._like_images.new_zeros(channels)
        for kind, value in normalisation.steps:
            number = values[value].reshape(-1) if isinstance(value, Node) else value
            if kind == "add":
                offset = offset + number
            elif kind == "sub":
                offset = offset - number
            elif kind == "mul":
                scale, offset = scale * number, offset * number
            else:
                scale, offset = scale / number, offset / number
        return (-offset / scale).view(channels, 1, 1), scale

    def _twin(self, tensor: Tensor, keep_dtype: bool) -> Tensor:
        """A copy in the twins' dtype and memory format."""
        lowered = self._dtype is not None and tensor.is_floating_point() and not keep_dtype
        layout = torch.contiguous_format
        if self._channels_last and tensor.dim() == 4:
            layout = torch.channels_last
        dtype = self._dtype if lowered else tensor.dtype
        return torch.empty_like(
            tensor, dtype=dtype, memory_format=layout, requires_grad=False
        ).copy_(tensor)


def _scales_and_shifts(norms: list[Norm], values: dict[Node, Any]) -> list[tuple[Tensor, Tensor]]:
    """(scale, shift) [C] of each BatchNorm as x * scale + shift; a few launches for all layers together."""
    if not norms:
        return []
    scales = torch._foreach_add([n.of(n.variance, values) for n in norms], [n.eps for n in norms])
    torch._foreach_rsqrt_(scales)
    weights = {i: n.of(n.weight, values) for i, n in enumerate(norms) if n.weight is not None}
    if weights:
        torch._foreach_mul_([scales[i] for i in weights], list(weights.values()))
    shifts = torch._foreach_mul([n.of(n.mean, values) for n in norms], scales)
    torch._foreach_neg_(shifts)
    biases = {i: n.of(n.bias, values) for i, n in enumerate(norms) if n.bias is not None}
    if biases:
        torch._foreach_add_([shifts[i] for i in biases], list(biases.values()))
    return list(zip(scales, shifts, strict=True))


def _bias(
    affine: Affine, values: dict[Node, Any], norms: dict[Norm, tuple[Tensor, Tensor]]
) -> Tensor:
    bias = None if affine.bias is None else values[affine.bias]
    if affine.norm is not None:
        scale, shift = norms[affine.norm]
        bias = shift if bias is None else torch.addcmul(shift, bias, scale)
    if affine.added is not None and affine.added.has_bias:
        other = _bias(affine.added, values, norms)
        bias = other if bias is None else bias + other
    assert bias is not None
    return bias


def _along(values: Tensor, dim: int, dims: int) -> Tensor:
    """Values [C], shaped to broadcast along dimension `dim` of a tensor of `dims` dimensions."""
    return values.view([-1 if d == dim else 1 for d in range(dims)])


def _columns_in_memory_order(weight: Tensor, affine: Affine) -> Tensor:
    """A linear layer's weight with its columns in the order of the features in memory (see `Affine.image`)."""
    if affine.image is None:
        return weight
    channels, places = affine.image
    return weight.reshape(len(weight), channels, places).transpose(1, 2).reshape(len(weight), -1)
