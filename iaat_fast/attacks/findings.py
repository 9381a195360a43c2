"""What attacks find out on the device, about arguments, weights and gradients, to be heard in one read."""

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
    """Entries of gradients that were 0, and that were NaN."""

    zero: int
    nan: int


# Doubles behind the counts, in the same tensor: the smallest and the largest values that were seen, whatever is NaN
# first of all. Of weights it is a norm, since only NaN is looked for; of a copy, how far it is off, where 1 is too far.
_LOWEST = ("x", "y", "eps", "alpha", "weights", "index", "dlr")
_HIGHEST = ("x", "y", "index", "eps", "copy")

_STATISTICS = ("running_mean", "running_var")


class Stale(ValueError):
    """A copy has been found not to give what the live model gives; the message says by how much."""


def checked_late(device: torch.device) -> bool:
    """Whether values are looked at while the work runs and reported after it: where a read makes the host wait."""
    return device.type == "cuda"


class Findings:
    """What calls of attacks find out on a device, kept there until it is asked for.

        findings = Findings(x.device)
        x_adv = pgd(x, y, seed=seed, findings=findings)     # reads nothing
        zero, nan = findings.settle()                       # one read; raises what the calls would have raised

    A call that is given no findings makes its own, and settles them before it returns. On a CPU, where a read costs
    nothing, values are checked before any work, so that only the counts are ever left to be settled.

    What is kept is one tensor of fixed length and address that changes in place, by operations of the device alone. So
    calls may be captured in a CUDA graph, whose replays then add to it. The findings of calls on one model, on images
    of one range and dtype may share it.

    Args:
        device: that of the images.

    Attributes:
        entries: of the calls' gradients, all of them; what replays of a graph add is for who replays it to count.
        counts: int64, the zero and the NaN entries of the calls' gradients, then what is known of values.
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
        self._classes: int | None = None
        self._samples: int | None = None
        self._models: list[weakref.ref[nn.Module]] = []
        self._of_one_call = False
        self._look_again: Callable[[], object] | None = None
        self._clear()

    @classmethod
    def of_one_call(cls, device: torch.device) -> Findings:
        """Findings that live no longer than a call's tensors: what is wrong with one is looked up in it."""
        findings = cls(device)
        findings._of_one_call = True
        return findings

    @property
    def heard_at_once(self) -> bool:
        """Whether values are looked at when they are there, and raised then: on a CPU."""
        return not self._late

    def settle(self) -> Counts:
        """The counts since the last time, with one read from the device; all that was found is forgotten.

        Raises:
            ValueError: an argument of a call, or a weight of its model, had a value that it may not have; or gradients
                came from a copy that no longer gives what the model gives (a call without findings repeats itself).
        """
        read = self._read()
        self._clear()
        return self._judge(*read)

    def look(self) -> Counts:
        """As `settle`, but nothing is forgotten."""
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
        radii_are_sound: bool,
        steps_are_sound: bool,
    ) -> int | None:
        """Take note of pixels, classes, radii and (where the attack moves) step sizes; on a CPU check them at once.

        Args:
            radii_are_sound, steps_are_sound: they need no look on a GPU, where every look is a kernel.

        Returns:
            The largest class, where it is known already.

        Raises:
            ValueError: on a CPU, a value out of range; findings of images of another range or dtype.
        """
        if not self._late:
            return inputs.values(x, y, eps, alpha, lo, hi, moves=moves)
        self._range = _the_same("range and dtype of x", self._range, (lo, hi, x.dtype))
        if x.numel():
            self._keep_range("x", x)
        self._keep_range("y", y)
        if not radii_are_sound:
            self._keep_range("eps", eps)
        if moves and not steps_are_sound:
            # In a ball that is a point a step of 0 is as good as any, but one of NaN is not.
            self._keep_lowest("alpha", torch.where(eps > 0, alpha, alpha.clamp(min=1)).min())
        if self._of_one_call:
            self._look_again = lambda: inputs.values(x, y, eps, alpha, lo, hi, moves=moves)
        return None

    def look_at_classes(self, y: Tensor, classes: int) -> Tensor:
        """The classes y [N], brought into 0 ... classes - 1: an index out of range would take a GPU's process down.

        Raises ValueError for findings of a model of another number of classes.
        """
        self._classes = _the_same("number of classes", self._classes, classes)
        return y.clamp(0, classes - 1)

    def look_at_samples(self, index: Tensor, size: int) -> Tensor:
        """Sample numbers [N], brought into 0 ... size - 1 like classes; on a CPU raise ValueError at once for others.

        Raises ValueError for findings of a memory of another number of samples.
        """
        if not self._late:
            checks.index_values(index, size)
            return index
        self._samples = _the_same("number of samples", self._samples, size)
        if len(index):
            self._keep_range("index", index)
        return index.clamp(0, size - 1)

    def look_at_dlr(self, last: Tensor) -> None:
        """Take note of `losses.last_of_dlr`: a RuntimeWarning will tell of DLRs that masks leave too few classes."""
        self._keep_lowest("dlr", last.min())

    def look_at_weights(self, model: nn.Module, bn: str) -> None:
        """Take note of NaN weights, and running statistics where bn="eval" reads them; on a CPU raise ValueError."""
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
        """Take note of how far a copy is off the live model, above 1 too far; on a CPU raise Stale at once."""
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
        """The one read: counts, lowest and highest values."""
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
        if problem and self._look_again is not None:
            self._look_again()  # raises the same, and says where in the tensor
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
    """Numbers of which one is NaN where a weight is: one pass over the weights, and one number for each of their kinds.

    With `statistics`, running means and variances count as weights.

    A norm is NaN where an entry is, and at worst infinite where none is, and so is a sum of norms. 2 ms for a ResNet-18
    on two cores, where the norm of the largest entry takes 23.
    """
    modules = modules_of(model)
    weights: list[Tensor] = [*parameters_of(modules)]
    if statistics:
        named = (buffer for module in modules for buffer in module._buffers.items())
        weights += (buffer for name, buffer in named if name in _STATISTICS and buffer is not None)
    # One kernel takes many tensors, if all are of one kind.
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for weight in weights:
        if weight.is_floating_point() and weight.numel():
            by_kind.setdefault((weight.device, weight.dtype), []).append(weight)
    with torch.no_grad():
        return [torch.stack(torch._foreach_norm(weights)).sum() for weights in by_kind.values()]


def _nan_weight(model: nn.Module) -> str | None:
    """The first weight or running statistic that holds NaN, in words."""
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
    """What a call brings, or ValueError where earlier calls brought something else."""
    if known not in (None, new):
        raise ValueError(
            f"findings: those of calls whose {what} is {known}, expected others for calls with {new}"
        )
    return new
