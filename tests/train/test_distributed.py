"""Two and three gloo ranks give what one process with the same global batch gives.

Each rank is a process that runs the scenarios of `ranks.py`: all of them as one of three, a few as one of two.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iaat_fast.run_folder import RunFolder
from tests.forked import Forked
from tests.train import ranks as scenarios

Outcome = Callable[[str], list[Any]]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module", params=[pytest.param(3, marks=pytest.mark.slow)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The results of a scenario, one per rank."""
    count, port = request.param, free_port()
    folder = tmp_path_factory.mktemp(f"ranks{count}")
    processes = [
        Forked("tests.train.ranks", folder, env=environment(rank, count, port))
        for rank in range(count)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    return lambda name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(count)]


with_two_ranks_too = pytest.mark.parametrize(
    "outcomes", [pytest.param(count, marks=pytest.mark.slow) for count in (2, 3)], indirect=True
)


def alone(scenario: Any, folder: Path) -> Any:
    return scenario(folder, scenarios.Ranks())


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_all_ranks_end_alike(outcomes: Outcome) -> None:
    for name in (
        "standing_still",
        "moving",
        "averaged_trades",
        "closing",
        "uninterrupted",
        "some_files_left_out",
        "in_half_precision",
    ):
        first, *others = outcomes(name)
        for other in others:
            assert_same(first, other)


def test_ranks_start_processes_as_a_command_does(outcomes: Outcome) -> None:
    """Not by the server that they are forked from: processes that decode images would all import torch."""
    assert set(outcomes("start_method")) == {multiprocessing.get_start_method()}


@with_two_ranks_too
def test_with_weights_at_rest_the_memory_has_the_bits_of_one_process(
    outcomes: Outcome, tmp_path: Path
) -> None:
    """Nothing in the network depends on the batch, and radii are copied, not computed, between ranks."""
    expected = alone(scenarios.standing_still, tmp_path)
    assert expected["epsilon"].unique().numel() == 3, "radii rose, fell and stayed"
    for found in outcomes("standing_still"):
        assert torch.equal(found["epsilon"], expected["epsilon"])
        for row, other in zip(found["rows"], expected["rows"], strict=True):
            # A float32 mean over at most 5 positive losses, rounded 6 times, against two such means.
            loss = pytest.approx(other["train_loss"], rel=2 * 6 * 2.0**-24)
            assert row == {**other, "train_loss": loss}


