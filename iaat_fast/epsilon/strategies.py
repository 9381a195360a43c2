"""How Algorithm 2's candidates are attacked: all in one batch, only where needed, or one after the other."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from iaat_fast.attacks.active_set import active_rows, as_column
from iaat_fast.attacks.cudagraph import capturing
from iaat_fast.attacks.findings import Findings

logger = logging.getLogger("iaat_fast")

# Where the steps of an attack are captured, once for each size of batch. On a CPU every image costs its share of time.
_PADDED_ON = ("cuda",)


class Attack(Protocol):
    """What `select` asks of an attack; `attacks.PGD` is one."""

    lo: float
    hi: float
    bn: str

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        eps: Tensor,
        index: Tensor,
        seed: int | Tensor,
        candidate: int,
    ) -> Tensor:
        """Given findings too where `select` is: `findings=`, see `attacks.Attack`."""
        ...

    def logits(self, x: Tensor) -> Tensor: ...


class Candidates(NamedTuple):
    """What is known of the candidates prev + gamma, prev and prev - gamma.

    eps: [K, N], the radii of those that may be attacked: all three, or the two that Algorithm 2 tests.
    x_adv: [N, ...] images of each, None where it was not attacked.
    logits: [3N, C]; anything for the third, to which Algorithm 2 falls back without a test.
    correct: bool [N], whether the clean images are classified correctly, where that was asked or is known.
    """

    eps: Tensor
    x_adv: list[Tensor | None]
    logits: Tensor
    correct: Tensor | None


@dataclasses.dataclass(frozen=True)
class Batch:
    """The samples under selection: images [N, ...], classes, numbers, the seed of the attacks' noise.

    classify_clean: whether the clean images are to be classified too.
    correct: bool [N], whether they are classified correctly, where that is known already.
    findings: where attacks leave what is wrong with values; None: they raise it.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    seed: int | Tensor
    classify_clean: bool
    correct: Tensor | None
    findings: Findings | None = None

    def some(self, rows: Tensor | slice) -> Batch:
        x, y, index = self.x[rows], self.y[rows], self.index[rows]
        return Batch(x, y, index, self.seed, False, None, self.findings)

    def classify(self, attack: Attack, x_adv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of attacked images, and the clean verdicts: in one forward where they are still to be made."""
        if not self.classify_clean:
            return attack.logits(x_adv), self.correct
        logits, clean = attack.logits(torch.cat([x_adv, self.x])).split([len(x_adv), len(self.x)])
        return logits, clean.argmax(1) == self.y

    def attacked(self, attack: Attack, eps: Tensor, candidate: int) -> Tensor:
        how: dict[str, Any] = {} if self.findings is None else {"findings": self.findings}
        return attack(
            self.x, self.y, eps=eps, index=self.index, seed=self.seed, candidate=candidate, **how
        )


class OOMChunker:
    """Attacks a batch of candidates in the largest parts that fit into memory, found by halving where it runs out."""

    def __init__(self) -> None:
        self._parts = 1

    def attacked(self, attack: Attack, batch: Batch, eps: Tensor) -> Tensor:
        """The images [K*N, ...] of all candidates, eps [K, N].

        The noise follows the samples, so they are those of one batch up to the rounding of the model's forward.
        """
        n = eps.shape[1]
        while True:
            try:
                return self._in_parts(attack, batch, eps)
            except torch.OutOfMemoryError:
                # A graph under capture would keep what it was given already, and the parts on top of it.
                if 2 * self._parts > n or capturing(batch.x.device):
                    raise
                self._parts *= 2
                logger.warning(
                    "the candidates' batch does not fit into memory: attacking it in %d parts",
                    self._parts,
                )

    def _in_parts(self, attack: Attack, batch: Batch, eps: Tensor) -> Tensor:
        k, n = eps.shape
        cuts = [n * part // self._parts for part in range(self._parts + 1)]
        made = [
            batch.some(slice(low, high)).attacked(attack, eps[:, low:high].flatten(), 0)
            for low, high in itertools.pairwise(cuts)
            if low < high
        ]
        if len(made) == 1:
            return made[0]
        by_candidate = [part.view(k, -1, *part.shape[1:]) for part in made]
        return torch.cat(by_candidate, 1).flatten(0, 1)


def batched(attack: Attack, batch: Batch, eps: Tensor, chunker: OOMChunker) -> Candidates:
    """All K candidates as one batch of K*N; their verdicts, and the clean images', in one forward of (K + 1)*N."""
    x_adv = chunker.attacked(attack, batch, eps)
    logits, correct = batch.classify(attack, x_adv)
    images: list[Tensor | None] = [*x_adv.chunk(len(eps))]
    if len(eps) == 3:
        return Candidates(eps, images, logits, correct)
    return Candidates(eps, [*images, None], _with_third(list(logits.chunk(2))), correct)


def sequential(attack: Attack, batch: Batch, eps: Tensor, chunker: OOMChunker) -> Candidates:
    """The second and the first candidate, each on the whole batch, then the verdicts on both.

    This is the order of the forwards in the authors' released code, which BatchNorm's running statistics remember.
    """
    correct = batch.correct
    if batch.classify_clean:
        correct = attack.logits(batch.x).argmax(1) == batch.y
    second = batch.attacked(attack, eps[1], 1)
    first = batch.attacked(attack, eps[0], 0)
    second_logits, first_logits = attack.logits(second), attack.logits(first)
    return Candidates(
        eps, [first, second, None], _with_third([first_logits, second_logits]), correct
    )


def lazy(attack: Attack, batch: Batch, eps: Tensor, chunker: OOMChunker) -> Candidates:
    """The first candidate, and the second where the first fooled the model."""
    first = batch.attacked(attack, eps[0], 0)
    logits, correct = batch.classify(attack, first)
    fooled = logits.argmax(1) != batch.y
    rows = _rows(attack, fooled)
    second = _attacked_there(attack, batch, rows, fooled, eps[1], 1, first)
    second_logits = logits.clone()
    if len(rows):
        second_logits[rows] = attack.logits(second[rows])
    return Candidates(eps, [first, second, None], _with_third([logits, second_logits]), correct)


STRATEGIES = {"batched": batched, "lazy": lazy, "sequential": sequential}


def chosen_images(attack: Attack, batch: Batch, candidates: Candidates, choice: Tensor) -> Tensor:
    """Each sample's images of the candidate it chose; a third candidate not attacked yet is attacked now."""
    first, second, third = candidates.x_adv
    assert first is not None
    assert second is not None
    is_third = choice == 2
    if third is None:
        rows = _rows(attack, is_third)
        third = _attacked_there(attack, batch, rows, is_third, candidates.eps[2], 2, second)
    # Not by a list of rows, whose length the host would have to wait for.
    chosen = torch.where(as_column(choice == 0, first), first, second)
    return torch.where(as_column(is_third, first), third, chosen)


def _rows(attack: Attack, wanted: Tensor) -> Tensor:
    """int64, the rows that are wanted; where steps are captured, filled up with others to one of few sizes."""
    if attack.bn != "eval" or wanted.device.type not in _PADDED_ON:
        return wanted.nonzero()[:, 0]
    rows = active_rows(~wanted)
    return torch.arange(len(wanted), device=wanted.device) if rows is None else rows


def _attacked_there(
    attack: Attack,
    batch: Batch,
    rows: Tensor,
    wanted: Tensor,
    eps: Tensor,
    candidate: int,
    others: Tensor,
) -> Tensor:
    """`others` [N, ...], except in the wanted rows: they are attacked at eps [N]. What else `rows` holds is padding."""
    if not len(rows):
        return others
    made = others.clone()
    made[rows] = batch.some(rows).attacked(attack, eps[rows], candidate)
    return torch.where(as_column(wanted, made), made, others)


def _with_third(logits: list[Tensor]) -> Tensor:
    return torch.cat([*logits, torch.zeros_like(logits[0])])
