"""A selection that is given findings reads nothing on the host, and an index out of range is heard of when they settle.

Values are looked at beside the work on a GPU alone; here the CPU is taken for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, findings
from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.epsilon.strategies import Attack
from tests.attacks.test_host_sync import WAITING, Recorder

N, CPU = 16, torch.device("cpu")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "checked_late", lambda device: True)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def memory(strategy: str = "batched", final: str = "exact", **options: Any) -> EpsilonMemory:
    return EpsilonMemory(N, 0.02, 0.1, init=0.03, strategy=strategy, final=final, **options)


def waits(
    attack: PGD, x: Tensor, y: Tensor, radii: EpsilonMemory, found: Findings | None
) -> set[str]:
    """The ops of a selection for whose result the host would wait."""
    with Recorder() as recorder:
        radii.select(
            attack,
            x,
            y,
            torch.arange(N).flip(0),
            judge=True,
            seed=torch.tensor([3]),
            findings=found,
        )
    return WAITING & set(recorder.names)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    ("strategy", "final", "waiting"),
    [
        ("batched", "exact", set()),
        ("batched", "reuse", set()),
        ("sequential", "exact", set()),
        ("sequential", "reuse", {"nonzero"}),  # who chose the third candidate
        ("lazy", "exact", {"nonzero"}),  # who has fallen
    ],
)
@pytest.mark.parametrize("misclassified", ["algorithm2", "shrink"])
def test_which_selections_the_host_does_not_wait_for(
    net: nn.Sequential, x: Tensor, strategy: str, final: str, waiting: set[str], misclassified: str
) -> None:
    y, attack = net(x).argmax(1), PGD(net, alpha=0.01, steps=3)
    radii = memory(strategy, final, misclassified=misclassified)
    assert waits(attack, x, y, radii, Findings(CPU)) == waiting


@pytest.mark.usefixtures("late")
def test_without_findings_the_host_waits(net: nn.Sequential, x: Tensor) -> None:
    y, attack = net(x).argmax(1), PGD(net, alpha=0.01, steps=3)
    assert waits(attack, x, y, memory(), None)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_findings_and_a_tensor_for_a_seed_change_no_bit(
    net: nn.Sequential, x: Tensor, strategy: str, final: str
) -> None:
    y, attack, index = net(x).argmax(1), PGD(net, alpha=0.01, steps=3), torch.arange(N).flip(0)
    plain, deferred, found = memory(strategy, final), memory(strategy, final), Findings(CPU)
    expected = plain.select(attack, x, y, index, seed=3)
    for seed in (torch.tensor(3), torch.tensor([3])):
        deferred.load(torch.full((N,), 0.03))
        selection = deferred.select(attack, x, y, index, seed=seed, findings=found)
        for one, other in zip(selection, expected, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(deferred.values, plain.values)
    assert found.settle() is not None


def test_an_attack_without_findings_is_called_without_them(threshold: nn.Module, x: Tensor) -> None:
    class Simple:
        lo, hi, bn = 0.0, 1.0, "eval"
        logits = staticmethod(threshold)

        def __call__(
            self,
            x: Tensor,
            y: Tensor,
            *,
            eps: Tensor,
            index: Tensor,
            seed: int | Tensor,
            candidate: int,
        ) -> Tensor:
            return x.repeat(len(eps) // len(x), 1, 1, 1)

    attack: Attack = Simple()
    y = torch.zeros(N, dtype=torch.int64)
    assert len(memory().select(attack, x, y, torch.arange(N), seed=3).eps) == N


USES: dict[str, Callable[[EpsilonMemory, Tensor, Findings], object]] = {
    "warm_up": lambda radii, index, found: radii.warm_up(index, 0.5, findings=found),
    "store": lambda radii, index, found: radii.store(
        index, torch.full((len(index),), 0.5), findings=found
    ),
}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("bad", [N, -1])
def test_an_index_out_of_range_is_heard_of_later_and_touches_nothing(use: str, bad: int) -> None:
    radii, found = memory(), Findings(CPU)
    with Recorder() as recorder:
        USES[use](radii, torch.tensor([2, bad]), found)
    looks_at_radii = {"_local_scalar_dense"} if use == "store" else set()  # on a CPU alone
    assert WAITING & set(recorder.names) == looks_at_radii
    touched = (radii.values != 0.03).nonzero()[:, 0]
    assert touched.tolist() == [2]
    with pytest.raises(ValueError, match=rf"^index: {bad}, expected a sample in 0 \.\.\. 15$"):
        found.settle()
    USES[use](radii, torch.tensor([0, N - 1]), found)
    found.settle()


@pytest.mark.parametrize("use", USES)
def test_on_a_cpu_an_index_out_of_range_is_raised_at_once(use: str) -> None:
    radii, found = memory(), Findings(CPU)
    with pytest.raises(
        ValueError, match=r"^index: 16 at index 1, expected a sample in 0 \.\.\. 15"
    ):
        USES[use](radii, torch.tensor([2, N]), found)
    assert (radii.values == 0.03).all()


@pytest.mark.usefixtures("late")
def test_findings_of_two_memories_are_refused() -> None:
    found = Findings(CPU)
    memory().warm_up(torch.tensor([1]), 0.1, findings=found)
    with pytest.raises(ValueError, match=r"number of samples is 16, expected others .* with 17"):
        EpsilonMemory(17, 0.1, 0.1).warm_up(torch.tensor([1]), 0.1, findings=found)
