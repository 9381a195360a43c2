"""Whether a copy of a model gives what the live model gives, when it is made and after every attack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.attacks.cudagraph import Capture, Replayed
from iaat_fast.attacks.gradients.shadow import Unshadowable, brief
from iaat_fast.attacks.gradients.source import ByAutograd, Forward, Source
from iaat_fast.attacks.model.mode import private_copy
from iaat_fast.attacks.model.snapshot import preserved_rng

# How far a copy in the live precision may be off, |difference| / |live|, over some images. Folding rounds differently:
# logits by 1e-6, gradients by up to 1e-3 where that flips a ReLU. A wrong trace is off by about 1.
_LOGITS = {"fp32": 1e-3, "tf32": 1e-2}
_GRADIENT = {"fp32": 0.05, "tf32": 0.2}
# In half precision a copy is judged by what autocast does to the live model: deep networks lose most of their bits in
# either (a ResNet-50's logits 0.26 in the copy, 0.30 under autocast). Twice that, since over a few images both are
# noise; at least some roundings of 8 bits; and never as much as unrelated numbers, or zeros, are off.
_TIMES_AUTOCAST = 2.0
_AT_LEAST = {"bf16": 0.05, "fp16": 0.01}
_AT_MOST = 0.95
# Images on which a copy is compared with the live model; fewer after an attack of few gradients, of whose work two
# forwards of more would not be a small part.
IMAGES, _FEWER, _FEW_GRADIENTS = 8, 2, 512
# Whether a copied forward is still the live one is asked of logits in the live model's own precision: by the same
# operations on the same tensors, so mostly with the same bits, whatever precision the copy computes in. In any attack
# they may be off by half of the bits, |difference| / |live|; when the copy is made by a hundred roundings, at most a
# quarter of that, so that what passes then passes later. Two forwards of a live model that draws nothing are held to
# the latter, too: kernels may add in another order.
_ROUNDINGS = 100.0
_KEEPS_TENSORS = (
    "model: its forward keeps tensors outside of its modules, expected it not to: copying has left one there that has "
    "no values; begin again with engine='exact' and precision='fp32', or keep them in a buffer"
)


def check_gradients(
    copy: Source,
    live: Callable[[Tensor], Tensor],
    x: Tensor,
    precision: str,
    half: torch.dtype | None,
) -> None:
    """Raise Unshadowable unless a copy gives the live model's logits and gradients, up to its precision.

    Args:
        copy: made of the live model.
        live: the model.
        x: some images.
        precision, half: "bf16" and torch.bfloat16, say; None for a precision that is no half one.
    """
    expected, expected_grad = _seen(ByAutograd(live), x)
    try:
        logits, grad = _seen(copy, x)
    # The copy runs the user's forward in another dtype: whatever that raises, the copy is of no use.
    except Exception as error:
        raise Unshadowable(f"its copy failed: {brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        raise Unshadowable("its copy returns something else")
    if (grad is None) != (expected_grad is None):
        raise Unshadowable("its copy has a gradient where it has none, or the other way round")
    if half is None:
        limits = (_LOGITS[precision], _GRADIENT[precision])
    else:
        limits = _limits_of_autocast(live, x, expected, expected_grad, precision, half)
    errors = (
        float(relative_error(logits, expected)),
        _gradient_error(grad, expected_grad, without=0.0),
    )
    for what, error_size, limit in zip(("logits", "gradients"), errors, limits, strict=True):
        if not error_size <= limit:
            raise Unshadowable(
                f"its copy's {what} are off by {error_size:.1e}, more than {limit:.1g}"
            )


def _limits_of_autocast(
    live: Callable[[Tensor], Tensor],
    x: Tensor,
    expected: Tensor,
    expected_grad: Tensor | None,
    precision: str,
    half: torch.dtype,
) -> tuple[float, float]:
    try:
        logits, grad = _seen(ByAutograd(live, autocast=half), x)
        found = [
            float(relative_error(logits, expected)),
            _gradient_error(grad, expected_grad, without=1.0),
        ]
    except (RuntimeError, ValueError):  # no autocast for this device, or of this model
        found = [_AT_MOST, _AT_MOST]
    low, high = _limit(found[0], precision), _limit(found[1], precision)
    return low, high


def _limit(autocast: float, precision: str) -> float:
    if not autocast >= 0:  # NaN: an overflow of autocast's says nothing of the copy
        return _AT_MOST
    return min(max(_TIMES_AUTOCAST * autocast, _AT_LEAST[precision]), _AT_MOST)


def _seen(source: Source, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient for a cotangent that no two classes share."""

    def cotangent(logits: Tensor) -> Tensor:
        classes = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        return torch.sin(classes.double()).to(logits.dtype).expand_as(logits)

    with torch.enable_grad():
        return source.input_vjp(x, cotangent)


