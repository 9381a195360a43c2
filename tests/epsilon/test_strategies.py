"""Batched, lazy and sequential selection are one algorithm; what they return is what Algorithm 1 trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast import ops
from iaat_fast.attacks import PGD
from iaat_fast.epsilon import EpsilonMemory, Selection

N, GAMMA, BETA = 48, 0.02, 0.1
INDEX = torch.randperm(100, generator=torch.Generator().manual_seed(5))[:N]
PREV = 0.06 * torch.rand(100, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def x() -> Tensor:
    """float64, because a convolution in float32 may round differently in a batch of another size."""
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()


def run(
    net: nn.Module, x: Tensor, y: Tensor, pgd_options: dict[str, Any] | None = None, **options: Any
) -> tuple[Selection, Tensor]:
    """One selection over the same memory, and the memory after it."""
    memory = EpsilonMemory(100, GAMMA, BETA, **options)
    memory.load(PREV)
    attack = PGD(net, alpha=0.01, steps=4, **(pgd_options or {}))
    return memory.select(attack, x, y, INDEX, seed=9), memory.values


@pytest.mark.parametrize("final", ["exact", "reuse"])
@pytest.mark.parametrize("options", [{}, {"targeted": "random"}, {"random_start": False}], ids=str)
def test_all_strategies_agree(
    net: nn.Sequential, x: Tensor, final: str, options: dict[str, Any]
) -> None:
    net = net.double()
    y = net(x).argmax(1)
    runs = [
        run(net, x, y, options, strategy=strategy, final=final)
        for strategy in ("batched", "lazy", "sequential")
    ]
    (eps, choice, x_adv), values = runs[0]
    assert len(choice.unique()) >= (2 if "targeted" in options else 3)  # the branches are taken
    for selection, other in runs[1:]:
        assert torch.equal(selection.eps, eps)
        assert torch.equal(selection.choice, choice)
        assert torch.equal(selection.x_adv, x_adv)
        assert torch.equal(other, values)


def test_strategies_agree_in_float32_on_a_real_network(
    real_data: Any, first_images: tuple[Tensor, Tensor], resnet4b: nn.Module
) -> None:
    """Radii and choices; images may differ where a rounding flips the sign of a gradient near 0."""
    images, labels = first_images
    index = torch.arange(len(images))
    selections = []
    for strategy in ("batched", "lazy"):
        memory = EpsilonMemory(len(images), 1.9 / 255, 0.1, init=6 / 255, strategy=strategy)
        pgd = PGD(resnet4b, alpha=2 / 255, steps=5)
        selections.append(memory.select(pgd, images, labels, index, seed=3))
    batched, lazy = selections
    assert len(batched.choice.unique()) == 3
    assert torch.equal(batched.eps, lazy.eps)
    assert torch.equal(batched.choice, lazy.choice)
    assert (batched.x_adv == lazy.x_adv).double().mean() > 0.999


def test_the_choice_is_the_verdict_of_separate_attacks(net: nn.Sequential, x: Tensor) -> None:
    """Lines 1 to 10, with each candidate attacked by itself and looked at by hand."""
    net = net.double()
    y = net(x).argmax(1)
    pgd = PGD(net, alpha=0.01, steps=4)
    prev = PREV[INDEX]
    robust = [
        net(pgd(x, y, eps=eps, index=INDEX, seed=9, candidate=k)).argmax(1) == y
        for k, eps in enumerate((prev + GAMMA, prev))
    ]
    expected = torch.where(robust[0], 0, torch.where(robust[1], 1, 2))
    (eps, choice, _), values = run(net, x, y)
    assert torch.equal(choice, expected)
    step = torch.tensor([GAMMA, 0.0, -GAMMA])[choice]
    torch.testing.assert_close(eps, (prev + BETA * step).clamp(min=0))
    assert torch.equal(values[INDEX], eps)


def test_exact_images_are_another_attack_at_the_smoothed_radius(
    net: nn.Sequential, x: Tensor
) -> None:
    net = net.double()
    y = net(x).argmax(1)
    (eps, _, x_adv), _ = run(net, x, y, final="exact")
    pgd = PGD(net, alpha=0.01, steps=4)
    assert torch.equal(x_adv, pgd(x, y, eps=eps, index=INDEX, seed=9, candidate=3))


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
def test_reused_images_are_the_chosen_candidates_in_the_smoothed_ball(
    net: nn.Sequential, x: Tensor, strategy: str
) -> None:
    net = net.double()
    y = net(x).argmax(1)
    (eps, choice, x_adv), _ = run(net, x, y, strategy=strategy, final="reuse")
    pgd = PGD(net, alpha=0.01, steps=4)
    prev = PREV[INDEX]
    for k, radius in enumerate((prev + GAMMA, prev, (prev - GAMMA).clamp(min=0))):
        candidate = pgd(x, y, eps=radius, index=INDEX, seed=9, candidate=k)
        chosen = choice == k
        expected = ops.project_linf(candidate, x, eps)
        assert torch.equal(x_adv[chosen], expected[chosen])
    distance = (x_adv - x).abs().flatten(1).amax(1)
    assert (distance <= eps.double() + 1e-9).all()


@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_only_the_candidates_that_are_needed_are_attacked(
    net: nn.Sequential, x: Tensor, final: str
) -> None:
    """The second of fallen samples alone by "lazy"; the third, which no line tests, for "reuse" alone."""
    net = net.double()
    y = net(x).argmax(1)
    rows: dict[str, int] = {}
    for strategy in ("batched", "lazy", "sequential"):
        counted: list[int] = []
        hook = net.register_forward_hook(lambda _, args, __, to=counted: to.append(len(args[0])))
        (_, choice, _), _ = run(net, x, y, strategy=strategy, final=final)
        hook.remove()
        rows[strategy] = sum(counted)
    forwards = 4 + 1  # steps and the verdict
    fallen, third = int((choice != 0).sum()), int((choice == 2).sum())
    assert 0 < third < fallen < N
    if final == "exact":
        again = N * 4
        assert rows["batched"] == 2 * N * forwards + again
    else:
        again = third * 4
        assert rows["batched"] == 3 * N * forwards
    assert rows["lazy"] == (N + fallen) * forwards + again
    assert rows["sequential"] == 2 * N * forwards + again


def both_finals(
    model: nn.Module, x: Tensor, y: Tensor, index: Tensor, **options: Any
) -> tuple[Selection, Selection]:
    """Batched selection by two candidates ("exact") and by three ("reuse"), from the same radii."""
    found = []
    for final in ("exact", "reuse"):
        memory = EpsilonMemory(len(x), strategy="batched", final=final, **options)
        pgd = PGD(model, alpha=options["gamma"], steps=5)
        found.append(memory.select(pgd, x, y, index, seed=3))
        assert torch.equal(memory.values[index], found[-1].eps)
    return found[0], found[1]


def test_two_candidates_choose_what_three_choose_bit_for_bit(threshold: nn.Module) -> None:
    """float32, of a model that sums 4 pixels: in a batch of any size in the same order."""
    x = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.45
    y, index = torch.ones(64, dtype=torch.int64), torch.arange(64).flip(0)
    two, three = both_finals(threshold, x, y, index, gamma=GAMMA, beta=BETA, init=0.04)
    assert len(two.choice.unique()) == 3
    assert torch.equal(two.eps, three.eps)
    assert torch.equal(two.choice, three.choice)


def test_two_candidates_choose_what_three_choose_on_a_real_network(
    real_data: Any, first_images: tuple[Tensor, Tensor], resnet4b: nn.Module
) -> None:
    images, labels = first_images
    index = torch.arange(len(images))
    options = {"gamma": 1.9 / 255, "beta": 0.1, "init": 6 / 255}
    two, three = both_finals(resnet4b, images, labels, index, **options)
    assert len(two.choice.unique()) == 3
    assert torch.equal(two.eps, three.eps)
    assert torch.equal(two.choice, three.choice)


def test_released_attacks_update_the_running_statistics_sequentially(
    net: nn.Sequential, x: Tensor
) -> None:
    """The released code's mode: attacks and verdicts in train mode, each batch seen whole."""
    net = net.double()
    y = net(x).argmax(1)
    before = copy.deepcopy(net.state_dict())
    options = {"bn": "train_update", "clamp_start": False}
    (eps, _, x_adv), _ = run(
        net, x, y, options, strategy="sequential", clamp="candidate", final="exact"
    )
    batches = int(net[1].num_batches_tracked - before["1.num_batches_tracked"])
    assert batches == 2 * (4 + 1) + 4  # two candidates with their verdicts, and the final attack
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    assert torch.equal(net[0].weight, before["0.weight"])
    assert not net.training
    assert ((x_adv - x).abs().flatten(1).amax(1) <= eps.double() + 1e-9).all()


