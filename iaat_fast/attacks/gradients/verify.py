"""Compare a copy of a model with the live model: when the copy is made, and after every attack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.attacks.cudagraph import Capture, Replayed
from iaat_fast.attacks.gradients.shadow import Unshadowable, brief
from iaat_fast.attacks.gradients.source import ByAutograd, Forward, Source
from iaat_fast.attacks.model.mode import private_copy
from iaat_fast.attacks.model.snapshot import preserved_rng

# Allowed error of a copy in the live precision, |difference| / |live|, over some images. Folding changes logits by
# 1e-6, and gradients by up to 1e-3 where rounding flips a ReLU. The error of a wrong trace is about 1.
_LOGITS = {"fp32": 1e-3, "tf32": 1e-2}
_GRADIENT = {"fp32": 0.05, "tf32": 0.2}
# In half precision, where deep networks lose most of their bits (error of a ResNet-50's logits: 0.26 in the copy, 0.30
# under autocast), a copy may have twice the error of the live model under autocast, since both are noisy over a few
# images. The limit is at least _AT_LEAST, a few roundings, and at most _AT_MOST: unrelated numbers have an error of 1.
_TIMES_AUTOCAST = 2.0
_AT_LEAST = {"bf16": 0.05, "fp16": 0.01}
_AT_MOST = 0.95
# Number of images on which a copy is compared with the live model; _FEWER after an attack of less than _FEW_GRADIENTS
# gradients, so that the comparison stays a small part of the work.
IMAGES, _FEWER, _FEW_GRADIENTS = 8, 2, 512
# Copied forwards are compared in the live model's precision: the same operations on the same tensors give mostly the
# same bits, whatever the precision of the gradients. After an attack |difference| / |live| may be sqrt(eps), half of
# the bits. When the copy is made it may be _ROUNDINGS * eps, and at most a quarter of sqrt(eps), so that a copy that
# passes then passes later. This limit also holds for two forwards of the live model: kernels may sum in another order.
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
        copy: the gradient source to check.
        live: the live model's forward.
        x: some images [n, ...].
        precision, half: as `CopyMaker`'s.
    """
    expected, expected_grad = _logits_and_gradient(ByAutograd(live), x)
    try:
        logits, grad = _logits_and_gradient(copy, x)
    # The copy runs the user's forward in another dtype, which may raise anything.
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
        logits, grad = _logits_and_gradient(ByAutograd(live, autocast=half), x)
        found = [
            float(relative_error(logits, expected)),
            _gradient_error(grad, expected_grad, without=1.0),
        ]
    except (RuntimeError, ValueError):  # no autocast for this device, or of this model
        found = [_AT_MOST, _AT_MOST]
    low, high = _limit(found[0], precision), _limit(found[1], precision)
    return low, high


def _limit(autocast: float, precision: str) -> float:
    if not autocast >= 0:  # NaN: autocast overflowed, which does not mean that the copy is wrong
        return _AT_MOST
    return min(max(_TIMES_AUTOCAST * autocast, _AT_LEAST[precision]), _AT_MOST)


def _logits_and_gradient(source: Source, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient for a cotangent that differs between all classes."""

    def cotangent(logits: Tensor) -> Tensor:
        classes = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        return torch.sin(classes.double()).to(logits.dtype).expand_as(logits)

    with torch.enable_grad():
        return source.input_vjp(x, cotangent)


def _gradient_error(grad: Tensor | None, expected_grad: Tensor | None, *, without: float) -> float:
    """The relative error; `without` if there is no gradient."""
    return (
        without
        if grad is None or expected_grad is None
        else float(relative_error(grad, expected_grad))
    )


def relative_error(value: Tensor, expected: Tensor) -> Tensor:
    """|value - expected| / |expected|, float64 []; equal infinities (of masked classes) count as no difference."""
    value, expected = value.double(), expected.double()
    difference = torch.where(value == expected, 0.0, value - expected)
    size = torch.where(expected.isinf(), 0.0, expected).norm()
    return difference.norm() / size.clamp(min=1e-30)


class FrozenForward:
    """The live forward captured in a CUDA graph, as an attack's captured steps contain it.

    What Python code in the forward decided during the capture stays fixed in both, so comparing this with the live
    forward detects that captured steps are out of date.

    Args:
        live: the forward.
        x: images [N, ...], N >= 1, of the shape that it will get.
        capture: as `Replayed`'s.
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
    """Raise Unshadowable if two forwards of some of the images x differ, or the model does not take so few images."""
    some = x[:IMAGES].contiguous()
    with preserved_rng(x.device), torch.no_grad():
        check_deterministic(live, some, logits_of_some(live, some))


def is_random(live: Forward, x: Tensor) -> bool:
    """Whether two forwards of some of the images x differ by more than rounding. Waits for the device.

    False for a model that does not take so few images: the caller's own batch may still work.
    """
    some = x[:IMAGES].contiguous()
    with preserved_rng(x.device), torch.no_grad():
        try:
            expected = live(some)
        except Exception:  # the user's forward may raise anything
            return False
        return float(relative_error(live(some), expected)) > _forward_limit(expected)


def copy_error(copied: Forward, live: Forward, x: Tensor, gradients: int) -> Tensor:
    """The error of a copied forward on some images, relative to the allowed one: float64 [], valid if at most 1.

    Args:
        copied, live: the forwards.
        x: images [N, ...] of an attack.
        gradients: number of gradients that the attack has taken.
    """
    # Contiguous like the example that was traced: the trace's views depend on the memory format.
    some = x[: IMAGES if gradients >= _FEW_GRADIENTS else _FEWER].contiguous()
    with torch.no_grad(), preserved_rng(x.device):
        expected = live(some)
        return (
            relative_error(copied(private_copy(some)), expected)
            / torch.finfo(expected.dtype).eps ** 0.5
        )


def logits_of_some(live: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The live model's logits of some images x.

    Raises Unshadowable if the model does not take so few images; the attack's own batch may still work.
    """
    try:
        live(x[:_FEWER])
        return live(x)
    except Exception as error:
        raise Unshadowable(f"it does not take any number of images ({brief(error)})") from error


def check_deterministic(live: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """Raise Unshadowable if the live model no longer gives the logits `expected` of x: its forward is random.

    Raises ValueError if it fails now, because copying has changed tensors that it keeps outside of its modules.
    """
    try:
        error_size = float(relative_error(live(x), expected))
    # Tracing leaves tensors without values in such places, and these may raise anything.
    except Exception as error:
        raise ValueError(_KEEPS_TENSORS) from error
    if not error_size <= _forward_limit(expected):
        raise Unshadowable(f"its forward is random: two of one batch are off by {error_size:.1e}")


def check_forward(copied: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """Raise Unshadowable unless a copied forward, in the live model's precision, gives the logits `expected` of x."""
    try:
        logits = copied(private_copy(x))
    except Exception as error:
        raise Unshadowable(f"its copy failed: {brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        raise Unshadowable("its copy returns something else")
    error_size = float(relative_error(logits, expected))
    if not error_size <= _forward_limit(expected):
        raise Unshadowable(
            f"its copied forward is off by {error_size:.1e}, more than {_forward_limit(expected):.1g}"
        )


def _forward_limit(expected: Tensor) -> float:
    """The allowed relative error of two forwards in one precision."""
    eps = torch.finfo(expected.dtype).eps
    return min(_ROUNDINGS * eps, eps**0.5 / 4)
