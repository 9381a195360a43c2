"""Training steps as CUDA graphs: captured whole where that is possible, else run eagerly."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from iaat_fast.attacks import AttackStats
from iaat_fast.attacks.cudagraph import capture_cuda
from iaat_fast.attacks.findings import Findings
from iaat_fast.train.awp import phase
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods import Drawn
from iaat_fast.train.optim import rate_on_device
from iaat_fast.train.seeds import Packed
from iaat_fast.train.step import TrainingStep

logger = logging.getLogger("iaat_fast")


class _Inputs(NamedTuple):
    """What changes from step to step, in fixed tensors on the device, which a captured graph reads.

    words: all random draws of the host, packed; `draws` and the batch's seed are views of it.
    draws: of each micro-batch.
    batch: with tensors of its own: the sample numbers, and for image files the decoded images and labels.
    """

    words: Tensor
    draws: Sequence[Drawn]
    batch: GlobalBatch


class _Graph(NamedTuple):
    """A captured step: its inputs, what replays it, and what the host records after each replay.

    last: for `TrainingStep.last`.
    entries: by how many the step raises `Findings.entries`.
    """

    inputs: _Inputs
    replay: Work
    last: list[tuple[Tensor, Tensor]]
    entries: int


class CudaGraphStep:
    """Runs `TrainingStep` on the batches of a `TrainLoader`.

    The first full batch of a phase of the training (see `awp.phase`) runs eagerly, on the stream of the capture: it
    is the warm-up that capturing needs, and a real step. The second is captured and replayed, the later ones are
    replayed. Capturing runs nothing, so a failed capture has changed nothing: this step and all later ones then run
    eagerly, and one message says why. Batches of another size, such as the last of an epoch, run eagerly. One graph
    is kept at a time, since a phase does not return.

    A graph holds only the device's part of a step. The host's part is done after each replay: the update count of the
    weight average, `TrainingStep.last`, and the number of gradient entries (`Findings.entries`).

    A captured step cannot raise an error about values on the device: it notes them there, and `settle` raises.

    Args:
        step: on one rank; its optimizer reads the learning rate on the device, see `make_optimizer`.
        size: images of a full batch.
        capture: what captures a step; None: everything runs eagerly.
    """

    def __init__(self, step: TrainingStep, *, size: int, capture: Capture | None) -> None:
        self._step, self._size = step, size
        self._capture = capture
        self._findings = Findings(step.totals.device)
        self._noted = False
        self._phase: str | None = None  # whose warm-up is done
        self._graph: _Graph | None = None
        if capture is not None and (reason := _obstacle(step)):
            self._give_up(reason)

    def __call__(self, batch: GlobalBatch, *, epoch: int, seed: int) -> None:
        """Train on a batch; see `TrainingStep`."""
        method, capture = self._step.method, self._capture
        if (
            capture is not None
            and len(batch.index) == self._size
            and (reason := method.host_reads(epoch))
        ):
            self._give_up(reason)
            capture = None
        if capture is None or len(batch.index) != self._size:
            self._step(batch, epoch=epoch, seed=seed)
        elif (now := phase(method.config, epoch)) != self._phase:
            self._phase, self._graph = now, None
            self._warm_up(capture, batch, epoch, seed)
        else:
            self._replay(capture, batch, epoch, seed)

    def settle(self) -> None:
        """Raise, or warn about, what the steps since the last call have noted; waits for the device.

        Raises:
            ValueError: the one that an attack in an eager step would have raised.
        """
        if not self._noted:
            return
        self._noted = False
        entries = self._findings.entries
        zero, nan = self._findings.settle()
        AttackStats(total=entries, zero=zero, nan=nan).warn()

    def _warm_up(self, capture: Capture, batch: GlobalBatch, epoch: int, seed: int) -> None:
        """Run a step eagerly, exactly as it will be captured."""
        inputs, self._noted = self._inputs(batch, seed), True
        before = _host_draws(inputs.words.device)
        capture.warm_up(lambda: self._launch(inputs, epoch))
        self._step.count()
        if _host_draws(inputs.words.device) != before:
            self._give_up("the model draws random numbers on the host")

    def _replay(self, capture: Capture, batch: GlobalBatch, epoch: int, seed: int) -> None:
        """Run a step by replaying the graph, which is captured first if there is none."""
        if self._graph is None:
            self._graph = self._captured(capture, batch, epoch, seed)
            if self._graph is None:
                gc.collect()  # the error's frames may hold memory that the eager step needs
                self._step(batch, epoch=epoch, seed=seed)
                return
        else:
            self._pack(batch, seed).copy_to(self._graph.inputs.words)
            for there, new in zip(_tensors(self._graph.inputs.batch), _tensors(batch), strict=True):
                there.copy_(new)
        self._graph.replay()
        self._noted = True
        self._step.count()
        self._step.last = self._graph.last
        self._findings.entries += self._graph.entries

    def _captured(
        self, capture: Capture, batch: GlobalBatch, epoch: int, seed: int
    ) -> _Graph | None:
        """A graph of the step, with this batch as its inputs; None if it cannot be captured."""
        inputs = self._inputs(batch, seed)
        entries = self._findings.entries
        try:
            replay = capture(lambda: self._launch(inputs, epoch))
        # Whatever a capture raises, nothing has run. If it is the step's own error, the eager step raises it again.
        except Exception as error:
            self._give_up(" ".join(str(error).strip().splitlines()[:1]) or type(error).__name__)
            return None
        finally:
            self._step.update.zero_grad()  # the captured gradients lie in the graph's memory
            entries, self._findings.entries = self._findings.entries - entries, entries
        logger.info(
            "training: whole steps are captured in a CUDA graph, in batches of %d; others run eagerly",
            self._size,
        )
        return _Graph(inputs, replay, self._step.last, entries)

    def _give_up(self, reason: str) -> None:
        """From now on run every step eagerly (attacks may still capture themselves), and log why."""
        self._capture = self._graph = None
        logger.warning(
            "training: whole steps cannot be captured in a CUDA graph (%s); running eagerly", reason
        )

    def _inputs(self, batch: GlobalBatch, seed: int) -> _Inputs:
        packed = self._pack(batch, seed)
        words = packed.to(self._step.totals.device)
        augment, *draws = packed.unpacked(words)
        index, *decoded = (tensor.clone() for tensor in _tensors(batch))
        fixed = replace(
            batch,
            index=index,
            whole=index,
            seed=augment["seed"],
            decoded=(decoded[0], decoded[1]) if decoded else None,
        )
        return _Inputs(words, draws, fixed)

    def _pack(self, batch: GlobalBatch, seed: int) -> Packed:
        augment = {"seed": torch.tensor([batch.seed])}
        return Packed([augment, *self._step.draws(seed, len(batch.index))])

    def _launch(self, inputs: _Inputs, epoch: int) -> None:
        self._step.train_step(inputs.batch, inputs.draws, epoch=epoch, findings=self._findings)


def _tensors(batch: GlobalBatch) -> list[Tensor]:
    return [batch.index, *(batch.decoded or ())]


def _obstacle(step: TrainingStep) -> str | None:
    """Why no step can be captured, as far as can be told before trying; None for no reason."""
    if step.ranks.count > 1:
        return "the ranks exchange gradients"
    if step.update.amp.scales:
        return "fp16 reads whether gradients have overflowed"
    if not rate_on_device(step.update.optimizer):
        return "the optimizer reads its learning rate on the host"
    for name, module in step.model.named_modules():
        if any(_hooks(module)):
            return f"{name or 'the model'} has hooks, which a graph would leave out"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _reads_its_count(module):
            return f"{name or 'the model'} reads how many batches it has seen (momentum=None)"
    return None


def _hooks(module: nn.Module) -> Iterable[object]:
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def _reads_its_count(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.momentum is None and norm.track_running_stats


def _host_draws(device: torch.device) -> tuple[object, ...]:
    """The states of the host's random generators, except the one that belongs to `device`."""
    numpy = np.random.get_state(legacy=False)["state"]
    own = b"" if device.type == "cpu" else torch.get_rng_state().numpy().tobytes()
    return random.getstate(), numpy["key"].tobytes(), numpy["pos"], own


Work = Callable[[], None]


class Capture(Protocol):
    """What `CudaGraphStep` needs from a device whose launches can be captured."""

    def warm_up(self, work: Work) -> None:
        """Run `work` as it will be captured."""

    def __call__(self, work: Work) -> Work:
        """Capture what `work` launches, without running it, and return what replays it."""
        ...


class CudaCapture:
    """Captures on a stream of its own, on which the warm-up has made what libraries allocate per stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Work) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        return capture_cuda(work, None, self._stream)


def capture_for(device: torch.device) -> Capture | None:
    """What captures steps on `device`; None if nothing can."""
    return CudaCapture(device) if device.type == "cuda" else None
