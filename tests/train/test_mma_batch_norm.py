"""MMA on a network with BatchNorm: the mode of the search for margins, and what moves the running statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData, fetch
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods import METHODS
from iaat_fast.train.methods.mma import Margins, MaxMargin
from iaat_fast.train.step import make_memory

INDEX = torch.arange(12)
STEPS, BISECTIONS = 3, 14
FIELDS = {"mma_d_max": 0.5, "mma_d_min": 0.05, "mma_bisections": BISECTIONS}

Make = Callable[[str], tuple[MaxMargin, nn.Module]]


@pytest.fixture
def batch(tiny_data: ImageData) -> tuple[Tensor, Tensor]:
    """12 images in float64; of the last two labels the network knows nothing."""
    x, y = fetch(tiny_data.train, INDEX)
    y = y.clone()
    y[10:] = (y[10:] + 1) % 3
    return x.double(), y


@pytest.fixture
def make(batch: tuple[Tensor, Tensor], tiny_config: Callable[..., TrainConfig]) -> Make:
    """A method and its network, which is right on ten images, and whose running statistics lag behind the batch's."""

    def call(bn: str) -> tuple[MaxMargin, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
            ).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch[0])[:10], batch[1][:10]).backward()
            optimizer.step()
        attack = {"bn": bn, "steps": STEPS}
        config = tiny_config(method="mma", attack=attack, baseline=FIELDS)
        method = METHODS["mma"](config, net, make_memory(config, 24, torch.device("cpu")))
        assert isinstance(method, MaxMargin)
        return method, net

    return call


def prepared(method: MaxMargin, x: Tensor, y: Tensor, index: Tensor = INDEX) -> Margins:
    made = method.prepare(x, y, index, epoch=0, seed=5)
    assert isinstance(made, Margins)
    return made


def odds_against(net: nn.Module, x: Tensor, y: Tensor, *, training: bool) -> Tensor:
    """log((1 - p_y) / p_y) by a copy of the network, in one of the two modes: negative where p_y > 1/2."""
    with torch.no_grad():
        p = copy.deepcopy(net).train(training)(x).softmax(1).gather(1, y.view(-1, 1))[:, 0]
    return ((1 - p) / p).log()


def statistics(net: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in net.buffers()]


@pytest.mark.parametrize(("bn", "training"), [("eval", False), ("train", True)])
def test_samples_are_judged_and_margins_found_in_the_mode_of_the_attack(
    bn: str, training: bool, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    (x, y), (method, net) = batch, make(bn)
    made = prepared(method, x, y)
    right = odds_against(net, x, y, training=training) < 0
    assert torch.equal(method.memory.values[INDEX] > 0, right)
    assert int((right & made.counted).sum()) > 0
    at_margin = (right & made.counted).nonzero()[:, 0]
    odds, others = (
        odds_against(net, made.x_adv, y, training=each)[at_margin].abs().max()
        for each in (training, not training)
    )
    # [0, 1.05 d_max] halved 14 times is 3e-5, over which the odds change by some 30 times as much.
    assert odds < 0.01
    assert others > 10 * odds, "the other mode has other margins"


@pytest.mark.parametrize(
    ("bn", "forwards"), [("eval", 0), ("train", 0), ("train_update", 1 + STEPS + BISECTIONS)]
)
def test_the_search_moves_the_running_statistics_only_where_the_mode_says_so(
    bn: str, forwards: int, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    method, net = make(bn)
    before = statistics(net)
    prepared(method, *batch)
    assert net[1].num_batches_tracked - before[-1] == forwards
    assert all(map(torch.equal, before, net.buffers())) is (forwards == 0)


def test_the_two_forwards_of_the_update_move_them_clean_images_first(
    make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    method, net = make("eval")
    twin = copy.deepcopy(net).train()
    made = prepared(method, *batch)
    method.outcome(net.train(), made)
    twin(batch[0])
    twin(made.x_adv)
    assert all(map(torch.equal, twin.buffers(), net.buffers()))


def test_in_eval_mode_a_margin_does_not_depend_on_the_other_samples(
    make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    (whole, _), (alone, _) = make("eval"), make("eval")
    images = prepared(whole, x, y).x_adv
    # Without the two that are misclassified, in another order and in two parts.
    for rows in (torch.tensor([7, 2, 5]), torch.tensor([9, 0, 1, 8, 3, 6, 4])):
        made = prepared(alone, x[rows], y[rows], rows)
        torch.testing.assert_close(made.x_adv, images[rows], rtol=0, atol=1e-9)
    found, expected = alone.memory.values[:10], whole.memory.values[:10]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
