"""The modules of a model, which may also be a function: a bound method, a partial, a closure, a callable object."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

# Longer containers hold data rather than the members of an ensemble, and are not searched.
_LONGEST = 100
# Levels of nested objects that are searched: the model, and a wrapper among its attributes.
_DEEPEST = 2


def modules_of(model: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    """The modules of `model.modules()`, breadth first; for a function, those of the modules found in it (`roots_of`).

    Every call of an attack reads modules, parameters and buffers six times while the GPU is idle; a loop over the
    modules' dictionaries takes a fraction of the time of torch's recursive generators.
    """
    queue = roots_of(model)
    found = {id(root): root for root in queue}
    for module in queue:
        for child in module._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                queue.append(child)
    return queue


def parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters of modules, each once."""
    every = (p for module in modules for p in module._parameters.values() if p is not None)
    return list({id(p): p for p in every}.values())


def buffers_of(modules: list[nn.Module]) -> list[Tensor]:
    """The buffers of modules, each once."""
    every = (b for module in modules for b in module._buffers.values() if b is not None)
    return list({id(b): b for b in every}.values())


def roots_of(model: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    """The modules that a model may run, as far as they can be found without running it; the model itself if it is one.

    It searches the object of a bound method, the contents of a partial, a function's closure, defaults and attributes,
    the globals that it reads (modules from other files, functions of the same file), the attributes of an object,
    lists, tuples, sets and dicts. Nothing is cached, as a closure may hold another module in the next call.
    """
    if isinstance(model, nn.Module):
        return [model]
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}  # kept alive, so that no id is used twice
    waiting: list[tuple[Any, int]] = [(model, 0)]
    while waiting:
        value, depth = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            found.append(value)
        elif isinstance(value, (type, types.ModuleType, Tensor)):
            continue
        elif isinstance(value, types.FunctionType):
            waiting += ((held, depth) for held in _held_by(value))
        elif isinstance(value, (list, tuple, set, dict)):
            if len(value) <= _LONGEST:
                held = value.values() if isinstance(value, dict) else value
                waiting += ((inner, depth) for inner in held)
        elif isinstance(value, (types.MethodType, functools.partial)):
            waiting += ((inner, depth) for inner in _parts(value))
        elif hasattr(value, "__dict__") and (callable(value) or depth == 0) and depth < _DEEPEST:
            waiting += ((inner, depth + 1) for inner in vars(value).values())
            waiting.append((vars(type(value)).get("__call__"), depth + 1))
    return found


def _parts(value: types.MethodType | functools.partial[Any]) -> Iterable[Any]:
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    return value.func, *value.args, *value.keywords.values()


def _held_by(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds: closure, defaults, attributes (a decorator's __wrapped__ say), and globals it reads."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    if (function.__module__ or "").partition(".")[0] == "torch":
        return
    for name in _globals_read(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            named = (vars(value).get(attribute) for attribute in function.__code__.co_names)
            yield from (held for held in named if isinstance(held, nn.Module))
            continue
        # Functions of other files are skipped: they would lead through whole libraries.
        if not isinstance(value, types.FunctionType) or value.__globals__ is function.__globals__:
            yield value


@functools.lru_cache
def _globals_read(code: types.CodeType) -> frozenset[str]:
    """The names of globals that code reads, including comprehensions and nested functions."""
    found = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= _globals_read(inner)
    return frozenset(found)
