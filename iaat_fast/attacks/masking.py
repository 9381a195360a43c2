"""Signs of masked gradients, which make a model look more robust to attacks on the cross-entropy than it is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.channel_box import ChannelBox
from iaat_fast.attacks.fgsm import FGSM
from iaat_fast.attacks.options import Bound, StepSize
from iaat_fast.attacks.pgd import PGD
from iaat_fast.ops import checks, primitives


@dataclasses.dataclass(frozen=True)
class MaskingReport:
    """Shares in [0, 1]; all except `correct` are near 0 for a network whose gradients can be trusted.

    samples: number of images.
    correct: samples that are classified correctly without an attack.
    zero_gradients: entries of the cross-entropy's gradient at x that are exactly 0.
    saturated: samples with p_y >= 1 - 2**-12 at x, whose cross-entropy has next to no gradient.
    stronger_loss: samples that PGD on the C&W margin or on the DLR fools, and PGD on the cross-entropy does not.
    fgsm_beats_pgd: samples that one step of FGSM fools, and PGD on the cross-entropy does not.
    """

    samples: int
    correct: float
    zero_gradients: float
    saturated: float
    stronger_loss: float
    fgsm_beats_pgd: float

    def __str__(self) -> str:
        lines = [
            ("classified correctly", self.correct),
            ("zero entries in the gradient", self.zero_gradients),
            ("saturated, p_y >= 1 - 2**-12", self.saturated),
            ("fooled by C&W or DLR, not by CE", self.stronger_loss),
            ("fooled by FGSM, not by PGD", self.fgsm_beats_pgd),
        ]
        body = (f"  {name:<32} {100 * share:5.1f} %" for name, share in lines)
        return "\n".join([f"signs of gradient masking, {self.samples} images", *body])


def masking_report(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float | Tensor = 8 / 255,
    alpha: StepSize = 2 / 255,
    steps: int = 20,
    *,
    lo: Bound = 0.0,
    hi: Bound = 1.0,
    batch_size: int = 256,
) -> MaskingReport:
    """Look for signs of masked gradients in a model.

    It runs three PGD attacks, on different losses, and an FGSM. All start at x and use `engine="exact"`, because the
    other engines keep the gradients of saturated samples and would hide what is looked for.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C]. With two classes the DLR is left out.
        x: images [N, ...], N >= 1.
        y: int64 [N], true classes.
        eps: radius, a float or a tensor [N].
        alpha: step size of PGD, a float, a tensor [N], or a function of the radii.
        steps: of PGD, at least 1.
        lo, hi: range of the pixels, as `PGD`'s; per channel, eps and alpha are so too.
        batch_size: images attacked at once.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Athalye, Carlini and Wagner 2018, "Obfuscated gradients give a false sense of security", Section 3.1; Croce
        and Hein 2020, Section 4 (rescaled logits).
    """
    validate.integer("steps", steps, 1)
    validate.integer("batch_size", batch_size, 1)
    checks.images("x", x)
    n = len(x)
    if n == 0:
        raise ValueError("x: 0 images, expected at least 1")
    checks.int64_vector("y", y, n, x.device)
    box = ChannelBox.of(lo, hi)
    if box is not None:
        eps, alpha = (
            box.share(name, value, x.device) for name, value in (("eps", eps), ("alpha", alpha))
        )
        x, lo, hi = box.scaled("x", x), 0.0, 1.0
        model, layer = box.before(model)
        if layer is not None:
            layer.place(*box.constants(x))
    radii = checks.per_row("eps", eps, n, x)
    sizes = checks.per_row("alpha", alpha(radii) if callable(alpha) else alpha, n, x)
    fgsm = FGSM(model, lo=lo, hi=hi, engine="exact")
    climbers = {
        loss: PGD(model, steps=steps, random_start=False, lo=lo, hi=hi, engine="exact", loss=loss)
        for loss in losses.CLASS_LOSSES
    }
    zero, found = 0, torch.zeros(4, dtype=torch.int64, device=x.device)
    for part in torch.arange(n, device=x.device).split(batch_size):
        images, classes, radius, size = x[part], y[part], radii[part], sizes[part]
        with warnings.catch_warnings():  # the report shows the same
            warnings.filterwarnings("ignore", ".*gradient entries are", RuntimeWarning)
            by_fgsm = _fooled(fgsm, fgsm(images, classes, eps=radius), classes)
            logits = fgsm.logits(images).double()
            if logits.shape[1] < 3:
                climbers.pop("dlr", None)
            fooled = {
                loss: _fooled(pgd, pgd(images, classes, eps=radius, alpha=size), classes)
                for loss, pgd in climbers.items()
            }
        by_ce = fooled.pop("ce")
        missing = 1 - logits.softmax(1).gather(1, classes.view(-1, 1))
        by_stronger = torch.stack(list(fooled.values())).any(0)
        found += torch.stack(
            [
                logits.argmax(1) == classes,
                missing[:, 0] <= primitives.SATURATION,
                by_stronger & ~by_ce,
                by_fgsm & ~by_ce,
            ]
        ).sum(1)
        zero += fgsm.stats.zero
    correct, saturated, stronger, beaten = found.tolist()
    return MaskingReport(
        samples=n,
        correct=correct / n,
        zero_gradients=zero / max(x.numel(), 1),
        saturated=saturated / n,
        stronger_loss=stronger / n,
        fgsm_beats_pgd=beaten / n,
    )


def _fooled(attack: PGD, x_adv: Tensor, y: Tensor) -> Tensor:
    return attack.logits(x_adv).argmax(1) != y
