"""What each rank of test_distributed.py runs: `python ranks.py FOLDER`, in the environment of torchrun.

Every scenario is a function of (folder, ranks) whose result, or error, the rank saves as
FOLDER/<scenario>-<rank>.pt. The networks here, and what the scenarios share, serve the test as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData, Split, epoch_order, load
from iaat_fast.train import FitResult, Interrupted, fit
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.distributed import Ranks, joined
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import preset
from iaat_fast.train.step import TrainingStep

TRAIN, BATCH, EPOCHS = 26, 5, 2
"""26 = 5 batches of 5 and one of 1: uneven shards, and a last batch in which some ranks have nothing."""


class Elementwise(nn.Module):
    """Logits from additions and multiplications of single elements: no sum whose order a kernel might choose by the
    size of the batch, so that a sample's logits and gradients have the same bits in every batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 12, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        pixels = (flat[:, 0::3] + flat[:, 1::3] + flat[:, 2::3]).unbind(1)
        logits = []
        for row in self.weight.unbind(0):
            total = pixels[0] * row[0]
            for pixel, weight in zip(pixels[1:], row[1:], strict=True):
                total = total + pixel * weight
            logits.append(total)
        return torch.stack(logits, dim=1)


class Double(nn.Module):
    """A linear classifier computed in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 36, generator=generator).double())

    def forward(self, x: Tensor) -> Tensor:
        return x.double().flatten(1) @ self.weight.T


def usual() -> nn.Module:
    """BatchNorm, and dropout that draws while it trains; three tensors, so that DDP's buckets have an order."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 50),
        nn.LeakyReLU(),
        nn.Linear(50, 3),
    )


