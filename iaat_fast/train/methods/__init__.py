"""The training methods by name: how each makes its samples, and the loss it takes of them."""

from __future__ import annotations

from iaat_fast.train.methods.adv import Adversarial
from iaat_fast.train.methods.clean import Clean
from iaat_fast.train.methods.iaat import InstanceAdaptive
from iaat_fast.train.methods.mart import Mart
from iaat_fast.train.methods.method import Batch, Drawn, Method, Outcome
from iaat_fast.train.methods.mixup import InterpolatedAdversarial
from iaat_fast.train.methods.mma import MaxMargin
from iaat_fast.train.methods.trades import Trades

METHODS: dict[str, type[Method]] = {
    "clean": Clean,
    "adv": Adversarial,
    "iaat": InstanceAdaptive,
    "mixup": InterpolatedAdversarial,
    "trades": Trades,
    "mart": Mart,
    "mma": MaxMargin,
}
"""Of every name that `--method` takes."""

__all__ = ["METHODS", "Batch", "Drawn", "Method", "Outcome"]
