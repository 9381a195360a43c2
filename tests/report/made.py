"""Run folders made by hand: configuration, metrics, radii, checkpoint and an evaluation record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iaat_fast import models
from iaat_fast.evaluate.results import wilson
from iaat_fast.run_folder import RunFolder

TRAIN, TEST = 60, 40
"""Images of the small data set."""


def config_of(method: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a run on CIFAR-10; changes of flat fields, `optim__epochs=3`."""
    config: dict[str, Any] = {
        "preset": "cifar10-resnet18",
        "method": method,
        "protocol": "paper",
        "data": {"name": "cifar10", "path": None, "limit": None, "augment": True},
        "model": {"name": "resnet18", "width": 4, "depth": None},
        "attack": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10},
        "epsilon": {"warmup_epochs": 5, "eps_w": 8 / 255, "gamma": 1.9 / 255},
        "optim": {"epochs": 12, "lr": 0.1},
        "evaluation": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10, "restarts": 5},
        "run": {"seed": 0, "out": None},
    }
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        config[part][inner] = value
    return config


def share(accuracy: float, samples: int) -> dict[str, Any]:
    """The figures that every measured row has."""
    correct = round(accuracy * samples)
    interval = list(wilson(correct, samples))
    return {
        "accuracy": correct / samples,
        "correct": correct,
        "samples": samples,
        "interval_95": interval,
        "seconds": 1.0,
    }


def pgd_row(
    accuracy: float,
    samples: int,
    *,
    steps: int = 10,
    restarts: int = 5,
    eps: float = 8,
    part: str = "pgd",
    kind: str = "pgd",
) -> dict[str, Any]:
    """A measurement under PGD; eps in units of 1/255."""
    prefix = "" if part == "pgd" else f"{part}-"
    return {
        "key": f"{prefix}pgd{steps}x{restarts}-eps{eps:g}",
        "kind": kind,
        "part": part,
        "eps": eps / 255,
        "alpha": 2 / 255,
        "steps": steps,
        "restarts": restarts,
        "targeted": False,
        "gradients": samples * steps,
        "gradients_planned": samples * steps * restarts,
        "zero_gradient_entries": 0,
        "nan_gradient_entries": 0,
        "gradient_entries": samples * steps * 3072,
        **share(accuracy, samples),
    }


def cifar_rows(
    natural: float, robust: float, samples: int, *, source: str = "generated"
) -> list[dict[str, Any]]:
    """All that the suite `cifar` measures."""
    rows = [{"key": "natural", "kind": "natural", "part": "natural", **share(natural, samples)}]
    for steps, restarts, loss in ((10, 5, 0.0), (100, 5, 0.02), (1000, 2, 0.021)):
        rows.append(pgd_row(max(robust - loss, 0), samples, steps=steps, restarts=restarts))
    rows.append(
        pgd_row(0.7 * natural, samples, steps=1000, restarts=2, part="transfer", kind="transfer")
    )
    for eps in (2, 4, 6, 8, 12, 16):
        left = natural * np.exp(-eps / 8 * np.log(natural / max(robust, 1e-3)))
        rows.append(pgd_row(left, samples, eps=eps, part="eps-sweep"))
    for steps in (1, 5, 10, 50, 100, 500):
        left = robust + (natural - robust) / steps**1.2
        rows.append(pgd_row(left, samples, steps=steps, part="steps-sweep"))
    types = 19
    rows.append(
        {
            "key": "corruptions",
            "kind": "corruptions",
            "part": "corruptions",
            "mean_accuracy": 0.85 * natural,
            "types": types,
            "mce": None,
            "source": source,
            "complete": True,
            "missing": [],
            "seconds": 1.0,
        }
    )
    return rows


def save_record(
    folder: RunFolder,
    rows: list[dict[str, Any]],
    *,
    samples: int,
    suite: str = "cifar",
    complete: bool = True,
    dataset: str = "cifar10",
    rule: str = "last",
) -> Path:
    """Write an evaluation record into a run folder."""
    path = folder.evaluation_dir / f"{suite}-{dataset}-{samples}-seed0" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "suite": suite,
        "rule": rule,
        "complete": complete,
        "seed": 0,
        "run": str(folder.path),
        "epoch": 12,
        "model": {"name": "resnet18", "width": 4, "depth": None},
        "weights": None,
        "data": {"name": dataset, "path": None, "split": "test", "samples": samples},
        "settings": {},
        "parts": {row["part"]: True for row in rows},
        "measurements": rows,
        "batch_size": 256,
        "environment": {"commit": "0123456789abcdef", "device": "cpu", "cpu": "a processor"},
    }
    path.write_text(json.dumps(record))
    return path


def save_run(
    path: Path,
    method: str = "iaat",
    *,
    natural: float | None = 0.8,
    robust: float = 0.4,
    samples: int = TEST,
    epochs: int = 12,
    **changes: Any,
) -> RunFolder:
    """A finished run; `natural` None leaves it without an evaluation."""
    config = config_of(method, **changes)
    folder = RunFolder(path)
    env = {
        "time": "2026-01-02T03:04:05+00:00",
        "command": ["-m", "iaat_fast.train", "--method", method],
        "iaat_fast": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "python": "3.11.0",
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        "platform": "Linux",
        "cpu": "a processor",
        "device": "cpu",
        "gpu": None,
    }
    folder.create(config, env)
    radii = np.random.default_rng(config["run"]["seed"])
    grown = radii.normal(1.0, 0.6, TRAIN)
    for epoch in range(1, epochs + 1):
        eps = np.clip(8 + grown * 0.3 * epoch, 0, None).astype(np.float32) / 255
        if method == "iaat" and (epoch % 3 == 0 or epoch == epochs):
            folder.save_epsilon(epoch, torch.from_numpy(eps))
        folder.append_metrics(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "test_accuracy": 0.5,
                "eps_mean": float(eps.mean()),
                "eps_std": float(eps.std()),
                "eps_min": float(eps.min()),
                "eps_max": float(eps.max()),
                "seconds": 2.5,
            }
        )
    if natural is not None:
        save_record(folder, cifar_rows(natural, robust, samples), samples=samples)
    return folder


def save_checkpoint(folder: RunFolder) -> None:
    """A checkpoint with the run's network, untrained."""
    config = folder.config()
    model = models.build_for(
        "cifar10", "resnet18", num_classes=10, in_channels=3, width=config["model"]["width"]
    )
    last = list(folder.epsilon_snapshots().values())[-1]
    folder.save_checkpoint(
        {
            "model": model.state_dict(),
            "epsilon": torch.from_numpy(np.load(last)),
            "optimizer": {},
            "epoch": 12,
            "step": 120,
            "config": config,
        }
    )
