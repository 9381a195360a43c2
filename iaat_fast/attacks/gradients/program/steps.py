"""The steps of a program as a graph, and the fusions of neighbouring steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from iaat_fast.attacks.gradients.program.layers import Convolution, Linear, Stem
from iaat_fast.attacks.gradients.program.operations import (
    Add,
    Clamp,
    Images,
    Operation,
    Pick,
    ScaleShift,
    WithConstant,
)
from iaat_fast.attacks.gradients.program.parameters import Normalisation
from iaat_fast.attacks.gradients.program.segment import SizeArithmetic
from iaat_fast.attacks.gradients.program.views import (
    Cat,
    FlattenImages,
    Part,
    Reshape,
    Slice,
    Split,
)
from iaat_fast.ops.stem import CHANNELS, MULTIPLE


class Step:
    """An operation and the steps whose values it reads.

    shape: that of its value, with None for the number of images and sizes computed from it.
    """

    def __init__(
        self, operation: Operation, inputs: list[Step], shape: tuple[int | None, ...]
    ) -> None:
        self.operation, self.inputs, self.shape = operation, inputs, shape
        self.users: list[Step] = []
        for step in inputs:
            step.users.append(self)

    @property
    def only_user(self) -> Step | None:
        return self.users[0] if len(self.users) == 1 else None


class Steps:
    """All steps, in an order in which they can be run; `result` is the step of the logits."""

    def __init__(self) -> None:
        self.all: list[Step] = []
        self.result: Step | None = None

    def add(self, operation: Operation, inputs: list[Step], shape: tuple[int | None, ...]) -> Step:
        step = Step(operation, inputs, shape)
        self.all.append(step)
        return step

    def insert(self, operation: Operation, source: Step, *, before: list[Step]) -> Step:
        """Add a step that reads `source` and has its shape, before the first of some others."""
        step = Step(operation, [source], source.shape)
        self.all.insert(min(self.all.index(other) for other in before), step)
        return step

    def absorb(self, step: Step, into: Step) -> None:
        """Remove `step`: its input `into` now computes its value, and takes its position in the order."""
        for user in list(step.users):
            user.inputs = [into if s is step else s for s in user.inputs]
        into.users = [user for user in into.users if user is not step] + step.users
        if self.result is step:
            self.result = into
        for other in step.inputs:
            if other is not into:
                other.users.remove(step)
        self.all.remove(into)
        self.all[self.all.index(step)] = into

    def drop_unused(self) -> None:
        """Remove steps whose values are not read."""
        for step in reversed(list(self.all)):
            if not step.users and step is not self.result:
                for other in step.inputs:
                    other.users.remove(step)
                self.all.remove(step)


def fuse(steps: Steps, *, images: Step, fold: bool, add_without_relu: bool) -> int:
    """Apply all fusions, in place; returns the number of BatchNorm layers folded.

    Args:
        images: the step of the images.
        fold: fold BatchNorm into the layer before it.
        add_without_relu: fuse a sum into a convolution even if no ReLU follows.
    """
    _split_at_once(steps)
    folded = sum(1 for _ in _fold_norms(steps)) if fold else 0
    _normalise_in_first_layer(steps, images)
    _flatten_channels_last(steps)
    _clamp_at_the_end(steps)
    _sum_in_convolutions(steps, add_without_relu=add_without_relu)
    _sum_in_norms(steps)
    return folded


def take_stem(steps: Steps, images: Step) -> Step | None:
    """Replace the first convolution by a `Stem`, and return its step; None if the op does not support it.

    Call it after `fuse`, for float32 images and a program in half precision.
    """
    step = images.only_user
    if step is None or not isinstance(step.operation, Convolution) or len(step.inputs) != 1:
        return None
    layer, channels, outputs = step.operation, images.shape[1], step.shape[1]
    shape = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
    if shape != ([3, 3], [1, 1], [1, 1], [1, 1], 1) or layer.transposed:
        return None
    if channels is None or channels > CHANNELS or outputs is None or outputs % MULTIPLE:
        return None
    assert isinstance(images.operation, Images)
    step.operation = Stem(layer, images.operation.normalisation)
    images.operation.raw = True
    return step


def _split_at_once(steps: Steps) -> None:
    """Replace parts that a value is divided into, without a gap, by one `Split`.

    The gradient is then one concatenation, not a sum of as many tensors of the whole size.
    """
    for source in list(steps.all):
        groups: dict[tuple[type[Part], int], list[Step]] = {}
        for step in source.users:
            part = step.operation
            if isinstance(part, Part):
                groups.setdefault((type(part), part.dim), []).append(step)
        for (kind, dim), users in groups.items():
            users.sort(key=_start)
            sizes = _sizes_of_parts(users, source.shape[dim])
            if sizes is None:
                continue
            split = steps.insert(Split(dim, sizes, keepdim=kind is Slice), source, before=users)
            for position, step in enumerate(users):
                step.operation, step.inputs = Pick(position), [split]
                source.users.remove(step)
                split.users.append(step)


def _start(step: Step) -> int:
    assert isinstance(step.operation, Part)
    return step.operation.start


def _sizes_of_parts(users: list[Step], size: int | None) -> list[int] | None:
    """The sizes of at least two parts, in order, that are together all of a dimension of `size`; None for others."""
    sizes, end = [], 0
    for step in users:
        part = step.operation
        assert isinstance(part, Part)
        if part.step != 1 or part.start != end:
            return None
        end = part.end
        sizes.append(end - part.start)
    return sizes if len(sizes) > 1 and end == size else None


def _fold_norms(steps: Steps) -> Iterator[Step]:
    """Fold BatchNorm into the layers whose outputs it alone reads; yields the step that each is folded into."""
    for step in list(steps.all):
        if not isinstance(step.operation, ScaleShift):
            continue
        before = step.inputs[0]
        if before.only_user is not step or before is steps.result:
            continue
        layers = list(_layers_of_channels(before))
        if not layers:
            continue
        norm, start = step.operation.norm, 0
        for layer, channels in layers:
            end = start + channels
            whole = len(layers) == 1
            layer.affine.norm = norm if whole else dataclasses.replace(norm, channels=(start, end))
            start = end
        steps.absorb(step, before)
        yield before


def _layers_of_channels(step: Step) -> Iterator[tuple[Convolution | Linear, int]]:
    """The layers whose outputs are consecutive channels of a value [N, C, ...], and how many each; none for others.

    It is one layer, a concatenation of convolutions, or the rows of a linear layer's output (LeViT).
    """
    parts, rows = [step], False
    if isinstance(step.operation, Cat) and step.operation.dim == 1:
        parts = step.inputs
    elif isinstance(step.operation, Reshape) and len(step.shape) == 2:
        parts, rows = step.inputs[:1], True
        if not isinstance(parts[0].operation, Linear) or parts[0].shape[-1:] != step.shape[1:]:
            return
    found = []
    for part in parts:
        layer, channels = part.operation, part.shape[-1 if rows else 1]
        if part is not step and part.only_user is not step:
            return
        if not isinstance(layer, (Convolution, Linear)) or layer.affine.norm is not None:
            return
        if isinstance(layer, Convolution) and layer.transposed and layer.groups > 1:
            return  # its output channels are spread over two dimensions of the weight
        if isinstance(layer, Linear) and not rows and len(part.shape) != 2:
            return  # BatchNorm normalises dimension 1, the layer the last
        assert channels is not None
        found.append((layer, channels))
    yield from found


def _normalise_in_first_layer(steps: Steps, images: Step) -> None:
    """Fuse arithmetic with constants per channel between the images and a convolution (see `Normalisation`)."""
    if len(images.shape) != 4 or images.shape[1] is None:
        return
    chain: list[Step] = []
    # Steps that only read the number of images do not count as readers.
    readers = [step for step in images.users if not isinstance(step.operation, SizeArithmetic)]
    step = readers[0] if len(readers) == 1 else None
    normalisation = Normalisation(images.shape[1])
    while step is not None and isinstance(step.operation, WithConstant):
        constant = step.operation.per_channel(normalisation.channels)
        if constant is None or step.operation.name == "rsub" or step is steps.result:
            return
        normalisation.steps.append((step.operation.name, constant))
        chain.append(step)
        step = step.only_user
    if not chain or step is None or not isinstance(step.operation, Convolution):
        return
    layer = step.operation
    if layer.transposed or layer.groups != 1:
        return
    assert isinstance(images.operation, Images)
    layer.affine.normalisation = images.operation.normalisation = normalisation
    for between in chain:
        steps.absorb(between, images)
        steps.all.remove(images)
        steps.all.insert(0, images)


def _flatten_channels_last(steps: Steps) -> None:
    """Flatten channels_last tensors without a copy, by reordering the columns of the linear layer that reads them."""
    for step in steps.all:
        if not isinstance(step.operation, Reshape) or len(step.shape) != 2:
            continue
        before, layer = step.inputs[0], step.only_user
        if len(before.shape) != 4 or layer is None or not isinstance(layer.operation, Linear):
            continue
        _, channels, height, width = before.shape
        if channels is None or height is None or width is None or step is steps.result:
            continue
        if step.shape[1] != channels * height * width or height * width == 1:
            continue
        for size in step.inputs[1:]:
            size.users.remove(step)
        step.inputs = [before]
        step.operation = FlattenImages()
        layer.operation.affine.image = (channels, height * width)


def _clamp_at_the_end(steps: Steps) -> None:
    """Fuse clamps (ReLU, ReLU6) into the operation before them, if it makes a new tensor that nothing else reads."""
    for step in list(steps.all):
        before = step.inputs[0] if step.inputs else None
        if not isinstance(step.operation, Clamp) or before is None:
            continue
        if not before.operation.owns_output or before.operation.clamps:
            continue
        if before.only_user is not step or before is steps.result:
            continue
        if not isinstance(before.operation, (Convolution, Linear, ScaleShift, Add, Cat)):
            continue
        before.operation.floor = step.operation.floor
        before.operation.ceiling = step.operation.ceiling
        steps.absorb(step, before)


def _sum_in_convolutions(steps: Steps, *, add_without_relu: bool) -> None:
    """Fuse the sum of a main path and a shortcut, and its clamp, into the last convolution of the main path."""
    for step in list(steps.all):
        add = step.operation
        if not isinstance(add, Add) or len(step.inputs) != 2 or step.inputs[0] is step.inputs[1]:
            continue
        if step.inputs[0].shape != step.inputs[1].shape:
            continue
        relu = add.floor == 0 and add.ceiling == math.inf
        if not relu and not add_without_relu:
            continue
        for main, shortcut in (step.inputs, reversed(step.inputs)):
            if _can_end_in_sum(main, step) and main.inputs[0] is not shortcut:
                break
        else:
            continue
        assert isinstance(main.operation, Convolution)
        main.operation.floor, main.operation.ceiling = add.floor, add.ceiling
        if _can_end_in_sum(shortcut, step):
            # Fold the shortcut's bias into the main path's, which saves an addition.
            assert isinstance(shortcut.operation, Convolution)
            main.operation.affine.added = shortcut.operation.affine
            shortcut.operation.gives_bias_away = True
        steps.absorb(step, main)
        main.inputs.append(shortcut)
        shortcut.users.append(main)


def _can_end_in_sum(step: Step, sum_step: Step) -> bool:
    """Whether a convolution can take in a sum: nothing else reads it, and it has no clamp or sum yet."""
    operation = step.operation
    return (
        isinstance(operation, Convolution)
        and not operation.transposed
        and not operation.clamps
        and len(step.inputs) == 1
        and step.only_user is sum_step
    )


def _sum_in_norms(steps: Steps) -> None:
    """Fuse a sum into the BatchNorm after it, which then overwrites one of the summands with the sum."""
    for step in list(steps.all):
        if not isinstance(step.operation, ScaleShift) or len(step.inputs) != 1:
            continue
        summed = step.inputs[0]
        add = summed.operation
        if not isinstance(add, Add) or add.clamps or summed is steps.result:
            continue
        if summed.inputs[0].shape != summed.inputs[1].shape:
            continue
        # The BatchNorm must be the first reader, since later ones read the sum that it stores.
        if min(summed.users, key=steps.all.index) is not step:
            continue
        for main, shortcut in (summed.inputs, reversed(summed.inputs)):
            if main is not shortcut and main.only_user is summed and _overwritable(main):
                break
        else:
            continue
        steps.absorb(summed, main)
        step.inputs = [main, shortcut]
        shortcut.users.append(step)


def _overwritable(step: Step) -> bool:
    """Whether a step's value may be overwritten after it is read: its own gradient does not need it."""
    operation = step.operation
    if isinstance(operation, ScaleShift):
        return False  # its backward overwrites the gradient, which the shortcut needs too
    return operation.owns_output and not operation.keeps_output and not operation.clamps
