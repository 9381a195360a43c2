"""The update of the weights from the mean loss of the global batch: micro-batches, ranks, precision, SGD's step."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iaat_fast.models.narrow import ContiguousNarrow, is_narrow
from iaat_fast.train.amp import MixedPrecision
from iaat_fast.train.ranks import Ranks


class _WithUnusedParameter(nn.Module):
    """The model and a parameter that no forward uses.

    DistributedDataParallel regroups its buckets after the first step, and then sums over three or
    more ranks in another order: a run started anew from a checkpoint would round differently. It
    does not where it looks for unused parameters, and complains where it finds none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class Update:
    """Gradients of the mean loss over the global batch, however it is spread, and the step.

        update.begin()
        for rows in update.micro_batches(len(x)):
            loss = cross_entropy(update.forward(x[rows]), y[rows])
            update.backward(loss, share=len(y[rows]) / size_of_global_batch)
        update.step()

    Each loss is a mean over its rows; the gradient that the optimizer sees is that of the mean over
    the global batch also where ranks and micro-batches are of unequal size.

    Args:
        model: the bare module.
        optimizer: of its parameters.
        ranks: those the batch is spread over.
        accumulate: micro-batches a rank takes its slice in.
        amp: precision of forward and backward.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ranks: Ranks,
        amp: MixedPrecision,
        accumulate: int = 1,
    ) -> None:
        self.optimizer = optimizer
        self.ranks = ranks
        self.accumulate = accumulate
        self.amp = amp
        self._network: nn.Module = model
        self._buffers = list(model.buffers())
        self._guarded = any(map(is_narrow, model.parameters()))
        if ranks.count > 1:
            self._network = _replicated(model)

    def begin(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self, size: int) -> list[slice]:
        """The rows of each micro-batch of `size` images, equal up to one; none of them is empty."""
        small, more = divmod(size, self.accumulate)
        cuts = [number * small + min(number, more) for number in range(self.accumulate + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(cuts) if low < high]

    def micro_batches(self, size: int) -> Iterator[slice]:
        """`parts(size)`, within each of which a forward and a backward may be taken."""
        parts = self.parts(size)
        for number, rows in enumerate(parts, start=1):
            # The ranks exchange their gradients in the last backward.
            waits = isinstance(self._network, DistributedDataParallel) and number < len(parts)
            with self._network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                yield rows

    def forward(self, x: Tensor) -> Tensor:
        """The training forward: images [N, C, H, W] to logits [N, classes]."""
        return self.amp.forward(self._network, x)

    def backward(self, loss: Tensor, *, share: float) -> None:
        """Add the gradient of a micro-batch's mean loss, which is `share` of the global batch."""
        # DistributedDataParallel takes the mean over the ranks.
        factor = share * self.ranks.count
        with ContiguousNarrow() if self._guarded and loss.is_cpu else contextlib.nullcontext():
            self.amp.backward(loss if factor == 1 else loss * factor)

    def join(self, x: Tensor) -> None:
        """Take part in the exchange of gradients from a rank that has no image in this batch.

        Args:
            x: [0, C, H, W], the rank's empty slice.
        """
        # One black image that counts nothing: BatchNorm has no statistics of an empty batch.
        self.backward(self.forward(x.new_zeros(1, *x.shape[1:])).sum(), share=0.0)

    def step(self) -> None:
        """Update the weights. The running statistics of BatchNorm become those of the first rank."""
        self.amp.step(self.optimizer)
        self.ranks.copy_from_first(self._buffers)


def _replicated(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Its new name, forward_sync_buffers, is not in torch 2.10.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        # `Update.step` copies the buffers, so that the attacks of the next step see the same, too.
        return DistributedDataParallel(
            _WithUnusedParameter(model), broadcast_buffers=False, find_unused_parameters=True
        )


def spread_batch_norm(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm layer as a SyncBatchNorm, in place, but for a model that is one."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
