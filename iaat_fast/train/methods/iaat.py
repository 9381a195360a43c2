"""Instance adaptive adversarial training: Algorithm 1 of Balaji et al. 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast.attacks.active_set import as_column
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_selector
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import (
    CLEAN_VERDICTS,
    Fooled,
    Kind,
    Stage,
    training_attack,
    update,
)

_WARMUP = "warm-up"


class InstanceAdaptive(Method):
    """Cross-entropy on adversarial images, each at the radius that Algorithm 2 finds for its sample.

    Source: Balaji et al. 2019, Algorithm 1.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        self.selector = make_selector(config, self.attack)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        return 0.0  # what a run without warm-up starts from

    @classmethod
    def phase(cls, config: TrainConfig, epoch: int) -> str:
        return _WARMUP if epoch < config.epsilon.warmup_epochs else "adaptive"

    def host_reads(self, epoch: int) -> str | None:
        strategy, final = self.memory.strategy, self.memory.final
        if self.phase(self.config, epoch) == _WARMUP or strategy == "batched":
            return None
        if strategy == "sequential" and final == "exact":
            return None
        why = "asks which samples its first attack has fooled"
        if strategy == "sequential":
            why = "asks which samples chose the candidate it has not attacked"
        return f"strategy {strategy!r} with final {final!r} {why}"

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        if phase == _WARMUP:
            return CLEAN_VERDICTS, training_attack(config), update()
        return *_selection(config, fooled), *_final(config, fooled), update()

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        """Lines 3 to 10 of Algorithm 1."""
        config = self.config.epsilon
        if self.phase(self.config, step.epoch) == _WARMUP:
            # Lines 9 and 10, then 4 and 8.
            correct = is_correct(self.attack.logits(x), y)
            eps = self.memory.warm_up(
                index,
                config.eps_w,
                correct=correct,
                rule=config.warmup_rule,
                findings=step.findings,
            )
            x_adv = self.attack(
                x, y, eps=eps, index=index, seed=step.drawn["noise"], findings=step.findings
            )
        else:
            # Line 6, which is Algorithm 2, and line 8; the clean images (9, 10) are classified with the candidates.
            selection = self.memory.select(
                self.selector,
                x,
                y,
                index,
                judge=True,
                seed=step.drawn["noise"],
                final_attack=self.attack,
                findings=step.findings,
            )
            x_adv, correct = selection.x_adv, selection.correct
        if config.misclassified_input == "clean":
            x_adv = torch.where(as_column(correct, x), x_adv, x)
        return Batch(x=x, y=y, x_adv=x_adv, correct=correct)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert batch.x_adv is not None
        assert batch.correct is not None
        logits = forward(batch.x_adv)
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        robust = is_correct(logits, batch.y) & batch.correct
        return Outcome(loss=loss, clean=batch.correct, robust=robust)


def _selection(config: TrainConfig, fooled: Fooled) -> tuple[Stage, ...]:
    """Passes of Algorithm 2: the attacks on the candidates, and classifying these and the clean images."""
    strategy = config.epsilon.strategy
    if strategy == "auto":
        raise ValueError("epsilon.strategy: 'auto', expected what it is on the hardware planned")
    # The third candidate needs no verdict; it is attacked only where its images are reused.
    copies = (3 if config.epsilon.final == "reuse" else 2) if strategy == "batched" else 1
    attacked = {"lazy": 1 + fooled.once, "batched": copies, "sequential": 2}[strategy]
    parts: tuple[tuple[str, Kind, float], ...] = (
        ("attacks of the selection", "gradient", attacked * _selection_steps(config)),
        ("verdicts of the selection", "forward", attacked + 1),
    )
    return tuple(
        Stage(
            name=name,
            kind=kind,
            passes=passes,
            depends_on_samples=strategy == "lazy",
            copies=copies,
        )
        for name, kind, passes in parts
    )


def _final(config: TrainConfig, fooled: Fooled) -> tuple[Stage, ...]:
    """Passes of Algorithm 1, line 8; with "reuse", those of the samples whose candidate was not attacked before."""
    if config.epsilon.final == "exact":
        return (training_attack(config),)
    if config.epsilon.strategy == "batched":
        return ()
    passes = fooled.twice * _selection_steps(config)
    name = "attack at prev - gamma"
    return (Stage(name=name, kind="gradient", passes=passes, depends_on_samples=True),)


def _selection_steps(config: TrainConfig) -> int:
    steps = config.epsilon.selection_steps
    return config.attack.steps if steps is None else steps
