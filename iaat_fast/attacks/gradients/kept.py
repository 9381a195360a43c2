"""The gradient sources of a model, one for each shape of images, kept for as long as the model is as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import nn

from iaat_fast.attacks.gradients.copying import ChosenSource
from iaat_fast.attacks.model.snapshot import AttributeSnapshot

# Number of image shapes whose gradient sources are kept.
_MOST = 4


class KeptSources:
    """Gradient sources by shape of images.

    Attributes:
        made_for: what they were made for, see `follow`.
        stale: why there is to be neither copy nor capture until the model changes; None if there may be.
    """

    def __init__(self) -> None:
        self.made_for: Hashable = None
        self.stale: str | None = None
        self._by_shape: OrderedDict[Hashable, ChosenSource] = OrderedDict()
        self._attributes: AttributeSnapshot | None = None
        self._is_new = False

    def follow(self, made_for: Hashable, modules: list[nn.Module]) -> bool:
        """Drop all sources unless the model is as it was for the last call; returns whether it was not.

        Args:
            made_for: options, precision and the identity of the model's tensors.
            modules: those of the model, whose attributes are compared too.
        """
        if made_for == self.made_for and self._attributes and self._attributes.unchanged():
            return False
        self._forget()
        self._attributes, self._is_new = AttributeSnapshot(modules), True
        self.made_for = made_for
        return True

    def end_attack(self) -> None:
        """After the first attack since a change: what its forwards changed in the model's attributes does not count."""
        if self._attributes is not None and self._is_new:
            self._attributes.ignore_changes()
            self._is_new = False

    def get(self, shape: Hashable) -> ChosenSource | None:
        """The source for a shape of images, if one is kept."""
        if shape in self._by_shape:
            self._by_shape.move_to_end(shape)
        return self._by_shape.get(shape)

    def keep(self, shape: Hashable, source: ChosenSource) -> bool:
        """Keep a source; returns whether the one that was used the longest ago had to go for it."""
        self._by_shape[shape] = source
        if len(self._by_shape) <= _MOST:
            return False
        self._by_shape.popitem(last=False)
        return True

    def give_up(self, reason: str) -> None:
        """Drop all sources, and make no copies until the model changes."""
        self._forget()
        self.stale = reason

    def _forget(self) -> None:
        self._by_shape.clear()
        self.stale = None