def test_the_forwards_of_the_released_protocol_are_those_of_the_authors_code(
    net: nn.Sequential, x: Tensor
) -> None:
    """epsilon_select and train of trainer_adaptive.py, call by call, on a network of its own."""
    net = net.double()
    y = net(x).argmax(1)
    y[::3] = (y[::3] + 1) % 10  # some are misclassified
    twin, prev, how = copy.deepcopy(net), PREV[INDEX], {"index": INDEX, "seed": 9}
    options: dict[str, Any] = {
        "bn": "train_update",
        "clamp_start": False,
        "alpha": 0.01,
        "steps": 2,
    }
    memory = EpsilonMemory(
        100, GAMMA, BETA, strategy="sequential", clamp="candidate", misclassified="shrink"
    )
    memory.load(PREV)
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    selection = memory.select(PGD(net, **options), x, y, INDEX, judge=True, seed=9)

    theirs: list[Tensor] = []
    twin.register_forward_pre_hook(lambda _, args: theirs.append(args[0].detach().clone()))
    attack = PGD(twin, **options)
    clean = attack.logits(x).argmax(1) == y
    input_cur = attack(x, y, eps=prev, candidate=1, **how)
    input_high = attack(x, y, eps=prev + GAMMA, candidate=0, **how)
    pred_cur = attack.logits(input_cur).argmax(1) == y
    pred_high = attack.logits(input_high).argmax(1) == y
    epsilon = torch.where(pred_high, prev + GAMMA, torch.where(pred_cur, prev, prev - GAMMA))
    epsilon = (epsilon * clean).clamp(min=0) * BETA + prev * (1 - BETA)
    attack(x, y, eps=selection.eps, candidate=3, **how)

    assert len(seen) == len(theirs) == 1 + 2 + 2 + 1 + 1 + 2
    assert all(map(torch.equal, seen, theirs))
    assert all(map(torch.equal, net.buffers(), twin.buffers()))
    torch.testing.assert_close(selection.eps, epsilon)


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_the_lower_bound_holds_for_the_memory_or_for_the_images_alone(
    threshold: nn.Module, strategy: str, final: str
) -> None:
    """An image that falls at once: its radius shrinks by gamma * beta, from 0.02 to 0.019."""
    x, y, index = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1]), torch.tensor([0])
    for bounds, stored in (("memory", 0.05), ("images", 0.019)):
        memory = EpsilonMemory(
            1,
            0.01,
            0.1,
            init=0.02,
            eps_min=0.05,
            eps_min_bounds=bounds,
            strategy=strategy,
            final=final,
        )
        selection = memory.select(PGD(threshold, alpha=0.1, steps=1), x, y, index, seed=1)
        assert memory.values.item() == pytest.approx(stored)
        assert selection.eps.item() == pytest.approx(0.05)
        reached = (selection.x_adv - x).abs().max().item()
        assert reached == pytest.approx(0.05 if final == "exact" else 0.01)


