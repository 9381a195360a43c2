"""What is timed: a step of iaat_fast's trainer, and the authors' amount of work in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attacks.providers import Setting, start, step
from iaat_fast import ops
from iaat_fast.data import ImageData
from iaat_fast.train import TrainConfig
from iaat_fast.train.cudagraph_step import CudaGraphStep, capture_for
from iaat_fast.train.dataloader import TrainLoader
from iaat_fast.train.setup import make_state

ATTACKS = 3
"""PGD attacks of a step of the released code, one after the other: at prev + gamma, at prev, at the new radius."""


class Trainer:
    """Steps of `fit` without what lies between them: augmentation, attacks, selection, update, radii.

    Args:
        config: with `optim.lr` 0 all steps are the same work.
        model: trained in place, on the device.
        data: images and labels on the device.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, data: ImageData) -> None:
        device = data.train.labels.device
        self.state = make_state(config, model, data, device)
        if self.state.training_step.method.radii == "adaptive":
            # As after the warm-up: radii that start at 0 would stay there.
            self.state.memory.values.fill_(config.epsilon.eps_w)
        self._epoch = config.epsilon.warmup_epochs
        self._numbers = itertools.count()
        self._loader = TrainLoader(data.train, augment=config.data.augment)
        size = config.optim.batch_size
        self._batches = torch.arange(len(data.train), device=device).split(size)
        self._step = CudaGraphStep(
            self.state.training_step,
            size=size,
            capture=capture_for(device) if config.optim.graph else None,
        )

    def __call__(self) -> None:
        """One step, on the next batch."""
        number = next(self._numbers)
        batch = self._batches[number % len(self._batches)]
        (loaded,) = self._loader([batch], [number])
        self._step(loaded, epoch=self._epoch, seed=number)

    def shares(self) -> tuple[float | None, float | None]:
        """Of the images of all steps so far, those classified correctly before and after the attack; None where the
        method does not count them."""
        self._step.settle()  # raises what they have found wrong
        training_step = self.state.training_step
        _, clean, robust, seen = training_step.totals.tolist()
        method = training_step.method
        return (
            clean / seen if method.counts_clean else None,
            robust / seen if method.counts_robust else None,
        )


def authors_step(
    model: nn.Module, data: ImageData, batch_size: int, setting: Setting
) -> Callable[[], None]:
    """The work of a step of the released code after its warm-up, on images augmented by the same op.

    Three PGD attacks by `loss.backward()`, which adds up gradients of the weights that no one reads, each followed by a
    forward for its verdicts; a forward of the clean images; the update. Choosing the radii costs nothing here, and the
    attacks are in eval mode, which is less work than the batch statistics of the released code.
    """
    images, labels = data.train.images.contiguous(), data.train.labels
    batches = torch.arange(len(labels), device=labels.device).split(batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=2e-4)
    numbers = itertools.count()

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x_adv = start(x, setting)
        for _ in range(setting.steps):
            x_adv.requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            assert x_adv.grad is not None
            x_adv = step(x_adv, x_adv.grad, x, setting)
        return x_adv

    def call() -> None:
        number = next(numbers)
        index = batches[number % len(batches)]
        x, y = ops.random_crop_flip(images, index, number), labels[index]
        model.eval()
        with torch.no_grad():
            model(x).argmax(1)
        for _ in range(ATTACKS):
            x_adv = attack(x, y)
            with torch.no_grad():
                model(x_adv).argmax(1)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return call
