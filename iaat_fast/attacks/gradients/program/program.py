"""A program: made from a model once, refreshed from its weights, run for logits and image gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast.attacks.cudagraph import Replayed, capture_cuda
from iaat_fast.attacks.gradients.program.exported import ExportedForward
from iaat_fast.attacks.gradients.program.layers import Stem
from iaat_fast.attacks.gradients.program.lowering import Lowering
from iaat_fast.attacks.gradients.program.parameters import Parameters
from iaat_fast.attacks.gradients.program.segment import Segment
from iaat_fast.attacks.gradients.program.steps import fuse, take_stem
from iaat_fast.attacks.gradients.program.straight_line import Slots, StraightLine


class Program:
    """Logits and input gradients of a frozen copy of a model.

    Args:
        model: the live model, in the mode in which it is attacked; nothing in it is changed.
        images: an example [N, ...]; only its shape without N, its dtype and its device matter.
        dtype: precision of the program; None for that of the live weights. BatchNorm that is not folded computes in
            float32.
        fold: fold BatchNorm in eval mode into the layer before it.
        channels_last: store images channels last.
        stem: run a first 3x3 convolution over few channels as `ops.stem_conv_relu`, in one kernel from the float32
            images, and its gradient in one kernel with the PGD step. None: on CUDA, in half precision.

    Attributes:
        refresh: a function that copies the live weights.
        folded: number of BatchNorm layers folded.
        by_autograd: names of the ATen calls that autograd differentiates.

    Raises:
        Unshadowable: no program can be made of the model; the message says why.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        dtype: torch.dtype | None,
        fold: bool = True,
        channels_last: bool = True,
        stem: bool | None = None,
    ) -> None:
        exported = ExportedForward(model, images)
        lowering = Lowering(exported, dtype, channels_last=channels_last)
        steps = lowering.steps
        self.folded = fuse(
            steps,
            images=lowering.images,
            fold=fold,
            add_without_relu=images.device.type == "cpu",
        )
        if stem is None:
            stem = images.is_cuda and dtype in (torch.bfloat16, torch.float16)
        stem_step = None
        if stem and images.dtype == torch.float32:
            stem_step = take_stem(steps, lowering.images)
        self._parameters = Parameters(exported, lowering.static, dtype, channels_last=channels_last)
        for step in steps.all:
            step.operation.bind(self._parameters)
        # A launch for every folded layer, and a few for the rest: on CUDA captured in one graph.
        self.refresh = Replayed(
            self._parameters.refresh, images.device, capture_cuda if images.is_cuda else None
        )
        self.refresh()
        self._exported = exported
        self._images = lowering.images.operation
        self._line = StraightLine(steps, lowering.images)
        self._stem = None if stem_step is None else stem_step.operation
        self.operations = [step.operation for step in steps.all]
        self.by_autograd = tuple(
            str(node.target)
            for operation in self.operations
            if isinstance(operation, Segment)
            for node in operation.nodes
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, ...], in the program's precision."""
        line = self._line
        slots = line.empty_slots()
        slots[line.images] = self._images.forward(x)
        line.run(line.predict, slots)
        logits: Tensor = slots[line.logits]
        return logits

    def copied_forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] by the exported graph, not fused, on the live tensors in their precision."""
        return self._exported.run(x)

    @torch.no_grad()
    def input_vjp(
        self, x: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [N, C], and the gradient of the images for `cotangent(logits)`, in the program's precision.

        The gradient is None if the logits do not depend on the values of the images.
        """
        slots = self.run_forward(x)
        logits = self.logits(slots)
        return logits, self.run_backward(slots, cotangent(logits))

    @property
    def takes_steps(self) -> bool:
        """Whether the program has a stem, so that `step_` may be called."""
        return isinstance(self._stem, Stem) and self._line.first_layer is not None

    @torch.no_grad()
    def step_(self, x_adv: Tensor, cotangent: Callable[[Tensor], Tensor], *rest: Any) -> None:
        """One PGD step, in place, which never stores the gradient of the images.

        Args:
            x_adv: float32 images [K*N, C, H, W], overwritten.
            cotangent: as `input_vjp`'s.
            rest: the arguments of `ops.pgd_step_linf_` from x on.
        """
        assert isinstance(self._stem, Stem)
        assert self._line.first_layer is not None
        slots = self.run_forward(x_adv)
        slots[self._line.cotangent] = cotangent(self.logits(slots)).to(self.logits(slots).dtype)
        self._line.run(self._line.backward[:-1], slots)
        self._stem.step_(slots[self._line.first_layer], x_adv, *rest)

    def run_forward(self, x: Tensor) -> Slots:
        """The first half of `input_vjp`: the forward; returns the slots that hold logits and saved values."""
        line = self._line
        slots = line.empty_slots()
        slots[line.images] = self._images.forward(x)
        line.run(line.forward, slots)
        return slots

    def logits(self, slots: Slots) -> Tensor:
        """The logits [N, C] in the slots of `run_forward`."""
        logits: Tensor = slots[self._line.logits]
        return logits

    def run_backward(self, slots: Slots, cotangent: Tensor) -> Tensor | None:
        """The second half of `input_vjp`: the gradient of the images. The slots cannot be used again."""
        line = self._line
        slots[line.cotangent] = cotangent.to(self.logits(slots).dtype)
        line.run(line.backward, slots)
        return None if line.gradient is None else slots[line.gradient]

    def tensors(self) -> list[Tensor]:
        """All tensors computed from the live ones (`parameters.py`)."""
        return self._parameters.tensors()
