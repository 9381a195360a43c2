"""What attacks find out on the device about arguments, weights and gradients, for the host to read at once."""

from __future__ import annotations

import math
import struct
import warnings
import weakref
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from iaat_fast.attacks import inputs
from iaat_fast.attacks.cudagraph import capturing
from iaat_fast.attacks.model.modules import modules_of, parameters_of
from iaat_fast.ops import checks

_T = TypeVar("_T")


class Counts(NamedTuple):
    """Numbers of gradient entries that were 0, and that were NaN."""

    zero: int
    nan: int


# Float64 values stored behind the counts, in the same tensor: the smallest and the largest values seen, or NaN. For
# "weights" a norm, to detect NaN; for "copy" the error of `verify.copy_error`, at most 1; for "dlr" see `look_at_dlr`.
_LOWEST = ("x", "y", "eps", "alpha", "weights", "index", "dlr")
_HIGHEST = ("x", "y", "index", "eps", "copy")

_STATISTICS = ("running_mean", "running_var")


class Stale(ValueError):
    """A copy no longer gives the live model's logits; the message says by how much."""


def checked_late(device: torch.device) -> bool:
    """Whether values are checked on the device and errors raised later, because reading makes the host wait."""
    return device.type == "cuda"


class Findings:
    """What calls of attacks find out on a device, kept there until it is read.

        findings = Findings(x.device)
        x_adv = pgd(x, y, seed=seed, findings=findings)     # reads nothing
        zero, nan = findings.settle()                       # one read; raises what the calls would have raised

    A call without findings makes its own, and reads them before it returns. On a CPU, where reading is free, values
    are checked before any work, and the findings only hold counts.

    They are stored in one tensor of fixed size and address that device operations update in place, so that calls may
    be captured in a CUDA graph, whose replays then add to it. Several calls may share findings if they attack one
    model, on images of one range and dtype.

    Args:
        device: device of the images.

    Attributes:
        entries: number of entries of the calls' gradients; replays of a CUDA graph are not counted.
        counts: int64, the numbers of zero and NaN gradient entries, then the bits of the values seen.
    """

    def __init__(self, device: torch.device | str) -> None:
        with torch.inference_mode(False):  # an attack could not write into an inference tensor
            self.counts = torch.empty(
                len(Counts._fields) + len(_LOWEST) + len(_HIGHEST), dtype=torch.int64, device=device
            )
            self._values = self.counts[len(Counts._fields) :].view(torch.float64)
            self._lowest = dict(zip(_LOWEST, self._values, strict=False))
            self._highest = dict(zip(_HIGHEST, self._values[len(_LOWEST) :], strict=True))
        self._late = checked_late(self.counts.device)
        self._range: tuple[float, float, torch.dtype] | None = None
        self._shares = False
        self._classes: int | None = None
        self._samples: int | None = None
        self._models: list[weakref.ref[nn.Module]] = []
        self._of_one_call = False
        self._look_again: Callable[[], object] | None = None
        self._clear()

    @classmethod
    def of_one_call(cls, device: torch.device) -> Findings:
        """Findings of a single call, which keep its tensors so that an error can say where the bad value is."""
        findings = cls(device)
        findings._of_one_call = True
        return findings

    @property
    def heard_at_once(self) -> bool:
        """Whether bad values raise an error at once, as on a CPU."""
        return not self._late

    def settle(self) -> Counts:
        """The counts since the last `settle`, with one read from the device; then everything is reset.

        Raises:
            ValueError: an argument of a call, or a weight of its model, had an invalid value; or gradients came from a
                copy that no longer matches the model (a call without findings repeats itself instead).
        """
        read = self._read()
        self._clear()
        return self._judge(*read)

    def look(self) -> Counts:
        """As `settle`, but nothing is reset."""
        return self._judge(*self._read())

    def look_at_values(
        self,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        alpha: Tensor,
        lo: float,
        hi: float,
        *,
        moves: bool,
        shares: bool = False,
        radii_are_sound: bool,
        steps_are_sound: bool,
    ) -> int | None:
        """Record pixels, classes, radii and (if the attack moves) step sizes; on a CPU check them at once.

        Args:
            x: images [N, ...].
            y: int64 [N], classes.
            eps, alpha: radii and step sizes [K*N].
            shares: these are shares of hi - lo of their channels, and errors say so.
            radii_are_sound, steps_are_sound: known to be valid, so that a GPU saves the kernel that records them.

        Returns:
            The largest class, on a CPU; None on a GPU.

        Raises:
            ValueError: on a CPU, a value out of range; findings of images of another range or dtype.
        """
        if not self._late:
            return inputs.values(x, y, eps, alpha, lo, hi, moves=moves, shares=shares)
        self._shares |= shares
        self._range = _the_same("range and dtype of x", self._range, (lo, hi, x.dtype))
        if x.numel():
            self._keep_range("x", x)
        self._keep_range("y", y)
        if not radii_are_sound:
            self._keep_range("eps", eps)
        if moves and not steps_are_sound:
            # For radius 0 a step size of 0 is valid, but NaN is not.
            self._keep_lowest("alpha", torch.where(eps > 0, alpha, alpha.clamp(min=1)).min())
        if self._of_one_call:
            self._look_again = lambda: inputs.values(
                x, y, eps, alpha, lo, hi, moves=moves, shares=shares
            )
        return None

    def look_at_classes(self, y: Tensor, classes: int) -> Tensor:
        """The classes y [N], clamped to 0 ... classes - 1: indexing out of range on a GPU would kill the process.

        Raises ValueError if earlier calls had another number of classes.
        """
        self._classes = _the_same("number of classes", self._classes, classes)
        return y.clamp(0, classes - 1)

    def look_at_samples(self, index: Tensor, size: int) -> Tensor:
        """Sample numbers, int64 [N], clamped to 0 ... size - 1 like classes.

        Raises ValueError if earlier calls had another number of samples; on a CPU, also for numbers out of range.
        """
        if not self._late:
            checks.index_values(index, size)
            return index
        self._samples = _the_same("number of samples", self._samples, size)
        if len(index):
            self._keep_range("index", index)
        return index.clamp(0, size - 1)

    def look_at_dlr(self, last: Tensor) -> None:
        """Record `losses.last_of_dlr` [n]; where it is -infinity, reading the findings gives a RuntimeWarning."""
        self._keep_lowest("dlr", last.min())

    def look_at_weights(self, model: nn.Module, bn: str) -> None:
        """Record NaN in weights and, with bn="eval", in running statistics; on a CPU raise ValueError at once."""
        norms = _norms(model, statistics=bn == "eval")
        if not self._late:
            if any(bool(norm.isnan()) for norm in norms):
                raise ValueError(_holds_nan(_nan_weight(model)))
            return
        for norm in norms:
            elsewhere = norm.device != self.counts.device  # a model may be spread over several
            self._keep_lowest("weights", norm.to(self.counts.device) if elsewhere else norm)
        if all(known() is not model for known in self._models):
            self._models.append(weakref.ref(model))

    def look_at_copy(self, off: Tensor) -> None:
        """Record the error of a copy (`verify.copy_error`), at most 1 if it is valid; on a CPU raise Stale at once."""
        if not self._late:
            if not float(off) <= 1:
                raise Stale(_differs(float(off)))
            return
        place = self._highest["copy"]
        torch.maximum(place, off, out=place)

    def _keep_lowest(self, name: str, value: Tensor) -> None:
        place = self._lowest[name]
        torch.minimum(place, value, out=place)

    def _keep_range(self, name: str, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        self._keep_lowest(name, low)
        place = self._highest[name]
        torch.maximum(place, high, out=place)

    def _clear(self) -> None:
        self.entries = 0
        self.counts.zero_()
        self._values[: len(_LOWEST)].fill_(torch.inf)
        self._values[len(_LOWEST) :].fill_(-torch.inf)

    def _read(self) -> tuple[Counts, dict[str, float], dict[str, float]]:
        """Read counts, lowest and highest values from the device, all in one copy."""
        if capturing(self.counts.device):
            raise ValueError(
                "findings: asked for while a CUDA graph is captured, where nothing can be read; expected a call with "
                "this model and shape before the capture, and none of `settle` inside"
            )
        zero, nan, *words = self.counts.tolist()
        values = struct.unpack(f"{len(words)}d", struct.pack(f"{len(words)}q", *words))
        lowest = dict(zip(_LOWEST, values, strict=False))
        highest = dict(zip(_HIGHEST, values[len(_LOWEST) :], strict=True))
        return Counts(zero, nan), lowest, highest

    def _judge(self, counts: Counts, lowest: dict[str, float], highest: dict[str, float]) -> Counts:
        """The counts, or ValueError for the first argument that holds a bad value, in the order of a CPU's checks."""
        problem = self._problem_of_values(lowest, highest)
        if problem and self._shares:
            problem = inputs.in_shares(problem)
        if problem and self._look_again is not None:
            self._look_again()  # raises the same error with the position in the tensor
        if not problem and not lowest["weights"] >= 0:
            models = filter(None, (known() for known in self._models))
            problem = _holds_nan(next(filter(None, map(_nan_weight, models)), None))
        if not problem and self._classes is not None and highest["y"] >= self._classes:
            problem = inputs.out_of_range(highest["y"], self._classes)
        if problem:
            raise ValueError(problem)
        if not highest["copy"] <= 1:
            raise Stale(_differs(highest["copy"]))
        if lowest["dlr"] == -math.inf:
            warnings.warn(
                "the model masks classes (logits of -inf) and leaves fewer than the loss 'dlr' is made of; samples "
                "that this concerns are attacked by the margin, 'cw', instead",
                RuntimeWarning,
                stacklevel=6,
            )
        return counts

    def _problem_of_values(self, lowest: dict[str, float], highest: dict[str, float]) -> str | None:
        if self._samples is not None:
            for number in (lowest["index"], highest["index"]):
                if math.isfinite(number) and not 0 <= number < self._samples:
                    return f"index: {int(number)}, expected a sample in 0 ... {self._samples - 1}"
        if self._range is not None:
            problem = inputs.pixels_problem(lowest["x"], highest["x"], *self._range)
            if problem:
                return problem
        if lowest["y"] < 0:
            return inputs.below_zero(lowest["y"])
        if not lowest["eps"] >= 0:
            return f"eps: {lowest['eps']}, expected a number >= 0"
        if self._range is not None:
            problem = inputs.radius_problem(highest["eps"], *self._range[:2])
            if problem:
                return f"eps: {highest['eps']}, expected {problem}"
        if not lowest["alpha"] > 0:
            return f"alpha: {lowest['alpha']}, expected a number > 0 (or 0 where eps is 0)"
        return None


def _norms(model: nn.Module, *, statistics: bool) -> list[Tensor]:
    """A number for each device and dtype of the weights, NaN if one of those weights holds NaN.

    With `statistics`, running means and variances count as weights. Each number is a sum of L2 norms: NaN if an entry
    is NaN, otherwise finite or infinite. On two cores that takes 2 ms for a ResNet-18; the maximum norm takes 23 ms.
    """
    modules = modules_of(model)
    weights: list[Tensor] = [*parameters_of(modules)]
    if statistics:
        named = (buffer for module in modules for buffer in module._buffers.items())
        weights += (buffer for name, buffer in named if name in _STATISTICS and buffer is not None)
    # One kernel takes many tensors of the same device and dtype.
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for weight in weights:
        if weight.is_floating_point() and weight.numel():
            by_kind.setdefault((weight.device, weight.dtype), []).append(weight)
    with torch.no_grad():
        return [torch.stack(torch._foreach_norm(weights)).sum() for weights in by_kind.values()]


def _nan_weight(model: nn.Module) -> str | None:
    """The first weight or running statistic that holds NaN, in words; None if none does."""
    for what, tensors in (("weight", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            looked_at = what == "weight" or name.rpartition(".")[2] in _STATISTICS
            if looked_at and tensor.is_floating_point() and bool(tensor.isnan().any()):
                return f"the {what} {name!r}"
    return None


def _holds_nan(what: str | None) -> str:
    return f"model: {what or 'a weight'} holds NaN, expected numbers; has training diverged?"


def _differs(off: float) -> str:
    return (
        f"model: its copy, or its captured forward, is off by {off:.2g} times what rounding explains, expected a "
        "forward of images, weights and attributes alone; pass EngineOptions without shadow, fold and graph"
    )


def _the_same(what: str, known: _T | None, new: _T) -> _T:
    """`new`; raises ValueError if earlier calls had another value."""
    if known not in (None, new):
        raise ValueError(
            f"findings: those of calls whose {what} is {known}, expected others for calls with {new}"
        )
    return new
