"""The share of a split that a model classifies correctly: as it is, and under PGD with restarts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, inputs
from iaat_fast.attacks.model_state import attacked
from iaat_fast.attacks.stats import AttackStats
from iaat_fast.data import Split, fetch


@dataclasses.dataclass(frozen=True)
class RobustResult:
    """What is left standing after an attack.

    Args:
        accuracy: share of the samples that are robust, in [0, 1].
        correct: bool [N] on the CPU, whether each sample is robust.
        gradients: entries of the attack's gradients, zeros and NaNs in which moved no pixel; how many gradients were
            taken, and how many were planned.
    """

    accuracy: float
    correct: Tensor
    gradients: AttackStats


def accuracy(
    model: nn.Module, split: Split, *, batch_size: int = 256, samples: Tensor | None = None
) -> float:
    """Natural accuracy, the share of the samples classified correctly, in [0, 1].

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's
            device. It is evaluated in eval mode; its mode is restored.
        split: the samples.
        batch_size: samples per forward.
        samples: numbers int64 [K] of those to look at; all by default.

    A sample whose logits hold a NaN counts as misclassified.

    Raises:
        ValueError: an empty split, or a batch size below 1.
    """
    right, numbers = 0, _numbers(split, samples)
    with attacked(model, "eval"), torch.no_grad():
        for index in numbers.split(_whole(batch_size)):
            x, y = fetch(split, index)
            right += int(_correct(model(x), y).sum())
    return right / len(numbers)


def robust_accuracy(
    model: nn.Module,
    split: Split,
    *,
    eps: float,
    alpha: float,
    steps: int,
    restarts: int,
    batch_size: int = 256,
    seed: int = 0,
    samples: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RobustResult:
    """Accuracy under PGD with random restarts, in eval mode and without early stopping.

    A sample counts as robust if the last iterate of every restart is classified correctly. All
    samples are attacked once, then those still standing again, in full batches: which changes no
    verdict, and saves most of the passes where most samples fall. The rule looks at attacked images
    only, as in the paper: a sample misclassified clean is attacked like the others, and counts as
    robust in the rare case that every restart turns it to its own class. (Foolbox and RobustBench
    count it as not robust.)

    The noise follows the sample's number in the split and `seed`, so the verdicts do not depend
    on the batch size, up to the rounding of the model's own forward.

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's
            device; its mode, gradients and buffers are as they were afterwards.
        split: the samples.
        eps: radius of the L-infinity ball, on the [0, 1] scale.
        alpha: step size, on the [0, 1] scale.
        steps: steps of each restart; 0 leaves the random start.
        restarts: random starts, at least 1.
        batch_size: samples attacked at once.
        seed: of the random starts.
        samples: numbers int64 [K] of those to attack; all by default. The others are left out of the
            accuracy and are False in `correct`.
        progress: called after each batch as progress(done, all), in samples times restarts; samples
            that have fallen are done.

    Raises:
        TypeError, ValueError: an argument, or what the model returns (NaN logits among it), is not
            as described.

    Source: Balaji et al. 2019, Section 4.1; Madry et al. 2018.
    """
    inputs.whole_number("restarts", restarts, at_least=1)
    pgd = PGD(model, eps=eps, alpha=alpha, steps=steps, seed=seed)
    standing = _numbers(split, samples)
    size = len(standing)
    gradients = AttackStats(planned=size * steps * restarts)
    for restart in range(restarts):
        robust = torch.zeros_like(standing, dtype=torch.bool)
        for rows in torch.arange(len(standing), device=standing.device).split(_whole(batch_size)):
            index = standing[rows]
            x, y = fetch(split, index)
            with warnings.catch_warnings():
                # Said once, with the totals, instead of once a batch.
                warnings.filterwarnings("ignore", r".*gradient entries are", RuntimeWarning)
                x_adv = pgd(x, y, index=index, restart=restart)
            robust[rows] = _correct(pgd.logits(x_adv), y)
            gradients = gradients.plus(pgd.stats)
            if progress is not None:
                fallen = size - len(standing)
                progress(restart * size + fallen + int(rows[-1]) + 1, restarts * size)
        standing = standing[robust]
        if progress is not None and not len(standing):
            progress(restarts * size, restarts * size)
            break
    gradients.warn()
    correct = torch.zeros(len(split), dtype=torch.bool)
    correct[standing.cpu()] = True
    return RobustResult(accuracy=len(standing) / size, correct=correct, gradients=gradients)


def check_model(model: nn.Module, *splits: Split) -> None:
    """Raise ValueError unless the model takes these images and has a logit for each label.

    One image is passed through the model, in eval mode; its mode is restored.
    """
    first = splits[0]
    x, _ = fetch(first, torch.zeros(1, dtype=torch.int64, device=first.labels.device))
    try:
        with attacked(model, "eval"), torch.no_grad():
            logits = model(x)
    except (RuntimeError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ValueError(
            f"model: does not take images of shape {list(x.shape)}: {detail}"
        ) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    highest = max(int(split.labels.max()) for split in splits)
    if not isinstance(found, list) or len(found) != 2 or found[1] <= highest:
        raise ValueError(
            f"model: returned {found} for one image; expected logits [1, classes] with classes > "
            f"{highest}, the highest label"
        )


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    # argmax of a row with a NaN is the NaN's place, which would be right for some label.
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def _numbers(split: Split, samples: Tensor | None) -> Tensor:
    """The numbers of the samples asked for, by default 0 ... N-1, on the split's device."""
    if len(split) == 0:
        raise ValueError("split: empty, expected at least 1 sample")
    if samples is None:
        return torch.arange(len(split), device=split.labels.device)
    if len(samples) == 0:
        raise ValueError("samples: empty, expected at least 1 number")
    return samples.to(split.labels.device)


def _whole(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}, expected at least 1")
    return batch_size
