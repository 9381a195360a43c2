"""Ranks that attack in different numbers of steps do not wait for each other, or are told that they would."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.attacks.model import unequal_ranks
from tests.forked import Forked
from tests.train.test_distributed import environment, free_port

pytestmark = pytest.mark.slow  # two processes import torch, and compile


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    processes = [
        Forked("tests.attacks.model.unequal_ranks", folder, env=environment(rank, 2, port))
        for rank in range(2)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", unequal_ranks.WHOLE)
def test_a_distributed_module_anywhere_inside_is_passed_by(
    outcomes: list[dict[str, Any]], name: str
) -> None:
    """The same images as from the module alone, and the wrapper as it was."""
    _, engine = unequal_ranks.WHOLE[name]
    alone = unequal_ranks.net()
    unequal_ranks.trained(alone)
    for rank, (x_adv, as_it_was) in enumerate(found[name] for found in outcomes):
        assert torch.equal(x_adv, unequal_ranks.attack(alone, rank, engine))
        assert as_it_was


@pytest.mark.parametrize("name", unequal_ranks.SHARDED)
def test_a_sharded_module_is_refused(outcomes: list[dict[str, Any]], name: str) -> None:
    for found in outcomes:
        assert "is spread over ranks" in found[name]
        assert found[name].startswith("model: ")