def weight_error(batch: int, lr: float = 0.001, momentum: float = 0.9, terms: int = 1) -> float:
    """How far the weights of `Double` may lie apart after a run, from the order of summation alone.

    A gradient is a mean of `batch` terms of at most 1, summed in another order: it moves by at most batch * u, and a
    weight by lr / (1 - momentum) of it in the long run. A difference of weights moves the next gradients by at most
    |x|^2 / 2 <= 18 times itself. All of that as often as the loss has `terms` of the size of a cross-entropy.
    """
    steps = scenarios.EPOCHS * -(-scenarios.TRAIN // batch)
    reach = terms * lr / (1 - momentum)
    return steps * reach * batch * 2.0**-53 * (1 + 18 * reach) ** steps


def assert_same_but_for_the_order_of_summation(found: list[Any], batch: int, folder: Path) -> None:
    setting = scenarios.config(folder, optim={"batch_size": batch})
    expected = scenarios.run(scenarios.Double(), setting)
    start = scenarios.Double().weight
    assert (expected["model"]["weight"] - start).abs().max() > 1e-3
    for rank in found:
        error = (rank["model"]["weight"] - expected["model"]["weight"]).abs().max()
        assert error <= weight_error(batch)
        assert torch.equal(rank["epsilon"], expected["epsilon"])


@with_two_ranks_too
def test_with_moving_weights_they_differ_by_the_order_of_summation(
    outcomes: Outcome, tmp_path: Path
) -> None:
    assert_same_but_for_the_order_of_summation(outcomes("moving"), scenarios.BATCH, tmp_path)


def test_so_they_do_where_gradients_are_accumulated(outcomes: Outcome, tmp_path: Path) -> None:
    assert_same_but_for_the_order_of_summation(outcomes("accumulated"), 7, tmp_path)


@pytest.mark.filterwarnings("ignore:more than half of the gradient entries")
def test_files_that_are_left_out_count_for_nothing_on_any_rank(
    outcomes: Outcome, tmp_path: Path
) -> None:
    expected = alone(scenarios.some_files_left_out, tmp_path)
    bad = scenarios.bad_files()
    assert (expected["epsilon"][bad] == 0).all(), "never visited"
    assert (expected["epsilon"] > 0).sum() == 13 - len(bad)
    assert (expected["model"]["weight"] - scenarios.Double().weight).abs().max() > 1e-4
    for found in outcomes("some_files_left_out"):
        error = (found["model"]["weight"] - expected["model"]["weight"]).abs().max()
        assert error <= weight_error(4)
        assert torch.equal(found["epsilon"], expected["epsilon"])
        for row, other in zip(found["rows"], expected["rows"], strict=True):
            for name in ("train_clean_accuracy", "train_robust_accuracy", "test_accuracy"):
                assert row[name] == other[name]


def test_a_method_of_two_forwards_and_the_average_of_the_weights_are_those_of_one_process(
    outcomes: Outcome, tmp_path: Path
) -> None:
    expected = alone(scenarios.averaged_trades, tmp_path)
    # A cross-entropy and 6 times a divergence, whose gradient flows through both of its sides.
    bound = weight_error(scenarios.BATCH, lr=0.0001, terms=1 + 2 * 6)
    for found in outcomes("averaged_trades"):
        for name in ("model", "average"):
            error = (found[name]["weight"] - expected[name]["weight"]).abs().max()
            assert error <= bound
    assert not torch.equal(expected["model"]["weight"], expected["average"]["weight"])


def test_the_perturbation_of_the_weights_is_that_of_the_global_batch(
    outcomes: Outcome, tmp_path: Path
) -> None:
    expected = alone(scenarios.perturbed, tmp_path)["model"]["weight"]
    plain = scenarios.config(tmp_path / "plain", method="adv")
    moved = (scenarios.run(scenarios.Double(), plain)["model"]["weight"] - expected).abs().max()
    assert moved > 1e-3, "the perturbation has an effect"
    # The perturbation 0.1 |w| g / |g| moves by 0.2 |w| times the relative error of g, |w| < 4 and |g| > 0.5 here, and
    # the error of g is at most sqrt(108) that of an entry; and the gradient there by 18 times that.
    magnified = 18 * 0.2 * 4 * math.sqrt(expected.numel()) / 0.5
    for found in outcomes("perturbed"):
        error = (found["model"]["weight"] - expected).abs().max()
        assert error <= (1 + magnified) * weight_error(scenarios.BATCH)


def test_gradient_accumulation_in_one_process_gives_the_same_update(tmp_path: Path) -> None:
    whole = scenarios.run(scenarios.Double(), scenarios.config(tmp_path / "whole"))
    parts = scenarios.run(
        scenarios.Double(), scenarios.config(tmp_path / "parts", optim={"accumulate": 3})
    )
    error = (whole["model"]["weight"] - parts["model"]["weight"]).abs().max()
    assert error <= weight_error(scenarios.BATCH)
    assert torch.equal(whole["epsilon"], parts["epsilon"])


def test_the_closing_evaluation_is_that_of_one_process(outcomes: Outcome, tmp_path: Path) -> None:
    expected = alone(scenarios.closing, tmp_path)
    for found in outcomes("closing"):
        for name in ("natural_accuracy", "robust_accuracy", "samples", "eps_mean"):
            assert found[name] == expected[name]


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_run_goes_on_with_the_same_bits(
    outcomes: Outcome,
) -> None:
    for stopped, expected in zip(outcomes("interrupted"), outcomes("uninterrupted"), strict=True):
        assert (stopped.pop("status"), stopped.pop("step")) == (143, 8)
        assert_same(stopped, expected)


def test_a_run_goes_on_with_another_number_of_ranks(outcomes: Outcome, tmp_path: Path) -> None:
    expected = alone(scenarios.standing_still, tmp_path)
    folder = shutil.copytree(outcomes("left_off")[0], tmp_path / "copy")
    setting = scenarios.resting(folder)
    found = scenarios.run(scenarios.Elementwise(), setting, resume=True)
    assert RunFolder(folder).env()["resumed"][0]["step"] == 8
    assert torch.equal(found["epsilon"], expected["epsilon"])


ERRORS = {
    "poisoned": r"FloatingPointError: the loss is nan at step \d+ \(epoch 1\), that of [12] of the 5 samples of its "
    r"batch: .*\b(4|17)\b on rank \d",
    "other_configuration": r"ValueError: the ranks have different .*optim\.lr \(0\.1 on rank 0, 0\.2 on rank 1\)",
    "other_data": r"ValueError: ranks 1, 2: not the same data as on rank 0",
    "other_weights": r"ValueError: ranks 1, 2: not the same weights as on rank 0",
    "a_bad_file": r"UnreadableImage: (rank \d: )?.*\.png: not a readable image .*; stopped after step \d, checkpoint "
    r"saved: .*--on-bad-image skip",
    "no_data": r"OSError: rank 1: .*no such folder or \.npz",
    "too_small_a_batch": r"ValueError: optim\.batch_size: 2, expected at least 6",
    "batch_norm_over_ranks": r"ValueError: optim\.sync_batchnorm: on, expected a GPU",
    "skipping_with_batch_norm_over_ranks": r"ValueError: optim\.sync_batchnorm: on, expected data\.on_bad_image 'stop'",
    "too_small_a_last_batch": r"ValueError: optim\.sync_batchnorm: on, expected at least 3 images in the last",
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_one_rank_cannot_do_ends_all_with_the_same_message(
    outcomes: Outcome, name: str
) -> None:
    found = outcomes(name)
    assert all(other == found[0] for other in found)
    with pytest.raises(RuntimeError, match=ERRORS[name]):
        raise RuntimeError(found[0]["error"])