class Sampled(Double):
    """Of a photograph it sees 6 x 6 pixels of the first channel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :1, ::38, ::38])


class Poisoned(Double):
    """Its logits are NaN for images whose first pixel is white."""

    def forward(self, x: Tensor) -> Tensor:
        white = x.flatten(1)[:, :1] == 1
        return super().forward(x).where(~white, torch.nan)


def images() -> ImageData:
    """Three classes of 6 x 6 grey images: noise with one bright third."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        labels = torch.arange(size) % 3
        pixels = torch.randint(0, 120, (size, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for i, label in enumerate(labels.tolist()):
            pixels[i, 2 * label : 2 * label + 2] += 90
        return Split(images=pixels, labels=labels)

    return ImageData(name="tiny", train=split(TRAIN), test=split(13), num_classes=3)


def bad_files() -> Tensor:
    """The numbers of two files, those of the first rank in the first step, and of the only one of the last step."""
    order = epoch_order(13, seed=0, epoch=0)
    return order[[0, 1, 12]]


def photographs(folder: Path, ranks: Ranks, *, on_bad_image: str) -> ImageData:
    """Image files, 13 to train on in batches of 4; the `bad_files` cannot be decoded."""
    path = folder / "images"
    if ranks.first:
        write_photographs(path)
    ranks.gather(None)
    # In one process without workers, which changes no bit.
    workers = int(ranks.count > 1)
    return load("imagenet", path, workers=workers, on_bad_image=on_bad_image)


def write_photographs(path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    bad = bad_files().tolist()
    for number in range(13 + 5):
        part, place = ("train", number) if number < 13 else ("val", number - 13)
        file = path / part / "abc"[place % 3] / f"{place // 3}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        if number in bad:
            file.write_bytes(file.read_bytes()[:200])


def config(out: Path, *, method: Any = "iaat", **parts: Any) -> TrainConfig:
    """Two epochs, the first a warm-up."""
    changes: dict[str, Any] = {
        "attack": {"steps": 3},
        "epsilon": {"warmup_epochs": 1},
        "optim": {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.001},
        "evaluation": {"batch_size": 4, "steps": 2, "restarts": 2},
        "run": {"out": str(out), "device": "cpu", "tensorboard": False, "snapshot_epochs": 1},
    }
    return override(override(preset("digits", method=method), changes), parts)


def outcome(result: FitResult) -> dict[str, Any]:
    """What a run came to."""
    rows = [{**row, "seconds": None} for row in result.metrics]
    return {"model": result.model.state_dict(), "epsilon": result.epsilon, "rows": rows}


def run(model: nn.Module, setting: TrainConfig, **keywords: Any) -> dict[str, Any]:
    return outcome(fit(setting, model=model, data=images(), quiet=True, **keywords))


def resting(out: Path) -> TrainConfig:
    radii = {"eps_w": 0.02, "gamma": 0.01}
    # A third epoch, for radii that fall after they rose.
    return config(out, optim={"lr": 0.0, "epochs": 3}, data={"augment": True}, epsilon=radii)


def standing_still(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Weights that do not move, on augmented images."""
    return run(Elementwise(), resting(folder / "run"))


def moving(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return run(Double(), config(folder / "run"))


def averaged_trades(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Two forwards a step, and an average of the weights."""
    result = fit(trades(folder / "run"), model=Double(), data=images(), quiet=True)
    return {**outcome(result), "average": result.evaluated.state_dict()}


def trades(out: Path) -> TrainConfig:
    return config(out, method="trades", optim={"lr": 0.0001, "ema_decay": 0.5})


def perturbed(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Adversarial weight perturbation, in the last step of an epoch also by ranks without an image."""
    return run(Double(), config(folder / "run", method="adv", baseline={"awp_gamma": 0.1}))


def accumulated(folder: Path, ranks: Ranks) -> dict[str, Any]:
    setting = config(folder / "run", optim={"batch_size": 7, "accumulate": 2})
    return run(Double(), setting)


def closing(folder: Path, ranks: Ranks) -> dict[str, Any]:
    from iaat_fast.train.finish import evaluate_run

    result = fit(
        config(folder / "run", optim={"epochs": 1}), model=Double(), data=images(), quiet=True
    )
    return evaluate_run(result, ranks)


def uninterrupted(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return run(usual(), config(folder / "run"))


def stopped(model: nn.Module, setting: TrainConfig, ranks: Ranks) -> int:
    """Run until step 8, in which the last rank alone gets a SIGTERM; returns the status of all."""
    original, calls = TrainingStep.__call__, iter(range(1, 1000))

    def call(self: TrainingStep, *args: Any, **keywords: Any) -> Tensor:
        if next(calls) == 8 and ranks.rank == ranks.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **keywords)

    TrainingStep.__call__ = call  # type: ignore[method-assign]
    try:
        run(model, setting)
    except Interrupted as stop:
        return stop.status
    finally:
        TrainingStep.__call__ = original  # type: ignore[method-assign]
    raise AssertionError("no one was interrupted")


def interrupted(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A stopped run, resumed with as many ranks."""
    setting = config(folder / "run")
    status = stopped(usual(), setting, ranks)
    step = torch.load(folder / "run" / "checkpoint.pt")["step"]
    return {"status": status, "step": step, **run(usual(), setting, resume=True)}


def left_off(folder: Path, ranks: Ranks) -> str:
    """A stopped run that the test resumes in one process; returns its folder."""
    stopped(Elementwise(), resting(folder / "run"), ranks)
    return str(folder / "run")


def some_files_left_out(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A rank without an image of a batch, ranks with fewer than planned, and a batch that no one has an image of."""
    data = photographs(folder, ranks, on_bad_image="skip")
    setting = config(folder / "run", optim={"batch_size": 4})
    return outcome(fit(setting, model=Sampled(), data=data, quiet=True))


def a_bad_file(folder: Path, ranks: Ranks) -> None:
    """Epoch 1 of another order than `bad_files` assumes: the run stops at whichever comes first."""
    data = photographs(folder, ranks, on_bad_image="stop")
    setting = config(folder / "run", optim={"batch_size": 4})
    setting = override(setting, {"run": {"seed": 1}})
    fit(setting, model=Sampled(), data=data, quiet=True)


def in_half_precision(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return run(
        usual(), config(folder / "run", optim={"amp": "fp16", "accumulate": 2, "batch_size": 7})
    )


def poisoned(folder: Path, ranks: Ranks) -> None:
    data = images()
    data.train.images[[4, 17], 0, 0] = 255
    fit(config(folder / "run", method="clean"), model=Poisoned(), data=data, quiet=True)


def other_configuration(folder: Path, ranks: Ranks) -> None:
    run(Double(), config(folder / "run", optim={"lr": 0.1 * (ranks.rank + 1)}))


def other_data(folder: Path, ranks: Ranks) -> None:
    data = images()
    if ranks.rank:
        data.train.images[3, 0, 0] = 7
    fit(config(folder / "run"), model=Double(), data=data, quiet=True)


def other_weights(folder: Path, ranks: Ranks) -> None:
    model = Double()
    model.weight.data[0, 0] += ranks.rank
    run(model, config(folder / "run"))


def no_data(folder: Path, ranks: Ranks) -> None:
    path = folder / "gone"
    if ranks.rank != 1:
        folder.mkdir(exist_ok=True)
        path = folder / f"{ranks.rank}.npz"
        split = images().train
        arrays = {f"x_{part}": split.images.numpy() for part in ("train", "test")}
        arrays |= {f"y_{part}": split.labels.numpy() for part in ("train", "test")}
        np.savez(path, **arrays)
    fit(config(folder / "run", data={"name": "cifar10", "path": str(path)}), quiet=True)


def too_small_a_batch(folder: Path, ranks: Ranks) -> None:
    run(Double(), config(folder / "run", optim={"batch_size": 2, "accumulate": 2}))


def batch_norm_over_ranks(folder: Path, ranks: Ranks) -> None:
    run(usual(), config(folder / "run", optim={"batch_size": 13, "sync_batchnorm": True}))


def skipping_with_batch_norm_over_ranks(folder: Path, ranks: Ranks) -> None:
    changes = {
        "data": {"on_bad_image": "skip"},
        "optim": {"batch_size": 13, "sync_batchnorm": True},
    }
    run(usual(), config(folder / "run", **changes))


def start_method(folder: Path, ranks: Ranks) -> str:
    return multiprocessing.get_start_method()


def too_small_a_last_batch(folder: Path, ranks: Ranks) -> None:
    run(usual(), config(folder / "run", optim={"sync_batchnorm": True}))


SCENARIOS: tuple[Callable[[Path, Ranks], Any], ...] = (
    standing_still,
    moving,
    averaged_trades,
    perturbed,
    accumulated,
    closing,
    uninterrupted,
    interrupted,
    left_off,
    some_files_left_out,
    a_bad_file,
    in_half_precision,
    poisoned,
    other_configuration,
    other_data,
    other_weights,
    no_data,
    too_small_a_batch,
    batch_norm_over_ranks,
    skipping_with_batch_norm_over_ranks,
    too_small_a_last_batch,
    start_method,
)


OF_TWO = (standing_still, moving)
"""What two ranks run; three, of which some have fewer images than others or none, run all."""


def main(folder: Path) -> None:
    with joined() as ranks:
        for scenario in OF_TWO if ranks.count == 2 else SCENARIOS:
            name = scenario.__name__
            try:
                result = scenario(folder / name, ranks)
            except (ValueError, OSError, FloatingPointError) as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            torch.save(result, folder / f"{name}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
