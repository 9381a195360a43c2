"""FGSM: one full step along the sign of the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from iaat_fast.attacks.pgd import PGD


class FGSM(PGD):
    """The fast gradient sign method: `PGD` with one step of size eps from x itself.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N].
        **options: the keywords of `PGD`; `random_start=True` gives the variant of Wong et al. 2020.

    Source: Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", Section 4.
    """

    def __init__(self, model: Any, eps: float | Tensor = 8 / 255, **options: Any) -> None:
        options.setdefault("random_start", False)
        super().__init__(model, eps, alpha=_full_step, steps=1, **options)


def _full_step(eps: Tensor) -> Tensor:
    return eps