def test_a_selection_follows_its_seed(net: nn.Sequential, x: Tensor) -> None:
    net = net.double()
    y = net(x).argmax(1)
    state = torch.get_rng_state()
    first, again = run(net, x, y), run(net, x, y)
    assert torch.equal(first[0].x_adv, again[0].x_adv)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strategy", ["batched", "lazy"])
def test_callers_that_switch_gradients_off(
    net: nn.Sequential, x: Tensor, caller: Callable[[], Any], strategy: str
) -> None:
    net = net.double()
    y = net(x).argmax(1)
    expected, values = run(net, x, y, strategy=strategy, final="reuse")
    memory = EpsilonMemory(100, GAMMA, BETA, strategy=strategy, final="reuse")
    memory.load(PREV)
    with caller():
        selection = memory.select(PGD(net, alpha=0.01, steps=4), x, y, INDEX, seed=9)
    assert torch.equal(selection.x_adv, expected.x_adv)
    assert torch.equal(memory.values, values)


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
def test_the_clean_images_are_judged_in_a_forward_that_is_made_anyway(
    net: nn.Sequential, x: Tensor, strategy: str
) -> None:
    net = net.double()
    y = torch.randint(10, (N,), generator=torch.Generator().manual_seed(1))
    memory = EpsilonMemory(100, GAMMA, BETA, strategy=strategy)
    plain = EpsilonMemory(100, GAMMA, BETA, strategy=strategy)
    attack = PGD(net, alpha=0.01, steps=2)
    forwards: list[int] = []
    hook = net.register_forward_hook(lambda _, args, __: forwards.append(len(args[0])))
    judged = memory.select(attack, x, y, INDEX, judge=True, seed=9)
    with_judging = len(forwards)
    forwards.clear()
    expected = plain.select(attack, x, y, INDEX, seed=9)
    hook.remove()
    assert with_judging == len(forwards) + (strategy == "sequential")
    assert torch.equal(judged.correct, net(x).argmax(1) == y)
    with pytest.raises(ValueError, match=r"^correct: not known, expected a selection with judge"):
        _ = expected.correct
    assert all(torch.equal(a, b) for a, b in zip(judged, expected, strict=True))


