"""What a program reads besides the images: twins, copies of the live weights in its precision with all folded in.

Everything that depends on the model's tensors alone is computed when a program is refreshed, not in its steps:
BatchNorm folded into the layer before it, normalisation into the layer after it, standardised or parametrised weights.
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
    """BatchNorm in eval mode: the nodes of its weights and statistics."""

    weight: Node | None
    bias: Node | None
    mean: Node
    variance: Node
    eps: float


@dataclasses.dataclass(eq=False)
class Normalisation:
    """What is done to each channel of the images before the first layer: "add", "sub", "mul" or "div" by a value.

    All of it is (x - shift) * scale: the scale goes into the layer's weight, the shift stays, for zero padding comes
    after it.
    """

    channels: int
    steps: list[tuple[str, Node | float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Affine:
    """Weight and bias of a convolution or linear layer, and what is folded into them.

    weight, bias: nodes of the layer's own.
    norm: the BatchNorm that follows.
    normalisation: of the images, where they are what the layer reads.
    added: the layer whose output is added to this one's: its bias is added to this one's, too.
    out_dim: the dimension of the weight that counts output channels.
    image: (C, H * W) where the layer reads a flattened channels_last tensor, whose features come in another order.
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
    """The twins of a program, made one by one while it is lowered, and refreshed together.

    Args:
        exported: the graph, whose live tensors are read.
        static: its nodes that depend on these tensors alone, in order.
        dtype: of the twins of floating-point tensors; None for their own.
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
            self._values: dict[Node, Any] = self._evaluated()

    def plain(self, node: Node, *, keep_dtype: bool = False) -> Any:
        """The twin of what a static node gives, or that itself where it is no tensor."""
        value = self._values[node]
        if not isinstance(value, Tensor):
            return value
        if (node, keep_dtype) not in self._plain:
            self._plain[node, keep_dtype] = self._twin(value, keep_dtype)
        return self._plain[node, keep_dtype]

    def norm(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """Scale and shift [C], float32 (float64 for a model in float64)."""
        if norm not in self._norms:
            ((scale, shift),) = _scales_and_shifts([norm], self._values)
            wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
            self._norms[norm] = (scale.to(wide).clone(), shift.to(wide).clone())
        return self._norms[norm]

    def weight(self, affine: Affine) -> Tensor:
        """The folded weight."""
        if affine not in self._weights:
            # Its values come with `refresh`: what is folded into it may still grow.
            self._weights[affine] = self._twin(self._values[affine.weight], False)
        return self._weights[affine]

    def bias(self, affine: Affine, *, wide: bool = False) -> Tensor | None:
        """The folded bias [C], None where there is none; `wide`: in float32."""
        if not affine.has_bias:
            return None
        if affine not in self._biases:
            weight = self._values[affine.weight]
            dtype = torch.float32 if wide else self._dtype or weight.dtype
            self._biases[affine] = weight.new_empty(weight.shape[affine.out_dim], dtype=dtype)
        return self._biases[affine]

    def shift(self, normalisation: Normalisation) -> Tensor:
        """What is subtracted from the images, [C, 1, 1], in their dtype."""
        if normalisation not in self._shifts:
            shift, _ = self._shift_and_scale(normalisation, self._values)
            self._shifts[normalisation] = shift.clone()
        return self._shifts[normalisation]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live tensors: a launch per folded weight, and a handful for all the rest."""
        values = self._evaluated()
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
            weight = _in_order(values[affine.weight], affine)
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
        """The layers with a twin, and those whose bias went into them."""
        found, waiting = [], list({**self._weights, **self._biases})
        while waiting:
            affine = waiting.pop()
            found.append(affine)
            if affine.added is not None:
                waiting.append(affine.added)
        return found

    def _evaluated(self) -> dict[Node, Any]:
        """What the static nodes give for the live tensors as they are."""
        values: dict[Node, Any] = dict(self._live)
        for node in self._static:
            assert callable(node.target)
            arguments = map_arg(node.args, values.__getitem__)
            keywords = map_arg(node.kwargs, values.__getitem__)
            values[node] = node.target(*arguments, **keywords)
        return values

    def _shift_and_scale(
        self, normalisation: Normalisation, values: dict[Node, Any]
    ) -> tuple[Tensor, Tensor]:
        """(x - shift) * scale: [C, 1, 1] and [C]."""
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
        lowered = self._dtype is not None and tensor.is_floating_point() and not keep_dtype
        layout = torch.contiguous_format
        if self._channels_last and tensor.dim() == 4:
            layout = torch.channels_last
        dtype = self._dtype if lowered else tensor.dtype
        return torch.empty_like(
            tensor, dtype=dtype, memory_format=layout, requires_grad=False
        ).copy_(tensor)


def _scales_and_shifts(norms: list[Norm], values: dict[Node, Any]) -> list[tuple[Tensor, Tensor]]:
    """BatchNorm as x * scale + shift; a few launches for all layers together."""
    if not norms:
        return []
    scales = torch._foreach_add([values[n.variance] for n in norms], [n.eps for n in norms])
    torch._foreach_rsqrt_(scales)
    weights = {i: values[norm.weight] for i, norm in enumerate(norms) if norm.weight is not None}
    if weights:
        torch._foreach_mul_([scales[i] for i in weights], list(weights.values()))
    shifts = torch._foreach_mul([values[n.mean] for n in norms], scales)
    torch._foreach_neg_(shifts)
    biases = {i: values[norm.bias] for i, norm in enumerate(norms) if norm.bias is not None}
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
    """[C] to be broadcast along one dimension of a weight."""
    return values.view([-1 if d == dim else 1 for d in range(dims)])


def _in_order(weight: Tensor, affine: Affine) -> Tensor:
    """The columns of a linear layer's weight in the order in which its features lie in memory."""
    if affine.image is None:
        return weight
    channels, places = affine.image
    return weight.reshape(len(weight), channels, places).transpose(1, 2).reshape(len(weight), -1)
