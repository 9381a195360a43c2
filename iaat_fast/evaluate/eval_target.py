"""`EvalTarget`, a model with its weights and a test split, and loading it from a run folder or from flags."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import data as datasets
from iaat_fast import models, validate
from iaat_fast.data import Samples
from iaat_fast.evaluate.accuracies import check_model, samples_for
from iaat_fast.evaluate.weights import fit_weights, plain_state_dict
from iaat_fast.run_folder import CUSTOM, RunFolder
from iaat_fast.storage import load_tensors

logger = logging.getLogger("iaat_fast")

MODEL_FIELDS = frozenset({"name", "width", "depth"})
"""Fields of the part "model" of a run's configuration."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where model and images come from.

    Args:
        model: a name of `models.NAMES`, or "package.module:function" that returns the model.
        weights: file with the model's weights; None: those that it is made with.
        width, depth: of a model of `models.NAMES`.
        dataset: a name of `data.NAMES`.
        data: folder or .npz with the images; None: the default of `data.load`.
        limit: the first `limit` test images; None: all.
        on_bad_image: what to do at an image file that cannot be decoded, see `data.load`.
    """

    model: str
    weights: Path | None = None
    width: int | None = None
    depth: int | None = None
    dataset: str = "cifar10"
    data: str | None = None
    limit: int | None = None
    on_bad_image: str = "stop"


@dataclass(frozen=True)
class EvalTarget:
    """A model and the test split it is measured on, both on one device.

    `description` says, in plain values, where they came from, see `describe_target`.
    """

    model: nn.Module
    split: Samples
    description: dict[str, Any]

    @classmethod
    def of(
        cls, model: nn.Module, split: Any, y: Any = None, *, dataset: str = CUSTOM
    ) -> EvalTarget:
        """The target made of a model and samples from Python.

        Args:
            model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes].
            split: the samples: a split of this library, (x, y), a Dataset or a DataLoader, or with y its images; see
                `data.as_samples`.
            y: labels [N] of images.
            dataset: its name in records.

        Raises:
            TypeError, ValueError: samples that are not as described, or they and the model do not fit each other.
        """
        split = samples_for(model, split, y)
        check_model(model, split)
        description = describe_target(
            model=(CUSTOM, None, None), data=(dataset, None), samples=len(split)
        )
        return cls(model, split, description)


def describe_target(
    *,
    model: tuple[str, int | None, int | None],
    data: tuple[str, str | None],
    samples: int,
    run: str | None = None,
    epoch: int | None = None,
    weights: str | None = None,
    is_average: bool = False,
) -> dict[str, Any]:
    """The fields of a record that describe a model and its test images.

    Args:
        model: name, width and depth.
        data: name and path.
        samples: number of images.
        run: the run folder.
        epoch: epochs that the checkpoint has finished.
        weights: the file of the weights.
        is_average: whether the weights are the average that a run keeps.
    """
    return {
        "run": run,
        "epoch": epoch,
        "model": dict(zip(("name", "width", "depth"), model, strict=True)),
        "weights": weights,
        **({"ema": True} if is_average else {}),
        "data": {"name": data[0], "path": data[1], "split": "test", "samples": samples},
    }


def run_source(
    folder: RunFolder,
    *,
    model: str | None = None,
    dataset: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    on_bad_image: str | None = None,
) -> Source:
    """The source that a run folder records, except for the arguments that are given.

    Raises:
        FileNotFoundError: the folder, its configuration or its checkpoint is missing.
        ValueError: the configuration is damaged, or model or images came from Python and are not
            given.
    """
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path}: no such run folder")
    config = folder.config()
    try:
        trained, images = config["model"], config["data"]
        unknown = sorted(set(trained) - MODEL_FIELDS)
        if unknown:
            raise ValueError(
                f"{folder.config_path}: written by a newer version, model.{unknown[0]} is unknown to this one"
            )
        recorded = images["name"]
        model = model or trained["name"]
        dataset = dataset or images["name"]
        source = Source(
            model=model,
            weights=folder.checkpoint_path,
            width=trained["width"],
            depth=trained["depth"],
            dataset=dataset,
            data=data or images["path"],
            limit=limit or images["limit"],
            on_bad_image=on_bad_image or images.get("on_bad_image", "stop"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder.config_path}: not the configuration of a run ({error})"
        ) from error
    if dataset in datasets.NAMES and recorded not in (dataset, CUSTOM):
        raise ValueError(
            f"{folder.path}: trained on {recorded}, which does not fit --dataset {dataset}"
        )
    if model == CUSTOM:
        raise ValueError(
            f"{folder.path}: the model of this run came from Python; name what makes it, "
            "--model package.module:function"
        )
    if dataset == CUSTOM:
        raise ValueError(
            f"{folder.path}: the images of this run came from Python; name them, --dataset and --data"
        )
    return source


def load_target(
    source: Source, device: torch.device, *, folder: RunFolder | None = None
) -> EvalTarget:
    """Build the model, load its weights and the images, and check that they fit each other.

    Args:
        source: what to load.
        device: where to.
        folder: the run folder. Its last checkpoint is loaded, or if that is damaged the one before it, which is logged.
            If the checkpoint holds an average of the weights ("ema"), the average is taken.

    Raises:
        ValueError, TypeError: an unknown name, a damaged or unsafe file, or parts that do not fit.
        FileNotFoundError: a file or folder that is not there.
    """
    own = ":" in source.model
    if own and (source.width is not None or source.depth is not None):
        raise ValueError(f"--width and --depth are for {', '.join(models.NAMES)} only")
    if not own:
        validate.choice("--model", source.model, models.NAMES)
    validate.choice("--dataset", source.dataset, datasets.NAMES)
    # The weights first: a damaged file is then reported before the images are loaded.
    content: Any = None
    if folder is not None:
        found = folder.last_good_checkpoint()
        if found is None:
            raise FileNotFoundError(f"{folder.checkpoint_path}: no checkpoint there yet")
        content, path, damage = found
        source = dataclasses.replace(source, weights=path)
        if damage is not None:
            logger.warning("%s; taking %s, step %d", damage, path.name, content["step"])
    elif source.weights is not None:
        if not source.weights.is_file():
            raise FileNotFoundError(f"{source.weights}: no such file of weights")
        content = load_tensors(source.weights)
    factory = models.load_factory(source.model) if own else None
    data = datasets.load(
        source.dataset, source.data, limit=source.limit, on_bad_image=source.on_bad_image
    )
    if factory is not None:
        model = _call(factory, source.model)
    else:
        model = models.build_for(
            data.name,
            source.model,
            num_classes=data.num_classes,
            in_channels=data.test.channels,
            width=source.width,
            depth=source.depth,
        )
    if content is not None:
        # If a run keeps an average of its weights, that is the network whose accuracy it reports.
        weights = content if folder is None else content.get("ema", content)
        fit_weights(model, weights, str(source.weights))
    model, split = model.to(device), data.test.to(device)
    check_model(model, split)
    description = describe_target(
        run=None if folder is None else str(folder.path),
        epoch=None if folder is None else content["epoch"],
        model=(source.model, source.width, source.depth),
        weights=None if source.weights is None else str(source.weights),
        is_average=folder is not None and "ema" in content,
        data=(source.dataset, source.data),
        samples=len(split),
    )
    return EvalTarget(model, split, description)


def _call(factory: Any, name: str) -> nn.Module:
    try:
        model: nn.Module = factory()
    # It is the user's function and may raise anything.
    except Exception as error:
        raise ValueError(f"--model {name}: {type(error).__name__}: {error}") from error
    return model


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of the names, shapes, dtypes and values of the model's state, in hexadecimal."""
    hasher = hashlib.sha256()
    for name, value in plain_state_dict(model).items():
        if isinstance(value, Tensor):
            _add_tensor(hasher, name, value)
    return hasher.hexdigest()


def samples_sha256(split: Samples) -> str:
    """The SHA-256 of the tensors that identify the split's samples (`Samples.identity`), in hexadecimal."""
    hasher = hashlib.sha256()
    for name, value in split.identity():
        _add_tensor(hasher, name, value)
    return hasher.hexdigest()


def _add_tensor(hasher: hashlib._Hash, name: str, value: Tensor) -> None:
    hasher.update(f"{name} {value.dtype} {list(value.shape)}".encode())
    hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
