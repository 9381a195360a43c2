"""APGDT: APGD towards each of the most likely wrong classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.attacks import inputs
from iaat_fast.attacks.apgd import APGD
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.options import EngineOptions
from iaat_fast.attacks.survivors import WorstCase
from iaat_fast.attacks.targets import likely_targets


class APGDT(APGD):
    """Targeted Auto-PGD: `APGD` towards each of the most likely wrong classes in turn.

    A sample is fooled when it gets any wrong class, and later targets leave it out. With its defaults it is the
    "apgd-t" of AutoAttack.

    Args:
        model, eps, steps, rho, lo, hi, bn, precision, engine, early_stop, seed: as `APGD`'s.
        loss: "dlr", which needs at least 4 classes; "ce" or "cw".
        n_target_classes: the wrong classes that are tried, those with the largest logits at x first; fewer where the
            model has fewer, or masks some of them.
        restarts, random_start: per target.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Croce and Hein 2020, Equation 7 and Section 5.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        *,
        loss: str = "dlr",
        n_target_classes: int = 9,
        rho: float = 0.75,
        restarts: int = 1,
        random_start: bool = True,
        lo: float = 0.0,
        hi: float = 1.0,
        bn: str = "eval",
        precision: str = "fp32",
        engine: str | EngineOptions = "auto",
        early_stop: bool = True,
        seed: int | None = None,
    ) -> None:
        inputs.whole_number("n_target_classes", n_target_classes, at_least=1)
        super().__init__(
            model,
            eps,
            steps,
            loss=loss,
            rho=rho,
            restarts=restarts,
            random_start=random_start,
            targeted="random",  # y is the true class and the goal another one; below, which
            lo=lo,
            hi=hi,
            bn=bn,
            precision=precision,
            engine=engine,
            early_stop=early_stop,
            seed=seed,
        )
        self.n_target_classes = n_target_classes

    def _reads(self) -> bool:
        return True

    def _attack(self, call: Call) -> Tensor:
        with torch.no_grad():
            logits = self.network.logits(call.x)
        call.y = call.indexing(call.y, logits.shape[1])
        self._look_at_masks(call, logits)
        targets = likely_targets(logits, call.y, self.n_target_classes)
        call.planned *= targets.shape[1]
        worst = WorstCase(call)
        for k, target in enumerate(targets.unbind(1)):
            call.goal = target
            self._run(call, worst, range(k * self.restarts, (k + 1) * self.restarts))
        return worst.images

    def _source(self, call: Call, rows: Tensor) -> Tensor | None:
        return call.y[rows % len(call.y)]