class Cramped:
    """An attack in whose memory only so many images fit."""

    lo, hi, bn = 0.0, 1.0, "eval"

    def __init__(self, attack: PGD, limit: int) -> None:
        self.attack, self.limit = attack, limit
        self.logits = attack.logits
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        rows = len(options["eps"])
        if rows > self.limit:
            raise torch.OutOfMemoryError(f"{rows} images")
        self.sizes.append(rows)
        return self.attack(x, y, **options)


@pytest.mark.parametrize(
    ("final", "sizes", "said"),
    [("exact", [N, N, N], [(2,)]), ("reuse", [3 * N // 4] * 4, [(2,), (4,)])],
)
def test_candidates_that_do_not_fit_are_attacked_in_halves_with_the_same_result(
    net: nn.Sequential,
    x: Tensor,
    caplog: pytest.LogCaptureFixture,
    final: str,
    sizes: list[int],
    said: list[tuple[int]],
) -> None:
    net = net.double()
    y = net(x).argmax(1)
    attack = PGD(net, alpha=0.01, steps=4)
    cramped = Cramped(attack, N + 1)
    memory, roomy = (EpsilonMemory(100, GAMMA, BETA, final=final) for _ in range(2))
    for _ in range(2):
        found = memory.select(cramped, x, y, INDEX, seed=9)
        expected = roomy.select(attack, x, y, INDEX, seed=9)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert cramped.sizes == sizes * 2
    assert [record.args for record in caplog.records] == said  # once for each halving
    with pytest.raises(torch.OutOfMemoryError):
        memory.select(Cramped(attack, 2), x, y, INDEX, seed=9)
