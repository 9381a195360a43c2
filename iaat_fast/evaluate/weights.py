"""Weights of a user's own: a state dict as projects save it, into a model, or a clear refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts store the state dict beside other things."""

SHOWN = 3


def fit_weights(model: nn.Module, content: Any, source: str) -> None:
    """Load `content` into `model`, which must fit in every name and shape.

    Args:
        model: is given the weights.
        content: what `files.load_tensors` found: a state dict, or a mapping with one under a key of
            `WRAPPERS`; names may begin with "module." as DistributedDataParallel writes them.
        source: the file it came from, for messages.

    Raises:
        ValueError: no state dict, or one that does not fit; the first few names are in the message.
    """
    state = _state_dict(content, source)
    own = model.state_dict()
    shapes = [
        f"{name} {list(value.shape)}, in the model {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if shapes:
        raise ValueError(f"{source}: does not fit the model: other shapes ({_few(shapes)})")
    # torch fills in what old versions did not save, BatchNorm's batch counters.
    missing, unexpected = model.load_state_dict(state, strict=False)
    found = [
        f"{len(names)} {kind} ({_few(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if found:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(found)}")


def _state_dict(content: Any, source: str) -> dict[str, Tensor]:
    state = content
    while isinstance(state, Mapping):
        inner = [key for key in WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = state[inner[0]]
    if not (
        isinstance(state, Mapping)
        and state
        and all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state)
    ):
        wrapped = " or ".join(repr(key) for key in WRAPPERS)
        raise ValueError(f"{source}: expected a state dict (names to tensors), or one in {wrapped}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
