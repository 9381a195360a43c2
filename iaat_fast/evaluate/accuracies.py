"""The share of a split that a model classifies correctly: as it is, and under PGD with restarts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.attacks.model_state import attacked
from iaat_fast.attacks.stats import AttackStats
from iaat_fast.data import Split, fetch


@dataclasses.dataclass(frozen=True)
class RobustResult:
    """What is left standing after an attack.

    Args:
        accuracy: share of the samples that are robust, in [0, 1].
        correct: bool [N] on the CPU, whether each sample is robust.
        gradients: entries of the attack's gradients; zeros and NaNs in them moved no pixel.
    """

    accuracy: float
    correct: Tensor
    gradients: AttackStats


def accuracy(model: nn.Module, split: Split, *, batch_size: int = 256) -> float:
    """Natural accuracy, the share of the samples classified correctly, in [0, 1].

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's
            device. It is evaluated in eval mode; its mode is restored.
        split: the samples.
        batch_size: samples per forward.

    A sample whose logits hold a NaN counts as misclassified, here and under attack.

    Raises:
        ValueError: an empty split, or a batch size below 1.
    """
    right = 0
    with attacked(model, "eval"), torch.no_grad():
        for index in _batches(split, batch_size):
            x, y = fetch(split, index)
            right += int(_correct(model(x), y).sum())
    return right / len(split)


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
    progress: Callable[[int, int], None] | None = None,
) -> RobustResult:
    """Accuracy under PGD with random restarts, in eval mode and without early stopping.

    A sample counts as robust if the last iterate of every restart is classified correctly; a
    restart leaves out the samples that have fallen already. The rule looks at attacked images
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
        progress: called as progress(samples done, samples) after each batch.

    Raises:
        TypeError, ValueError: an argument, or what the model returns, is not as described.

    Source: Balaji et al. 2019, Section 4.1; Madry et al. 2018.
    """
    pgd = PGD(model, eps=eps, alpha=alpha, steps=steps, restarts=restarts, seed=seed)
    correct = torch.zeros(len(split), dtype=torch.bool)
    counts = torch.zeros(3, dtype=torch.int64)
    for index in _batches(split, batch_size):
        x, y = fetch(split, index)
        with warnings.catch_warnings():
            # Said once, with the totals, instead of once a batch.
            warnings.filterwarnings("ignore", r"\d+ of \d+ gradient entries", RuntimeWarning)
            x_adv = pgd(x, y, index=index)
        correct[index.cpu()] = _correct(pgd.logits(x_adv), y).cpu()
        counts += torch.tensor([pgd.stats.total, pgd.stats.zero, pgd.stats.nan])
        if progress is not None:
            progress(int(index[-1]) + 1, len(split))
    total, zero, nan = counts.tolist()
    gradients = AttackStats(total=total, zero=zero, nan=nan)
    gradients.warn()
    return RobustResult(
        accuracy=int(correct.sum()) / len(split), correct=correct, gradients=gradients
    )


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


def _batches(split: Split, batch_size: int) -> Iterator[Tensor]:
    """The sample numbers 0 ... N-1, `batch_size` at a time, on the split's device."""
    if len(split) == 0:
        raise ValueError("split: empty, expected at least 1 sample")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}, expected at least 1")
    yield from torch.arange(len(split), device=split.labels.device).split(batch_size)
