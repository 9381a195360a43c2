"""iaat_fast: fast L-infinity attacks, and instance adaptive adversarial training on top of them."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iaat_fast import attacks, data, epsilon, evaluate, models, ops, plan, report, sweep, train

__version__ = "0.2.0"

__all__ = [
    "__version__",
    "attacks",
    "data",
    "epsilon",
    "evaluate",
    "models",
    "ops",
    "plan",
    "report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    # On first use, `iaat_fast.attacks` for instance: the import of the package alone stays free of torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Python sets argv to ["-m"] while `python -m iaat_fast.COMMAND` imports the packages of the command. In any other
# program sys.excepthook is left alone.
if sys.argv[:1] == ["-m"] and any(word.startswith("iaat_fast.") for word in sys.orig_argv):
    from iaat_fast.entry import explain_early_errors

    explain_early_errors()
