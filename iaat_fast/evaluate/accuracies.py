"""Natural accuracy, and robust accuracy under PGD with restarts, of a model on a split."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iaat_fast import validate
from iaat_fast.attacks import AttackStats, inputs
from iaat_fast.attacks.gradients.verify import IMAGES, is_random
from iaat_fast.attacks.model import attacked, logits_of
from iaat_fast.attacks.model.ensemble import over_draws
from iaat_fast.attacks.model.modules import modules_of
from iaat_fast.data import Samples, as_samples, fetch
from iaat_fast.evaluate.shared_pgd import AttackBudget, SharedPGD, correct
from iaat_fast.malloc import no_malloc_trim


@dataclasses.dataclass(frozen=True)
class RobustResult:
    """Which samples are robust to an attack.

    Args:
        accuracy: share of the samples that are robust, in [0, 1].
        correct: bool [N] on the CPU, whether each sample is robust.
        gradients: how many gradients were taken and how many planned, and how many of their entries were zero or NaN
            (these move no pixel).
    """

    accuracy: float
    correct: Tensor
    gradients: AttackStats


def accuracy(model: nn.Module, split: Any, y: Any = None, *, batch_size: int = 256) -> float:
    """Natural accuracy, the share of the samples classified correctly, in [0, 1].

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's
            device. It is evaluated in eval mode; its mode is restored.
        split: the samples: a split of this library, (x, y), a Dataset or a DataLoader, or with y its images; see
            `data.as_samples`.
        y: labels [N] of images.
        batch_size: samples per forward.

    A sample whose logits hold a NaN counts as misclassified.

    Raises:
        TypeError, ValueError: samples that are not as described, none, or labels that the model has no logit for; a
            batch size below 1.
    """
    right = natural_verdicts(model, split, y, batch_size=batch_size)
    return int(right.sum()) / len(right)


def samples_for(model: nn.Module, split: Any, y: Any = None) -> Samples:
    """`data.as_samples` on the model's device, that of its first weight."""
    weights = (
        tensor
        for module in modules_of(model)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )
    weight = next(weights, None)
    return as_samples(split, y, device=None if weight is None else weight.device)


def natural_verdicts(
    model: nn.Module,
    split: Any,
    y: Any = None,
    *,
    batch_size: int = 256,
    samples: Tensor | None = None,
    eot: int = 1,
) -> Tensor:
    """bool [N] on the CPU, whether each sample is classified correctly; arguments and errors as in `accuracy`.

    With `samples`, sample numbers int64 [K], only for those: bool [K]. With `eot`, over as many draws, as in `PGD`.
    """
    validate.integer("batch_size", batch_size, 1)
    split = samples_for(model, split, y)
    if samples is None:
        samples = torch.arange(len(split), device=split.labels.device)
    highest = int(split.labels.max())
    right = []
    with attacked(model, "eval"), torch.no_grad():
        for index in samples.split(batch_size):
            x, labels = fetch(split, index)
            logits = over_draws(partial(logits_of, model, x), eot)
            if highest >= logits.shape[1]:
                raise ValueError(inputs.out_of_range(highest, logits.shape[1]))
            right.append(correct(logits, labels).cpu())
    return torch.cat(right)


def robust_accuracy(
    model: nn.Module,
    split: Any,
    y: Any = None,
    *,
    eps: float,
    alpha: float,
    steps: int,
    restarts: int,
    batch_size: int = 256,
    seed: int = 0,
    targeted: Literal[False, "random"] = False,
    samples: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RobustResult:
    """Accuracy under PGD with random restarts, in eval mode and without early stopping.

    A sample counts as robust if the last iterate of every restart is classified correctly. All
    samples are attacked once; each further restart attacks only those still robust, in full batches.
    This changes no verdict and saves most passes if most samples are not robust. Only attacked images
    count, as in the paper: a sample whose clean image is misclassified is attacked like the others,
    and counts as robust in the rare case that every restart changes it to the correct class. (Foolbox
    and RobustBench count it as not robust.)

    The noise depends on the sample's number in the split and on `seed`, so the verdicts do not depend
    on the batch size, up to the rounding of the model's own forward.

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's
            device; its mode, gradients and buffers are restored.
        split: the samples: a split of this library, (x, y), a Dataset or a DataLoader, or with y its images; see
            `data.as_samples`.
        y: labels [N] of images.
        eps: radius of the L-infinity ball, on the [0, 1] scale, at most 1.
        alpha: step size, on the [0, 1] scale.
        steps: steps of each restart; with 0 the random start itself is the attack.
        restarts: random starts, at least 1.
        batch_size: samples attacked at once.
        seed: of the random starts and targets.
        targeted: False; "random": descend the loss to another class, drawn once per sample. A sample
            is still robust if it is classified as its true class.
        samples: numbers int64 [K] of those to attack; all by default. The others are left out of the
            accuracy and are False in `correct`.
        progress: called after each batch as progress(done, all), in samples times restarts; samples
            that are not robust count as done.

    Raises:
        TypeError, ValueError: an argument, or what the model returns, is not as described; the model
            returns NaN logits.

    Source: Balaji et al. 2019, Section 4.1; Madry et al. 2018.
    """
    split = samples_for(model, split, y)
    budget = AttackBudget(name="pgd", steps=steps, restarts=restarts)
    run = SharedPGD(
        model,
        split,
        [budget],
        eps=eps,
        alpha=alpha,
        targeted=targeted,
        batch_size=batch_size,
        seed=seed,
        samples=samples,
    )
    size = len(split) if samples is None else len(samples)
    warn_if_random(model, split)
    with no_malloc_trim(split.labels.device):
        while not run.finished:
            run.advance()
            if progress is not None:
                settled = run.settled - (len(split) - size)
                done = restarts * size if run.finished else run.restart * size + settled
                progress(done, restarts * size)
    run.warn()
    robust = run.standing(0)
    return RobustResult(
        accuracy=int(robust.sum()) / size, correct=robust, gradients=run.tally(0).gradients
    )


def warn_if_random(model: nn.Module, split: Samples) -> None:
    """Warn, once per caller, if two forwards of a few images differ, for whoever takes verdicts of one."""
    few = torch.arange(min(IMAGES, len(split)), device=split.labels.device)
    x, _ = fetch(split, few)
    with attacked(model, "eval"):
        if is_random(partial(logits_of, model), x):
            warnings.warn(
                "model: two forwards of the same images differ, so that verdicts of one forward are chance and "
                "gradients of one draw mislead attacks; expected version 'rand' (part autoattack-rand), or attacks "
                "with eot > 1",
                RuntimeWarning,
                stacklevel=3,
            )


def check_model(model: nn.Module, *splits: Samples) -> None:
    """Raise ValueError unless the model takes these images and has a logit for each label.

    One image is passed through the model, in eval mode; its mode is restored.
    """
    first = splits[0]
    x, _ = fetch(first, torch.zeros(1, dtype=torch.int64, device=first.labels.device))
    with attacked(model, "eval"), torch.no_grad():
        try:
            logits = inputs.logits_in(model(x))
        except (RuntimeError, TypeError, ValueError) as error:
            detail = " ".join(str(error).split())
            raise ValueError(
                f"model: does not take images of shape {list(x.shape)}: {detail}"
            ) from error
    inputs.logits(logits, 1)
    found = list(logits.shape)
    highest = max(int(split.labels.max()) for split in splits)
    if found[1] <= highest:
        raise ValueError(
            f"model: returned {found} for one image; expected logits [1, classes] with classes > "
            f"{highest}, the highest label"
        )
