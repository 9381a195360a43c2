"""Captured steps give what eager steps give. Capturing is played on the CPU: a replay runs the body on its buffers."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    DIFGSM,
    MIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    EngineOptions,
)
from iaat_fast.attacks.cudagraph import _KEPT, GraphRunner, _steps_at_once, capture_cuda


class Tape:
    """Plays CUDA graphs on the CPU: capturing runs nothing, replaying runs the body on the captured buffers."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, body: Callable[[], None], pool: object) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            body()

        return replay


def double(tensors: Sequence[Tensor]) -> None:
    tensors[0].mul_(2)


@pytest.mark.parametrize(
    ("steps", "at_once"), [(1, 1), (10, 10), (20, 20), (23, 1), (100, 20), (0, 0)]
)
def test_long_attacks_replay_a_graph_of_a_part_of_their_steps(steps: int, at_once: int) -> None:
    if steps:
        assert _steps_at_once(steps) == at_once
    x = torch.ones(3, dtype=torch.float64)
    tape = Tape()
    runner = GraphRunner(tape)
    for _ in range(3):
        y = x.clone()
        if steps:
            runner.run("key", [y], double, steps, written=1)
        assert torch.equal(y, x * 2.0**steps)
    if steps:
        assert tape.captured == 1
        assert tape.replayed == 2 * steps // at_once


def test_every_shape_has_a_graph_and_few_are_kept() -> None:
    tape = Tape()
    runner = GraphRunner(tape)
    for n in range(1, _KEPT + 4):
        for _ in range(2):
            x = torch.ones(n)
            runner.run("key", [x], double, 1, written=1)
            assert bool((x == 2).all())
    assert tape.captured == _KEPT + 3
    assert len(runner._graphs) == _KEPT


def test_a_failing_capture_falls_back_to_eager_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(body: Callable[[], None], pool: object) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nlong text")

    runner = GraphRunner(fail)
    with caplog.at_level(logging.WARNING, "iaat_fast"):
        for n in (1, 1, 1, 2, 2):
            x = torch.ones(n)
            runner.run("key", [x], double, 3, written=1)
            assert bool((x == 8).all())
    assert len(caplog.records) == 1
    assert "operation not permitted when stream is capturing" in caplog.text
    assert "long text" not in caplog.text


def played(model: nn.Module, **options: Any) -> tuple[PGD, Tape]:
    """An attack whose graphs are played on the CPU."""
    pgd, tape = PGD(model, seed=0, **options), Tape()
    pgd.network._graphs = GraphRunner(tape)
    pgd.network._capturable = ("cpu",)
    return pgd, tape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "exact"},
        {"engine": "fast"},
        {"precision": "bf16"},
        {"targeted": True},
        {"targeted": "random"},
        {"restarts": 3},
        {"eot": 2},
    ],
    ids=str,
)
def test_a_replayed_attack_is_the_eager_one(
    net: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]
) -> None:
    eager = PGD(net, seed=0, **options)
    pgd, tape = played(net, **options)
    for n in (8, 8, 5, 8, 5, 5):
        eps = torch.linspace(0.01, 0.05, n)
        assert torch.equal(pgd(x[:n], y[:n], eps=eps), eager(x[:n], y[:n], eps=eps))
        assert pgd.stats == eager.stats
    assert tape.replayed > 0


@pytest.mark.parametrize(
    "options", [{"loss": "cw"}, {"loss": "dlr"}, {"loss": "dlr", "targeted": True}], ids=str
)
def test_replays_on_other_losses(
    net: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]
) -> None:
    pgd, tape = played(net, **options)
    for _ in range(3):
        assert torch.equal(pgd(x, y), PGD(net, seed=0, **options)(x, y))
    assert tape.replayed > 0


