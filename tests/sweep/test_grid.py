"""A grid is the product of its axes, each point a run with a name and the command of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iaat_fast.sweep.grid import Grid, surrogate
from iaat_fast.train.cli import parse

OUT = Path("sweep")
EIGHT = tuple(n / 255 for n in range(1, 9))


def names(**grid: Any) -> list[str]:
    return [run.name for run in Grid(**grid).runs(OUT)]


def test_radii_belong_to_the_methods_that_train_at_a_fixed_one() -> None:
    assert names(preset="cifar10-resnet18", eps=(2 / 255, 8 / 255), seeds=(0, 1)) == [
        *("clean-seed0", "adv-eps2-seed0", "adv-eps8-seed0", "iaat-seed0"),
        *("clean-seed1", "adv-eps2-seed1", "adv-eps8-seed1", "iaat-seed1"),
    ]


def test_the_trade_off_curve_of_figure_3_is_one_grid() -> None:
    grid = Grid(
        preset="cifar10-resnet18", methods=("adv", "iaat"), eps=EIGHT, warmup="both", seeds=(0,)
    )
    runs = grid.runs(OUT)
    assert [run.config.attack.eps for run in runs[:8]] == list(EIGHT)
    assert [run.name for run in runs[8:]] == ["iaat-seed0", "iaat-no-warmup-seed0"]
    assert [run.config.epsilon.warmup_epochs for run in runs[8:]] == [5, 0]


def test_without_radii_the_preset_has_its_own() -> None:
    assert names(methods=("adv",)) == ["adv-eps51-seed0"]


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ("on", ["iaat-seed0"]),
        ("off", ["iaat-no-warmup-seed0"]),
        ("both", ["iaat-seed0", "iaat-no-warmup-seed0"]),
    ],
)
def test_the_warm_up_is_an_axis_of_iaat(warmup: Any, expected: list[str]) -> None:
    assert names(methods=("iaat",), warmup=warmup) == expected


def test_the_command_of_a_run_is_a_training_of_that_configuration() -> None:
    grid = Grid(
        preset="cifar10-resnet18",
        methods=("adv", "iaat"),
        eps=(1.9 / 255,),
        seeds=(3,),
        warmup="both",
        data="images.npz",
        flags=("--epochs", "2", "--warmup-epochs=1"),
    )
    for run in grid.runs(OUT):
        assert run.command[1:3] == ("-m", "iaat_fast.train")
        command = parse(run.command[3:])
        assert command.resume
        config = command.config
        assert config.run.out == str(run.folder) == f"sweep/{run.name}"
        assert (config.run.seed, config.optim.epochs, config.data.path) == (3, 2, "images.npz")
        assert config.method == run.config.method
        assert config.attack == run.config.attack
        assert config.epsilon == run.config.epsilon
        if config.method == "iaat":
            assert config.epsilon.warmup_epochs == (0 if "no-warmup" in run.name else 1)
    assert grid.runs(OUT)[0].config.attack.eps == 1.9 / 255


BAD_GRIDS = [
    ({"preset": "digit"}, "did you mean 'digits'"),
    ({"methods": ("adv", "iat")}, "did you mean 'iaat'"),
    ({"methods": ()}, "--methods: none given"),
    ({"seeds": ()}, "--seeds: none given"),
    ({"seeds": (1, 0, 1)}, "--seeds: 1 is given twice"),
    ({"eps": (8 / 255, 8 / 255)}, "--eps: 8 is given twice"),
    ({"methods": ("clean", "iaat"), "eps": (8 / 255,)}, "--eps: clean, iaat"),
    ({"methods": ("adv",), "warmup": "both"}, "--warmup both"),
    ({"warmup": "maybe"}, "--warmup: 'maybe'"),
    ({"flags": ("--seed", "3")}, "--seed: set by the sweep, give --seeds"),
    ({"flags": ("--out=x",)}, "--out: set by the sweep"),
    ({"flags": ("--overwrite",)}, "--overwrite: set by the sweep"),
    ({"warmup": "off", "flags": ("--warmup-epochs", "2")}, "contradicts --warmup off"),
]


@pytest.mark.parametrize(("grid", "message"), BAD_GRIDS)
def test_a_bad_grid_is_refused_by_name(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**grid)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epoch 3", "--epoch: unknown flag, did you mean '--epochs'"),
        ("--epochs ten", "--epochs"),
        ("--epochs 0", "optim.epochs: 0"),
        ("cifar10-resnet18", "cifar10-resnet18"),
    ],
)
def test_a_bad_training_flag_is_refused_as_training_does(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(flags=tuple(flags.split())).runs(OUT)


def test_a_surrogate_has_another_seed_and_keeps_its_place_when_seeds_join() -> None:
    def surrogates(*seeds: int) -> dict[int, int | None]:
        runs = Grid(methods=("adv", "iaat"), seeds=seeds).runs(OUT)
        chosen = {run.name: surrogate(run, runs) for run in runs}
        for run in runs:
            peer = chosen[run.name]
            assert peer is None or (peer.setting == run.setting and peer.seed != run.seed)
        adv = [run for run in runs if run.config.method == "adv"]
        return {run.seed: getattr(chosen[run.name], "seed", None) for run in adv}

    assert surrogates(0) == {0: None}
    assert surrogates(0, 1) == {0: 1, 1: 0}
    assert surrogates(0, 1, 2) == {0: 1, 1: 0, 2: 1}
