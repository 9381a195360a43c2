"""The classes of the training methods: how each makes its training images, its loss, and its passes of the network.

Each row of `iaat_fast.methods` that is a choice of `--method` has a file of the same name here, with its class.
"""

from __future__ import annotations

from importlib import import_module

from iaat_fast import methods
from iaat_fast.train.methods.method import Batch, Drawn, Method, Outcome


def _class_of(name: str) -> type[Method]:
    module = import_module(f"{__name__}.{name}")
    own = [
        value
        for value in vars(module).values()
        if getattr(value, "__module__", "") == module.__name__
    ]
    (found,) = (value for value in own if isinstance(value, type) and issubclass(value, Method))
    return found


METHODS: dict[str, type[Method]] = {name: _class_of(name) for name in methods.NAMES}
"""The class of every choice of `--method`."""

__all__ = ["METHODS", "Batch", "Drawn", "Method", "Outcome"]
