"""Attacks that share a run have the verdicts of each run alone, with fewer passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.data import Split, fetch
from iaat_fast.evaluate.shared_pgd import AttackBudget, SharedPGD

SAMPLES, SIZE = 40, 6
ATTACK: dict[str, Any] = {"eps": 0.02, "alpha": 0.003, "seed": 3}
# 7 is no multiple of anything, 0 is the random start, two budgets have the same steps.
BUDGETS = [
    AttackBudget(name="a", steps=2, restarts=5),
    AttackBudget(name="b", steps=7, restarts=3),
    AttackBudget(name="c", steps=20, restarts=2),
    AttackBudget(name="d", steps=0, restarts=4),
    AttackBudget(name="e", steps=7, restarts=1),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


@pytest.fixture(scope="module")
def split(network: nn.Module) -> Split:
    """Images labelled by the network itself except for every fifth."""
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, SIZE, SIZE, 1)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    x, _ = fetch(Split(images, torch.zeros(SAMPLES, dtype=torch.int64)), torch.arange(SAMPLES))
    y = network(x).argmax(1)
    return Split(images, torch.where(torch.arange(SAMPLES) % 5 > 0, y, (y + 1) % 4))


def alone(network: nn.Module, split: Split, budget: AttackBudget, **options: Any) -> Tensor:
    """The verdicts of one measurement by plain calls of PGD, every restart on every sample."""
    index = torch.arange(len(split))
    x, y = fetch(split, index)
    pgd = PGD(network, steps=budget.steps, **{**ATTACK, **options})
    standing = torch.ones(len(split), dtype=torch.bool)
    for restart in range(budget.restarts):
        x_adv = pgd(x, y, index=index, restart=restart)
        standing &= network(x_adv).argmax(1) == y
    return standing


def finished(run: SharedPGD, most: int = 50) -> SharedPGD:
    while not run.finished:
        run.advance(most)
    return run


@pytest.mark.parametrize("targeted", [False, "random"])
@pytest.mark.parametrize("any_iterate", [False, True])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_attack_has_the_verdicts_that_it_has_run_alone(
    network: nn.Module, split: Split, batch_size: int, any_iterate: bool, targeted: Any
) -> None:
    run = finished(
        SharedPGD(
            network,
            split,
            BUDGETS,
            **ATTACK,
            batch_size=batch_size,
            any_iterate=any_iterate,
            targeted=targeted,
        )
    )
    verdicts = []
    for number, budget in enumerate(BUDGETS):
        expected = alone(network, split, budget, targeted=targeted, early_stop=any_iterate)
        assert torch.equal(run.standing(number), expected), budget
        verdicts.append(expected)
        assert run.is_known(number)
    assert 0 < int(verdicts[2].sum()) < SAMPLES, (
        "both verdicts must occur for this to test anything"
    )
    assert not torch.equal(verdicts[1], verdicts[4]), "restarts must matter"


@pytest.mark.slow
@pytest.mark.parametrize("any_iterate", [False, True])
def test_a_run_saved_and_loaded_between_any_two_stretches_takes_the_same_steps(
    network: nn.Module, split: Split, any_iterate: bool
) -> None:
    options: dict[str, Any] = {**ATTACK, "batch_size": 16, "any_iterate": any_iterate}
    whole = finished(SharedPGD(network, split, BUDGETS, **options), most=3)
    kept: list[Tensor] = []

    def keep(name: str, index: Tensor, x_adv: Tensor) -> None:
        if name == "c":
            kept.append(x_adv)

    run = SharedPGD(network, split, BUDGETS, **options, keep=keep)
    while not run.finished:
        state = copy.deepcopy(run.state())
        run.advance(3)
        # A later step changes nothing that was given out.
        again = SharedPGD(network, split, BUDGETS, **options, keep=keep)
        again.load(state)
        run = again
        run.advance(3)
    assert torch.equal(run.state()["standing"], whole.state()["standing"])
    assert run.tally(2).gradients == whole.tally(2).gradients
    assert kept


def test_states_given_out_do_not_change(network: nn.Module, split: Split) -> None:
    run = SharedPGD(network, split, BUDGETS, **ATTACK, batch_size=16)
    run.advance()
    state = run.state()
    before = copy.deepcopy(state)
    finished(run)
    for name, value in before.items():
        same = (
            torch.equal(value, state[name]) if isinstance(value, Tensor) else value == state[name]
        )
        assert same, name


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 40])
def test_a_run_goes_on_in_smaller_and_in_larger_batches(
    network: nn.Module, split: Split, batch_size: int
) -> None:
    run = SharedPGD(network, split, BUDGETS, **ATTACK, batch_size=16)
    for _ in range(4):
        run.advance(3)
    other = SharedPGD(network, split, BUDGETS, **ATTACK, batch_size=batch_size)
    other.load(run.state())
    finished(run)
    finished(other)
    assert torch.equal(other.state()["standing"], run.state()["standing"])


def test_a_state_of_other_attacks_or_samples_is_refused(network: nn.Module, split: Split) -> None:
    run = SharedPGD(network, split, BUDGETS, **ATTACK)
    state = run.state()
    with pytest.raises(ValueError, match="not the state of this attack"):
        SharedPGD(network, split, BUDGETS[:2], **ATTACK).load(state)
    with pytest.raises(ValueError, match="not the state of this attack"):
        SharedPGD(network, split.first(9), BUDGETS, **ATTACK).load(state)
    with pytest.raises(ValueError, match="not the state of this attack"):
        run.load({})


def test_no_sample_is_attacked_further_than_some_attack_needs(
    network: nn.Module, split: Split
) -> None:
    budgets = [
        AttackBudget(name="2x3", steps=2, restarts=3),
        AttackBudget(name="8x1", steps=8, restarts=1),
    ]
    rows: list[int] = []
    hook = network.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    run = finished(SharedPGD(network, split, budgets, **ATTACK, batch_size=SAMPLES))
    hook.remove()
    standing = []
    for restarts in (1, 2):
        budget = AttackBudget(name="", steps=2, restarts=restarts)
        standing.append(int(alone(network, split, budget).sum()))
    # The first restart to 8 steps, on who stands at 2; the others to 2 steps, on who stands there.
    assert run.passes == SAMPLES * 8 + 2 * standing[0] + 2 * standing[1]
    # A forward a step, and one at the end of each attack.
    assert sum(rows) == run.passes + SAMPLES * 2 + standing[0] + standing[1]
    # Passes are counted where they were taken for, and none twice.
    assert run.tally(0).gradients.gradients == SAMPLES * 2 + 2 * standing[0] + 2 * standing[1]
    assert run.tally(1).gradients.gradients == SAMPLES * 6
    assert run.tally(0).gradients.planned == SAMPLES * 2 * 3


def test_a_sample_that_fell_at_some_iterate_is_never_run_again(
    network: nn.Module, split: Split
) -> None:
    budgets = [
        AttackBudget(name="2x2", steps=2, restarts=2),
        AttackBudget(name="40x2", steps=40, restarts=2),
    ]
    last = finished(SharedPGD(network, split, budgets, **ATTACK))
    any_ = finished(SharedPGD(network, split, budgets, **ATTACK, any_iterate=True))
    assert bool((any_.standing(1) <= last.standing(1)).all())
    fallen = SAMPLES - int(any_.standing(1).sum())
    assert fallen > 10
    # Who fell took fewer than all steps of one restart, up to the rows that fill up a batch.
    assert any_.passes < last.passes
    assert any_.passes < 2 * 40 * (SAMPLES - fallen) + 40 * fallen


def test_a_transferred_attack_is_crafted_on_one_model_and_judged_by_the_other(
    network: nn.Module, split: Split
) -> None:
    torch.manual_seed(5)
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    budget = AttackBudget(name="t", steps=9, restarts=2)
    attack = {**ATTACK, "eps": 0.1}
    run = finished(SharedPGD(surrogate, split, [budget], **attack, judge=network))
    x, y = fetch(split, torch.arange(SAMPLES))
    pgd = PGD(surrogate, steps=9, **attack)
    standing = torch.ones(SAMPLES, dtype=torch.bool)
    for restart in range(2):
        standing &= network(pgd(x, y, restart=restart)).argmax(1) == y
    assert torch.equal(run.standing(0), standing)
    with pytest.raises(ValueError, match="any_iterate"):
        SharedPGD(surrogate, split, [budget], **attack, judge=network, any_iterate=True)


@pytest.mark.parametrize("any_iterate", [False, True])
def test_kept_images_are_those_that_the_verdicts_were_given_on(
    network: nn.Module, split: Split, any_iterate: bool
) -> None:
    x, y = fetch(split, torch.arange(SAMPLES))
    kept = {budget.name: torch.zeros_like(x) for budget in BUDGETS}

    def keep(name: str, index: Tensor, x_adv: Tensor) -> None:
        kept[name][index] = x_adv

    run = SharedPGD(
        network, split, BUDGETS, **ATTACK, batch_size=16, any_iterate=any_iterate, keep=keep
    )
    finished(run)
    for number, budget in enumerate(BUDGETS):
        assert torch.equal(network(kept[budget.name]).argmax(1) == y, run.standing(number))
        assert (kept[budget.name] - x).abs().max() <= ATTACK["eps"] + 1e-6


@pytest.mark.parametrize("any_iterate", [False, True])
def test_a_linear_model_is_measured_exactly_in_any_order_and_batch(any_iterate: bool) -> None:
    """Two classes: whatever the start, every step goes to the corner x - eps sign(w_y - w_other), which fools where
    the margin is less than eps times the 1-norm of the difference."""
    generator = torch.Generator().manual_seed(4)
    linear = nn.Linear(SIZE * SIZE, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, SIZE * SIZE, generator=generator))
    # Pixels stay away from 0 and 1, so that the box does not cut the ball.
    shape = (150, SIZE, SIZE, 1)
    images = torch.randint(40, 216, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (150,), generator=generator)
    x, y = fetch(Split(images, labels), torch.arange(150))
    difference = (linear.weight[0] - linear.weight[1]).detach().double()
    margin = x.flatten(1).double() @ difference + (linear.bias[0] - linear.bias[1]).double()
    radius = margin.detach() * (1 - 2 * y) / difference.abs().sum()
    eps = 8 / 255
    assert (radius - eps).abs().min() > 1e-6, "a sample too close to call in float32"
    budgets = [
        AttackBudget(name="9x2", steps=9, restarts=2),
        AttackBudget(name="30x1", steps=30, restarts=1),
    ]
    attack: dict[str, Any] = {"eps": eps, "alpha": 2 / 255, "any_iterate": any_iterate}
    model = nn.Sequential(nn.Flatten(), linear)
    order = torch.randperm(150, generator=generator)
    for rows, batch_size in ((torch.arange(150), 256), (order, 64), (order, 11)):
        split = Split(images[rows], labels[rows])
        run = finished(SharedPGD(model, split, budgets, **attack, batch_size=batch_size))
        for number in (0, 1):
            assert torch.equal(run.standing(number), radius[rows] > eps)
    assert 0.1 < float((radius > eps).double().mean()) < 0.5
