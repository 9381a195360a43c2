"""A model's logits are found in an output that has them as `.logits`, by every engine; other outputs are named."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, FABT, PGD
from iaat_fast.evaluate import EvalTarget, accuracy, check_model, robust_accuracy


class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput."""

    @property
    def logits(self) -> Any:
        return self["logits"]


torch.utils._pytree.register_pytree_node(
    Output,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: Output(zip(names, values, strict=True)),
    serialized_type_name="tests.Output",
)


class Wrapped(nn.Module):
    """A model whose logits are one of several things that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Output:
        logits = self.model(x)
        return Output(logits=logits, hidden=logits.sum(1))


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "exact"},
        {"engine": "fast"},
        {"engine": "auto", "precision": "bf16"},
        {"engine": "auto", "loss": "cw"},
    ],
)
def test_attacks_are_those_of_the_plain_model(plain: nn.Module, options: dict[str, Any]) -> None:
    x, y = torch.rand(6, 1, 6, 6), torch.arange(6) % 5
    attacks = [PGD(model, 0.1, 0.02, 4, seed=0, **options) for model in (plain, Wrapped(plain))]
    assert torch.equal(*(attack(x, y) for attack in attacks))
    sources = [attack.network.gradient_source for attack in attacks]
    assert sources[0] == sources[1]


@pytest.mark.parametrize("kind", [APGD, FABT])
def test_other_attacks_take_it(plain: nn.Module, kind: Any) -> None:
    x, y = torch.rand(6, 1, 6, 6), torch.arange(6) % 5
    assert torch.equal(*(kind(m, 0.1, steps=3, seed=0)(x, y) for m in (plain, Wrapped(plain))))


def test_evaluations_take_it(plain: nn.Module) -> None:
    x = torch.rand(6, 1, 6, 6)
    y = plain(x).argmax(1)
    assert accuracy(Wrapped(plain), x, y) == 1
    settings = {"eps": 0.1, "alpha": 0.05, "steps": 2, "restarts": 1}
    found = [robust_accuracy(m, x, y, **settings) for m in (plain, Wrapped(plain))]  # type: ignore[arg-type]
    assert torch.equal(found[0].correct, found[1].correct)
    check_model(Wrapped(plain), EvalTarget.of(Wrapped(plain), x, y).split)


@dataclasses.dataclass
class Hidden:
    logits: None = None


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda x: (x, x),
            r"^model: returned tuple for 6 images, .* with `logits`; it has 2 values$",
        ),
        (lambda x: {"out": x, "aux": x}, r"^model: returned dict for .*; it has 'out', 'aux'$"),
        (
            lambda x: Output(hidden=x, logits=None),
            r"^model: returned Output for .* 'hidden', 'logits'$",
        ),
        (lambda x: Hidden(), r"^model: returned Hidden for 6 images, expected \[6, C\], or an"),
    ],
)
def test_another_output_is_refused_by_name(output: Any, message: str) -> None:
    x, y = torch.rand(6, 1, 6, 6), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        PGD(lambda x: output(x.flatten(1)), 0.1, 0.02, 2)(x, y)
    with pytest.raises(ValueError, match=message):
        accuracy(lambda x: output(x.flatten(1)), x, y)  # type: ignore[arg-type]
