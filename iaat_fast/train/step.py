"""One step of training: `TrainingStep.train_step` shows all that a step does, in the order of Algorithm 1."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.models.narrow import ContiguousNarrow, is_narrow
from iaat_fast.train.awp import buffers_restored, perturbed, perturbs
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.distributed import SINGLE, Ranks
from iaat_fast.train.hardware import resolved
from iaat_fast.train.methods import METHODS, Batch, Drawn, Outcome
from iaat_fast.train.optim import MixedPrecision, count_update, update_average
from iaat_fast.train.seeds import Packed


class TrainingStep:
    """One update of the weights (and, for adaptive methods, of the radii) from a batch.

    Each rank takes its shard of the batch; afterwards all ranks have the radii and the totals of the global batch.

    Args:
        config: of the run; every "auto" in it is resolved for the device.
        model: the bare module, on the device.
        memory: the radius of each training sample, on the device.
        optimizer: of the model's parameters.
        device: of all of them.
        average: the average of the weights, updated after each step; None: the run keeps none.
        ranks: among which batches are divided.

    Attributes:
        last: sample numbers and losses of the last step, a pair for each micro-batch.
        totals: float64 [4] on the device, sums over the steps since it was last zeroed: the samples' losses, the
            samples classified correctly before the attack, those classified correctly on their adversarial image in
            the training forward, and all samples. Reading them each step would make the host wait for a GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        memory: EpsilonMemory,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        average: AveragedModel | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        config = self.config = resolved(config, device)
        self.model = model
        self.memory = memory
        self.average = average
        self.ranks = ranks
        self.update = Update(
            model,
            optimizer,
            ranks=ranks,
            accumulate=config.optim.accumulate,
            amp=MixedPrecision(config.optim.amp, device),
        )
        self.method = METHODS[config.method](config, model, memory)
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        self.last: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self, batch: GlobalBatch, *, epoch: int, seed: int, findings: Findings | None = None
    ) -> Tensor:
        """Train on one batch, eagerly.

        Args:
            batch: this rank's shard.
            epoch: epoch index from 0; the warm-up lasts while it is below warmup_epochs.
            seed: of all that this step draws.
            findings: notes bad values, such as NaN, on the device, to be raised later; None: they are raised here.

        Returns:
            The mean loss of the batch (for a shard, its contribution to it), a scalar on the device.
        """
        packed = Packed(self.draws(seed, len(batch.index)))
        draws = packed.unpacked(packed.to(self.totals.device))
        mean = self.train_step(batch, draws, epoch=epoch, findings=findings)
        self.count()
        return mean

    def train_step(
        self,
        batch: GlobalBatch,
        draws: Sequence[Drawn],
        *,
        epoch: int,
        findings: Findings | None = None,
    ) -> Tensor:
        """All that the device does in a step: lines 2 to 11 of Algorithm 1 (Balaji et al. 2019).

        The other methods choose other radii, images and losses in the same two calls, `prepare` and `outcome`. An eager
        step runs this function, a captured one (`CudaGraphStep`) is a graph of it: so nothing is read on the host,
        except in the epochs for which `Method.host_reads` says so, whose steps are not captured.

        Args:
            batch: this rank's shard.
            draws: what each micro-batch draws, on the device, see `draws`.
            epoch, findings: see `__call__`.

        Returns:
            The mean loss, see `__call__`.
        """
        # Line 2, the batch: images and labels, augmented.
        x, y = batch.images()
        index = batch.index
        mean, counts = torch.zeros((), device=self.totals.device), torch.zeros_like(self.totals)
        self.last = []
        self.update.zero_grad()
        # Lines 3 to 10, at fixed weights:
        #   3 to 7  the radii: read from the memory, chosen by Algorithm 2 or set by the warm-up, and stored
        #   8       the attack at these radii
        #   9, 10   S+ and S-, the samples classified correctly before the attack and the others, whose clean
        #           images are trained on
        ready: Iterable[Batch] = (
            self.method.prepare(
                x[rows], y[rows], index[rows], epoch=epoch, seed=drawn, findings=findings
            )
            for rows, drawn in zip(self.update.parts(len(index)), draws, strict=True)
        )
        with contextlib.ExitStack() as weights:
            if perturbs(self.config, epoch):
                ready = list(ready)  # all of the batch, before any weight moves
                weights.enter_context(self._perturbed(batch, x, ready))
            # Line 11, the losses, and the gradient of their mean over the global batch.
            for rows, outcome, loss in self._backward(batch, x, ready):
                mean += loss
                counts += self._counts(outcome)
                self.last.append((index[rows], outcome.loss.detach()))
        # Line 11, the weights.
        self.update.step()
        if self.average is not None:
            update_average(self.average, self.model)
        # The radii that the other ranks have stored in their memories.
        self.exchange(batch.whole, counts)
        self.totals += counts
        return mean

    def _backward(
        self, batch: GlobalBatch, x: Tensor, ready: Iterable[Batch]
    ) -> Iterator[tuple[slice, Outcome, Tensor]]:
        """Add the gradient of the mean loss over the global batch, micro-batch by micro-batch.

        Yields the rows of each, its outcome, and what it contributes to the mean loss, a scalar without a graph.
        """
        for rows, prepared in zip(self.update.micro_batches(len(x)), ready, strict=True):
            self.model.train()
            outcome = self.method.outcome(self.update.forward, prepared)
            loss, share = outcome.loss.mean(), len(outcome.loss) / batch.present
            self.update.backward(loss, share=share)
            yield rows, outcome, loss.detach() * share
        if not len(x):
            self.model.train()
            self.update.join(x)

    @contextlib.contextmanager
    def _perturbed(self, batch: GlobalBatch, x: Tensor, ready: Iterable[Batch]) -> Iterator[None]:
        """A context with the weights moved to where the mean loss over the global batch is larger (AWP)."""
        with buffers_restored(self.model):
            for _ in self._backward(batch, x, ready):
                pass
        gamma, overflows = self.config.baseline.awp_gamma, self.update.amp.scales
        with perturbed(self.model, gamma, overflows=overflows):
            self.update.zero_grad()
            yield

    def draws(self, seed: int, rows: int) -> list[Drawn]:
        """The random draws of the step with this seed, for each micro-batch of its `rows` images, on the CPU."""
        return [self.method.draw(seed, part.stop - part.start) for part in self.update.parts(rows)]

    def count(self) -> None:
        """The host's part of a step, eager or replayed."""
        if self.average is not None:
            count_update(self.average, self.model)

    def exchange(self, whole: Tensor, counts: Tensor) -> None:
        """Give every rank the radii of the global batch and the sum of the counts.

        All ranks know the batch's sample numbers, so one sum over the ranks is enough: of a vector of the batch's
        size, in which each rank has its own radii, and zeros in the places of the others.
        """
        if self.ranks.count == 1:
            return
        message = torch.zeros(len(whole) + len(counts), dtype=torch.float64, device=counts.device)
        start, own = self.ranks.start(len(whole)), self.ranks.shard(whole)
        message[start : start + len(own)] = self.memory.values[own].double()
        message[len(whole) :] = counts
        self.ranks.reduce(message)
        self.memory.values[whole] = message[: len(whole)].float()
        counts.copy_(message[len(whole) :])

    def _counts(self, outcome: Outcome) -> Tensor:
        """What a micro-batch adds to the totals."""
        counts = torch.zeros_like(self.totals)
        counts[0] = outcome.loss.detach().sum(dtype=torch.float64)
        for place, verdicts in ((1, outcome.clean), (2, outcome.robust)):
            if verdicts is not None:
                counts[place] = verdicts.sum()
        counts[3].fill_(len(outcome.loss))  # an assignment would copy from the host, which waits
        return counts


