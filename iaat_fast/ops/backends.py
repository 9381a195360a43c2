"""Choose the backend, an implementation of all ops, for each device; ORDER is the table of preferences.

The CPU's backend is chosen when `iaat_fast.ops` is imported; a GPU's when it is first used, so that importing does not
initialise CUDA. The environment variable IAAT_FAST_BACKEND forces one backend. It is then an error if that backend
cannot be loaded, or is called on a device that it does not serve.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from iaat_fast.ops import reference, schema

logger = logging.getLogger("iaat_fast")

NAMES = ("native", "triton", "reference")

# The first backend that serves a device is used. Devices of other types use the reference.
ORDER = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}


class Unavailable(ImportError):
    """A backend does not serve a device here; the message says why and what to do about it."""


def load(backend: str, device: torch.device) -> ModuleType:
    """The module that implements the ops for a device. Raises Unavailable."""
    if backend == "reference":
        return reference
    if backend == "triton":
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            seen = "" if torch.cuda.is_available() else ", and torch sees no GPU"
            raise Unavailable(f"Triton runs on CPU tensors only with TRITON_INTERPRET=1{seen}")
        return _import("triton", "is Triton installed? `pip install triton`")
    if device.type == "cpu":
        return _import(
            "native.cpu", "build it with `pip install .` where a C++ compiler is installed"
        )
    info = _import("native.cpu", "build it with `IAAT_CUDA=1 pip install .`")._C.build_info()
    if torch.version.hip:
        raise Unavailable("iaat_fast._C has no kernels for AMD GPUs")
    if not info["cuda"]:
        raise Unavailable("iaat_fast._C is built without CUDA; rebuild it with IAAT_CUDA=1")
    capability = torch.cuda.get_device_capability(device)
    if not serves(capability, info["cuda_archs"], info["cuda_ptx"]):
        built = ", ".join(f"sm_{arch}" for arch in info["cuda_archs"])
        raise Unavailable(
            f"iaat_fast._C is built for {built}, not for compute capability "
            f"{capability[0]}.{capability[1]} ({torch.cuda.get_device_name(device)}); "
            "rebuild it with IAAT_CUDA_ARCHS set to that"
        )
    return _import("native.cuda", "")


def _import(module: str, advice: str) -> ModuleType:
    try:
        return importlib.import_module(f"iaat_fast.ops.{module}")
    except ImportError as error:
        raise Unavailable(
            f"iaat_fast.ops.{module} cannot be imported ({error}); {advice}"
        ) from error


def serves(capability: tuple[int, int], archs: Sequence[int], ptx: int) -> bool:
    """Whether machine code for `archs`, or PTX for `ptx` (0 for none), runs on a device of this compute capability.

    All are numbers such as 90 for 9.0. Machine code runs on the same major version with the same or a later minor one;
    PTX is compiled by the driver for any later device.
    """
    number = 10 * capability[0] + capability[1]
    return (
        any(arch // 10 == capability[0] and arch <= number for arch in archs) or 0 < ptx <= number
    )


def choose(device: torch.device, forced: str) -> tuple[str, ModuleType]:
    """The backend of a device and its module. Raises Unavailable if a forced one does not serve the device."""
    if forced:
        try:
            return forced, load(forced, device)
        except Unavailable as error:
            raise Unavailable(f"IAAT_FAST_BACKEND={forced} on {device}: {error}") from error
    reasons = []
    for backend in ORDER[device.type]:
        try:
            module = load(backend, device)
        except Unavailable as error:
            reasons.append(str(error))
            continue
        if backend == "reference":
            logger.warning(
                "ops on %s: the slower reference backend: %s", device, "; ".join(reasons)
            )
        else:
            because = f" ({'; '.join(reasons)})" if reasons else ""
            logger.info("ops on %s: %s%s", device, backend, because)
        return backend, module
    raise AssertionError("the reference serves every device")


@functools.cache
def _chosen(device: torch.device) -> tuple[str, ModuleType]:
    return choose(device, FORCED)


def _route(name: str) -> Callable[..., Any]:
    """A function that calls op `name` of the backend of its first tensor's device, chosen in the first call."""

    def call(*args: Any) -> Any:
        return getattr(_chosen(args[0].device)[1], name)(*args)

    return call


def serving(device: torch.device) -> str:
    """The name of the backend that serves a device. Raises Unavailable if a forced one does not."""
    if device == torch.device("cuda") and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available()):
        return _chosen(device)[0]
    return "reference"


def _forced() -> str:
    """IAAT_FAST_BACKEND, or "". Raises ValueError for an unknown name."""
    forced = os.environ.get("IAAT_FAST_BACKEND", "")
    if forced and forced not in NAMES:
        raise ValueError(f"IAAT_FAST_BACKEND={forced!r}: expected one of {', '.join(NAMES)}")
    return forced


def _bind() -> None:
    """Bind the ops to the dispatch keys. Raises Unavailable for a forced backend that serves no device here."""
    for name in schema.SCHEMAS:
        schema.library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        schema.library.impl(name, _route(name), "CUDA")
    if FORCED == "triton" and torch.cuda.is_available():
        choose(torch.device("cuda"), FORCED)
        implementation = _route  # so that only calls with CPU tensors raise, not the import
    else:
        # The module's functions themselves: a route costs 0.3 us a call.
        module = _chosen(torch.device("cpu"))[1]
        implementation = functools.partial(getattr, module)
    for name in schema.SCHEMAS:
        schema.library.impl(name, implementation(name), "CPU")


FORCED = _forced()
_bind()
