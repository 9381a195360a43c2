"""_C.cuda on the emulated device: the functions of the bindings, each with all its buffers between guard zones."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import iaat_fast
from iaat_fast.ops.native import signatures
from tests.cuda.emulator import DeviceMemory

# Where CPU tensors are said to be: not the current device, so that the launchers have to switch to it and back.
DEVICE, STREAM = 3, 0x5EED

Arguments = dict[str, Any]


def _names(op: str) -> list[str]:
    """The arguments of a kernel, in the order of csrc/cuda/bindings.h."""
    kinds = signatures.parsed(signatures.CUDA[op])
    names = [[name, "seed_size"] if kind == "Seed" else [name] for name, kind in kinds.items()]
    return [*itertools.chain(*names), "device", "stream"]


def _bytes(op: str, a: Arguments) -> dict[str, int]:
    """How many bytes each pointer of a call stands for."""
    element = {0: 4, 1: 8, 2: 2, 3: 2}[a.get("dtype", 0)]
    number = max(element, 4)  # of the arithmetic: radii, steps and cotangents
    if op == "random_crop_flip":
        picture = a["height"] * a["width"] * a["channels"]
        return {
            "out": 4 * a["n"] * picture,
            "images": a["size"] * picture,
            "index": 8 * a["n"],
            "seed": 8 * a["seed_size"],
        }
    if op == "select_epsilon":
        n = a["samples"]
        logits = 3 * n * a["classes"] * element
        memory = {"memory": 4 * a["size"], "misclassified": n, "eps": 4 * n, "choice": 8 * n}
        return {**memory, "logits": logits, "y": 8 * n, "index": 8 * n}
    if "elements" in a:
        sizes = dict.fromkeys(("grad", "out", "other", "x", "residual"), a["elements"] * element)
        sizes |= dict.fromkeys(("scale", "shift"), a.get("channels", 0) * number)
    elif "classes" in a:
        entries = a["rows"] * a["classes"]
        sizes = {"out": entries * element, "cotangent": entries * number}
        sizes |= {"logits": entries * element, "y": 8 * a["samples"]}
    else:
        images, x = (a[n] * a["row_elems"] * element for n in ("rows", "samples"))
        sizes = {"out": images, "x_adv": images, "grad": images, "x": x, "index": 8 * a["samples"]}
        sizes |= {"eps": a["rows"] * number, "alpha": a["rows"] * number, "stats": 16}
        sizes["seed"] = 8 * a.get("seed_size", 0)
    return {name: size for name, size in sizes.items() if name in a}


def extension(emulated: ModuleType, memory: DeviceMemory) -> SimpleNamespace:
    """What stands in for iaat_fast._C in native_cuda."""

    def guarded(op: str) -> Callable[..., None]:
        def call(*values: Any) -> None:
            arguments = dict(zip(_names(op), values, strict=True))
            memory.call(getattr(emulated, op), arguments, _bytes(op, arguments))

        return call

    cuda = SimpleNamespace(**{op: guarded(op) for op in signatures.CUDA})
    cuda.PERSISTENT_CLASSES = emulated.PERSISTENT_CLASSES
    return SimpleNamespace(cuda=cuda)


def load_native_cuda(stand_in: SimpleNamespace) -> ModuleType:
    """A copy of iaat_fast.ops.native.cuda that calls the stand-in, on device 3 and a stream of its own."""
    real = vars(iaat_fast).get("_C")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iaat_fast, "_C", stand_in, raising=False)
        patch.setattr(signatures, "queue", lambda device: (DEVICE, STREAM))
        spec = importlib.util.find_spec("iaat_fast.ops.native.cuda")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert vars(iaat_fast).get("_C") is real
    return module