@pytest.mark.parametrize(
    ("cls", "options"),
    [(MIFGSM, {}), (SINIFGSM, {"m": 2}), (VNIFGSM, {"N": 1}), (DIFGSM, {}), (TIFGSM, {})],
)
def test_replays_carry_the_momentum_and_the_draws(
    cls: Any, options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack, tape = cls(net, steps=25, seed=0, **options), Tape()
    attack.network._graphs = GraphRunner(tape)
    attack.network._capturable = ("cpu",)
    expected = cls(net, steps=25, seed=0, **options)(x, y)
    for _ in range(3):
        assert torch.equal(attack(x, y), expected)
    assert tape.replayed > 1, "20 steps a graph: the second continues from what the first leaves"
    assert torch.equal(attack(x, y, seed=1), cls(net, steps=25, **options)(x, y, seed=1))


def test_a_replayed_attack_keeps_to_its_mask(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd, tape = played(net, steps=2)
    for seed in range(4):
        mask = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.5
        assert torch.equal(pgd(x, y, mask=mask), PGD(net, steps=2, seed=0)(x, y, mask=mask))
        assert torch.equal(pgd(x, y), PGD(net, steps=2, seed=0)(x, y))
    assert tape.replayed > 0


@pytest.mark.parametrize(("cls", "eot"), [(PGD, 1), (VMIFGSM, 2)])
def test_a_replayed_run_counts_the_passes_of_the_eager_one(
    cls: type[PGD], eot: int, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack, tape = cls(net, steps=2, seed=0, eot=eot), Tape()
    expected = attack.run(x, y)
    attack.network._graphs = GraphRunner(tape)
    attack.network._capturable = ("cpu",)
    for _ in range(3):
        result = attack.run(x, y)
        assert torch.equal(result.forwards, expected.forwards)
        assert torch.equal(result.backwards, expected.backwards)
    assert tape.replayed > 0


def test_restarts_after_the_first_eager_one_keep_its_random_targets(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    options: dict[str, Any] = {"targeted": "random", "restarts": 2, "steps": 3, "eps": 0.01}
    pgd, _ = played(net, **options)
    for _ in range(3):  # the first call learns the number of classes in its first restart
        assert torch.equal(pgd(x, y), PGD(net, seed=0, **options)(x, y))


def test_replays_see_new_weights_and_another_model_gets_new_graphs(
    net: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    pgd, tape = played(net)
    for _ in range(3):  # the number of classes is learnt, the warm-up, the capture
        pgd(x, y)
    # The steps, and a forward that tells what they have frozen.
    assert (tape.captured, tape.replayed) == (2, 2)
    with torch.no_grad():
        net[5].weight.neg_()
    assert torch.equal(pgd(x, y), PGD(net, seed=0)(x, y))
    assert (tape.captured, tape.replayed) == (2, 4)
    net[5] = nn.Linear(256, 7)
    y = y % 7
    for _ in range(3):
        assert torch.equal(pgd(x, y), PGD(net, seed=0)(x, y))
    assert (tape.captured, tape.replayed) == (4, 6)


def test_batch_statistics_and_plain_callables_are_not_captured(
    bn_net: nn.Module, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    for model, bn in (
        (bn_net, "train"),
        (bn_net, "train_update"),
        (lambda images: net(images), "eval"),
    ):
        pgd, tape = played(model, bn=bn, steps=2)  # type: ignore[arg-type]
        for _ in range(3):
            pgd(x, y)
        assert tape.captured == 0


def test_graphs_can_be_switched_off(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd, tape = played(net, engine=EngineOptions(graph=False))
    for _ in range(3):
        pgd(x, y)
    assert tape.captured == 0


class FakeCuda:
    """What `capture_cuda` asks of torch.cuda, on no device; where it fails, `graph` keeps its stream, as torch's"""

    def __init__(self, patch: pytest.MonkeyPatch, ends: bool) -> None:
        self.ends, self.stream, self.said = ends, "main", list[str]()
        self.default_generators = [self]
        for name in ("current_stream", "stream", "graph", "CUDAGraph", "default_generators"):
            patch.setattr(torch.cuda, name, getattr(self, f"_{name}", self.default_generators))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            patch.setattr(
                torch._C, name, lambda *where, name=name: self.said.append(name), raising=False
            )

    def clone_state(self) -> str:
        return "state before"

    def graphsafe_set_state(self, state: str) -> None:
        self.said.append(state)

    def _current_stream(self, device: int) -> str:
        return self.stream

    @contextlib.contextmanager
    def _stream(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def _CUDAGraph(self) -> FakeCuda:
        return self

    def pool(self) -> None:
        if not self.ends:
            raise RuntimeError("without a preceding successful capture")

    def replay(self) -> None:
        self.said.append("replayed")

    def _graph(self, *args: Any, **options: Any) -> FakeCuda:
        return self

    def __enter__(self) -> None:
        self.stream = "side"

    def __exit__(self, *error: object) -> None:
        if not self.ends:
            raise RuntimeError("capture invalidated")
        self.stream = "main"


def test_a_capture_returns_what_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, ends=True)
    capture_cuda(lambda: cuda.said.append(f"launched on {cuda.stream}"), None)()
    assert cuda.said == ["launched on side", "replayed"]
    assert cuda.stream == "main"


@pytest.mark.parametrize(("ends", "raises"), [(True, True), (False, True), (False, False)])
def test_a_capture_that_fails_puts_everything_back(
    monkeypatch: pytest.MonkeyPatch, ends: bool, raises: bool
) -> None:
    cuda = FakeCuda(monkeypatch, ends)

    def body() -> None:
        if raises:
            raise ValueError("of the body")

    with pytest.raises(Exception, match="of the body" if raises else "invalidated"):
        capture_cuda(body, None)
    assert cuda.stream == "main"
    given_back = [] if ends else ["_cuda_endAllocateToPool", "_cuda_releasePool"]
    assert cuda.said == [*given_back, "state before"]


def test_a_capture_that_fails_holds_no_memory_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, ends=False)
    alive: list[weakref.ref[Tensor]] = []

    def body() -> None:
        activations = torch.ones(3)
        alive.append(weakref.ref(activations))
        raise ValueError

    gc.disable()  # by reference counting alone
    try:
        with contextlib.suppress(ValueError):
            capture_cuda(body, None)
        assert alive[0]() is None
    finally:
        gc.enable()
