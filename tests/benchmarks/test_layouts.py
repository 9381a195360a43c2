"""Each peer is raced in the layout that it is fastest in, and figures of all that were tried are kept."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn

from benchmarks.attacks.layouts import ROUNDS, Choice, Layout, candidates, choose, try_out
from benchmarks.attacks.providers import Attack, Missing, Provider, Setting
from benchmarks.targets import Target
from tests.benchmarks.conftest import Clock

CONTIGUOUS, LAST = Layout(False), Layout(True)
SEARCHED = [Layout(False, True), Layout(True, True)]


def test_a_gpu_tries_four_layouts_a_cpu_two_and_fewer_where_one_is_asked_for() -> None:
    assert candidates("cuda", contiguous=False, cudnn_benchmark=False) == [
        CONTIGUOUS,
        LAST,
        *SEARCHED,
    ]
    assert candidates("cpu", contiguous=False, cudnn_benchmark=False) == [CONTIGUOUS, LAST]
    assert candidates("cuda", contiguous=True, cudnn_benchmark=True) == SEARCHED[:1]
    assert [str(layout) for layout in (CONTIGUOUS, SEARCHED[1])] == [
        "contiguous",
        "channels last, cudnn.benchmark",
    ]


def test_all_are_raced_with_the_best_peers_search_and_each_with_its_own_weights() -> None:
    layouts = [CONTIGUOUS, LAST, *SEARCHED]
    names = [str(layout) for layout in layouts]
    seconds = {
        "plain": dict(zip(names, (5.0, 4.0, 3.0, 6.0), strict=True)),
        "other": dict(zip(names, (8.0, 9.0, 8.5, 8.2), strict=True)),
        "half": dict(zip(names, (1.0, 1.0, 1.0, 0.5), strict=True)),
    }
    choices, race = choose(seconds, layouts, ["plain", "other"])
    assert race == SEARCHED[0]
    assert choices["plain"] == Choice(seconds["plain"], names[2], names[2])
    # Its best is without the search, which the process of the race cannot offer too.
    assert (choices["other"].best, choices["other"].taken) == (names[0], names[3])
    assert choices["half"].taken == names[3]


def test_without_peers_weights_are_channels_last_and_nothing_is_searched_unless_asked_for() -> None:
    layouts = [CONTIGUOUS, LAST, *SEARCHED]
    assert choose({}, layouts, ["plain"]) == ({}, LAST)
    assert choose({}, layouts[:1], []) == ({}, CONTIGUOUS)
    assert choose({}, SEARCHED, []) == ({}, SEARCHED[1])


def sleeps(clock: Clock, contiguous: float, channels_last: float) -> Provider:
    """An attack that does nothing, and takes another time in each layout."""

    def make(target: Target, setting: Setting) -> Attack:
        weight = next(target.model.parameters())
        last = weight.is_contiguous(memory_format=torch.channels_last)

        def attack(x: Tensor, y: Tensor) -> Tensor:
            clock.sleep(channels_last if last else contiguous)
            return x

        return attack

    return Provider(name=f"{contiguous} {channels_last}", kind="peer", make=make, what="")


def absent(target: Target, setting: Setting) -> Attack:
    raise Missing("not installed")


def broken(target: Target, setting: Setting) -> Attack:
    raise RuntimeError("for other versions")


def test_peers_are_timed_in_every_layout_and_the_network_given_stays_as_it_is(clock: Clock) -> None:
    net = nn.Conv2d(3, 4, 3)
    target = Target(net, torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), 4)
    quick, slow = sleeps(clock, 0.02, 0.001), sleeps(clock, 0.001, 0.02)
    gone = [
        Provider(name=make.__name__, kind="peer", make=make, what="") for make in (absent, broken)
    ]
    found = try_out(target, [quick, *gone, slow], [CONTIGUOUS, LAST], Setting())
    assert found.keys() == {quick.name, slow.name}
    assert all(len(samples) == ROUNDS for tried in found.values() for samples in tried.values())
    seconds = {
        name: {layout: statistics.median(samples) for layout, samples in tried.items()}
        for name, tried in found.items()
    }
    choices, _ = choose(seconds, [CONTIGUOUS, LAST], [quick.name])
    assert choices[quick.name].taken == choices[quick.name].best == "channels last"
    assert choices[slow.name].taken == "contiguous"
    assert seconds[quick.name]["contiguous"] == pytest.approx(0.02)
    assert net.weight.is_contiguous()
    assert not torch.backends.cudnn.benchmark
    assert ROUNDS % 2, "a median that was measured"
