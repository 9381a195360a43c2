"""Loads a user's own weights into a model, from state dicts in the forms in which projects save them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger("iaat_fast")

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module")
"""Keys under which training scripts store the state dict next to other things."""

AVERAGES = ("ema", "ema_state_dict", "state_dict_ema", "ema_model", "model_ema")
"""Keys of an average of the weights, which is taken only if nothing else fits."""

WRAPPING_MODULES = ("module", "_orig_mod")
"""What DataParallel, DistributedDataParallel and AveragedModel, and torch.compile put into the names."""

COUNTER = "n_averaged"
"""What torch's AveragedModel stores next to the averaged weights."""

SHOWN = 3

State = Mapping[str, Any]


class Found(NamedTuple):
    """A state dict in a file, under the names of the model; `where` is its place in the file."""

    where: str
    averaged: bool
    state: State


def fit_weights(model: nn.Module, content: Any, source: str) -> None:
    """Load `content` into `model`, which must fit in every name and shape.

    Args:
        model: is given the weights.
        content: what `storage.load_tensors` returned: a state dict, or mappings and lists with one under keys of
            `WRAPPERS` or `AVERAGES`. Prefixes that wrappers add to names (`WRAPPING_MODULES`), in the file or in the
            model, are ignored if the names do not fit otherwise. Entries that are no tensors are ignored.
        source: the file it came from, for messages.

    Of several state dicts the one that fits is taken; if weights and their average both fit, the weights, which is
    logged.

    Raises:
        ValueError: there is no state dict, it does not fit (the message has the first few names), or several fit and
            differ.
    """
    own = model.state_dict()
    found = [
        Found(where, averaged, fitted_names(state, own))
        for where, averaged, state in _state_dicts(content)
    ]
    if not found:
        wrapped = ", ".join(repr(key) for key in WRAPPERS)
        keys = f", got the keys {_few(list(map(repr, content)))}" if _is_keyed(content) else ""
        raise ValueError(
            f"{source}: expected a state dict (names to tensors), or one in {wrapped}{keys}"
        )
    found.sort(key=lambda one: one.averaged)
    fitting = [one for one in found if _fits(one.state, own)]
    chosen = (fitting or found)[0]
    others = [one for one in fitting[1:] if not _same(one.state, chosen.state)]
    rivals = [one for one in others if one.averaged == chosen.averaged]
    if rivals:
        names = ", ".join(one.where for one in (chosen, *rivals))
        raise ValueError(
            f"{source}: holds several state dicts that fit the model ({names}), expected one; save the one that is "
            "meant by itself"
        )
    if shapes := _other_shapes(chosen.state, own):
        raise ValueError(f"{source}: does not fit the model: other shapes ({_few(shapes)})")
    # By torch, which fills in BatchNorm's batch counters (old versions did not save them); models may rename old names.
    missing, unexpected = model.load_state_dict(chosen.state, strict=False)
    problems = [
        f"{len(names)} {kind} ({_few(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(problems)}")
    if others:
        logger.warning(
            "%s: the weights in %s are taken, not their average in %s",
            source,
            chosen.where,
            others[0].where,
        )


def plain_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict of `model` without the `_orig_mod.` that torch.compile puts into its names."""
    state: dict[str, Any] = model.state_dict()
    if not any("_orig_mod." in name for name in state):
        return state
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


def fitted_names(state: State, own: State) -> State:
    """`state` under the names of `own`, a model's state dict, if they differ only by `WRAPPING_MODULES`."""
    if state.keys() <= own.keys():
        return state
    state = {
        name: value
        for name, value in state.items()
        if (isinstance(value, Tensor) and name != COUNTER) or name.endswith("_extra_state")
    }
    stripped: State = state
    while stripped and not stripped.keys() <= own.keys():
        first = next(iter(stripped)).partition(".")[0] + "."
        if first[:-1] not in WRAPPING_MODULES or not all(n.startswith(first) for n in stripped):
            break
        stripped = {name.removeprefix(first): value for name, value in stripped.items()}
    if stripped.keys() <= own.keys():
        return stripped
    # The wrappers' parts may be inside names, if parts of a model were wrapped, or in the model's own names.
    bare = {_bare(name): name for name in own}
    renamed = {bare.get(_bare(name), name): value for name, value in state.items()}
    return state if len(bare) < len(own) or len(renamed) < len(state) else renamed


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPING_MODULES)


def _state_dicts(
    content: Any, where: str = "", averaged: bool = False
) -> Iterator[tuple[str, bool, State]]:
    """Every state dict in `content`, with its place there and whether it is an average."""
    if isinstance(content, (list, tuple)):
        for number, inner in enumerate(content):
            yield from _state_dicts(inner, f"{where}[{number}]", averaged)
    elif isinstance(content, Mapping):
        keys = [
            key
            for key in (*WRAPPERS, *AVERAGES)
            if isinstance(content.get(key), (Mapping, list, tuple))
        ]
        for key in keys:
            way = f"{where}[{key!r}]" if where else repr(key)
            yield from _state_dicts(content[key], way, averaged or key in AVERAGES)
        named = all(isinstance(key, str) for key in content)
        if not keys and named and any(isinstance(value, Tensor) for value in content.values()):
            yield where or "the file", averaged, content


def _fits(state: State, own: State) -> bool:
    missing = {name for name in own.keys() - state.keys() if "num_batches_tracked" not in name}
    return not missing and state.keys() <= own.keys() and not _other_shapes(state, own)


def _other_shapes(state: State, own: State) -> list[str]:
    return [
        f"{name} {list(value.shape)}, in the model {list(own[name].shape)}"
        for name, value in state.items()
        if isinstance(own.get(name), Tensor)
        and isinstance(value, Tensor)
        and own[name].shape != value.shape
    ]


def _same(one: State, other: State) -> bool:
    """Whether two state dicts that fit the model hold the same tensors."""
    return all(
        torch.equal(value, other[name])
        for name, value in one.items()
        if isinstance(value, Tensor) and isinstance(other.get(name), Tensor)
    )


def _is_keyed(content: Any) -> bool:
    return isinstance(content, Mapping) and len(content) > 0


def _few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
