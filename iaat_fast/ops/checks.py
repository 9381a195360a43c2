"""Argument checks of the ops: an error names the argument, its value and what was expected.

The public functions check types, shapes, dtypes and devices, in every call. The CPU backends check the values inside
tensors, which they read anyway. On an accelerator the ops do not check values: the host would have to wait for the
device in the middle of an attack.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from iaat_fast import units, validate

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def images(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: {type(x).__name__}, expected a torch.Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name}: dtype {x.dtype}, expected float32, float64, float16 or bfloat16 "
            "(divide integer images by 255)"
        )
    if x.dim() < 1:
        raise ValueError(f"{name}: shape {tuple(x.shape)}, expected [N, ...]")


def same_images(
    name: str, value: Tensor, like_name: str, like: Tensor, *, candidates: bool
) -> None:
    """value must match like in dtype, device and shape; with `candidates`, it may have K*N rows for like's N."""
    if not isinstance(value, Tensor) or value.dtype is not like.dtype:
        images(name, value)
        raise TypeError(f"{name}: dtype {value.dtype}, expected that of {like_name}, {like.dtype}")
    if value.device != like.device:
        raise ValueError(
            f"{name}: device {value.device}, expected that of {like_name}, {like.device}"
        )
    if value.shape == like.shape:
        return
    n = like.shape[0]
    if not (candidates and value.shape[1:] == like.shape[1:] and is_multiple(value.shape[0], n)):
        rows = f" or [K*{n}, ...]" if candidates else ""
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected that of {like_name}, "
            f"{tuple(like.shape)}{rows}"
        )


def layer(name: str, x: Tensor, *, channels: bool) -> None:
    """Activations of a network, or gradients of them, of any shape; with `channels`, of shape [N, C, ...]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: {type(x).__name__}, expected a torch.Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {x.dtype}, expected float32, float64, float16 or bfloat16")
    if channels and x.dim() < 2:
        raise ValueError(f"{name}: shape {tuple(x.shape)}, expected [N, C, ...]")


def same_layer(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """value must match like in dtype, device and shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
    if value.dtype is not like.dtype:
        raise TypeError(f"{name}: dtype {value.dtype}, expected that of {like_name}, {like.dtype}")
    if value.device != like.device:
        raise ValueError(
            f"{name}: device {value.device}, expected that of {like_name}, {like.device}"
        )
    if value.shape != like.shape:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected that of {like_name}, {tuple(like.shape)}"
        )


def per_channel(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """A value [C] for each channel of like [N, C, ...]: float32, or float64 if like is."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    if value.dtype is not dtype:
        raise TypeError(
            f"{name}: dtype {value.dtype}, expected {dtype} for {like_name} of {like.dtype}"
        )
    if value.device != like.device:
        raise ValueError(
            f"{name}: device {value.device}, expected that of {like_name}, {like.device}"
        )
    if value.shape != like.shape[1:2]:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected one value per channel, [{like.shape[1]}]"
        )


def activation(floor: float, ceiling: float) -> None:
    if not floor <= ceiling:
        raise ValueError(f"floor, ceiling: {floor}, {ceiling}, expected floor <= ceiling")


def is_multiple(rows: int, n: int) -> bool:
    return rows == n or (n > 0 and rows > 0 and rows % n == 0)


def per_row(
    name: str, value: float | Tensor, rows: int, x: Tensor, *, positive: bool = False
) -> Tensor:
    """A radius or step size as a tensor [rows] on x's device, float32, or float64 if x is.

    Raises ValueError for a number that is negative, NaN or, with `positive`, 0, and for a tensor of the wrong length or
    device; TypeError for another type.
    """
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name}: {type(value).__name__}, expected a float or a Tensor")
        if not (value > 0 or (value == 0 and not positive)):
            raise ValueError(f"{name}: {value}, expected a number {'>' if positive else '>='} 0")
        return torch.full((rows,), value, dtype=dtype, device=x.device)
    if value.shape != (rows,):
        if value.dim():
            raise ValueError(
                f"{name}: shape {tuple(value.shape)}, expected a float or one value per row, [{rows}]"
            )
        value = value.expand(rows)
    if value.device != x.device:
        raise ValueError(f"{name}: device {value.device}, expected that of the images, {x.device}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: dtype {value.dtype}, expected a floating-point type")
    if value.requires_grad or value.dtype is not dtype:
        return value.detach().to(dtype)
    return value


def int64_vector(name: str, value: Tensor, n: int | None, device: torch.device) -> None:
    """Class numbers, sample numbers or seeds: int64 [n] on the device; any length where n is None."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
    if value.dtype is not torch.int64:
        raise TypeError(f"{name}: dtype {value.dtype}, expected int64")
    if value.dim() != 1 or (n is not None and value.shape[0] != n):
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected [{'N' if n is None else n}]"
        )
    if value.device != device:
        raise ValueError(f"{name}: device {value.device}, expected {device}")


