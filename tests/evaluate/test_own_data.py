"""Every evaluation takes images as they are held, with the verdicts of a split, and refuses labels without a logit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from iaat_fast.attacks import PGD
from iaat_fast.data import Split, as_samples, fetch
from iaat_fast.evaluate import EvalTarget, accuracy, autoattack, evaluate_suite, robust_accuracy
from iaat_fast.evaluate.suites import single

N = 24
PIXELS = torch.randint(
    64, 192, (N, 6, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
EPS = 0.02


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))


@pytest.fixture(scope="module")
def split(model: nn.Module) -> Split:
    """Labels as the model has them, but for every fourth."""
    blank = Split(PIXELS, torch.zeros(N, dtype=torch.int64))
    labels = model(fetch(blank, torch.arange(N))[0]).argmax(1)
    return Split(PIXELS, torch.where(torch.arange(N) % 4 > 0, labels, (labels + 1) % 5))


def own(split: Split) -> dict[str, tuple[Any, ...]]:
    x, y = fetch(split, torch.arange(N))
    return {
        "float tensors": (x, y),
        "numpy": (split.images.numpy(), y.numpy()),
        "a pair": ((x, y),),
        "a DataLoader": (DataLoader([(x[k], int(y[k])) for k in range(N)], batch_size=5),),  # type: ignore[arg-type]
        "a TensorDataset": (TensorDataset(x, y),),
    }


def test_accuracies_of_every_form_are_those_of_the_split(model: nn.Module, split: Split) -> None:
    attack = {"eps": EPS, "alpha": EPS / 4, "steps": 5, "restarts": 2, "batch_size": 7}
    expected = robust_accuracy(model, split, **attack)  # type: ignore[arg-type]
    assert 0 < expected.accuracy < accuracy(model, split) == 0.75
    for name, data in own(split).items():
        assert accuracy(model, *data) == 0.75, name
        found = robust_accuracy(model, *data, **attack)
        assert torch.equal(found.correct, expected.correct), name


def test_autoattack_takes_a_batch_as_the_released_code_does(model: nn.Module, split: Split) -> None:
    attacks = {"pgd": PGD(model, EPS, EPS / 4, 5)}
    expected = autoattack(model, split, eps=EPS, attacks=attacks)
    assert 0 < expected.accuracy < 0.75
    for name, data in own(split).items():
        if len(data) == 2:
            found = autoattack(model, *data, EPS, attacks=attacks)
        else:
            found = autoattack(model, *data, eps=EPS, attacks=attacks)
        assert torch.equal(found.correct, expected.correct), name


def test_a_suite_measures_every_form(model: nn.Module, split: Split) -> None:
    suite = single(steps=3, restarts=1, eps=(EPS,), alpha=EPS / 2)

    def rows(*data: Any) -> Any:
        content = evaluate_suite(EvalTarget.of(model, *data), suite)
        return [row["accuracy"] for row in content["measurements"]]

    expected = rows(split)
    for name, data in own(split).items():
        assert rows(*data) == expected, name


@pytest.mark.parametrize(
    "measure",
    [
        accuracy,
        lambda *data: robust_accuracy(*data, eps=EPS, alpha=EPS, steps=1, restarts=1),
        lambda model, *data: autoattack(model, *data, attacks={"pgd": PGD(model, EPS, EPS, 1)}),
        EvalTarget.of,
    ],
)
def test_labels_without_a_logit_are_refused(
    model: nn.Module, split: Split, measure: Callable[..., object]
) -> None:
    with pytest.raises(
        ValueError, match=r"5, expected a class in 0 \.\.\. 4|> 5, the highest label"
    ):
        measure(model, *own(Split(split.images, split.labels + 1))["float tensors"])


def test_batches_go_to_the_device_of_the_model() -> None:
    from iaat_fast.evaluate.accuracies import samples_for

    x, y = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    assert samples_for(nn.Linear(2, 2, device="meta"), x, y).labels.device.type == "meta"
    assert samples_for(lambda x: x, x, y).labels.device.type == "cpu"  # type: ignore[arg-type]
    samples = as_samples(x, y)
    assert samples_for(nn.Linear(2, 2, device="meta"), samples) is samples
