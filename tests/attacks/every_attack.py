"""Every attack by its name, as short as shows what it does, of a model and with options that all of them have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iaat_fast.attacks import (
    APGD,
    APGDT,
    DIFGSM,
    FABT,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    DeepFool,
    Square,
)
from iaat_fast.attacks.attack import Attack

_COMMON: dict[str, Any] = {"eps": 0.1, "seed": 0}
_STEPS: dict[str, Any] = {**_COMMON, "alpha": 0.03, "steps": 3}

EVERY_ATTACK: dict[str, Callable[..., Attack]] = {
    "PGD": lambda model, **o: PGD(model, **{**_STEPS, **o}),
    "restarts": lambda model, **o: PGD(model, restarts=2, early_stop=True, **{**_STEPS, **o}),
    "random targets": lambda model, **o: PGD(model, targeted="random", **{**_STEPS, **o}),
    "kl": lambda model, **o: PGD(model, loss="kl", **{**_STEPS, **o}),
    "FGSM": lambda model, **o: FGSM(model, **{**_COMMON, **o}),
    "MIFGSM": lambda model, **o: MIFGSM(model, **{**_STEPS, **o}),
    "NIFGSM": lambda model, **o: NIFGSM(model, **{**_STEPS, **o}),
    "SINIFGSM": lambda model, **o: SINIFGSM(model, m=2, **{**_STEPS, **o}),
    "VMIFGSM": lambda model, **o: VMIFGSM(model, N=2, **{**_STEPS, **o}),
    "VNIFGSM": lambda model, **o: VNIFGSM(model, N=1, early_stop=True, **{**_STEPS, **o}),
    "DIFGSM": lambda model, **o: DIFGSM(model, resize_rate=0.6, **{**_STEPS, **o}),
    "TIFGSM": lambda model, **o: TIFGSM(model, len_kernel=3, **{**_STEPS, **o}),
    "APGD": lambda model, **o: APGD(model, steps=6, **{**_COMMON, **o}),
    "APGDT": lambda model, **o: APGDT(model, steps=5, n_target_classes=2, **{**_COMMON, **o}),
    "FABT": lambda model, **o: FABT(model, steps=4, n_target_classes=2, **{**_COMMON, **o}),
    "Square": lambda model, **o: Square(model, n_queries=8, **{**_COMMON, **o}),
    "DeepFool": lambda model, **o: DeepFool(model, steps=4, candidates=3, **o),
}
