"""The transfer matrix is what crafting on each model and classifying with each gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import FGSM, PGD, VMIFGSM, Ensemble, MultiAttack
from iaat_fast.evaluate import TransferMatrix, transfer_matrix
from iaat_fast.models import normalized


def made(seed: int, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    hidden = nn.Sequential(nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))
    return normalized(nn.Sequential(nn.Flatten(), *hidden), [0.5] * 3, [0.1] * 3)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"a": made(0), "b": made(1).eval()}


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(20, 3, 4, 4, generator=generator)
    return x, made(0).eval()(x).argmax(1)


def crafted(model: nn.Module) -> VMIFGSM:
    return VMIFGSM(model, 0.03, 0.01, 3, N=2)


def test_it_is_the_loop_over_models(models: dict[str, nn.Module], data: Any) -> None:
    x, y = data
    both = Ensemble(list(models.values()))
    matrix = transfer_matrix({"both": both, **models}, crafted, x, y, targets=models, seed=4)
    assert all(module.training for module in models["a"].modules()), "modes are as they were"
    models["a"].eval()
    for s, source in enumerate((both, *models.values())):
        x_adv = crafted(source)(x, y, seed=4)
        for t, target in enumerate(models.values()):
            share = float((target(x_adv).argmax(1) == y).double().mean())
            assert matrix.accuracies[s, t] == share
    assert matrix.sources == ("both", "a", "b")
    assert matrix.targets == ("a", "b")
    assert matrix.natural[0] == 1 > matrix.natural[1] > 0
    assert matrix.accuracies[1, 0] < matrix.accuracies[2, 0]
    assert matrix.n == 20
    assert matrix.attack == "VMIFGSM(eps=7.65/255, alpha=2.55/255, steps=3, N=2)"


def test_a_saved_matrix_is_read_as_it_was(
    models: dict[str, nn.Module], data: Any, tmp_path: Path
) -> None:
    for attack, said in (
        (lambda model: FGSM(model), "FGSM(eps=8/255)"),
        (lambda model: MultiAttack([FGSM(model), PGD(model)]), "MultiAttack([FGSM, PGD])"),
        (_nothing, "unchanged"),
    ):
        matrix = transfer_matrix(models, attack, data, targets={"one": models["b"]})
        assert matrix.attack == said
        matrix.save(tmp_path / "matrix.json")
        read = TransferMatrix.load(tmp_path / "matrix.json")
        for field in dataclasses.fields(matrix):
            one, other = getattr(matrix, field.name), getattr(read, field.name)
            same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
            assert same, field.name
            if isinstance(one, Tensor):
                assert one.dtype == other.dtype


def _nothing(model: nn.Module) -> Any:
    def unchanged(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        return x

    return unchanged


def test_no_figure_depends_on_the_batch_size(models: dict[str, nn.Module], data: Any) -> None:
    done: list[tuple[int, int]] = []
    whole = transfer_matrix(models, crafted, data)
    parts = transfer_matrix(
        models, crafted, data, batch_size=7, progress=lambda *at: done.append(at)
    )
    assert torch.equal(whole.accuracies, parts.accuracies)
    assert done == [(k, 40) for k in (7, 14, 20, 27, 34, 40)]


def test_a_sequence_of_models_is_numbered_and_any_attack_will_do(
    models: dict[str, nn.Module], data: Any
) -> None:
    matrix = transfer_matrix(
        list(models.values()),
        lambda model: MultiAttack([FGSM(model, 0.02), PGD(model, 0.03, 0.01, 2)]),
        data,
    )
    assert matrix.sources == matrix.targets == ("0", "1")
    assert matrix.accuracies[0, 0] < matrix.natural[0]


def test_the_table() -> None:
    matrix = TransferMatrix(
        sources=("a|b", "c"),
        targets=("c", "d"),
        accuracies=torch.tensor([[0.5, 0.25], [0.125, 1.0]]).double(),
        natural=torch.tensor([1.0, 0.75]).double(),
        n=2000,
    )
    assert matrix.to_markdown() == (
        "| crafted on (2,000 images) | c | d |\n"
        "|---|---:|---:|\n"
        "| – | 100.00% | 75.00% |\n"
        "| a\\|b | 50.00% | 25.00% |\n"
        "| c | **12.50%** | 100.00% |\n"
    )


def test_what_it_is_not_made_for_is_refused_before_any_attack(
    models: dict[str, nn.Module], data: Any
) -> None:
    def never(model: nn.Module) -> Any:
        def attack(x: Tensor, y: Tensor, **options: Any) -> Tensor:
            raise AssertionError("attacked")

        return attack

    few = {**models, "few": made(3, classes=4)}
    refused: list[tuple[Any, Any, dict[str, Any], str]] = [
        ({}, never, {}, r"^models: none, expected at least 1"),
        (models["a"], never, {}, r"^models: Sequential, expected several models"),
        ({"f": len}, never, {}, r"^models\['f'\]: builtin_function_or_method, expected an nn\.Mod"),
        (few, never, {}, r"^models: of \{'a': 5, 'b': 5, 'few': 4\} classes, expected the same"),
        (models, never, {"batch_size": 0}, r"^batch_size: 0, expected at least 1"),
        (models, never, {"targets": {"a": models["b"]}}, r"^targets: 'a' is another model than"),
        (models, lambda m: FGSM(m, targeted=True), {}, r"^attack: targeted=True, expected an att"),
        (models, lambda m: None, {}, r"^attack: made a NoneType, expected an attack"),
    ]
    for given, attack, options, message in refused:
        with pytest.raises((TypeError, ValueError), match=message):
            transfer_matrix(given, attack, data, **options)
    with pytest.raises(ValueError, match=r"^y: 5, expected a class in 0 \.\.\. 4"):
        transfer_matrix(models, never, data[0], data[1] * 0 + 5)
