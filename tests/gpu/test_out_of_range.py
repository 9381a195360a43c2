"""Values on the device are not looked at before a launch: out of range, they must spoil their own row and no other."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu

BAD = [-1, -(2**40), 2**40]

Arguments = Callable[..., tuple[Any, ...]]
On = Callable[[tuple[Any, ...]], tuple[Any, ...]]


@pytest.mark.parametrize("bad", [*BAD, 407])
def test_a_sample_outside_the_memory(
    kernels: ModuleType, bad: int, arguments: Arguments, on: On, outcome: Any
) -> None:
    args = arguments("select_epsilon_", shape=(200, 1))
    memory, index, logits, y, *rest = args
    broken = index.clone()
    broken[17] = bad
    assert len(memory) == 407
    sound = outcome(kernels, "select_epsilon_", on(args))
    found = outcome(kernels, "select_epsilon_", on((memory, broken, logits, y, *rest)))
    others = torch.arange(200, device=sound[0].device) != 17
    assert found[1][17].isnan()
    assert found[2][17] == -1
    assert torch.equal(found[1][others], sound[1][others])
    assert torch.equal(found[2][others], sound[2][others])
    sound[0][index[17]] = memory[index[17]].to(sound[0].device)
    assert torch.equal(found[0], sound[0])


@pytest.mark.parametrize("classes", [10, 1000, 1025])
@pytest.mark.parametrize("bad", [*BAD, 0])
def test_a_class_out_of_range(
    kernels: ModuleType, classes: int, bad: int, arguments: Arguments, on: On, outcome: Any
) -> None:
    logits, y, _ = arguments("ce_cotangent", shape=(9, 1), k=3, classes=classes, ordinary=True)
    broken = y.clone()
    broken[4] = bad or classes
    (sound,) = outcome(kernels, "ce_cotangent", on((logits, y, False)))
    (found,) = outcome(kernels, "ce_cotangent", on((logits, broken, False)))
    spoilt = torch.arange(27, device=found.device) % 9 == 4
    assert found[spoilt].isnan().all()
    assert torch.equal(found[~spoilt], sound[~spoilt])


@pytest.mark.parametrize("bad", [*BAD, 12])
def test_an_image_outside_the_data_set(
    kernels: ModuleType, bad: int, arguments: Arguments, on: On, outcome: Any
) -> None:
    images, index, *rest = arguments("random_crop_flip", shape=(6, 3, 8, 8))
    broken = index.clone()
    broken[2] = bad
    assert len(images) == 12
    (sound,) = outcome(kernels, "random_crop_flip", on((images, index, *rest)))
    (found,) = outcome(kernels, "random_crop_flip", on((images, broken, *rest)))
    others = torch.arange(6, device=found.device) != 2
    assert found[2].isnan().all()
    assert torch.equal(found[others], sound[others])