def logits(name: str, z: Tensor) -> None:
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: {type(z).__name__}, expected a torch.Tensor")
    if z.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {z.dtype}, expected a floating-point type")
    if z.dim() != 2 or z.shape[1] == 0:
        raise ValueError(f"{name}: shape {tuple(z.shape)}, expected [N, C]")


def pixels(name: str, images: Tensor, padding: int) -> None:
    """A data set, contiguous uint8 [size, H, W, C], with images large enough for reflection padding."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: {type(images).__name__}, expected a torch.Tensor")
    if images.dtype is not torch.uint8:
        raise TypeError(f"{name}: dtype {images.dtype}, expected uint8")
    if images.dim() != 4 or not images.is_contiguous():
        kind = "" if images.dim() != 4 else ", not contiguous"
        raise ValueError(
            f"{name}: shape {tuple(images.shape)}{kind}, expected contiguous [size, H, W, C]"
        )
    validate.integer("padding", padding, 0)
    height, width = images.shape[1:3]
    if min(height, width) <= padding:
        raise ValueError(
            f"padding: images of {height} x {width} are too small to reflect {padding} pixels, "
            f"expected at least {padding + 1} x {padding + 1}"
        )


def in_place(name: str, x: Tensor) -> None:
    if x.requires_grad:
        raise ValueError(
            f"{name}: requires grad, but it is written in place; pass {name}.detach() or clone it"
        )


def constant(x: Tensor) -> Tensor:
    """x detached from autograd; x itself if it needs no gradient, since a new view costs 2 us."""
    return x.detach() if x.requires_grad else x


def radii_values(eps: Tensor) -> None:
    """Raise ValueError for the first radius that is negative or NaN."""
    bad = ~(eps >= 0)
    if bad.any():
        _raise_at("eps", eps, bad, "a number >= 0")


def radii_within(eps: Tensor, lo: float, hi: float, slack: float) -> None:
    """Raise ValueError for the first radius beyond the width of the box times `slack`."""
    bad = eps > (hi - lo) * slack
    if bad.any():
        _raise_at("eps", eps, bad, str(units.beyond(float(eps[bad][0]), lo, hi)))


def step_values(alpha: Tensor, eps: Tensor) -> None:
    """Raise ValueError for the first bad radius, or the first step size that is not > 0 (or 0 with radius 0)."""
    radii_values(eps)
    bad = ~((alpha > 0) | (alpha == 0) & (eps == 0))
    if bad.any():
        _raise_at("alpha", alpha, bad, "a number > 0 (or 0 where eps is 0)")


def class_values(y: Tensor, classes: int) -> None:
    """Raise ValueError for the first class outside [0, classes)."""
    bad = (y < 0) | (y >= classes)
    if bad.any():
        _raise_at("y", y, bad, f"a class in 0 ... {classes - 1}")


def index_values(index: Tensor, size: int) -> None:
    """Raise ValueError for the first sample number outside [0, size)."""
    bad = (index < 0) | (index >= size)
    if bad.any():
        _raise_at("index", index, bad, f"a sample in 0 ... {size - 1}")


def logit_values(z: Tensor) -> None:
    """Raise ValueError for the first row of logits whose softmax would be NaN."""
    bad = ~z.amax(1).isfinite()  # amax propagates NaN; -infinity masks a class, but not all of them
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"logits: {z[row].tolist()} in row {row}, expected numbers; has the model diverged?"
        )


def _raise_at(name: str, values: Tensor, bad: Tensor, expected: str) -> NoReturn:
    first = int(bad.nonzero()[0])
    raise ValueError(f"{name}: {values[first].item()} at index {first}, expected {expected}")
