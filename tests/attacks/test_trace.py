"""`run(trace=True)`: the loss, success and step size of every iteration are what the network saw, and cost nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import (
    APGD,
    APGDT,
    FGSM,
    MIFGSM,
    PGD,
    SINIFGSM,
    AttackResult,
    Ensemble,
    Square,
    Trace,
    cudagraph,
    losses,
)
from iaat_fast.attacks.apgd import checkpoints
from iaat_fast.attacks.cudagraph import GraphRunner
from tests.attacks.every_attack import EVERY_ATTACK
from tests.attacks.like_a_gpu import Recorder
from tests.attacks.test_cudagraph import Tape
from tests.attacks.watched import Watched

TRACED = [name for name in EVERY_ATTACK if name not in ("FABT", "DeepFool")]
WHOLE = ("PGD", "random targets", "kl", "FGSM", "MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "DIFGSM")
"""Those in which every sample stays for all steps."""


def trace_of(result: AttackResult) -> Trace:
    assert result.trace is not None
    return result.trace


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_changes_no_image_and_takes_no_pass(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = EVERY_ATTACK[name](net)
    plain = attack.run(x, y, [0.02, 0.01])
    stats = attack.stats
    traced = attack.run(x, y, [0.02, 0.01], trace=True)
    assert attack.stats == stats
    assert plain.trace is None
    for field in ("x_adv", "success", "predictions", "forwards", "backwards"):
        assert torch.equal(getattr(plain, field), getattr(traced, field))


@pytest.mark.parametrize("name", ["FABT", "DeepFool"])
def test_attacks_without_a_trace_say_so(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=f"^trace: True, but {name} keeps none, expected False$"):
        EVERY_ATTACK[name](net).run(x, y, trace=True)


def test_a_trace_is_true_or_false(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^trace: 1, expected one of False, True"):
        PGD(net).run(x, y, trace=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WHOLE)
def test_a_row_is_what_the_first_gradient_of_a_step_saw(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    watched = Watched(net)
    attack = EVERY_ATTACK[name](watched, engine="exact")
    result = attack.run(x, y, trace=True)
    trace, passes = trace_of(result), attack._passes  # type: ignore[attr-defined]
    first = 2 if name == "kl" else 1  # after the verdict on x, and for "kl" the prediction there
    seen = [*watched.seen[first:-1:passes], result.x_adv]
    logits = torch.stack([net(images).detach() for images in seen])
    if name == "random targets":  # the loss of the target, which no one names: the steps lower it
        assert (trace.loss.diff(dim=0) < 0).all()
    elif name == "kl":
        divergence = F.kl_div(
            logits.log_softmax(2), net(x).softmax(1).expand_as(logits), reduction="none"
        )
        torch.testing.assert_close(trace.loss, divergence.sum(2), atol=1e-6, rtol=1e-4)
    else:
        for row, each in zip(trace.loss, logits, strict=True):
            assert torch.equal(row, F.cross_entropy(each, y, reduction="none"))
    assert torch.equal(trace.success, logits.argmax(2) != y)
    assert trace.iteration.tolist() == list(range(attack.steps + 1))
    assert (trace.restart == 0).all()
    alpha = 0.1 if name == "FGSM" else 0.03
    assert torch.equal(trace.step_size[:-1], torch.full_like(trace.loss[:-1], alpha))
    assert trace.step_size[-1].isnan().all()


@pytest.mark.parametrize("loss", ["cw", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_is_the_attacks_own(
    loss: str, targeted: bool, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    goal = (y + 3) % 10 if targeted else y
    watched = Watched(net)
    pgd = PGD(watched, 0.02, 0.005, 3, loss=loss, targeted=targeted, seed=0)
    trace = trace_of(pgd.run(x, goal, trace=True))
    for row, images in zip(trace.loss, watched.seen[1:], strict=True):
        assert torch.equal(row, losses.value(loss, net(images), goal, targeted=targeted))


def test_a_row_of_several_models_or_draws_is_that_of_their_mean(
    net: nn.Module, bn_net: nn.Module, x: Tensor, y: Tensor
) -> None:
    ensemble = Ensemble([net, bn_net.eval(), net], mean="losses", weights=[2, 1, 0])
    drawn = iter(torch.randn(100, 10, generator=torch.Generator().manual_seed(0)))
    draws: list[Tensor] = []

    def noisy(images: Tensor) -> Tensor:
        draws.append(net(images) + 0.01 * next(drawn))
        return draws[-1]

    at_x = F.cross_entropy(ensemble(x), y, reduction="none")
    right = ensemble(x).argmax(1) == y
    for cls in (PGD, MIFGSM, SINIFGSM):
        loss = trace_of(cls(ensemble, steps=1, random_start=False).run(x, y, trace=True)).loss
        torch.testing.assert_close(loss[0][right], at_x[right])
    pgd = PGD(noisy, steps=1, eot=3, random_start=False)
    loss = trace_of(pgd.run(x, y, trace=True)).loss
    at_x, at_start, _ = torch.stack(draws).view(3, 3, 8, 10).softmax(3).mean(1)
    assert torch.equal(at_x.argmax(1), y), "all are attacked"
    torch.testing.assert_close(loss[0], F.nll_loss(at_start.log(), y, reduction="none"))


def test_radii_and_step_sizes_are_the_samples_own(net: nn.Module, x: Tensor, y: Tensor) -> None:
    eps = torch.linspace(0.001, 0.004, 8)
    pgd = PGD(net, alpha=lambda radii: radii / 4, steps=2, seed=0)
    step_size = trace_of(pgd.run(x, y, eps, trace=True)).step_size
    assert torch.equal(step_size[:2], (eps / 4).expand(2, 8))


# APGD.


def halved(loss: Tensor, eps: float, rho: float) -> Tensor:
    """The step sizes [T, N] of Algorithm 1 (with the details of the released code) for losses [T, N]."""
    steps, n = len(loss) - 1, loss.shape[1]
    sizes = torch.full((steps, n), 2 * eps)
    for i in range(n):
        values, step, last, was_halved = loss[:, i].tolist(), 2 * eps, 0, True
        best_then = values[0]
        for t in range(steps):
            if t in checkpoints(steps):
                before = [0.0, *values[1:]]  # the first step's loss is compared with 0
                raised = sum(values[k] > before[k - 1] for k in range(last + 1, t + 1))
                best = max(values[: t + 1])
                was_halved = raised <= rho * (t - last) or (not was_halved and best <= best_then)
                step, last, best_then = step / 2 if was_halved else step, t, best
            sizes[t, i] = step
    return sizes


@pytest.mark.parametrize("rho", [0.75, 0.4])
def test_apgd_halves_its_steps_where_its_losses_stall(
    rho: float, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    watched = Watched(net.double())
    apgd = APGD(watched, 0.01, steps=30, rho=rho, early_stop=False, seed=0)
    trace = trace_of(apgd.run(x.double(), y, trace=True))
    iterates = watched.seen[1:-1]
    assert len(iterates) == 31
    loss = torch.stack([F.cross_entropy(net(images), y, reduction="none") for images in iterates])
    assert torch.equal(trace.loss, loss.float())
    torch.testing.assert_close(
        trace.step_size[:-1], halved(loss, 0.01, rho).float(), atol=0, rtol=1e-6
    )
    assert len(set(trace.step_size[-2].tolist())) > 1, "samples differ"


def test_apgdt_traces_its_targets_in_turn(net: nn.Module, x: Tensor, y: Tensor) -> None:
    watched = Watched(net)
    apgdt = APGDT(watched, 1e-4, steps=2, n_target_classes=2, early_stop=False, seed=0)
    trace = trace_of(apgdt.run(x, y, trace=True))
    assert trace.iteration.tolist() == [0, 1, 2] * 2
    assert trace.restart.tolist() == [0] * 3 + [1] * 3
    targets = net(x).argsort(1, descending=True)[:, 1:3]
    # Between them: the clean verdict, the choice of targets, and the verdict on each target's best.
    images = [*watched.seen[2:5], *watched.seen[6:9]]
    for t, seen in enumerate(images):
        expected = losses.value("dlr", net(seen), targets[:, t // 3], targeted=True, source=y)
        torch.testing.assert_close(trace.loss[t], expected)


# Who is in a trace.


@pytest.mark.parametrize("cls", [PGD, MIFGSM, APGD])
def test_a_sample_that_leaves_stays_fooled_and_its_losses_end(
    cls: Callable[..., Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    y = y.clone()
    y[0] = (y[0] + 1) % 10
    attack = cls(net, 0.02, steps=8, early_stop=True, restarts=2, random_start=True, seed=0)
    result = attack.run(x, y, trace=True)
    trace = trace_of(result)
    assert trace.loss.shape == (18, 8)
    assert torch.equal(trace.success[-1], result.success)
    assert trace.success[:, 0].all()
    assert trace.loss[:, 0].isnan().all()
    for i in range(1, 8):
        fooled = trace.success[:, i].nonzero()[:, 0].tolist()
        first = fooled[0] if fooled else 18
        assert trace.success[first:, i].all()
        assert not trace.loss[: first + 1, i].isnan().any()
        assert trace.loss[first + 1 :, i].isnan().all()
        assert torch.equal(trace.step_size[:, i].isnan()[:8], trace.loss[:, i].isnan()[:8])
    left = trace.loss[:9].isnan().sum()
    assert left > 9, "some are fooled on the way"


def test_a_later_restart_traces_those_that_an_earlier_one_has_not_fooled(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd = PGD(net, 0.008, 0.004, steps=2, restarts=3, seed=0)
    result = pgd.run(x, y, trace=True)
    trace = trace_of(result)
    assert trace.restart.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    alone = PGD(net, 0.008, 0.004, steps=2, seed=0)
    standing = torch.ones(8, dtype=torch.bool)
    for restart in range(3):
        own = trace_of(alone.run(x, y, restart=restart, trace=True))
        rows = trace.restart == restart
        torch.testing.assert_close(trace.loss[rows][:, standing], own.loss[:, standing])
        assert trace.loss[rows][:, ~standing].isnan().all()
        assert trace.success[rows][:, ~standing].all()
        standing &= ~own.success[-1]
    assert 0 < standing.sum() < 8
    assert torch.equal(result.success, ~standing)


def test_at_each_radius_a_trace_is_that_of_the_samples_that_stand(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    radii = [0.02, 0.004, 0.012]
    apgd = APGD(net, steps=6, seed=0)
    result = apgd.run(x, y, radii, trace=True)
    trace = trace_of(result)
    assert trace.loss.shape == (3, 7, 8)
    assert torch.equal(trace.success[:, -1], result.success)
    standing = torch.arange(8)
    for place in (1, 2, 0):
        own = trace_of(apgd.run(x[standing], y[standing], radii[place], index=standing, trace=True))
        others = [i for i in range(8) if i not in standing.tolist()]
        assert trace[place].loss[:, others].isnan().all()
        torch.testing.assert_close(trace[place].loss[:, standing], own.loss, equal_nan=True)
        assert same(trace[place].step_size[:, standing], own.step_size)
        standing = standing[~result.success[place, standing]]
    with pytest.raises(IndexError, match=r"^trace: of a single radius, expected a list of them"):
        trace[0][0]


def test_batch_statistics_keep_every_sample_in_the_trace(bn_net: nn.Module, x: Tensor) -> None:
    pgd = EVERY_ATTACK["PGD"](bn_net, bn="train")
    y = pgd.logits(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    assert not trace_of(pgd.run(x, y, trace=True)).loss.isnan().any()


def test_a_trace_of_no_images_and_of_none_that_is_right(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd = EVERY_ATTACK["restarts"](net)
    assert trace_of(pgd.run(x[:0], y[:0], trace=True)).loss.shape == (8, 0)
    assert trace_of(pgd.run(x[:0], y[:0], [0.1, 0.2], trace=True)).loss.shape == (2, 8, 0)
    wrong = trace_of(pgd.run(x, (y + 1) % 10, trace=True))
    assert wrong.success.all()
    assert wrong.loss.isnan().all()
    assert wrong.loss.shape == (8, 8)


def test_square_traces_its_best_margin(net: nn.Module, x: Tensor, y: Tensor) -> None:
    square = Square(net, 0.01, n_queries=12, p_init=0.3, seed=0)
    result = square.run(x, y, trace=True)
    trace = trace_of(result)
    assert (trace.loss.diff(dim=0).nan_to_num() >= 0).all()
    standing = ~result.success
    margin = losses.value("cw", net(result.x_adv), y, targeted=False)
    torch.testing.assert_close(trace.loss[-1, standing], margin[standing])
    sides = [float(square.side(query, 8, 8)) for query in range(1, 13)]
    assert trace.step_size[:-1, standing][:, 0].tolist() == sides


# The loop.


@pytest.mark.parametrize(
    "attack",
    [
        lambda net, **o: PGD(net, steps=4, **o),
        lambda net, **o: SINIFGSM(net, steps=4, m=2, **o),
        lambda net, **o: APGD(net, steps=4, early_stop=False, **o),
    ],
)
def test_a_traced_loop_waits_for_nothing_and_adds_a_few_small_ops(
    attack: Callable[..., Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    def ops(trace: bool) -> Recorder:
        with Recorder() as recorder:
            attack(net, seed=0).run(x, y, trace=trace)
        return recorder

    plain, traced = ops(False), ops(True)
    assert traced.reads == plain.reads
    for op in ("convolution", "convolution_backward", "pgd_step_linf_", "clone"):
        assert traced.names.count(op) == plain.names.count(op)
    # Per row: the cross-entropy, the verdict, three lines; about as much again when it is put together.
    assert len(traced.names) - len(plain.names) < 5 * 25 + 60


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (PGD, {}),
        (PGD, {"targeted": "random", "restarts": 3, "eps": 0.01}),
        (MIFGSM, {}),
        (SINIFGSM, {"m": 2}),
    ],
    ids=str,
)
def test_captured_steps_write_the_trace_of_eager_ones(
    cls: type[PGD],
    options: dict[str, Any],
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cudagraph, "_LONGEST", 2)  # several replays a run
    attack, tape = cls(net, steps=4, seed=0, **options), Tape()
    attack.network._graphs = GraphRunner(tape)
    attack.network._capturable = ("cpu",)
    eager = cls(net, steps=4, seed=0, **options)
    mask = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for n, masked in ((8, None), (8, None), (8, None), (5, None), (8, mask), (8, mask)):
        expected = eager.run(x[:n], y[:n], trace=True, mask=masked)
        found = attack.run(x[:n], y[:n], trace=True, mask=masked)
        assert torch.equal(found.x_adv, expected.x_adv)
        assert same(trace_of(found).loss, trace_of(expected).loss)
        assert torch.equal(trace_of(found).success, trace_of(expected).success)
        assert same(trace_of(found).step_size, trace_of(expected).step_size)
    assert tape.replayed > 1


@pytest.mark.slow
def test_a_copys_trace_is_by_its_own_logits_and_its_last_row_the_live_models(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd = PGD(net, 0.01, 0.004, steps=3, precision="bf16", seed=0)
    result = pgd.run(x, y, trace=True)
    trace = trace_of(result)
    live = F.cross_entropy(net(result.x_adv), y, reduction="none")
    assert torch.equal(trace.loss[-1], live)
    # By bfloat16's logits, of 8 bits: no float32 loss of them has the bits of the live model's.
    watched = Watched(net)
    PGD(watched, 0.01, 0.004, steps=3, engine="exact", seed=0).run(x, y)
    start = F.cross_entropy(net(watched.seen[1]), y, reduction="none")
    torch.testing.assert_close(trace.loss[0], start, atol=0.03, rtol=0)
    assert not torch.equal(trace.loss[0], start)


# Shown.


def test_tensorboard_gets_a_scalar_per_row(
    net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path
) -> None:
    trace = trace_of(PGD(net, 0.01, 0.004, steps=3, seed=0).run(x, y, trace=True))
    trace.to_tensorboard(tmp_path, tag="pgd")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = {
        name: [(event.step, event.value) for event in events.Scalars(f"pgd/{name}")]
        for name in ("loss/mean", "loss/5%", "loss/50%", "loss/95%", "success", "step_size")
    }
    assert [step for step, _ in scalars["loss/mean"]] == [0, 1, 2, 3]
    assert [step for step, _ in scalars["step_size"]] == [0, 1, 2]
    for row in range(4):
        assert scalars["loss/mean"][row][1] == pytest.approx(float(trace.loss[row].mean()))
        assert scalars["loss/95%"][row][1] == pytest.approx(float(trace.loss[row].quantile(0.95)))
        assert scalars["success"][row][1] == float(trace.success[row].float().mean())


def test_a_writer_of_the_callers_is_left_open_and_radii_are_named(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    class Writer:
        seen: set[str] = set()  # noqa: RUF012

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            assert value == value
            self.seen.add(tag)

        def flush(self) -> None:
            self.seen.add("flushed")

    trace = trace_of(EVERY_ATTACK["APGD"](net).run(x, y, [0.1, 0.01], trace=True))
    trace.to_tensorboard(Writer())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^to: int, expected a folder or a SummaryWriter"):
        trace.to_tensorboard(3)  # type: ignore[arg-type]
    assert {"attack/epsilons[0]/loss/mean", "attack/epsilons[1]/success", "flushed"} <= Writer.seen


@pytest.mark.slow
def test_a_plot_is_drawn_of_one_radius_and_of_several(
    net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path
) -> None:
    attack = EVERY_ATTACK["restarts"](net)
    one, several = tmp_path / "one.png", tmp_path / "several.svg"
    trace_of(attack.run(x, y, trace=True)).plot(one)
    assert one.read_bytes().startswith(b"\x89PNG")
    trace_of(attack.run(x, y, [0.1, 0.01], trace=True)).plot(str(several))
    for words in ("epsilons[0]", "epsilons[1]", "fooled, %", "step size", "iteration"):
        assert words in several.read_text()


def test_a_package_that_is_missing_is_named_with_what_installs_it(
    net: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = trace_of(FGSM(net).run(x, y, trace=True))
    for method, package, module in (
        ("plot", "matplotlib", "matplotlib.figure"),
        ("to_tensorboard", "tensorboard", "torch.utils.tensorboard"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        message = rf"^trace\.{method} needs {package}: pip install 'iaat-fast\[train\]'$"
        with pytest.raises(ModuleNotFoundError, match=message):
            getattr(trace, method)(tmp_path / "t.svg")
