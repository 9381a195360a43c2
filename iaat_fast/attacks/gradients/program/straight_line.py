"""Order a program's steps as instructions: forward to the logits, and in reverse to the gradient of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from iaat_fast.attacks.gradients.program.operations import (
    MultiOutput,
    Operation,
    Pick,
    ScaleShift,
)
from iaat_fast.attacks.gradients.program.segment import SizeArithmetic
from iaat_fast.attacks.gradients.program.steps import Step, Steps

_relu_backward_ = torch.ops.iaat_fast.relu_backward_.default

Slots = list[Any]
"""The values of one run, by slot number."""


@dataclasses.dataclass
class Instruction:
    """Reads some slots and writes others; `frees`: slots that no later instruction reads."""

    run: Callable[[Slots], None]
    reads: Sequence[int]
    writes: Sequence[int]
    frees: tuple[int, ...] = ()


@dataclasses.dataclass
class _Gradient:
    """A gradient of a value, from one of its readers; fresh: nothing else uses its memory, so it may be overwritten."""

    slot: int
    fresh: bool


class StraightLine:
    """The instructions of a program.

    Attributes:
        forward: instructions up to the logits; they keep what `backward` reads.
        backward: instructions from the gradient of the logits to that of the images.
        predict: as `forward`, but keeping the logits only.
        images, logits: slots of the images and of the logits.
        cotangent: slot of the gradient of the logits.
        gradient: slot of the gradient of the images; None if it is always 0.
        first_layer: slot that the last instruction of `backward` reads; None if images have more than one gradient.
    """

    def __init__(self, steps: Steps, images: Step) -> None:
        self._count = 0
        self._values = {step: self._slot() for step in steps.all}
        self._extras = {s: self._slot() for s in steps.all if s.operation.has_extra}
        self._sums = _sums_made_in_norms(steps)
        assert steps.result is not None
        self.logits, self.cotangent = self._values[steps.result], self._slot()
        self.images = self._values[images]
        self.forward = [self._forward(step) for step in steps.all if step is not images]
        self.backward: list[Instruction] = []
        self._gradients: dict[Step, list[_Gradient]] = {step: [] for step in steps.all}
        self._parts: dict[Step, dict[int, int]] = {}
        self._gradients[steps.result] = [_Gradient(self.cotangent, False)]
        self._depends_on_images = _depending_on(steps, images)
        self.gradient: int | None = None
        for step in reversed(steps.all):
            if step in self._depends_on_images:
                self._reverse(step, images)
        self.first_layer: int | None = None
        if self.backward and len(self._gradients[images]) == 1:
            self.first_layer = self.backward[-1].reads[0]
        if self._gradients[images]:
            self.gradient = self._gradient_of(images).slot
        kept = {self.cotangent, self.logits, *([] if self.gradient is None else [self.gradient])}
        _free_after_last_use([*self.forward, *self.backward], kept)
        self.predict = [dataclasses.replace(i, frees=()) for i in self.forward]
        _free_after_last_use(self.predict, {self.logits})

    def run(self, instructions: list[Instruction], slots: Slots) -> None:
        for instruction in instructions:
            instruction.run(slots)
            for slot in instruction.frees:
                slots[slot] = None

    def empty_slots(self) -> Slots:
        return [None] * self._count

    def _slot(self) -> int:
        self._count += 1
        return self._count - 1

    def _forward(self, step: Step) -> Instruction:
        function, out = step.operation.forward, self._values[step]
        inputs = tuple(self._values[s] for s in step.inputs)
        extra = self._extras.get(step)

        def plain(slots: Slots) -> None:
            slots[out] = function(*[slots[i] for i in inputs])

        if extra is None:
            return Instruction(plain, inputs, (out,))

        def with_extra(slots: Slots) -> None:
            slots[out], slots[extra] = function(*[slots[i] for i in inputs])

        return Instruction(with_extra, inputs, (out, extra))

    def _reverse(self, step: Step, images: Step) -> None:
        """Add the instructions that compute the gradients of a step's inputs from that of its value."""
        operation = step.operation
        if isinstance(operation, SizeArithmetic) or step is images:
            return
        if isinstance(operation, MultiOutput):
            if self._parts.get(step):
                self._through_multi_output(step, operation)
            return
        if not self._gradients[step]:
            return
        if isinstance(operation, ScaleShift):
            self._through_norm(step, operation)
            return
        grad = self._gradient_of(step)
        if isinstance(operation, Pick):
            self._parts.setdefault(step.inputs[0], {})[operation.position] = grad.slot
            return
        shortcut = self._sums.get(step)
        if shortcut is not None:
            grad.fresh = False
            self._gradients[shortcut].append(_Gradient(grad.slot, False))
        self._through(step, operation, grad)

    def _through(self, step: Step, operation: Operation, gradient: _Gradient) -> None:
        wanted = [s in self._depends_on_images for s in step.inputs]
        if not any(wanted):
            return
        kept = [
            self._values[s] if i in operation.keeps else None for i, s in enumerate(step.inputs)
        ]
        output = self._values[step] if operation.keeps_output else None
        extra = self._extras.get(step)
        results = [self._slot() if want else None for want in wanted]
        function, grad = operation.backward, gradient.slot
        new = operation.fresh or (operation.passes and gradient.fresh)

        def run(slots: Slots) -> None:
            found = function(
                slots[grad],
                [None if i is None else slots[i] for i in kept],
                None if output is None else slots[output],
                None if extra is None else slots[extra],
            )
            for slot, value in zip(results, found, strict=False):
                if slot is not None:
                    slots[slot] = value

        reads = [grad, *(i for i in (*kept, output, extra) if i is not None)]
        self._emit(run, reads, [slot for slot in results if slot is not None])
        for position, (source, slot) in enumerate(zip(step.inputs, results, strict=True)):
            if slot is not None:
                # A convolution passes its gradient itself on to the value that was added to it.
                fresh = new and not (operation.name == "convolution" and position)
                self._gradients[source].append(_Gradient(slot, fresh))

    def _through_norm(self, step: Step, operation: ScaleShift) -> None:
        """As `_through` for BatchNorm, whose kernel can add one other gradient of the same input."""
        source, output = step.inputs[0], self._values[step]
        grad = self._writable(self._summed(step), step)
        others = self._gradients[source]
        residual = others.pop().slot if others and not source.operation.clamps else None
        result, function = self._slot(), operation.backward_

        def run(slots: Slots) -> None:
            slots[result] = function(
                slots[grad], slots[output], None if residual is None else slots[residual]
            )

        reads = [grad, output] if residual is None else [grad, output, residual]
        self._emit(run, reads, [result])
        others.append(_Gradient(result, True))

    def _through_multi_output(self, step: Step, operation: MultiOutput) -> None:
        extra, parts = self._extras[step], self._parts[step]
        grads = [parts.get(position) for position in range(operation.count)]
        results = [self._slot() if s in self._depends_on_images else None for s in step.inputs]

        def run(slots: Slots) -> None:
            found = operation.backward_all(
                [None if i is None else slots[i] for i in grads], slots[extra]
            )
            for slot, value in zip(results, found, strict=True):
                if slot is not None:
                    slots[slot] = value

        reads = [extra, *(i for i in grads if i is not None)]
        self._emit(run, reads, [slot for slot in results if slot is not None])
        for source, slot in zip(step.inputs, results, strict=True):
            if slot is not None:
                self._gradients[source].append(_Gradient(slot, operation.fresh))

    def _gradient_of(self, step: Step) -> _Gradient:
        """The gradient of a step's value before its clamp: the sum over its readers, masked."""
        operation = step.operation
        if not operation.clamps:
            return self._summed(step)
        gradients = self._gradients[step]
        other = None
        if len(gradients) > 1:
            # The last addition is done in the same kernel as the mask.
            fresh = [g for g in gradients if g.fresh]
            target = fresh[0] if fresh else gradients[0]
            rest = [g for g in gradients if g is not target]
            other = rest.pop().slot
            self._gradients[step] = [target, *rest]
        grad = self._writable(self._summed(step), step)
        output, result = self._values[step], self._slot()
        floor, ceiling = operation.floor, operation.ceiling

        def run(slots: Slots) -> None:
            target = slots[grad]
            added = None if other is None else slots[other]
            _relu_backward_(target, slots[output], added, floor, ceiling)
            slots[result] = target

        reads = [grad, output] if other is None else [grad, output, other]
        self._emit(run, reads, [result])
        return _Gradient(result, True)

    def _summed(self, step: Step) -> _Gradient:
        """The sum of all gradients of a value, in place if one of them is fresh."""
        gradients = self._gradients[step]
        total = next((g for g in gradients if g.fresh), gradients[0])
        for gradient in [g for g in gradients if g is not total]:
            total = self._add(total, gradient)
        self._gradients[step] = [total]
        return total

    def _add(self, total: _Gradient, more: _Gradient) -> _Gradient:
        a, b, result, in_place = total.slot, more.slot, self._slot(), total.fresh

        def run(slots: Slots) -> None:
            slots[result] = slots[a].add_(slots[b]) if in_place else slots[a] + slots[b]

        self._emit(run, [a, b], [result])
        return _Gradient(result, True)

    def _writable(self, gradient: _Gradient, step: Step) -> int:
        """A slot with this gradient that may be overwritten; a copy has the memory format of the step's value."""
        if gradient.fresh:
            return gradient.slot
        source, like, result = gradient.slot, self._values[step], self._slot()

        def run(slots: Slots) -> None:
            slots[result] = torch.empty_like(slots[like]).copy_(slots[source])

        self._emit(run, [source, like], [result])
        return result

    def _emit(
        self, run: Callable[[Slots], None], reads: Sequence[int], writes: Sequence[int]
    ) -> None:
        self.backward.append(Instruction(run, tuple(reads), tuple(writes)))


def _sums_made_in_norms(steps: Steps) -> dict[Step, Step]:
    """{step: shortcut} where the BatchNorm that reads the step adds the shortcut to its value in place."""
    return {
        step.inputs[0]: step.inputs[1]
        for step in steps.all
        if isinstance(step.operation, ScaleShift) and len(step.inputs) == 2
    }


def _depending_on(steps: Steps, images: Step) -> set[Step]:
    """The steps whose values depend on the values of the images, not only on their number."""
    found = {images}
    for step in steps.all:
        if not isinstance(step.operation, SizeArithmetic) and any(s in found for s in step.inputs):
            found.add(step)
    return found


def _free_after_last_use(instructions: list[Instruction], kept: set[int]) -> None:
    """Set each instruction's `frees`; the slots `kept` are never freed."""
    seen = set(kept)
    for instruction in reversed(instructions):
        touched = dict.fromkeys((*instruction.reads, *instruction.writes))
        instruction.frees = tuple(slot for slot in touched if slot not in seen)
        seen.update(touched)
