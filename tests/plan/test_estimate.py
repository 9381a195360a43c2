"""The plan as a whole: sums of its parts, units, and a source for every number."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iaat_fast.plan.cost import Counts
from iaat_fast.plan.estimate import Plan, make_plan
from iaat_fast.plan.hardware import GPUS, LAUNCHES, MEASURED, Assumptions, Modelled
from iaat_fast.plan.interconnect import Network
from iaat_fast.plan.kernels import Pass
from iaat_fast.train import override, preset
from iaat_fast.train.methods.passes import Fooled

NETWORK = Network(link=1e9, between=1e8, per_node=2, latency=1e-5, latency_between=1e-4)
SECONDS = {"forward": 0.001, "gradient": 0.002, "update": 0.004}


@dataclasses.dataclass(frozen=True)
class PerImage:
    """Rates of a device that takes `SECONDS` for an image."""

    def seconds(
        self, kind: str, counted: Pass, precision: str, *, captured: bool = True
    ) -> dict[str, float]:
        return {MEASURED: SECONDS[kind] * counted.images}

    def source(self, kind: str, precision: str) -> str:
        return "measured (by hand)"


def digits(gpus: int = 1, batch_size: int = 128, capacity: float = 1e9, **parts: Any) -> Plan:
    epsilon = {"strategy": "lazy", **parts.pop("epsilon", {})}
    return make_plan(
        Counts(override(preset("digits"), {"epsilon": epsilon, **parts}), "fp32"),
        PerImage(),
        NETWORK,
        gpus=gpus,
        batch_size=batch_size,
        fooled=Fooled(once=0.5),
        capacity=capacity,
    )


def values(plan: Plan) -> dict[str, float]:
    return {f"{figure.group}: {figure.name}": figure.value for figure in plan.figures()}


def test_hours_by_hand() -> None:
    # Lazy, exact: 25 gradients, 2.5 forwards and an update; in the 3 of 20 epochs of warm-up 10, 1 and 1.
    warm_up = 0.001 + 10 * 0.002 + 0.004
    adaptive = 2.5 * 0.001 + 25 * 0.002 + 0.004
    plan = digits()
    assert plan.hours == pytest.approx(1437 * (3 * warm_up + 17 * adaptive) / 3600)
    found = values(plan)
    assert found["a step, adaptive: compute"] == pytest.approx(128 * adaptive * 1e3)
    assert found["run: images per second"] == pytest.approx(20 * 1437 / plan.hours / 3600)


def test_more_gpus_share_the_compute_and_wait_for_each_other() -> None:
    one, four = digits(), digits(gpus=4)
    compute = values(one)["a step, adaptive: compute"] / 4
    assert values(four)["a step, adaptive: compute"] == pytest.approx(compute)
    whole = values(four)["a step, adaptive: whole"]
    assert whole == pytest.approx(compute + 1e3 * sum(four.waits.values()))
    assert one.waits == dict.fromkeys(four.waits, 0.0)


def test_a_perturbation_of_the_weights_is_another_gradient_of_them_by_hand() -> None:
    late = {"awp_gamma": 0.005, "awp_warmup_epochs": 5}
    plain, perturbed = (digits(gpus=4, method="adv", baseline=own) for own in ({}, late))
    before, after = 10 * 0.002 + 0.004, 10 * 0.002 + 2 * 0.004
    found = values(perturbed)
    assert found["a step, before AWP: compute"] == pytest.approx(32 * before * 1e3)
    assert found["a step, with AWP: compute"] == pytest.approx(32 * after * 1e3)
    assert found["a step, with AWP: epochs of such"] == 15
    assert perturbed.waits["gradients"] == 2 * plain.waits["gradients"] > 0
    held = found["memory per GPU: weights before their perturbation"]
    assert held == pytest.approx(plain.gradient_bytes / 1e9)


def test_messages_by_hand() -> None:
    plan = digits(gpus=4)
    weights = sum(p.numel() for p in Counts(preset("digits"), "fp32").network.parameters())
    assert plan.gradient_bytes == 4 * weights
    assert plan.radius_bytes == 8 * (128 + 4)


def test_memory_by_hand() -> None:
    held = {figure.name: figure.value * 1e9 for figure in digits(gpus=2).held}
    weights = digits().gradient_bytes
    assert held["momentum"] == pytest.approx(weights)
    assert held["gradients"] == pytest.approx(2 * weights), "and the buckets they are sent in"
    assert held["data set"] == pytest.approx(1437 * 64)
    assert held["images and their gradients"] == pytest.approx(4 * 64 * 64 * 3)


def test_batched_candidates_take_the_activations_of_all_of_them() -> None:
    def activations(**epsilon: str) -> float:
        plan = digits(epsilon={"strategy": "batched", **epsilon})
        return next(figure.value for figure in plan.held if figure.name == "activations")

    three, two = activations(final="reuse"), activations(final="exact")
    one = Counts(preset("digits"), "fp32").of("gradient", 128).saved / 1e9
    assert three / one == pytest.approx(3, rel=0.01)  # the weights that are saved count once
    assert two / one == pytest.approx(2, rel=0.01)


def test_a_plan_that_does_not_fit_says_so() -> None:
    held = digits().held_bytes
    assert digits(capacity=held * 1.01).fits
    assert not digits(capacity=held * 0.99).fits


def test_shares_of_the_time_add_up() -> None:
    assert sum(digits(gpus=4).spent.values()) == pytest.approx(1)


@pytest.mark.parametrize("method", ["clean", "adv", "iaat"])
def test_every_number_says_where_it_comes_from(method: Any) -> None:
    figures = list(digits(gpus=4, method=method).figures())
    assert {f.source for f in figures} == {"given", "counted", "measured", "modelled"}
    assert all(f.source == "measured" for f in figures if f.group.startswith("a pass"))
    assert all(f.source == "modelled" for f in figures if f.unit in ("h", "GPU h", "%"))
    names = [(f.group, f.name) for f in figures]
    assert len(set(names)) == len(names)


def test_shares_of_samples_make_operations_modelled() -> None:
    def source(**epsilon: str) -> str:
        figures = digits(epsilon=epsilon).figures()
        return next(
            f.source
            for f in figures
            if f.group == "a step, adaptive" and f.name == "operations per GPU"
        )

    assert source(strategy="lazy") == "modelled"
    assert source(strategy="batched") == "counted"


@pytest.mark.slow
def test_half_precision_attacks_a_folded_copy() -> None:
    plain = Counts(preset("cifar10-resnet18", model={"width": 4}), "fp32")
    half = Counts(
        preset("cifar10-resnet18", model={"width": 4}, attack={"precision": "bf16"}), "bf16"
    )
    assert half.is_copied
    assert not plain.is_copied
    assert half.of("gradient", 2).operations == plain.of("gradient", 2).operations
    assert len(half.of("gradient", 2).kernels) < len(plain.of("gradient", 2).kernels)
    assert half.of("gradient", 2).bytes < plain.of("gradient", 2).bytes / 2


@pytest.mark.parametrize(("gpus", "size"), [(0, 128), (-1, 128), (3, 128), (2, 0)])
def test_gpus_and_batches_that_do_not_go_together(gpus: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"--(gpus|batch-size): .*expected"):
        digits(gpus=gpus, batch_size=size)


def test_whole_steps_are_captured_where_training_captures_them() -> None:
    def captured(gpus: int = 1, **parts: Any) -> bool:
        plan = digits(gpus=gpus, epsilon=parts.pop("epsilon", {"strategy": "batched"}), **parts)
        return plan.steps[-1].captured

    assert captured()
    assert not captured(gpus=2)
    assert not captured(epsilon={"strategy": "lazy"})
    assert not captured(optim={"amp": "fp16"})
    assert not captured(optim={"graph": False})


def test_outside_of_graphs_the_host_launches_every_operator() -> None:
    def launches(graph: bool) -> float:
        config = override(
            preset("digits"), {"epsilon": {"strategy": "batched"}, "optim": {"graph": graph}}
        )
        plan = make_plan(
            Counts(config, "fp32"),
            Modelled(gpu=GPUS["h100"], assumed=Assumptions()),
            NETWORK,
            gpus=1,
            batch_size=128,
            fooled=Fooled(once=0.5),
            capacity=1e9,
        )
        return plan.steps[-1].compute[LAUNCHES]

    # The update, the step's own operators and those of two calls of the attack, at 32 us each.
    assert launches(False) > launches(True) + 150 * 30e-6
