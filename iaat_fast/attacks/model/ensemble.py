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

    Args:
        models: at least one nn.Module, each from images [N, ...] to logits [N, C] of the same classes, on one device.
            They are not copied; attacks put each into evaluation mode, and leave it as it was.
        mean: of what. "logits"; "probabilities", with log(mean of softmax) as logits; "losses": an attack's gradient is
            the mean of those of its loss on each model, and verdicts, and which images are the worst, are by the mean
            of log-probabilities, whose largest has the smallest mean cross-entropy. Such an ensemble is the model
            itself, not a part of one, and its gradients come from the live models, whatever the engine.

    Raises:
        TypeError, ValueError: models or mean are not as described; in `forward`, models of different classes.

    Source: Dong et al. 2018, "Boosting adversarial attacks with momentum", arXiv:1710.06081, Section 3.3: Equation 6
        (logits), predictions and loss.
    """

    def __init__(self, models: Sequence[nn.Module], mean: str = "logits") -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, ...]; of each model's own copy, for it may write into it."""
        return joined(self.mean, [inputs.logits_in(model(x.clone())) for model in self.models])


def joined(mean: str, logits: Sequence[Tensor]) -> Tensor:
    """One [N, C] of each model's, by an ensemble's mean."""
    refuse_other_classes([each.shape[-1] for each in logits])
    each = torch.stack(list(logits))
    if mean == "logits":
        return each.mean(0)
    log_p = each.log_softmax(-1)
    if mean == "losses":
        return log_p.mean(0)
    # Without underflow; a class that all models mask stays masked, and has no gradient of inf - inf.
    masked = (log_p == -torch.inf).all(0)
    total = log_p.masked_fill(masked, 0.0).logsumexp(0) - math.log(len(each))
    return total.masked_fill(masked, -torch.inf)


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
