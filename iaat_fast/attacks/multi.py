"""Several attacks as one: each sees the samples that the ones before it have not fooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import AttackStats


class MultiAttack:
    """Attacks in turn: a sample keeps the images of the first that fools the model, and later ones leave it out.

        attack = MultiAttack([PGD(model, 8 / 255), APGDT(model, 8 / 255), Square(model, 8 / 255)])
        x_adv = attack(x, y)

    A sample that none fools keeps the images of largest cross-entropy (with `targeted=True`, smallest); torchattacks
    gives it back unattacked. Verdicts are the live model's, of as many draws as the largest `eot` of the
    attacks. If batch statistics tie samples together, all take part in every attack. `stats` is the sum of the attacks'
    own, of the samples that they saw.

    Args:
        attacks: at least one, of one model; either all of them or none with `targeted=True`, which decides what y is.

    Raises:
        TypeError, ValueError: attacks are not as described.
    """

    def __init__(self, attacks: Sequence[Attack]) -> None:
        self.attacks = list(attacks)
        if not self.attacks:
            raise ValueError("attacks: none, expected at least 1")
        for number, attack in enumerate(self.attacks):
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks[{number}]: {type(attack).__name__}, expected an attack")
            if attack.model is not self.attacks[0].model:
                raise ValueError(
                    f"attacks[{number}]: of another model, expected that of attacks[0]"
                )
            if (attack.targeted is True) != (self.attacks[0].targeted is True):
                raise ValueError(
                    f"attacks[{number}]: targeted={attack.targeted!r}, expected {self.attacks[0].targeted!r} as of "
                    "attacks[0]: y is the target or the true class"
                )
        self.model = self.attacks[0].model
        self.stats = AttackStats()

    def __repr__(self) -> str:
        return f"MultiAttack([{', '.join(type(attack).__name__ for attack in self.attacks)}])"

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        eps: float | Tensor | None = None,
        index: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """Adversarial images for x.

        Args:
            x: images [N, ...] in the box of the attacks, floating point.
            y: int64 [N], true classes, or targets where `targeted` is True.
            eps: radius of this call, a float or a tensor [N]; by default each attack's own.
            index: int64 [N], numbers of the samples in their data set, which the noise follows; default 0 ... N-1.
            seed: of this call, an int or an int64 tensor [] or [1]; by default each attack's own.

        Returns:
            [N, ...] in the dtype and device of x. Between two attacks the host reads which samples are not fooled yet.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        n = len(x)
        if isinstance(eps, Tensor) and eps.dim() and eps.shape != (n,):
            raise ValueError(f"eps: shape {tuple(eps.shape)}, expected [{n}], a radius per sample")
        with torch.inference_mode(False):
            every = torch.arange(n, device=x.device)
            numbers = every if index is None else index
            images = x.detach().clone()
            loss = torch.full((n,), -torch.inf, dtype=torch.float64, device=x.device)
            fooled = torch.zeros(n, dtype=torch.bool, device=x.device)
            stats = AttackStats()
            for attack in self.attacks:
                rows = every if attack.network.couples_samples() else (~fooled).nonzero()[:, 0]
                if n and (fooled.all() if len(rows) == n else not len(rows)):
                    break
                if len(rows) == n:  # the caller's own tensors, of whose numbers errors speak
                    made = attack(x, y, eps=eps, index=numbers, seed=seed)
                else:
                    radii = eps[rows] if isinstance(eps, Tensor) and eps.dim() else eps
                    made = attack(x[rows], y[rows], eps=radii, index=numbers[rows], seed=seed)
                planned = stats.planned + attack.stats.planned
                stats = dataclasses.replace(stats.plus(attack.stats), planned=planned)
                if n:
                    success, height = self._judged(attack, made, y[rows])
                    better = (success | (height > loss[rows])) & ~fooled[rows]
                    images[rows] = torch.where(as_column(better, made), made, images[rows])
                    loss[rows] = torch.where(better, height, loss[rows])
                    fooled[rows] |= success
        self.stats = stats
        return images

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] for x, as `Attack.logits` of the first attack, but of as many draws as verdicts."""
        return self._logits(self.attacks[0], x)

    def _judged(self, attack: Attack, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Whether images fool the live model, and how much: the cross-entropy, less it for a target."""
        logits = self._logits(attack, x_adv)
        loss = F.cross_entropy(logits.double(), y, reduction="none")
        return attack._fooled(logits, y), -loss if attack.targeted is True else loss

    def _logits(self, attack: Attack, x: Tensor) -> Tensor:
        with attack.network.in_mode(), torch.no_grad():
            return attack.network.logits(x, max(each.network.eot for each in self.attacks))
