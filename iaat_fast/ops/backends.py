"""The one table that binds an implementation of the ops to a device.

`reference` serves every device; `native` takes over the CPU where the extension is built. The environment variable
IAAT_FAST_BACKEND forces one of them, and one that is forced and cannot load raises.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

from iaat_fast.ops import reference, schema

logger = logging.getLogger("iaat_fast")

# Dispatch keys each backend implements. CompositeExplicitAutograd is torch's name for "any device".
KEYS = {"reference": ("CompositeExplicitAutograd",), "native": ("CPU",)}


def _bind(implementation: ModuleType, key: str) -> None:
    for name in schema.SCHEMAS:
        schema.library.impl(name, getattr(implementation, name), key)


def _load_native() -> ModuleType:
    return importlib.import_module("iaat_fast.ops.native")


def bind() -> dict[str, str]:
    """Bind the ops and return {device: backend}. Called once, when `iaat_fast.ops` is imported.

    Raises ValueError for an unknown IAAT_FAST_BACKEND, ImportError for a forced backend that cannot load.
    """
    forced = os.environ.get("IAAT_FAST_BACKEND", "")
    if forced and forced not in KEYS:
        raise ValueError(f"IAAT_FAST_BACKEND={forced!r}: expected one of {', '.join(KEYS)}")
    _bind(reference, *KEYS["reference"])
    chosen = {"cpu": "reference", "cuda": "reference"}
    if forced != "reference":
        try:
            _bind(_load_native(), *KEYS["native"])
            chosen["cpu"] = "native"
        except ImportError as error:
            if forced == "native":
                raise ImportError(
                    f"IAAT_FAST_BACKEND=native: the extension iaat_fast._C cannot be loaded ({error}); "
                    "build it with `pip install .` where a C++ compiler is installed"
                ) from error
            logger.warning(
                "iaat_fast._C is not built (%s): the ops run on the slower reference backend", error
            )
    logger.info("ops: %s", ", ".join(f"{device} {name}" for device, name in chosen.items()))
    return chosen


BOUND = bind()
