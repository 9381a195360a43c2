"""Attacks as AttackBench calls them: on a model that counts the queries of each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.options import PLAIN
from iaat_fast.attacks.result import AttackResult, radii_of_run

# AttackBench sees what its own model runs in Python: not a copy, nor a graph that is replayed.
_SEEN = dataclasses.replace(PLAIN, graph=False)


class AttackBenchAdapter:
    """An attack with AttackBench's interface, every query of which its model sees and counts.

        import attackbench

        attack = AttackBenchAdapter(APGD, eps=8 / 255, steps=100)
        attackbench.run_attack(model, loader, attack, "linf")

    Gradients come from the model itself in float32. `result` is that of the last batch. Its `forwards` and `backwards`
    are the queries that AttackBench counts for each sample, as long as none exceeds its budget; beyond it, AttackBench
    gives answers that it does not count.

    Args:
        attack: the class of an attack.
        epsilons: radii, attacked from the smallest on: a sample keeps the images of the first that fools it. None: the
            attack's one radius.
        **options: of the attack, but neither `engine` nor `precision`.

    Attributes:
        result: `AttackResult` [N, ...], or [E, N, ...] with `epsilons`, of the last batch; None before the first.

    Raises:
        TypeError, ValueError: an argument is not as described, before AttackBench would take it for a failed batch.

    Source: Cinà, Rony et al. 2025, "AttackBench: evaluating gradient-based attacks for adversarial examples",
        arXiv:2404.19460, Section 3, and the `run_attack` of its code (cb475a2) and of attackbenchlib 2.0.2.
    """

    def __init__(
        self,
        attack: type[Attack],
        epsilons: Sequence[float | Tensor] | None = None,
        **options: Any,
    ) -> None:
        if not (isinstance(attack, type) and issubclass(attack, Attack)):
            raise TypeError(f"attack: {attack!r}, expected the class of an attack, such as APGD")
        for name in ("engine", "precision"):
            if name in options:
                raise ValueError(
                    f"{name}: {options[name]!r}, expected none: AttackBench counts the queries of its model in float32"
                )
        self.attack, self.epsilons, self.options = attack, epsilons, options
        self.result: AttackResult | None = None
        self.__name__ = attack.__name__  # by which AttackBench calls its results
        made = self._made_for(nn.Identity())
        if epsilons is not None:
            _, several = radii_of_run(epsilons, torch.empty(1), made)
            if not several:
                raise TypeError(f"epsilons: {epsilons!r}, expected a list of radii; eps is for one")

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        inputs: Tensor,
        labels: Tensor,
        targets: Tensor | None = None,
        targeted: bool = False,
    ) -> Tensor:
        """Adversarial images [N, ...] for a batch.

        Args:
            model: AttackBench's, or any other.
            inputs: images [N, ...] in the attack's box, floating point.
            labels: int64 [N], true classes.
            targets: int64 [N], with `targeted`.
            targeted: a sample is fooled when it gets its target.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        attack = self._made_for(model)
        if targeted:
            if targets is None:
                raise ValueError("targets: None with targeted=True, expected int64 [N]")
            attack, labels = self._made_for(model, targeted=True), targets
        radii = None if self.epsilons is None else sorted(self.epsilons, key=_size)
        result = attack.run(inputs, labels, radii)
        self.result = result
        x_adv = result.x_adv if radii is None else result.x_adv[-1]
        return x_adv.clone()  # AttackBench writes into it, which the result must not see

    def _made_for(self, model: Callable[[Tensor], Tensor], **targeted: bool) -> Attack:
        return self.attack(model, **{**self.options, **targeted, "engine": _SEEN})


def _size(eps: float | Tensor) -> float:
    """A radius as a number; of one per channel, whose order is that of its first."""
    return float(eps.flatten()[0]) if isinstance(eps, Tensor) else eps
