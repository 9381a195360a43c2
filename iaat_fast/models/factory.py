"""`load_factory`: a user's own model, named on the command line as "package.module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn


def load_factory(spec: str) -> Callable[..., nn.Module]:
    """Import the callable that `spec` names: a function, or a class of modules.

    The module is searched for where Python searches: with `python -m`, the current directory first.
    Importing it runs its code.

    Args:
        spec: "package.module:function"; "function" may be dotted ("Class.method").

    Returns:
        The callable; calling it raises TypeError unless it returns an `nn.Module`.

    Raises:
        ValueError: `spec` is not of that form, its module cannot be imported or has no such name.
        TypeError: the name is not a callable.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f"model factory: expected 'package.module:function', got {spec!r}")
    try:
        target: Any = importlib.import_module(module_name)
    # The module is the user's: whatever it raises while it is imported, the factory is unusable.
    except Exception as error:
        raise ValueError(
            f"model factory {spec!r}: importing {module_name} failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise ValueError(f"model factory {spec!r}: {target!r} has no {name!r}")
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"model factory {spec!r}: expected a callable, got {type(target).__name__}")

    def factory(*args: Any, **kwargs: Any) -> nn.Module:
        model = target(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model factory {spec!r}: expected it to return an nn.Module, "
                f"got {type(model).__name__}"
            )
        return model

    return factory
