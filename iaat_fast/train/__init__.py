"""Training: clean, adversarial (Madry et al. 2018), instance adaptive (Balaji et al. 2019), and baselines.

    from iaat_fast.train import fit, preset

    result = fit(preset("digits", method="iaat"))

On the command line: `python -m iaat_fast.train --help`. Both run on several GPUs when started by
torchrun.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iaat_fast.train.config import TrainConfig
    from iaat_fast.train.distributed import LostRank
    from iaat_fast.train.loop import FitResult, fit
    from iaat_fast.train.overrides import override
    from iaat_fast.train.presets import PRESETS, preset
    from iaat_fast.train.signals import Interrupted

__all__ = [
    "PRESETS",
    "FitResult",
    "Interrupted",
    "LostRank",
    "TrainConfig",
    "fit",
    "override",
    "preset",
]

_HOME = {
    "PRESETS": "presets",
    "FitResult": "loop",
    "Interrupted": "signals",
    "LostRank": "distributed",
    "TrainConfig": "config",
    "fit": "loop",
    "override": "overrides",
    "preset": "presets",
}


def __getattr__(name: str) -> Any:
    # On first use: the import of the package alone stays free of tyro and torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
