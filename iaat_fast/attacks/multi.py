"""Several attacks as one: each sees the samples that the ones before it have not fooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import AttackStats
from iaat_fast.attacks.result import AttackResult, distances, first_radius, radii_of_run


class MultiAttack:
    """Attacks in turn: a sample keeps the images of the first that fools the model, and later ones leave it out.

        attack = MultiAttack([PGD(model, 8 / 255), APGDT(model, 8 / 255), Square(model, 8 / 255)])
        x_adv = attack(x, y)
        result = attack.run(x, y, epsilons=[2 / 255, 8 / 255])

    A sample that none fools keeps the images of largest cross-entropy (with `targeted=True`, smallest); torchattacks
    gives it back unattacked. Verdicts are the live model's, of as many draws as the largest `eot` of the
    attacks. If batch statistics tie samples together, all take part in every attack. `stats` is the sum of the attacks'
    own, of the samples that they saw.

    Args:
        attacks: at least one, of one model, and of the same `lo`, `hi` if these are per channel; either all of them or
            none with `targeted=True`, which decides what y is.

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
            if attack._channels != self.attacks[0]._channels:
                raise ValueError(
                    f"attacks[{number}]: lo, hi: {attack.lo}, {attack.hi}, expected those of attacks[0], "
                    f"{self.attacks[0].lo}, {self.attacks[0].hi}"
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
        mask: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images for x.

        Args:
            x: images [N, ...] in the box of the attacks, floating point.
            y: int64 [N], true classes, or targets where `targeted` is True.
            eps: radius of this call, as `Attack.__call__` takes it, without candidates; by default each attack's own.
            index: int64 [N], numbers of the samples in their data set, which the noise follows; default 0 ... N-1.
            seed: of this call, an int or an int64 tensor [] or [1]; by default each attack's own.
            mask: bool, broadcasts to x: pixels where it is False never change (see `Attack.__call__`).

        Returns:
            [N, ...] in the dtype and device of x. Between two attacks the host reads which samples are not fooled yet.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        n = len(x)
        self.attacks[0]._check_rows("eps", eps, n, f"[{n}], a radius per sample")
        with torch.inference_mode(False):
            found = _Found.none(x, index)
            self.stats = AttackStats()
            for attack in self.attacks:
                rows = self._left(attack, found)
                if rows is None:
                    break
                images, classes, options = found.of_rows(x, y, rows, eps=eps, mask=mask, seed=seed)
                made = attack(images, classes, **options)
                self._add_stats(attack)
                if n:
                    self._take(attack, found, rows, made, classes)
        return found.images

    def run(
        self,
        x: Tensor,
        y: Tensor,
        epsilons: float | Tensor | Sequence[float | Tensor] | None = None,
        *,
        index: Tensor | None = None,
        seed: int | None = None,
        mask: Tensor | None = None,
    ) -> AttackResult:
        """Adversarial images for x with their verdicts, distances and costs, at one radius or at several.

        As `Attack.run`: a sample that is wrong as it is, or fooled at a smaller radius, is not attacked. `forwards` and
        `backwards` add up those of the attacks, with the verdicts of each.

        Args:
            x, y, index, seed, mask: as for a call.
            epsilons: as `Attack.run`'s; None: each attack's own radius.

        Returns:
            `AttackResult`, without a trace.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        n, first = len(x), self.attacks[0]
        radii: Any = None
        several = False
        if epsilons is not None:
            radii, several = radii_of_run(epsilons, x, first)
        order = torch.zeros(1, n, dtype=torch.int64, device=x.device)
        if several:
            radii, order = radii.sort(dim=0, stable=True)
        with torch.inference_mode(False):
            found = _Found.none(x, index)
            self.stats = AttackStats()
            each = []
            for k in range(len(order)):
                eps = radii[k] if several else radii
                if first._channels is not None and eps is not None:
                    eps = first._channels.radii(eps)
                each.append(self._at_radius(found, x, y, eps=eps, mask=mask, seed=seed))
            values: dict[str, Any] = {
                name: _ordered([getattr(one, name) for one in each], order) for name in _FIELDS
            }
        result = AttackResult(**values)
        return result if several else first_radius(result)

    def _at_radius(self, found: _Found, x: Tensor, y: Tensor, **options: Any) -> AttackResult:
        """Attack the samples that are not fooled yet at one radius; [N, ...] of all samples."""
        forwards, backwards = (torch.zeros_like(found.predictions) for _ in range(2))
        found.loss.fill_(-torch.inf)
        for attack in self.attacks:
            rows = self._left(attack, found)
            if rows is None:
                break
            images, classes, given = found.of_rows(x, y, rows, **options)
            part = attack.run(images, classes, given.pop("eps"), **given)
            self._add_stats(attack)
            if len(x):
                self._take(attack, found, rows, part.x_adv, classes)
            forwards[rows] += part.forwards
            backwards[rows] += part.backwards
        return AttackResult(
            x_adv=found.images.clone(),
            success=found.fooled.clone(),
            predictions=found.predictions.clone(),
            distances=distances(found.images, x.detach(), self.attacks[0]._channels),
            forwards=forwards,
            backwards=backwards,
        )

    def _left(self, attack: Attack, found: _Found) -> Tensor | None:
        """The rows that an attack sees, int64 [n]; None if all samples are fooled."""
        n = len(found.fooled)
        rows = (~found.fooled).nonzero()[:, 0]
        if n and not len(rows):
            return None
        return found.every if attack.network.couples_samples() else rows

    def _add_stats(self, attack: Attack) -> None:
        planned = self.stats.planned + attack.stats.planned
        self.stats = dataclasses.replace(self.stats.plus(attack.stats), planned=planned)

    def _take(self, attack: Attack, found: _Found, rows: Tensor, made: Tensor, y: Tensor) -> None:
        """Keep images of samples that they are the first to fool, or that have the largest loss so far."""
        logits = self._logits(attack, made)
        loss = F.cross_entropy(logits.double(), y, reduction="none")
        height = -loss if attack.targeted is True else loss
        success = attack._fooled(logits, y)
        better = (success | (height > found.loss[rows])) & ~found.fooled[rows]
        found.images[rows] = torch.where(as_column(better, made), made, found.images[rows])
        found.loss[rows] = torch.where(better, height, found.loss[rows])
        predicted = torch.where(better, logits.argmax(1), found.predictions[rows])
        found.predictions[rows] = predicted
        found.fooled[rows] |= success

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] for x, as `Attack.logits` of the first attack, but of as many draws as verdicts."""
        return self._logits(self.attacks[0], x)

    def _logits(self, attack: Attack, x: Tensor) -> Tensor:
        with attack.network.in_mode(), torch.no_grad():
            return attack.network.logits_as_given(x, max(each.network.eot for each in self.attacks))


_FIELDS = ("x_adv", "success", "predictions", "distances", "forwards", "backwards")


@dataclasses.dataclass
class _Found:
    """What is known of the samples so far, [N, ...] each: images, their loss and predictions, and which are fooled."""

    images: Tensor
    loss: Tensor
    predictions: Tensor
    fooled: Tensor
    every: Tensor
    numbers: Tensor

    @classmethod
    def none(cls, x: Tensor, index: Tensor | None) -> _Found:
        every = torch.arange(len(x), device=x.device)
        return cls(
            images=x.detach().clone(),
            loss=torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device),
            predictions=torch.zeros_like(every),
            fooled=torch.zeros_like(every, dtype=torch.bool),
            every=every,
            numbers=every if index is None else index,
        )

    def of_rows(
        self, x: Tensor, y: Tensor, rows: Tensor, *, eps: Any, mask: Tensor | None, seed: Any
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Images, classes and options of these rows: of all, the caller's own, of whose numbers errors speak."""
        options = {"eps": eps, "index": self.numbers, "mask": mask, "seed": seed}
        if len(rows) == len(x):
            return x, y, options
        if isinstance(eps, Tensor) and eps.dim() in (1, 4):  # of each sample, also per channel
            options["eps"] = eps[rows]
        if mask is not None and mask.dim() == x.dim() and len(mask) == len(x):
            options["mask"] = mask[rows]
        options["index"] = self.numbers[rows]
        return x[rows], y[rows], options


def _ordered(each: list[Tensor], order: Tensor) -> Tensor:
    """[E, N, ...] of what was found at rising radii, in the order in which the radii were given, int64 [E, N]."""
    whole = torch.empty_like(torch.stack(each))
    samples = torch.arange(order.shape[1], device=order.device)
    for k, found in enumerate(each):
        whole[order[k], samples] = found
    return whole