def _gradient_error(grad: Tensor | None, expected_grad: Tensor | None, *, without: float) -> float:
    return (
        without
        if grad is None or expected_grad is None
        else float(relative_error(grad, expected_grad))
    )


def relative_error(value: Tensor, expected: Tensor) -> Tensor:
    """|value - expected| / |expected|, double []; equal infinities, of classes that are masked, are no difference."""
    value, expected = value.double(), expected.double()
    difference = torch.where(value == expected, 0.0, value - expected)
    size = torch.where(expected.isinf(), 0.0, expected).norm()
    return difference.norm() / size.clamp(min=1e-30)


class FrozenForward:
    """The live forward as a CUDA graph holds it, captured when an attack's steps are: what Python decided then stays.

    Args:
        live: the forward.
        x: images like those that it will be given, at least one.
        capture: as of `Replayed`.
    """

    def __init__(self, live: Forward, x: Tensor, capture: Capture) -> None:
        images = x[:1].expand(IMAGES, *x.shape[1:]).clone()
        logits = live(images)

        def body() -> None:
            logits.copy_(live(images))

        self._images, self._logits = images, logits
        self._run = Replayed(body, x.device, capture)

    def __call__(self, x: Tensor) -> Tensor:
        self._images[: len(x)] = x
        self._run()
        return self._logits[: len(x)]


def refuse_random(live: Forward, x: Tensor) -> None:
    """Raise Unshadowable where two forwards of some of the images x differ, or cannot be made of so few."""
    some = x[:IMAGES].contiguous()
    with preserved_rng(x.device), torch.no_grad():
        check_deterministic(live, some, logits_of_some(live, some))


def copy_error(traced: Forward, live: Forward, x: Tensor, gradients: int) -> Tensor:
    """How far a copied forward is off the live one on some images, where 1 is as far as it may be: double [].

    Args:
        traced, live: the forwards.
        x: images of an attack.
        gradients: how many it has taken.
    """
    # Laid out as the example of a trace, whose views are of that.
    some = x[: IMAGES if gradients >= _FEW_GRADIENTS else _FEWER].contiguous()
    with torch.no_grad(), preserved_rng(x.device):
        expected = live(some)
        return (
            relative_error(traced(private_copy(some)), expected)
            / torch.finfo(expected.dtype).eps ** 0.5
        )


def logits_of_some(live: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The live model's logits of some images, before it is copied: tables that it keeps in globals are made by then.

    Raises Unshadowable where it does not take them, or fewer: the attack's own batch may be fine all the same.
    """
    try:
        live(x[:_FEWER])
        return live(x)
    except Exception as error:
        raise Unshadowable(f"it does not take any number of images ({brief(error)})") from error


def check_deterministic(live: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """Raise Unshadowable where the live model draws random numbers, and gives others than before.

    Raises ValueError where the copying has spoilt it.
    """
    try:
        error_size = float(relative_error(live(x), expected))
    # Tensors without values, as there are in a trace, make anything fail.
    except Exception as error:
        raise ValueError(_KEEPS_TENSORS) from error
    if not error_size <= _tight(expected):
        raise Unshadowable(f"its forward is random: two of one batch are off by {error_size:.1e}")


def check_forward(traced: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """Raise Unshadowable unless a copied forward, in the live model's precision, gives its logits `expected` of x."""
    try:
        logits = traced(private_copy(x))
    except Exception as error:
        raise Unshadowable(f"its copy failed: {brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        raise Unshadowable("its copy returns something else")
    error_size = float(relative_error(logits, expected))
    if not error_size <= _tight(expected):
        raise Unshadowable(
            f"its copied forward is off by {error_size:.1e}, more than {_tight(expected):.1g}"
        )


def _tight(expected: Tensor) -> float:
    eps = torch.finfo(expected.dtype).eps
    return min(_ROUNDINGS * eps, eps**0.5 / 4)
