"""Several models, or several draws of a randomised one, as one: the mean of their logits, probabilities or losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from iaat_fast import validate
from iaat_fast.attacks import inputs

MEANS = ("logits", "probabilities", "losses")


class Ensemble(nn.Module):
    """Models that are attacked together, a model like any other.

        attack = MIFGSM(Ensemble([resnet, vit]), eps=8 / 255)
        attack = MIFGSM(Ensemble([resnet, vit], mean="losses"), eps=8 / 255)
        attack = MIFGSM(Ensemble([resnet, vit], weights=[1, 3]), eps=8 / 255)

    Args:
        models: at least one nn.Module, each from images [N, ...] to logits [N, C] of the same classes, on one device.
            They are not copied; attacks put each into evaluation mode, and leave it as it was.
        mean: of what. "logits"; "probabilities", with log(mean of softmax) as logits; "losses": an attack's gradient is
            the mean of those of its loss on each model, and verdicts, and which images are the worst, are by the mean
            of log-probabilities, whose largest has the smallest mean cross-entropy. Such an ensemble is the model
            itself, not a part of one, and its gradients come from the live models, whatever the engine.
        weights: of the models in that mean, numbers >= 0, one of them above 0; None: all the same. Only their ratios
            matter: they are divided by their sum, so that `[1, 3]` is `[0.25, 0.75]`. A model of weight 0 is not run.

    Attributes:
        weights: as given, divided by their sum; None if none were.

    Raises:
        TypeError, ValueError: models, mean or weights are not as described; in `forward`, models of different classes.

    Source: Dong et al. 2018, "Boosting adversarial attacks with momentum", arXiv:1710.06081, Section 3.3: Equation 6
        (logits), predictions and loss, all with weights >= 0 that add up to 1.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        mean: str = "logits",
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        members = list(models)
        validate.choice("mean", mean, MEANS)
        if not members:
            raise ValueError("models: none, expected at least 1")
        for number, model in enumerate(members):
            if not isinstance(model, nn.Module):
                raise TypeError(f"models[{number}]: {type(model).__name__}, expected an nn.Module")
        devices = {weight.device for model in members for weight in model.parameters()}
        if len(devices) > 1:
            raise ValueError(f"models: on {sorted(map(str, devices))}, expected one device")
        self.models, self.mean = nn.ModuleList(members), mean
        self.weights = None if weights is None else _normalised(weights, len(members))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, ...]; of each model's own copy, for it may write into it."""
        models, weights = running(self)
        return joined(self.mean, [inputs.logits_in(model(x.clone())) for model in models], weights)


def _normalised(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """Weights divided by their sum."""
    plain = weights.tolist() if hasattr(weights, "tolist") else weights
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        raise TypeError(f"weights: {weights!r}, expected numbers, one for each model")
    given = list(plain)
    if len(given) != count:
        raise ValueError(f"weights: {len(given)}, expected {count}, one for each model")
    for number, weight in enumerate(given):
        validate.number(f"weights[{number}]", weight)
    if not any(given):
        raise ValueError(f"weights: {given}, expected one above 0")
    # By the largest first: the sum of finite numbers may be infinite.
    scaled = [weight / max(given) for weight in given]
    return tuple(weight / sum(scaled) for weight in scaled)


def running(ensemble: Ensemble) -> tuple[list[nn.Module], list[float] | None]:
    """The models of an ensemble whose weight is not 0, and their weights; None: all the same."""
    if ensemble.weights is None:
        return list(ensemble.models), None
    pairs = [
        (model, w) for model, w in zip(ensemble.models, ensemble.weights, strict=True) if w > 0
    ]
    return [model for model, _ in pairs], [w for _, w in pairs]


def joined(mean: str, logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """One [N, C] of each model's, by an ensemble's mean.

    Args:
        mean: one of `MEANS`.
        logits: of the models, [N, C] each.
        weights: of the models, above 0, adding up to 1; None: the same for all.
    """
    refuse_other_classes([each.shape[-1] for each in logits])
    each = torch.stack(list(logits))
    if mean == "logits":
        return _average(each, weights)
    log_p = each.log_softmax(-1)
    if mean == "losses":
        return _average(log_p, weights)
    # Without underflow; a class that all models mask stays masked, and has no gradient of inf - inf.
    masked = (log_p == -torch.inf).all(0)
    log_p = log_p.masked_fill(masked, 0.0)
    if weights is None:
        total = log_p.logsumexp(0) - math.log(len(each))
    else:
        parts = [one + math.log(weight) for one, weight in zip(log_p, weights, strict=True)]
        total = torch.stack(parts).logsumexp(0)
    return total.masked_fill(masked, -torch.inf)


def _average(each: Tensor, weights: Sequence[float] | None) -> Tensor:
    if weights is None:
        return each.mean(0)
    # By numbers: for a tensor of them, copied to a GPU, the host would wait.
    total = each[0] * weights[0]
    for one, weight in zip(each[1:], weights[1:], strict=True):
        total = torch.add(total, one, alpha=weight)
    return total


def over_draws(forward: Callable[[], Tensor], draws: int) -> Tensor:
    """The logits [N, C] that `forward` gives; with several draws of a randomised model, `mean_of_draws`."""
    if draws == 1:
        return forward()
    each = [forward() for _ in range(draws)]
    wide = torch.promote_types(each[0].dtype, torch.float32)
    return mean_of_draws([logits.to(wide) for logits in each])


def mean_of_draws(logits: Sequence[Tensor]) -> Tensor:
    """Logits [N, C] of the mean of the probabilities, of K draws [N, C] in float32 or float64.

    They are log(mean of softmax) plus the normalising constant of the first draw, so that equal draws give their own
    bits: of a model that is not random, no verdict changes.
    """
    each = torch.stack(list(logits))
    constant = each.logsumexp(-1, keepdim=True)
    each = each + (constant[:1] - constant)
    largest = each.amax(0)
    # A class that all draws mask stays masked, without inf - inf.
    finite = largest.masked_fill(largest == -torch.inf, 0.0)
    return largest + (each - finite).exp().mean(0).log().masked_fill(largest == -torch.inf, 0.0)


def refuse_other_classes(found: Sequence[int]) -> None:
    """ValueError unless all models of an ensemble have the same number of classes."""
    if len(set(found)) > 1:
        raise ValueError(f"models: {list(found)} classes, expected the same of each")


def refuse_inner_losses(model: object, modules: Sequence[nn.Module]) -> None:
    """ValueError for a mean of losses that is a part of a model, from whose logits no loss of its members can be had.

    Args:
        modules: of the model.
    """
    for module in modules:
        if isinstance(module, Ensemble) and module.mean == "losses" and module is not model:
            raise ValueError(
                f"model: a {type(model).__name__} around an Ensemble of losses, expected the Ensemble itself, around "
                "models that have what they need"
            )