class _WithUnusedParameter(nn.Module):
    """The model and a parameter that no forward uses.

    DistributedDataParallel regroups its buckets after the first step, and then sums over three or
    more ranks in another order: a run resumed from a checkpoint would round differently. With
    `find_unused_parameters` it does not regroup, but warns if it finds none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class Update:
    """The gradient of the mean loss over the global batch, however the batch is divided, and the optimizer's step.

        update.zero_grad()
        for rows in update.micro_batches(len(x)):
            loss = cross_entropy(update.forward(x[rows]), y[rows])
            update.backward(loss, share=len(y[rows]) / size_of_global_batch)
        update.step()

    Each loss is a mean over its rows; the gradient that the optimizer sees is that of the mean over
    the global batch, even if ranks and micro-batches are of unequal size.

    Args:
        model: the bare module.
        optimizer: of its parameters.
        ranks: among which the batch is divided.
        accumulate: micro-batches into which a rank divides its shard.
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

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self, size: int) -> list[slice]:
        """The rows of each micro-batch of a shard of `size` images; sizes differ by at most one, none is empty."""
        small, more = divmod(size, self.accumulate)
        cuts = [number * small + min(number, more) for number in range(self.accumulate + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(cuts) if low < high]

    def micro_batches(self, size: int) -> Iterator[slice]:
        """`parts(size)`; run one forward and one backward before taking the next."""
        parts = self.parts(size)
        for number, rows in enumerate(parts, start=1):
            # The ranks exchange their gradients only in the last backward.
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
            x: [0, C, H, W], the rank's empty shard.
        """
        # One black image with weight 0, since BatchNorm has no statistics of an empty batch.
        self.backward(self.forward(x.new_zeros(1, *x.shape[1:])).sum(), share=0.0)

    def step(self) -> None:
        """Update the weights. The running statistics of BatchNorm become those of the first rank."""
        self.amp.step(self.optimizer)
        self.ranks.copy_from_first(self._buffers)


def _replicated(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Its new name, forward_sync_buffers, is not in torch 2.10.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        # `Update.step` copies the buffers instead, so that the attacks of the next step see the same on every rank.
        return DistributedDataParallel(
            _WithUnusedParameter(model), broadcast_buffers=False, find_unused_parameters=True
        )


def to_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm layer of `model` by SyncBatchNorm, in place; a model that is one itself is copied."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def make_memory(config: TrainConfig, size: int, device: torch.device) -> EpsilonMemory:
    """The memory of the radii of `size` samples, as it is before the first step."""
    config = resolved(config, device)
    eps = config.epsilon
    return EpsilonMemory(
        size,
        eps.gamma,
        eps.beta,
        init=METHODS[config.method].first_radius(config),
        eps_min=eps.eps_min,
        eps_min_bounds=eps.eps_min_bounds,
        strategy=eps.strategy,
        final=eps.final,
        clamp=eps.clamp,
        misclassified=eps.misclassified,
        device=device,
    )
