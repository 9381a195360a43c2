"""IAAT on real CIFAR-10 images: a slim ResNet-18 trains, and the radii of its samples spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iaat_fast.train import fit, preset

GAMMA, EPS_W = 1.9 / 255, 8 / 255


@pytest.mark.slow
def test_the_radii_of_real_images_spread(cifar10_npz: Path, tmp_path: Path) -> None:
    config = preset(
        "cifar10-resnet18",
        data={"path": str(cifar10_npz), "limit": 64},
        model={"width": 8},
        attack={"steps": 5},
        epsilon={"warmup_epochs": 1},
        optim={"epochs": 3, "batch_size": 8, "decay_epochs": ()},
        evaluation={"steps": 1, "restarts": 1},
        run={"out": str(tmp_path / "run"), "snapshot_epochs": 1, "tensorboard": False},
    )
    result = fit(config, quiet=True)

    spread = [row["eps_std"] for row in result.metrics]
    assert spread[0] == 0, "in warm-up all samples have the same radius"
    assert all(np.diff(spread) > 0), f"the histogram widens with every epoch: {spread}"
    radii = result.epsilon.numpy()
    assert radii.min() < EPS_W < radii.max(), (
        "some samples earn a larger radius, others a smaller one"
    )
    # Two visits, each of which moves a radius by at most beta * gamma.
    assert np.abs(radii - EPS_W).max() <= 2 * 0.1 * GAMMA * (1 + 1e-5)
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]
    snapshots = sorted((tmp_path / "run" / "epsilon").glob("*.npy"))
    assert [np.load(path).shape for path in snapshots] == [(64,)] * 3
