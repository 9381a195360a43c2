"""`Trace`: the loss, success and step size of every iteration of a run, for plots and TensorBoard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iaat_fast.attacks.recorder import Recorder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What the iterations of a run saw, on the device of the images. T is restarts * (steps + 1).

        result = APGD(model, eps=8 / 255, steps=100).run(x, y, trace=True)
        result.trace.loss[-1]                   # [N], of the last iterate
        result.trace.success.float().mean(1)    # [T], share of samples fooled
        result.trace.plot("apgd.svg")

    Row t is iterate `iteration[t]` of restart `restart[t]`; iterate 0 is the start. It is seen by the logits that its
    gradient is taken from, which are a copy's with `engine="fast"` or half precision; the last iterate, which has no
    gradient, by the live model. Where a step takes its first gradient at another point (NI-FGSM's, or a resized image)
    the row is that point's; of several draws (`eot`), or models whose losses are averaged, it is that of their mean.

    A sample leaves the trace when it leaves the attack: misclassified as it is, fooled at a smaller radius or in an
    earlier restart, or, with `early_stop`, at an earlier iterate. Then its loss and step size are NaN, and its success
    stays True. Samples that batch statistics keep in later restarts and at larger radii are recorded there, too.

    Args:
        loss: float32 [T, N], or [E, T, N] for a list of E radii: the attack's own, "ce", "cw", "dlr" or "kl", which it
            raises; with a target, that of the target, which it lowers. `Square`: the "cw" of its best image so far.
        success: bool, like loss, whether the iterate fools the model.
        step_size: float32, like loss, the size of the step from the iterate; NaN at the last, from which none is taken.
            `Square`: the side of the next square, in pixels.
        iteration, restart: int64 [T]. The restarts of `APGDT` are those towards its first target, then its second.
    """

    loss: Tensor
    success: Tensor
    step_size: Tensor
    iteration: Tensor
    restart: Tensor

    def __getitem__(self, radius: int) -> Trace:
        """The trace [T, N] at one of the radii of a trace [E, T, N].

        Raises:
            IndexError: the trace is of one radius, or has no such radius.
        """
        if self.loss.dim() == 2:
            raise IndexError(f"trace: of a single radius, expected a list of them for [{radius}]")
        loss, success, step_size = (
            tensor[radius] for tensor in (self.loss, self.success, self.step_size)
        )
        return Trace(loss, success, step_size, self.iteration, self.restart)

    def to_tensorboard(self, to: str | Path | SummaryWriter, tag: str = "attack") -> None:
        """Write scalars over the rows: the loss's mean and quantiles, the share of samples fooled, the mean step size.

        Reads the trace from the device. Losses and step sizes are those of the samples still attacked.

        Args:
            to: a folder, or a `SummaryWriter`, which is flushed and left open.
            tag: the scalars are `<tag>/loss/mean`, `<tag>/loss/5%` ... `<tag>/loss/95%`, `<tag>/success` and
                `<tag>/step_size`; of a list of radii `<tag>/epsilons[0]/loss/mean` and so on.

        Raises:
            ModuleNotFoundError: tensorboard is not installed.
            TypeError: `to` is neither.
        """
        if isinstance(to, (str, Path)):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError:
                raise _missing("to_tensorboard", "tensorboard") from None
            with SummaryWriter(str(to)) as writer:
                self.to_tensorboard(writer, tag)
            return
        if not hasattr(to, "add_scalar"):
            raise TypeError(f"to: {type(to).__name__}, expected a folder or a SummaryWriter")
        for name, trace in self._each():
            prefix = f"{tag}/{name}" if name else tag
            for scalar, values in trace._summary().items():
                for row, value in enumerate(values.tolist()):
                    if value == value:  # not where no sample is attacked any more
                        to.add_scalar(f"{prefix}/{scalar}", value, row)
        to.flush()

    def plot(self, path: str | Path) -> None:
        """Draw the loss with its quantiles, the share of samples fooled, and the step size, over the iterations.

        Bands hold 90 % and 50 % of the samples still attacked, lines are medians of losses and means of step sizes.
        Restarts follow each other, with a line between them.

        Args:
            path: of the image; its suffix is the format, .png, .svg or .pdf.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            raise _missing("plot", "matplotlib") from None
        figure = Figure(figsize=(5.6, 6.4), layout="constrained")
        loss, success, step_size = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        rows = range(len(self.iteration))
        for number, (name, trace) in enumerate(self._each()):
            seen = {scalar: values.numpy() for scalar, values in trace._summary().items()}
            style = {"color": f"C{number}", "label": name}
            for low, high in (("5%", "95%"), ("25%", "75%")):
                loss.fill_between(
                    rows,
                    seen[f"loss/{low}"],
                    seen[f"loss/{high}"],
                    color=f"C{number}",
                    alpha=0.2,
                    lw=0,
                )
            loss.plot(rows, seen["loss/50%"], **style)
            success.plot(rows, 100 * seen["success"], **style)
            step_size.plot(rows, seen["step_size"], drawstyle="steps-post", **style)
            if name:
                loss.legend(frameon=False)
        begins = (self.iteration == 0).nonzero()[1:, 0].tolist()
        for axes, text in ((loss, "loss"), (success, "fooled, %"), (step_size, "step size")):
            axes.set_ylabel(text)
            axes.grid(lw=0.5, alpha=0.5)
            for row in begins:
                axes.axvline(row - 0.5, color="gray", lw=0.8, ls=":")
        success.set_ylim(-3, 103)
        step_size.set_ylim(bottom=0)
        step_size.set_xlabel("iteration")
        figure.savefig(str(path))

    def _each(self) -> Iterator[tuple[str, Trace]]:
        """The trace of each radius with its name, "" of a single one."""
        if self.loss.dim() == 2:
            yield "", self
            return
        for radius in range(len(self.loss)):
            yield f"epsilons[{radius}]", self[radius]

    def _summary(self) -> dict[str, Tensor]:
        """Of a trace [T, N], values [T] by name, on the host; NaN where no sample is attacked."""
        loss, success, step_size = (
            tensor.float().cpu() for tensor in (self.loss, self.success, self.step_size)
        )
        share = torch.tensor(_QUANTILES)
        # Row by row, as torch sorts at most 2**24 values at once.
        rows = [row.nanquantile(share) if len(row) else share * torch.nan for row in loss]
        quantiles = torch.stack(rows, 1)
        named = {f"loss/{q:.0%}": row for q, row in zip(_QUANTILES, quantiles, strict=True)}
        return {
            "loss/mean": loss.nanmean(1),
            **named,
            "success": success.mean(1),
            "step_size": step_size.nanmean(1),
        }


def put_together(recorders: Sequence[Recorder], order: Tensor) -> Trace:
    """The trace of a run at several radii, the smallest first.

    Args:
        recorders: of each radius.
        order: int64 [E, N], the position of each of these radii in the result.
    """
    runs = max(recorder.runs for recorder in recorders)
    found = [recorder.whole(runs) for recorder in recorders]
    lines, (radii, n) = len(found[0][0]), order.shape
    loss, step_size = order.new_full((2, radii, lines, n), torch.nan, dtype=torch.float32)
    success = torch.ones_like(loss, dtype=torch.bool)
    for place, recorder, tensors in zip(order, recorders, found, strict=True):
        at = place[recorder.samples], slice(None), recorder.samples
        for whole, some in zip((loss, success, step_size), tensors, strict=True):
            whole[at] = some.t()
    number = torch.arange(lines, device=order.device)
    each = lines // runs
    return Trace(loss, success, step_size, number % each, number // each)


def _missing(method: str, package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"trace.{method} needs {package}: pip install 'iaat-fast[train]'", name=package
    )
