"""Bounds per channel: the attack runs on u = (x - lo) / (hi - lo) in [0, 1], and its images are brought back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import validate
from iaat_fast.attacks.model.ensemble import Ensemble
from iaat_fast.ops import checks

# By how much, relative to a radius, rounding may set its channels apart: in hi - lo, and in the product with it.
_ROUNDING = {
    torch.float64: 2e-6,  # it may have been computed in float32
    torch.float32: 2e-6,
    torch.float16: 4e-3,
    torch.bfloat16: 4e-2,
}


@dataclasses.dataclass(frozen=True)
class ChannelBox:
    """The box of images [N, C, H, W] whose bounds differ from channel to channel, lo < hi in each.

    A radius is a share of hi - lo, the same in every channel of a sample, so that the kernels need one per image.
    """

    lo: tuple[float, ...]
    hi: tuple[float, ...]
    _held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = (
        dataclasses.field(default_factory=dict, repr=False, compare=False)
    )

    @classmethod
    def of(cls, lo: Any, hi: Any) -> ChannelBox | None:
        """The box of these bounds, None if both are numbers.

        Raises:
            TypeError, ValueError: they are neither numbers, lo <= hi, nor one per channel, lo < hi in each.
        """
        if _is_number(lo) and _is_number(hi):
            validate.box(lo, hi)
            return None
        bounds = {name: _bounds(name, value) for name, value in (("lo", lo), ("hi", hi))}
        channels = max(map(len, bounds.values()))
        low, high = (
            values * channels if _is_number(given) else values
            for given, values in zip((lo, hi), bounds.values(), strict=True)
        )
        if len(low) != len(high):
            raise ValueError(
                f"hi: {len(high)} values, expected {len(low)}, one per channel as in lo"
            )
        for channel, (below, above) in enumerate(zip(low, high, strict=True)):
            if not (below < above and math.isfinite(above - below)):
                raise ValueError(
                    f"lo, hi: {below:g}, {above:g} in channel {channel}, expected lo < hi, finite"
                )
        return cls(tuple(low), tuple(high))

    @property
    def widths(self) -> Tensor:
        """hi - lo, float64 [C, 1, 1] on the CPU."""
        return _column(self.hi) - _column(self.lo)

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """lo, hi and hi - lo, [C, 1, 1] on the device of images, float32, or float64 if they are."""
        where = like.device, torch.promote_types(like.dtype, torch.float32)
        # Kept, because a copy from the host makes a call wait for the device.
        if where not in self._held:
            lo, hi = (_column(each) for each in (self.lo, self.hi))
            with torch.inference_mode(False):
                lo, hi, width = (each.to(*where, copy=True) for each in (lo, hi, self.widths))
            self._held[where] = lo, hi, width
        return self._held[where]

    def share(
        self, name: str, value: Any, device: torch.device | None = None, *, positive: bool = False
    ) -> Any:
        """A radius or step size per channel as the share of hi - lo that it is in each.

        Args:
            value: [C, 1, 1], or [M, C, 1, 1] for each row; a step size may also be a function of the shares, and is
                then returned as it is.
            device: of the images. None: they are not known yet; then a tensor that is not a few numbers on the CPU is
                returned as it is.
            positive: whether 0 is refused.

        Returns:
            A float for [C, 1, 1] on the CPU, whose values are checked; else a tensor [] or [M], NaN where the shares
            differ, for the findings to report.

        Raises:
            TypeError, ValueError: it is not as described.
        """
        if callable(value) and name == "alpha":
            return value
        wanted = f"a tensor [{len(self.lo)}, 1, 1]"
        if not isinstance(value, Tensor):
            number = _is_number(value) and 0 < value <= 1
            factor = f"{float(value):.6g}" if number else "8/255"
            function = ", or a function of the radii" if name == "alpha" else ""
            raise TypeError(
                f"{name}: {value!r}, expected {wanted}, such as {factor} * (hi - lo){function}"
            )
        if value.dim() not in (3, 4) or value.shape[-3:] != (len(self.lo), 1, 1):
            raise ValueError(
                f"{name}: shape {tuple(value.shape)}, expected {wanted}, or [N, {len(self.lo)}, 1, 1] for each sample"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name}: dtype {value.dtype}, expected a floating-point type")
        value = value.detach()
        if value.dim() == 3 and value.device.type == "cpu":
            return self._number(name, value, positive)
        if device is None:
            return value
        if value.device != device:
            raise ValueError(
                f"{name}: device {value.device}, expected that of the images, {device}"
            )
        shares = (value / self.constants(value)[2]).flatten(-3)
        low, high = shares.aminmax(dim=-1)
        return torch.where(high - low <= _ROUNDING[value.dtype] * high.abs(), low, torch.nan)

    def _number(self, name: str, value: Tensor, positive: bool) -> float:
        shares = (value.double() / self.widths).flatten()
        low, high = (float(each) for each in shares.aminmax())
        listed = f"{name} / (hi - lo): {', '.join(f'{share:.6g}' for share in shares.tolist())}"
        if not (low > 0 if positive else low >= 0) or not high <= 1 + _ROUNDING[value.dtype]:
            raise ValueError(f"{listed}, expected numbers in {'(' if positive else '['}0, 1]")
        if high - low > _ROUNDING[value.dtype] * high:
            raise ValueError(
                f"{listed}, expected the same in every channel, as of {high:.6g} * (hi - lo)"
            )
        return min(low, 1.0)

    def shares(self, epsilons: Any, device: torch.device | None) -> Any:
        """The radii of a run (see `Attack.run`) as shares, or a list of them."""
        if (isinstance(epsilons, Tensor) and epsilons.dim() < 5) or _is_number(epsilons):
            return self.share("epsilons", epsilons, device)
        if not isinstance(epsilons, (Tensor, Sequence)):
            return epsilons
        return [self.share(f"epsilons[{place}]", eps, device) for place, eps in enumerate(epsilons)]

    def radii(self, share: float | Tensor) -> Tensor:
        """The radii that are these shares: of a float [C, 1, 1] on the CPU, of [N] the [N, C, 1, 1]."""
        if isinstance(share, Tensor):
            return share.view(-1, 1, 1, 1) * self.constants(share)[2]
        return share * self.widths

    def scaled(self, name: str, images: Tensor) -> Tensor:
        """Images [N, C, H, W] as the u that an attack changes, in their dtype and memory format."""
        checks.images(name, images)
        if images.dim() != 4 or images.shape[1] != len(self.lo):
            raise ValueError(
                f"{name}: shape {tuple(images.shape)}, expected [N, {len(self.lo)}, H, W], the channels of lo, hi"
            )
        lo, _, width = self.constants(images)
        return ((images.detach() - lo) / width).to(images.dtype)

    def restored(self, made: Tensor, u: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Adversarial u as images: inside the box, and within the radii up to a rounding of the last place.

        Args:
            made: [K*N, C, H, W], what an attack made of u.
            u, x: [N, C, H, W], `scaled` images and the images themselves.
            eps: [K*N], shares.

        Returns:
            [K*N, C, H, W]; where `made` is u, the bits of x.
        """
        lo, hi, width = self.constants(x)
        if len(made) != len(x):
            u, x = (each.repeat(len(made) // len(each), 1, 1, 1) for each in (u, x))
        radius = eps.view(-1, 1, 1, 1) * width
        moved = (made * width + lo - x).clamp(-radius, radius)
        return torch.where(made == u, x, (x + moved).clamp(lo, hi).to(x.dtype))

    def before(
        self, model: Callable[[Tensor], Tensor]
    ) -> tuple[Callable[[Tensor], Tensor], Unscaled | None]:
        """The model over u, and its first layer; of a function, in which no module is to be found, None."""
        if not isinstance(model, nn.Module):
            return functools.partial(_of_unscaled, self, model), None
        layer = Unscaled()
        if isinstance(model, Ensemble) and model.mean == "losses":  # which must be the outermost
            members = [nn.Sequential(layer, member) for member in model.models]
            ensemble = Ensemble(members, model.mean)
            ensemble.weights = model.weights
            return ensemble, layer
        return nn.Sequential(layer, model), layer


class Boxed:
    """The part of `Attack` that knows its box.

    Attributes:
        lo, hi: as given: numbers, or one for each channel.
    """

    lo: float | tuple[float, ...]
    hi: float | tuple[float, ...]
    _lo: float  # the box in which the images are changed
    _hi: float
    _channels: ChannelBox | None  # None: it is [lo, hi]

    def _set_box(self, lo: Any, hi: Any) -> None:
        self._channels = ChannelBox.of(lo, hi)
        if self._channels is None:
            self.lo, self.hi, self._lo, self._hi = lo, hi, lo, hi
        else:
            self.lo, self.hi, self._lo, self._hi = self._channels.lo, self._channels.hi, 0.0, 1.0

    def _check_distance(self, name: str, value: Any, *, positive: bool = False) -> None:
        """A radius or step size as the constructor takes it."""
        if self._channels is not None:
            self._channels.share(name, value, positive=positive)
        elif name != "alpha" or not callable(value):
            validate.distance(name, value, self._lo, self._hi, positive=positive)

    def _share(self, name: str, value: Any, x: Tensor) -> Any:
        """A radius or step size for images x as the steps see it."""
        if self._channels is None or value is None:
            return value
        checks.images("x", x)
        return self._channels.share(name, value, x.device)

    def _check_rows(self, name: str, value: Any, n: int, expected: str) -> None:
        """A tensor must be for all samples or for each of n; without channels [] or [n], what is `expected`."""
        if not isinstance(value, Tensor):
            return
        rows = value.shape
        if self._channels is not None:
            each = f"{len(self._channels.lo)}, 1, 1"
            rows, expected = value.shape[:-3], f"[{each}] or [{n}, {each}]"
        if rows not in ((), (n,)):
            raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {expected}")


class Unscaled(nn.Module):
    """u * width + lo, [C, 1, 1] each, in the dtype of u; programs fuse it into the convolution that reads it."""

    lo: Tensor
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lo", torch.zeros(()), persistent=False)
        self.register_buffer("width", torch.ones(()), persistent=False)

    def place(self, lo: Tensor, hi: Tensor, width: Tensor) -> None:
        """Take the `ChannelBox.constants` of the images to come."""
        if self.lo is not lo or self.width is not width:
            self.lo, self.width = lo, width

    def forward(self, u: Tensor) -> Tensor:
        x = u * self.width + self.lo
        return x if x.dtype is u.dtype else x.to(u.dtype)


def _of_unscaled(box: ChannelBox, model: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    lo, _, width = box.constants(u)
    return model((u * width + lo).to(u.dtype))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu").view(-1, 1, 1)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0)


def _bounds(name: str, value: Any) -> tuple[float, ...]:
    """One or several finite numbers."""
    wanted = "a number, or one per channel: a sequence, or a tensor [C] or [C, 1, 1]"
    try:
        if isinstance(value, str):
            raise TypeError
        numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: {value!r}, expected {wanted}") from None
    if numbers.dim() == 3 and numbers.shape[1:] == (1, 1):
        numbers = numbers.flatten()
    if numbers.dim() > 1 or not numbers.numel():
        raise ValueError(f"{name}: shape {tuple(numbers.shape)}, expected {wanted}")
    found = tuple(numbers.detach().view(-1).tolist())
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name}: {list(found)}, expected finite numbers")
    return found
