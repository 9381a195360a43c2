"""What an attack climbs or descends, and when it has succeeded: its target, its loss, and its verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.attacks import losses
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.model.mode import attacked
from iaat_fast.attacks.network import Network
from iaat_fast.attacks.options import Targeting
from iaat_fast.attacks.passes import among
from iaat_fast.attacks.recorder import Recording
from iaat_fast.attacks.targets import (
    chosen_by,
    least_likely,
    likely_targets,
    random_targets,
    target_draws,
)
from iaat_fast.ops import checks


class Objective:
    """The part of `Attack` that knows its loss and its targets; the attributes are those of its constructor."""

    network: Network
    model: Callable[[Tensor], Tensor]
    loss: str
    targeted: Targeting
    bn: str

    def _aim(self, call: Call) -> None:
        """Choose the goal of a call where that takes the logits at x; else it is chosen at the first gradient."""
        if self.loss == "kl":
            call.goal = self._prediction(call)
        elif self.targeted == "least-likely" or callable(self.targeted):
            with torch.no_grad():
                logits = self.network.logits(call.x)
            call.y = call.safe_classes(call.y, logits.shape[1])
            call.goal = self._target(call, logits)
            self._look_at_masks(call, logits)

    def _target(self, call: Call, logits: Tensor) -> Tensor:
        """int64 [N], the class that a targeted attack descends to, for logits [N, C]."""
        if callable(self.targeted):
            return chosen_by(self.targeted, logits, call.y)
        if self.targeted == "least-likely":
            return least_likely(logits, call.y)
        if self.targeted == "random":
            return random_targets(logits, call.y, target_draws(call.stream, call.index))
        return call.y

    def _targets(self, call: Call, logits: Tensor, most: int) -> Tensor:
        """int64 [N, T], the targets that are tried in turn: the one, else up to `most` of the likely wrong classes."""
        if self.targeted is False:
            return likely_targets(logits, call.y, most)
        return self._target(call, logits).unsqueeze(1)

    @property
    def _moves_everywhere(self) -> bool:
        """Not where the true class has come down to the third place of a DLR: a success, and a gradient of 0."""
        return self.loss != "dlr" or self._descends

    @property
    def _descends(self) -> bool:
        """Whether the loss is that of a target."""
        return self.targeted is not False

    def _prediction(self, call: Call) -> Tensor:
        """Log-probabilities [N, C] at x, from the source of the gradients, so that the divergence at x is exactly 0."""
        log_p = self.network.predict(call.x).log_softmax(1)
        call.safe_classes(call.y, log_p.shape[1])  # only to check y: "kl" does not index by class
        return log_p

    def _goal(self, call: Call, logits: Tensor, rows: Tensor | None) -> Tensor:
        """The `goal` of the loss (see `losses.py`) for some rows, or for one candidate of all samples if rows is None.

        Args:
            logits: [n, C], of all rows of the call if it has no goal yet.
        """
        if call.goal is None:
            y = call.safe_classes(call.y, logits.shape[1])
            if self.targeted == "random":
                draws = target_draws(call.stream, call.index)
                call.goal = random_targets(logits[: len(y)], y, draws)
            else:
                call.goal = y
            self._look_at_masks(call, logits)
        return call.goal if rows is None else call.goal[rows % len(call.y)]

    def _look_at_masks(self, call: Call, logits: Tensor) -> None:
        """Record in the findings whether logits of -infinity leave a sample too few classes for the loss "dlr"."""
        if self.loss == "dlr":
            last = losses.last_of_dlr(logits, targeted=self._descends)
            call.findings.look_at_dlr(last)

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        return losses.cotangent(
            self.loss,
            logits,
            goal,
            targeted=self._descends,
            source=source,
            # False with batch statistics: every sample's loss then reaches every image, and must not be rescaled.
            saturation_proof=self.network.saturation_proof,
            scaled=self.network.eot == 1,  # else the mean of several draws would have other weights
        )

    def _lead_gradient(
        self, call: Call, x_adv: Tensor, target: Tensor, y: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, C] at x_adv, and the gradient of the `lead` in them, 0 where the mask is False."""

        def cotangent(logits: Tensor) -> Tensor:
            one = logits.new_ones(len(logits), 1)
            ahead = torch.zeros_like(logits).scatter_(1, target.view(-1, 1), one)
            return ahead.scatter_(1, _rival(logits, target, y), -one)

        logits, grad = self.network.input_vjp(x_adv, cotangent)
        call.count(grad)
        zero = grad.numel() - grad.count_nonzero()
        call.stats += torch.stack([zero, grad.isnan().count_nonzero()])
        return logits, grad if mask is None else torch.where(mask, grad, 0.0)

    def _verdict(self, call: Call, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Whether images fool the live model, bool [n], and the loss [n] by which the worst of the others is chosen."""
        with torch.no_grad():
            logits = self.network.logits(x_adv)
            y = call.safe_classes(y, logits.shape[1])
            loss = F.cross_entropy(logits.float(), y, reduction="none")
            if call.trace is not None:
                call.trace.see(logits)
        return self._fooled(logits, y), -loss if self.targeted is True else loss

    def _confirmed(self, images: Tensor, y: Tensor, fooled: Tensor) -> Tensor:
        """`fooled` (bool [n], by the source of the gradients) restricted to images that fool the live model too."""
        if not self.network.is_shadowed:
            return fooled
        rows = fooled.nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                with among(self.network.passes, rows):
                    logits = self.network.logits(images[rows])
                fooled[rows] = self._fooled(logits, y[rows])
        return fooled

    def _ended(self, found: Tensor, fooled: Tensor) -> Tensor:
        """bool [n], rows that later restarts leave out: those found in a run, or fooled by the verdict at its end.

        Of a randomised model only the latter, whose draws are new: among many iterates lucky draws are found.
        """
        return found | fooled if self.network.eot == 1 else fooled

    def _judge(self, call: Call, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """By the live model: the predictions for images, and whether the attack has succeeded there."""
        # A verdict updates no running statistics.
        quiet = self.bn == "train_update"
        with torch.no_grad(), attacked(self.model, "train") if quiet else contextlib.nullcontext():
            logits = self.network.logits_as_given(images)
        checks.logit_values(logits)
        y = call.safe_classes(y, logits.shape[1])
        if call.trace is not None:
            call.trace.see(logits)
        return logits.argmax(1), self._fooled(logits, y)

    def _record(
        self,
        recording: Recording,
        logits: Tensor,
        goal: Tensor,
        y: Tensor,
        step_size: Tensor,
        *,
        rows: Tensor | None,
        done: Tensor | None = None,
        source: Tensor | None = None,
    ) -> None:
        """Record iterates with these logits [n, C], goals of the loss, classes [n] and step sizes [n]."""
        loss = losses.per_sample(self.loss, logits, goal, targeted=self._descends, source=source)
        recording.write(rows, loss, self._fooled(logits, y), step_size, done)

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        right = logits.argmax(1) == y
        return right if self.targeted is True else ~right


def lead(logits: Tensor, target: Tensor, y: Tensor | None) -> Tensor:
    """[n], how far the target is ahead of the class y; with None, of the strongest other."""
    ahead = logits.gather(1, target.view(-1, 1)) - logits.gather(1, _rival(logits, target, y))
    return ahead[:, 0]


def _rival(logits: Tensor, target: Tensor, y: Tensor | None) -> Tensor:
    if y is not None:
        return y.view(-1, 1)
    return logits.scatter(1, target.view(-1, 1), -torch.inf).argmax(1, keepdim=True)
