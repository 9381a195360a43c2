"""Prepare the model for an attack: set its mode, lock it against other threads, and restore it afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, dropout

from iaat_fast.attacks import inputs
from iaat_fast.attacks.model import distributed, fixed_mode
from iaat_fast.attacks.model.modules import buffers_of, modules_of

BN_MODES = ("eval", "train", "train_update")


def couples_samples(model: Callable[[Tensor], Tensor], bn: str) -> bool:
    """Whether a sample's logits depend on the rest of the batch, because BatchNorm uses batch statistics."""
    modules = modules_of(model)
    return any(
        bn != "eval" or getattr(layer, "running_mean", None) is None
        for layer in _batch_norms(modules)
    ) or any(layer.batch_norm and layer.training for layer in fixed_mode.fixed_layers(modules))


def checked_modules(model: Callable[[Tensor], Tensor], bn: str) -> list[nn.Module]:
    """`modules_of` a model.

    Raises ValueError if it cannot be attacked in this mode: its layers have another fixed mode, it is a function in
    which no module is found, or it is spread over ranks.
    """
    modules = modules_of(model)
    if bn != "eval" and not modules:
        raise ValueError(
            f"bn: {bn!r} for a function in which no module is found, expected 'eval', or the module as the model"
        )
    fixed_mode.check(modules, bn)
    distributed.refuse_sharded(modules)
    return modules


@contextlib.contextmanager
def attacked(
    model: Callable[[Tensor], Tensor], bn: str, *, exclusively: bool = False
) -> Iterator[None]:
    """A context with the model in evaluation mode and its BatchNorm layers in mode `bn`; both are restored at its end.

    Other threads that enter with one of its modules wait. For a function, the modules found in it are switched; if none
    is found, the function may not run a module in training mode. DistributedDataParallel wrappers are bypassed.
    The caller's autocast is off inside.

    Args:
        bn: "eval": running statistics; "train": batch statistics, and buffers are restored; "train_update": batch
            statistics, which also update the running ones.
        exclusively: whether other threads wait whatever their model is.

    Raises:
        ValueError: the model cannot be attacked in this mode, see `checked_modules`.
    """
    modules = checked_modules(model, bn)
    with (
        _claimed([model, *modules], everything=exclusively),
        distributed.bypass_ddp(modules),
        _without_autocast(),
        _in_mode(modules, bn),
        contextlib.nullcontext() if modules else _no_training_behind(),
    ):
        yield


def private_copy(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of the images for a forward, which might overwrite them, by normalising in place for example.

    It takes 10 us of a step's host time. Detecting writes instead would miss those through `x.data` or numpy.
    """
    return x.to(x.dtype if dtype is None else dtype, copy=True)


def logits_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The model's logits [N, C] of images [N, ...]. Raises ValueError if it does not return [N, C] with C >= 2."""
    logits: Tensor = inputs.logits_in(model(private_copy(x)))
    inputs.logits(logits, len(x))
    return logits


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _in_mode(modules: list[nn.Module], bn: str) -> Iterator[None]:
    switched = fixed_mode.with_mode(modules)
    trained = set(map(id, _batch_norms(modules))) if bn != "eval" else ()
    modes = [(module, module.training) for module in switched]
    # Buffers made in inference mode cannot change here.
    buffers = [b for b in buffers_of(modules) if not b.is_inference()] if bn == "train" else []
    saved = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        for module in switched:
            _set_mode(module, id(module) in trained)
        yield
    finally:
        for module, training in modes:
            _set_mode(module, training)
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _batch_norms(modules: list[nn.Module]) -> list[Any]:
    layers = [module for module in modules if isinstance(module, batchnorm._BatchNorm)]
    return [*layers, *fixed_mode.scripted_batch_norms(modules)]


def _set_mode(module: nn.Module, training: bool) -> None:
    if module.training == training:
        return
    if type(module).__setattr__ is nn.Module.__setattr__:
        # nn.Module.__setattr__ would search parameters, buffers and modules, for every module of the network.
        object.__setattr__(module, "training", training)
    else:
        module.training = training


@contextlib.contextmanager
def _no_training_behind() -> Iterator[None]:
    """A context in which a forward of BatchNorm or dropout in training mode, or of a sharded module, is an error.

    For functions in which no module was found.
    """
    thread = threading.get_ident()

    def look(module: nn.Module, images: object) -> None:
        if threading.get_ident() != thread:
            return
        distributed.refuse_sharded([module])
        if module.training and isinstance(module, (batchnorm._NormBase, dropout._DropoutNd)):
            raise ValueError(
                f"model: a function that runs a {type(module).__name__} in training mode, expected eval mode, or the "
                "module itself as the model"
            )

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


# (thread, ids of the objects that it holds); None: it holds everything.
_claims: list[tuple[int, set[int] | None]] = []
_released = threading.Condition()


@contextlib.contextmanager
def _claimed(objects: list[object], *, everything: bool) -> Iterator[None]:
    """A reentrant lock on some objects: waits until no other thread holds any of them, then holds all.

    On modules rather than models, because two models may share a network. All are taken at once, so that no two threads
    can wait for each other.
    """
    thread, numbers = threading.get_ident(), None if everything else set(map(id, objects))
    mine = (thread, numbers)

    def free() -> bool:
        return all(
            holder == thread
            or not (held is None or numbers is None or not held.isdisjoint(numbers))
            for holder, held in _claims
        )

    with _released:
        _released.wait_for(free)
        _claims.append(mine)
    try:
        yield
    finally:
        with _released:
            _claims[:] = [claim for claim in _claims if claim is not mine]
            _released.notify_all()
