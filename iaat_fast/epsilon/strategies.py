"""How Algorithm 2's candidates are attacked: all in one batch, only on the samples that need it, or in sequence."""

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

# Devices on which batches are padded to few sizes, because steps are captured once per size. On a CPU padding costs.
_PADDED_ON = ("cuda",)


class Attack(Protocol):
    """The interface that `select` needs of an attack; `attacks.PGD` has it."""

    bn: str

    @property
    def lo(self) -> float | tuple[float, ...]:
        """The smallest value of a pixel; one per channel is refused."""
        ...

    @property
    def hi(self) -> float | tuple[float, ...]:
        """The largest value of a pixel; one per channel is refused."""
        ...

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
        """See `attacks.Attack`. With a `findings` argument too, if `select` is called with one."""
        ...

    def logits(self, x: Tensor) -> Tensor: ...


class Candidates(NamedTuple):
    """The candidates prev + gamma, prev and prev - gamma, after their attacks.

    eps: [K, N], radii of the candidates that may be attacked: all three, or only the two that Algorithm 2 tests.
    x_adv: images [N, ...] for each of the three, None for one that was not attacked.
    logits: [3N, C]; those of the third are not used, since Algorithm 2 takes it without a test.
    correct: bool [N], whether the clean images are classified correctly; None if unknown.
    """

    eps: Tensor
    x_adv: list[Tensor | None]
    logits: Tensor
    correct: Tensor | None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples: images x [N, ...], classes y and sample numbers index, int64 [N], and the seed of the attacks' noise.

    classify_clean: whether the clean images still have to be classified.
    correct: bool [N], whether they are classified correctly; None if unknown.
    findings: passed to the attacks.
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
        """Logits of attacked images, and `correct`, from one forward if the clean images are to be classified."""
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
    """Attacks a batch of candidates; when memory runs out, it halves the batch, and remembers the number of parts."""

    def __init__(self) -> None:
        self._parts = 1

    def attacked(self, attack: Attack, batch: Batch, eps: Tensor) -> Tensor:
        """The images [K*N, ...] of all candidates at radii eps [K, N].

        They do not depend on the number of parts, except for rounding in the model's forward.
        """
        n = eps.shape[1]
        while True:
            try:
                return self._in_parts(attack, batch, eps)
            except torch.OutOfMemoryError:
                # A CUDA graph under capture would keep the memory of the failed attempt in addition.
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
    """Attack all K candidates as one batch of K*N; classify them, and clean images if asked, in one forward."""
    x_adv = chunker.attacked(attack, batch, eps)
    logits, correct = batch.classify(attack, x_adv)
    images: list[Tensor | None] = [*x_adv.chunk(len(eps))]
    if len(eps) == 3:
        return Candidates(eps, images, logits, correct)
    return Candidates(eps, [*images, None], _with_third(list(logits.chunk(2))), correct)


def sequential(attack: Attack, batch: Batch, eps: Tensor, chunker: OOMChunker) -> Candidates:
    """Attack the second and then the first candidate, each on the whole batch, then classify both.

    The order of forwards is that of the authors' released code, since it affects BatchNorm's running statistics.
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
    """Attack the first candidate, and the second only on samples that the first fooled."""
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
    """The images [N, ...] of each sample's chosen candidate (`choice`, int64 [N]); attacks the third one if needed."""
    first, second, third = candidates.x_adv
    assert first is not None
    assert second is not None
    is_third = choice == 2
    if third is None:
        rows = _rows(attack, is_third)
        third = _attacked_there(attack, batch, rows, is_third, candidates.eps[2], 2, second)
    # torch.where, because for a list of rows the host would wait for its length.
    chosen = torch.where(as_column(choice == 0, first), first, second)
    return torch.where(as_column(is_third, first), third, chosen)


def _rows(attack: Attack, wanted: Tensor) -> Tensor:
    """int64, the wanted rows; on CUDA padded with other rows to one of few batch sizes."""
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
    """`others` [N, ...] with the wanted rows replaced by attacked images at radii eps [N]; `rows` is from `_rows`."""
    if not len(rows):
        return others
    made = others.clone()
    made[rows] = batch.some(rows).attacked(attack, eps[rows], candidate)
    return torch.where(as_column(wanted, made), made, others)


def _with_third(logits: list[Tensor]) -> Tensor:
    return torch.cat([*logits, torch.zeros_like(logits[0])])
