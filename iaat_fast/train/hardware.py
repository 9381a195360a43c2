"""Settings that the hardware decides: the values of "auto", and the text that says what `run.fast` chose."""

from __future__ import annotations

from typing import Any

import torch

from iaat_fast import methods
from iaat_fast.attacks.options import resolve_precision
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import override


def resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    """`config` with every "auto" replaced by what takes the least time on `device`; a second call changes nothing.

    Only `attack.engine` stays "auto" if `run.fast` is off: it means the same on every device. With `run.fast` the
    attack takes a folded copy of the network in half precision. It does not with batch statistics, which cannot be
    folded (and autocast of the live network is slower than fp32 on an H100, 55.5 against 46.5 ms for PGD-10 on a
    ResNet-18), nor if `attack.engine` is "exact".
    """
    attack, optim = config.attack, config.optim
    copied = attack.bn == "eval" and attack.engine != "exact"
    precision: str = attack.precision
    if precision == "auto":
        precision = "fp32" if config.run.fast and not copied else resolve_precision("auto", device)
    engine = attack.engine
    if config.run.fast and copied and engine == "auto":
        engine = "fast"
    strategy: str = config.epsilon.strategy
    if strategy == "auto":
        strategy = strategy_for(attack.bn, device.type)
    amp = optim.amp
    if amp == "auto":
        amp = "bf16" if _multiplies_bf16(device) else "off"
    changes: dict[str, dict[str, Any]] = {
        "attack": {"precision": precision, "engine": engine},
        "epsilon": {"strategy": strategy},
        "optim": {"amp": amp},
    }
    return override(config, changes)


def strategy_for(bn: str, device_type: str) -> str:
    """What `epsilon.strategy` "auto" means: the fastest of those that give the same radii.

    A CPU's time grows with the number of operations, which is smallest for "lazy". A GPU is filled better by one attack
    on all candidates: 83.3 ms a step against 104.9 (IAAT on a ResNet-18, batch 128, bf16, an H100), measured when
    "batched" still attacked the third candidate as well, and "lazy" was not captured. Batch statistics need
    "sequential".
    """
    if bn != "eval":
        return "sequential"
    return "batched" if device_type == "cuda" else "lazy"


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the update is known to gain by bf16: on GPUs of compute capability 8.0 and later.

    Older GPUs and CPUs have not been measured.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def in_words(config: TrainConfig, device: torch.device, ranks: int = 1) -> str:
    """A resolved configuration in words: "bf16 attacks, bf16 autocast, whole steps in graphs, batched candidates"."""
    attack, words = config.attack, []
    if methods.row(config.method).radius != "none":
        is_copied = attack.engine == "fast" and attack.precision in ("fp32", "tf32")
        words.append(f"{attack.precision} attacks" + (" on a folded copy" if is_copied else ""))
    words.append("no autocast" if config.optim.amp == "off" else f"{config.optim.amp} autocast")
    if config.optim.graph and device.type == "cuda" and ranks == 1 and config.optim.amp != "fp16":
        words.append("whole steps in graphs")
    if methods.reads(config.method, "epsilon.strategy"):
        words.append(f"{config.epsilon.strategy} candidates")
    return ", ".join(words)
