"""The memory of every sample's radius, and Algorithm 2 of IAAT, which updates it."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from iaat_fast import ops, validate
from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon.strategies import STRATEGIES, Attack, Batch, OOMChunker, chosen_images
from iaat_fast.ops import checks

FINALS = ("exact", "reuse")
CLAMPS = ("result", "candidate")
MISCLASSIFIED = ("algorithm2", "shrink")
EPS_MIN_BOUNDS = ("memory", "images")
WARM_UP_RULES = ("visited", "correct")

# Candidate number of the final attack, which selects its noise; 0, 1 and 2 are the candidates'.
_FINAL = 3


class _Chosen(NamedTuple):
    eps: Tensor
    choice: Tensor
    x_adv: Tensor


class Selection(_Chosen):
    """What `EpsilonMemory.select` finds for a batch; it unpacks as (eps, choice, x_adv).

    eps: float32 [N], smoothed and clamped, as stored in the memory; with eps_min_bounds="images" at least eps_min.
    choice: int64 [N], 0 (prev + gamma), 1 (prev) or 2 (prev - gamma), where prev is the old radius.
    x_adv: [N, ...], adversarial images within eps (if the attack projects its images), made as `final` says.
    """

    _correct: Tensor | None = None

    def __new__(
        cls, eps: Tensor, choice: Tensor, x_adv: Tensor, correct: Tensor | None = None
    ) -> Self:
        self = super().__new__(cls, eps, choice, x_adv)
        self._correct = correct
        return self

    @property
    def correct(self) -> Tensor:
        """bool [N], whether the clean images are classified correctly (S+ of Algorithm 1).

        Raises ValueError where `select` was given neither judge=True nor `correct`.
        """
        if self._correct is None:
            raise ValueError("correct: not known, expected a selection with judge=True or correct=")
        return self._correct


class EpsilonMemory:
    """The radius of every sample of a data set.

        memory = EpsilonMemory(len(train), gamma=1.9 / 255, beta=0.1)
        eps, choice, x_adv = memory.select(pgd, x, y, index)

    Args:
        size: number of samples.
        gamma: distance of the candidate radii prev + gamma, prev and prev - gamma, where prev is the stored radius; all
            radii are on the scale of the images.
        beta: smoothing constant in [0, 1]: eps = (1 - beta) * prev + beta * choice.
        init: initial radius of all samples.
        eps_min, eps_max: bounds of the result; eps_max=None is the width of the attack's box, hi - lo.
        eps_min_bounds: what eps_min bounds. "memory": the stored radius, from which the sample's next visit starts.
            "images": only the radius of the images that are returned; the stored one may be smaller (the paper to the
            letter: Appendix D.2 bounds what Algorithm 2 returns, after its line 12 has stored it).
        strategy: how the candidates are attacked. The algorithm never tests prev - gamma, so that it is attacked only
            with final="reuse".
            "batched": all candidates in one batch, classified in one forward.
            "lazy": prev + gamma on all samples, then prev on the samples that this fooled: the fewest gradients, with
            the same radii and choices.
            "sequential": prev, then prev + gamma, each on the whole batch, then a forward for each: the order of the
            authors' released code, which matters to BatchNorm in train mode.
        final: the adversarial images returned. "exact": those of another attack at the smoothed radius (Algorithm 1,
            line 8). "reuse": those of the chosen candidate, projected into the smoothed ball, which saves that attack
            but is an approximation.
        clamp: when negative radii are clamped to 0: "result", after smoothing (paper); "candidate", before smoothing
            (released code).
        misclassified: the rule for samples whose clean image is misclassified: "algorithm2", the same as for others
            (paper); "shrink", their candidate is 0 (released code).
        device: where the memory is stored.

    Attributes:
        values: float32 [size], the radii.

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
        eps_min_bounds: str = "memory",
        strategy: str = "batched",
        final: str = "exact",
        clamp: str = "result",
        misclassified: str = "algorithm2",
        device: torch.device | str | None = None,
    ) -> None:
        validate.integer("size", size, 1)
        validate.number("gamma", gamma)
        validate.number("beta", beta, high=1.0)
        validate.number("init", init)
        validate.number("eps_min", eps_min)
        if eps_max is not None and not eps_max >= eps_min:
            raise ValueError(f"eps_max: {eps_max}, expected a number >= eps_min, {eps_min:g}")
        validate.choice("eps_min_bounds", eps_min_bounds, EPS_MIN_BOUNDS)
        validate.choice("strategy", strategy, tuple(STRATEGIES))
        validate.choice("final", final, FINALS)
        validate.choice("clamp", clamp, CLAMPS)
        validate.choice("misclassified", misclassified, MISCLASSIFIED)
        self.gamma, self.beta = float(gamma), float(beta)  # from numpy's numbers, too
        self.eps_min, self.eps_max = float(eps_min), eps_max
        self.eps_min_bounds = eps_min_bounds
        self.strategy, self.final = strategy, final
        self.clamp, self.misclassified = clamp, misclassified
        self.values = torch.full((size,), init, dtype=torch.float32, device=device)
        self._chunker = OOMChunker()

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
        findings: Findings | None = None,
    ) -> Tensor:
        """Store and return the radii, float32 [N], of a warm-up step, in which all samples have the same radius.

        Args:
            index: int64 [N], sample numbers.
            eps_w: the radius of the warm-up, on the scale of the images.
            correct: bool [N], whether the clean image is classified correctly; needed by rule "correct".
            rule: "visited", eps_w for every sample (paper); "correct", 0 for misclassified ones (released code).
            findings: on a GPU, where an index out of range is recorded without waiting; None: it is raised here.

        Raises:
            TypeError: an index that is not int64.
            ValueError: index out of range; eps_w or rule not as described; correct missing, of another length or not
                bool.

        Source: IAAT, Algorithm 1, lines 3-4.
        """
        validate.number("eps_w", eps_w)
        validate.choice("rule", rule, WARM_UP_RULES)
        known = self._known(index, None, findings)
        eps = torch.full_like(index, eps_w, dtype=torch.float32)
        if rule == "correct":
            if correct is None:
                raise ValueError("correct: None, but rule 'correct' needs it")
            _check_correct(correct, index)
            eps = eps * correct
        self._write(index, known, eps)
        return eps

    def store(self, index: Tensor, eps: Tensor, *, findings: Findings | None = None) -> None:
        """Replace the radii of some samples, for rules other than Algorithm 2.

        Args:
            index: int64 [N], distinct sample numbers.
            eps: float32 [N], the new radii.
            findings: as `warm_up`'s.

        Raises:
            TypeError: an index that is not int64.
            ValueError: index out of range; eps of another length or dtype, or with a negative or NaN radius.
        """
        known = self._known(index, None, findings)
        if eps.shape != index.shape or eps.dtype is not torch.float32:
            raise ValueError(
                f"eps: {eps.dtype} of shape {tuple(eps.shape)}, expected float32 [{len(index)}]"
            )
        if eps.is_cpu and not bool((eps >= 0).all()):
            raise ValueError("eps: a radius is negative or NaN, expected numbers >= 0")
        self._write(index, known, eps)

    def _known(self, index: Tensor, n: int | None, findings: Findings | None) -> Tensor:
        """The index, checked before any work, since a negative number would silently count from the end.

        On a GPU with findings, numbers out of range are recorded there and clamped here: indexing with them would kill
        the process.
        """
        checks.int64_vector("index", index, n, self.values.device)
        if findings is not None:
            return findings.look_at_samples(index, len(self.values))
        checks.index_values(index, len(self.values))
        return index

    def _write(self, index: Tensor, known: Tensor, eps: Tensor) -> None:
        """Store radii, except where the index was out of range (there `known`, of `_known`, differs from it)."""
        self.values[known] = torch.where(index == known, eps, self.values[known])

    def select(
        self,
        attack: Attack,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        correct: Tensor | None = None,
        judge: bool = False,
        seed: int | Tensor | None = None,
        final_attack: Attack | None = None,
        findings: Findings | None = None,
    ) -> Selection:
        """Run Algorithm 2 for a batch, update the memory, and make the adversarial images to train on.

        Args:
            attack: PGD_k of the algorithm, such as `attacks.PGD`; its result decides whether a candidate fools.
            x: images [N, ...].
            y: int64 [N], true classes.
            index: int64 [N], distinct sample numbers.
            correct: bool [N], whether the clean image is classified correctly; needed by "shrink", unless judge.
            judge: classify the clean images and return the result as the selection's `correct`: "batched" and "lazy" in
                one forward with a candidate, "sequential" before the attacks.
            seed: of the attacks' noise and random targets, shared by the candidates: an int, or an int64 tensor [] or
                [1]; None draws one from torch's generator.
            final_attack: the attack at the smoothed radius, if it differs from `attack` (ImageNet: PGD-10 selects,
                PGD-30 trains).
            findings: on a GPU, where invalid values in index and in the attacks' arguments are recorded; the memory is
                updated nevertheless, except at an index out of range. None: they are raised here. With findings,
                "batched", and "sequential" with final="exact", never wait for the device and may be captured in a CUDA
                graph; "lazy" waits to read which samples are fooled.

        Returns:
            `Selection`: eps, choice and x_adv; also `correct`, with judge or if it was given.

        Raises:
            TypeError: an index that is not int64.
            ValueError: index out of range, or of another length than x; gamma or a bound beyond the width of the
                attack's box; correct missing, of another length or not bool; "batched" or "lazy" with an attack that
                uses batch statistics; an attack whose lo and hi are per channel.

        Source: IAAT, Algorithm 2, and line 8 of Algorithm 1.
        """
        reason = "a sample's radius is one number"
        lo, hi = validate.one_box("attack", attack, reason)
        if final_attack is not None:
            validate.one_box("final_attack", final_attack, reason)
        known = self._known(index, len(x), findings)
        for name in ("gamma", "eps_min", "eps_max"):
            validate.distance(name, getattr(self, name) or 0.0, lo, hi)
        if correct is not None:
            _check_correct(correct, index)
        elif self.misclassified == "shrink" and not judge:
            raise ValueError("correct: None, but misclassified='shrink' needs it")
        if attack.bn != "eval" and self.strategy != "sequential":
            raise ValueError(
                f"strategy: {self.strategy!r} with an attack in bn={attack.bn!r}, expected 'sequential': batch "
                "statistics depend on which images share a batch"
            )
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        batch = Batch(x, y, index, seed, judge and correct is None, correct, findings)
        prev, width = self.values[known], hi - lo
        # A ball of radius `width` contains the whole box. A larger stored radius is kept: the attack refuses it.
        radii = [torch.maximum((prev + self.gamma).clamp(max=width), prev), prev]
        if (
            self.final == "reuse"
        ):  # which may need the images of the third candidate, taken without a test
            radii.append((prev - self.gamma).clamp(min=0.0))
        candidates = STRATEGIES[self.strategy](attack, batch, torch.stack(radii), self._chunker)
        eps, choice = ops.select_epsilon_(
            self.values,
            index,
            candidates.logits,
            y,
            self.gamma,
            self.beta,
            self.eps_min if self.eps_min_bounds == "memory" else 0.0,
            width if self.eps_max is None else self.eps_max,
            clamp_candidate=self.clamp == "candidate",
            misclassified=~candidates.correct
            if self.misclassified == "shrink" and candidates.correct is not None
            else None,
        )
        if self.eps_min_bounds == "images":
            eps = eps.clamp(min=self.eps_min)
        if self.final == "exact":
            x_adv = batch.attacked(final_attack or attack, eps, _FINAL)
        else:
            chosen = chosen_images(attack, batch, candidates, choice)
            x_adv = ops.project_linf(chosen, x, eps, lo, hi)
        return Selection(eps, choice, x_adv, candidates.correct)


def _check_correct(correct: Tensor, index: Tensor) -> None:
    if correct.dtype is not torch.bool or correct.shape != index.shape:
        raise ValueError(
            f"correct: {correct.dtype} of shape {tuple(correct.shape)}, expected bool [{len(index)}]"
        )
