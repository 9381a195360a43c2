"""The memory of every sample's radius, and Algorithm 2 of IAAT, which updates it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from iaat_fast import ops
from iaat_fast.ops import checks

STRATEGIES = ("batched", "lazy", "sequential")
FINALS = ("exact", "reuse")
CLAMPS = ("result", "candidate")
MISCLASSIFIED = ("algorithm2", "shrink")
WARM_UP_RULES = ("visited", "correct")

# Number of the final attack's noise; 0, 1 and 2 are the candidates'.
_FINAL = 3


class Attack(Protocol):
    """What `select` asks of an attack; `attacks.PGD` is one."""

    lo: float
    hi: float
    bn: str

    def __call__(
        self, x: Tensor, y: Tensor, *, eps: Tensor, index: Tensor, seed: int, candidate: int
    ) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...


class Selection(NamedTuple):
    """The radii chosen for a batch.

    eps: float32 [N], smoothed and clamped, as stored in the memory.
    choice: int64 [N], 0 (prev + gamma), 1 (prev) or 2 (prev - gamma).
    x_adv: [N, ...], adversarial images at eps, made as `final` says.
    """

    eps: Tensor
    choice: Tensor
    x_adv: Tensor


class _Candidates(NamedTuple):
    """What is known of the candidates: radii [3, N], images where they were attacked, logits [3N, C]."""

    eps: Tensor
    x_adv: list[Tensor | None]
    logits: Tensor


class EpsilonMemory:
    """The radius of every sample of a data set.

        memory = EpsilonMemory(len(train), gamma=1.9 / 255, beta=0.1)
        eps, choice, x_adv = memory.select(pgd, x, y, index)

    Args:
        size: number of samples.
        gamma: distance of the candidates prev + gamma, prev, prev - gamma; on the scale of the images.
        beta: smoothing constant in [0, 1]: eps = (1 - beta) * prev + beta * choice.
        init: radius of all samples at first.
        eps_min, eps_max: bounds of the result; None is no upper bound.
        strategy: how the candidates are attacked. "batched": all three in one batch and one forward. "lazy": prev first
            + gamma, then prev where that one fooled the model: fewest operations, the same radii and choices.
            "sequential": both on the whole batch, one after the other, as BatchNorm in train mode sees it in the
            authors' released code.
        final: the adversarial images returned. "exact": another attack at the smoothed radius (Algorithm 1, line 8).
            "reuse": the chosen candidate's images projected into the smoothed ball, an approximation that saves it.
        clamp: where a radius is kept from becoming negative: "result" (after smoothing, as in the paper) or "candidate"
            (before, as in the released code).
        misclassified: what a sample whose clean image is misclassified does: "algorithm2", the same as any other
            (paper); "shrink", its candidate is 0 (released code).
        device: of the memory.

    Raises:
        ValueError: an argument out of range, named, with its value and what was expected.

    Source: IAAT, Algorithm 2; Section 3.
    """

    def __init__(
        self,
        size: int,
        gamma: float,
        beta: float,
        *,
        init: float = 0.0,
        eps_min: float = 0.0,
        eps_max: float | None = None,
        strategy: str = "batched",
        final: str = "exact",
        clamp: str = "result",
        misclassified: str = "algorithm2",
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size: {size!r}, expected a whole number of samples, at least 1")
        _number("gamma", gamma, 0.0, math.inf)
        _number("beta", beta, 0.0, 1.0)
        _number("init", init, 0.0, math.inf)
        _number("eps_min", eps_min, 0.0, math.inf)
        if eps_max is not None and not eps_max >= eps_min:
            raise ValueError(f"eps_max: {eps_max}, expected a number >= eps_min, {eps_min:g}")
        _choice("strategy", strategy, STRATEGIES)
        _choice("final", final, FINALS)
        _choice("clamp", clamp, CLAMPS)
        _choice("misclassified", misclassified, MISCLASSIFIED)
        self.gamma, self.beta = gamma, beta
        self.eps_min, self.eps_max = eps_min, eps_max
        self.strategy, self.final = strategy, final
        self.clamp, self.misclassified = clamp, misclassified
        self.values = torch.full((size,), init, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.values)

    def load(self, values: Tensor) -> None:
        """Replace all radii by float32 [size] values, from a checkpoint for example.

        Raises ValueError for another shape or dtype, or a radius that is negative or NaN.
        """
        if values.shape != self.values.shape or values.dtype is not torch.float32:
            raise ValueError(
                f"values: {values.dtype} of shape {tuple(values.shape)}, "
                f"expected float32 of shape {tuple(self.values.shape)}"
            )
        if not bool((values >= 0).all()):
            raise ValueError("values: a radius is negative or NaN, expected numbers >= 0")
        self.values.copy_(values)

    def warm_up(
        self,
        index: Tensor,
        eps_w: float,
        *,
        correct: Tensor | None = None,
        rule: str = "visited",
    ) -> Tensor:
        """Store and return the radii [N] of a warm-up step, in which every sample has the same.

        Args:
            index: int64 [N], sample numbers.
            eps_w: the radius used in warm-up.
            correct: bool [N], whether the clean image is classified correctly; needed by rule "correct".
            rule: "visited", eps_w for every sample (paper); "correct", 0 for misclassified ones (released code).

        Raises:
            TypeError: an index that is not int64.
            ValueError: index out of range; eps_w or rule not as described; correct missing, of another length or not
                bool.

        Source: IAAT, Algorithm 1, lines 3-4.
        """
        _number("eps_w", eps_w, 0.0, math.inf)
        _choice("rule", rule, WARM_UP_RULES)
        self._check_index(index, None)
        eps = torch.full_like(index, eps_w, dtype=torch.float32)
        if rule == "correct":
            if correct is None:
                raise ValueError("correct: None, but rule 'correct' needs it")
            _check_correct(correct, index)
            eps = eps * correct
        self.values[index] = eps
        return eps

    def _check_index(self, index: Tensor, n: int | None) -> None:
        """Before any work: a negative number would count from the end of the memory."""
        checks.int64_vector("index", index, n, self.values.device)
        checks.index_values(index, len(self.values))

    def select(
        self,
        attack: Attack,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        correct: Tensor | None = None,
        seed: int | None = None,
    ) -> Selection:
        """Run Algorithm 2 for a batch, update the memory, and make the adversarial images to train on.

        Args:
            attack: PGD_k of the algorithm, such as `attacks.PGD`; its last iterate decides.
            x: images [N, ...].
            y: int64 [N], true classes.
            index: int64 [N], distinct sample numbers.
            correct: bool [N], whether the clean image is classified correctly; needed by misclassified="shrink".
            seed: of the attacks' noise; None draws one from torch's generator.

        Returns:
            `Selection`: eps, choice, x_adv.

        Raises:
            TypeError: an index that is not int64.
            ValueError: index out of range, or of another length than x; correct missing, of another length or not bool;
                "batched" or "lazy" with an attack that uses batch statistics.

        Source: IAAT, Algorithm 2, and line 8 of Algorithm 1.
        """
        self._check_index(index, len(x))
        if self.misclassified == "shrink":
            if correct is None:
                raise ValueError("correct: None, but misclassified='shrink' needs it")
            _check_correct(correct, index)
        if attack.bn != "eval" and self.strategy != "sequential":
            raise ValueError(
                f"strategy: {self.strategy!r} with an attack in bn={attack.bn!r}, expected 'sequential': batch "
                "statistics depend on which images share a batch"
            )
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        options: dict[str, Any] = {"index": index, "seed": seed}
        attacked = {"batched": _batched, "lazy": _lazy, "sequential": _sequential}[self.strategy]
        prev = self.values[index]
        candidates = attacked(
            attack,
            x,
            y,
            torch.stack([prev + self.gamma, prev, (prev - self.gamma).clamp(min=0.0)]),
            options,
        )
        eps, choice = ops.select_epsilon_(
            self.values,
            index,
            candidates.logits,
            y,
            self.gamma,
            self.beta,
            self.eps_min,
            self.eps_max,
            clamp_candidate=self.clamp == "candidate",
            misclassified=~correct
            if self.misclassified == "shrink" and correct is not None
            else None,
        )
        if self.final == "exact":
            x_adv = attack(x, y, eps=eps, candidate=_FINAL, **options)
        else:
            chosen = _chosen_images(attack, x, y, candidates, choice, options)
            x_adv = ops.project_linf(chosen, x, eps, attack.lo, attack.hi)
        return Selection(eps, choice, x_adv)


def _check_correct(correct: Tensor, index: Tensor) -> None:
    if correct.dtype is not torch.bool or correct.shape != index.shape:
        raise ValueError(
            f"correct: {correct.dtype} of shape {tuple(correct.shape)}, expected bool [{len(index)}]"
        )


def _batched(
    attack: Attack, x: Tensor, y: Tensor, eps: Tensor, options: dict[str, Any]
) -> _Candidates:
    """All three candidates as one batch of 3N, their verdicts in one forward."""
    x_adv = attack(x, y, eps=eps.flatten(), candidate=0, **options)
    return _Candidates(eps=eps, x_adv=list(x_adv.chunk(3)), logits=attack.logits(x_adv))


def _sequential(
    attack: Attack, x: Tensor, y: Tensor, eps: Tensor, options: dict[str, Any]
) -> _Candidates:
    """The first and the second candidate, each on the whole batch."""
    images: list[Tensor | None] = [None, None, None]
    logits = []
    for k in (0, 1):
        images[k] = x_adv = attack(x, y, eps=eps[k], candidate=k, **options)
        logits.append(attack.logits(x_adv))
    return _Candidates(eps=eps, x_adv=images, logits=_with_third(logits))


def _lazy(
    attack: Attack, x: Tensor, y: Tensor, eps: Tensor, options: dict[str, Any]
) -> _Candidates:
    """The first candidate, and the second where the first fooled the model."""
    first = attack(x, y, eps=eps[0], candidate=0, **options)
    logits = attack.logits(first)
    fooled = (logits.argmax(1) != y).nonzero()[:, 0]
    second, second_logits = first.clone(), logits.clone()
    if len(fooled):
        second[fooled] = _attack_some(attack, x, y, eps[1], 1, fooled, options)
        second_logits[fooled] = attack.logits(second[fooled])
    return _Candidates(
        eps=eps, x_adv=[first, second, None], logits=_with_third([logits, second_logits])
    )


def _with_third(logits: list[Tensor]) -> Tensor:
    """Logits [3N, C] whose third candidate is not looked at: Algorithm 2 falls back to it without a test."""
    return torch.cat([*logits, torch.zeros_like(logits[0])])


def _attack_some(
    attack: Attack,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    candidate: int,
    rows: Tensor,
    options: dict[str, Any],
) -> Tensor:
    some = {**options, "index": options["index"][rows]}
    return attack(x[rows], y[rows], eps=eps[rows], candidate=candidate, **some)


def _chosen_images(
    attack: Attack,
    x: Tensor,
    y: Tensor,
    candidates: _Candidates,
    choice: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """Each sample's images of the candidate it chose; a third candidate not attacked yet is attacked now."""
    first, second, third = candidates.x_adv
    assert first is not None
    assert second is not None
    chosen = torch.where((choice == 0).view(-1, *[1] * (x.dim() - 1)), first, second)
    rows = (choice == 2).nonzero()[:, 0]
    if len(rows):
        if third is not None:
            chosen[rows] = third[rows]
        else:
            chosen[rows] = _attack_some(attack, x, y, candidates.eps[2], 2, rows, options)
    return chosen


def _number(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and value < math.inf):
        expected = f"in [{low:g}, {high:g}]" if high < math.inf else f">= {low:g}, finite"
        raise ValueError(f"{name}: {value}, expected a number {expected}")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, allowed))}")
