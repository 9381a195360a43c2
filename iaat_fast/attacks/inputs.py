"""Checks of the values in an attack's tensors, with one read from the device, and of the shape of a model's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iaat_fast import units
from iaat_fast.ops import checks

# How far outside [lo, hi], as a share of hi - lo, rounding in a data pipeline may put a pixel: about 100 roundings of
# float32, 2 of the half types.
_NOISE = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}

# A radius of hi - lo, stored in bfloat16, may have been rounded up by this factor.
_ROUNDED = 1 + 2**-8


def values(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    *,
    moves: bool,
    shares: bool = False,
) -> int:
    """Check pixels, classes, radii and (where the attack moves) step sizes with one read from the device.

    With `shares` they are shares of hi - lo of their channels, and errors say so.

    Returns the largest class, to be compared with the number of classes once the model has been called.
    Raises ValueError naming the argument, its value and what was expected.
    """
    try:
        return _values(x, y, eps, alpha, lo, hi, moves=moves)
    except ValueError as problem:
        if not shares:
            raise
        raise ValueError(in_shares(str(problem))) from None


def _values(
    x: Tensor, y: Tensor, eps: Tensor, alpha: Tensor, lo: float, hi: float, *, moves: bool
) -> int:
    stuck = (alpha <= 0) & (eps > 0) | alpha.isnan()
    if x[0].numel():
        pixels = torch.stack(torch.aminmax(x)).double()
    else:
        pixels = x.new_tensor([lo, hi]).double()
    facts = [*pixels, *torch.aminmax(y), *torch.aminmax(eps), stuck.any()]
    low, high, first_class, last_class, smallest, largest, any_stuck = torch.stack(
        [fact.double() for fact in facts]
    ).tolist()
    problem = pixels_problem(low, high, lo, hi, x.dtype)
    if problem:
        raise ValueError(problem)
    if first_class < 0:
        raise ValueError(below_zero(first_class))
    if not smallest >= 0:
        checks.radii_values(eps)
    if radius_problem(largest, lo, hi):
        checks.radii_within(eps, lo, hi, _ROUNDED)
    if moves and any_stuck:
        checks.step_values(alpha, eps)
    return int(last_class)


def expanded_mask(mask: object, x: Tensor) -> Tensor:
    """A mask of images x [N, ...] as bool [N, ...], without a copy; TypeError, ValueError: it is none."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        found = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: {found}, expected a Tensor of torch.bool")
    if mask.device != x.device:
        raise ValueError(f"mask: device {mask.device}, expected that of x, {x.device}")
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)}, expected one that broadcasts to that of x, {tuple(x.shape)}"
        ) from None


def radius_problem(largest: float, lo: float, hi: float) -> str | None:
    """What is expected instead, in words, if the largest radius exceeds the width of the box; else None."""
    return units.beyond(largest, lo, hi) if largest > (hi - lo) * _ROUNDED else None


def pixels_problem(low: float, high: float, lo: float, hi: float, dtype: torch.dtype) -> str | None:
    """What is wrong with images whose pixels range from `low` to `high`, in words; None if nothing is."""
    slack = _NOISE[dtype] * (hi - lo)
    if low >= lo - slack and high <= hi + slack:
        return None
    return (
        f"x: values from {low:.6g} to {high:.6g}, expected images in [{lo:g}, {hi:g}] "
        "(normalisation belongs in the model)"
    )


def in_shares(problem: str) -> str:
    """A problem with pixels, radii or step sizes, in words that say that these are shares of hi - lo."""
    name, colon, rest = problem.partition(":")
    if name == "x":
        return f"(x - lo) / (hi - lo){colon}{rest.partition(' (')[0]}"
    if name in ("eps", "alpha"):
        same = "" if "at most" in rest else ", the same in every channel"
        return f"{name} / (hi - lo){colon}{rest}{same}"
    return problem


def below_zero(label: float) -> str:
    return f"y: {int(label)}, expected a class >= 0"


def out_of_range(label: float, classes: int) -> str:
    return f"y: {int(label)}, expected a class in 0 ... {classes - 1}"


def logits_in(output: Any) -> Any:
    """The logits in a model's output: `output.logits` if that is a tensor (Hugging Face), else the output itself."""
    if isinstance(output, Tensor):
        return output
    held = getattr(output, "logits", None)
    return held if isinstance(held, Tensor) else output


def logits(found: object, images: int) -> None:
    """Raise ValueError unless a model has returned logits [N, C] of at least 2 classes for this number of images."""
    if not isinstance(found, Tensor):
        raise ValueError(
            f"model: returned {type(found).__name__} for {images} images, expected [{images}, C], or an output with "
            f"`logits`{_held(found)}"
        )
    if found.dim() != 2 or len(found) != images:
        raise ValueError(
            f"model: returned {tuple(found.shape)} for {images} images, expected [{images}, C]"
        )
    if found.shape[1] < 2:
        count = ("no", "one")[found.shape[1]]
        raise ValueError(
            f"model: {count} logit per image, expected at least two classes (of a binary model's logit z, "
            "torch.cat([torch.zeros_like(z), z], 1))"
        )


def _held(found: object) -> str:
    """The contents of a dict, tuple or list that a model returned, in words; "" for other types."""
    if isinstance(found, dict):
        return f"; it has {', '.join(map(repr, found))}"
    return f"; it has {len(found)} values" if isinstance(found, (tuple, list)) else ""
