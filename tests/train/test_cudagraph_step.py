"""Captured steps give what eager steps give, bit for bit on the CPU, where a tape stands for the graph (see `Tape`)."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import findings
from iaat_fast.data import ImageData
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import fit, loop, setup
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.cudagraph_step import CudaGraphStep
from iaat_fast.train.distributed import Ranks
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import preset
from iaat_fast.train.setup import recorded_config
from iaat_fast.train.step import TrainingStep, make_memory
from tests.train.same_run import Fit, assert_same_checkpoints
from tests.train.tape import Tape

EPOCHS, FULL = 3, 4  # batches of 5 of 24 samples: 4 full ones and one of 4


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are checked as on a GPU, next to the work."""
    monkeypatch.setattr(findings, "checked_late", lambda device: True)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tape], Tape]:
    """Makes a tape what steps are captured by."""

    def use(tape: Tape) -> Tape:
        for module in (setup, loop):
            monkeypatch.setattr(module, "capture_for", lambda device: tape)
        return tape

    return use


@pytest.fixture
def tape(use: Callable[[Tape], Tape]) -> Tape:
    return use(Tape())


Runs = Callable[..., tuple[RunFolder, RunFolder]]


@pytest.fixture
def both(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
) -> Runs:
    """Trains twice, in graphs and eagerly, and returns both folders."""

    def train(
        make: Callable[[], nn.Module] = tiny_model, optim: Any = None, **parts: Any
    ) -> tuple[RunFolder, RunFolder]:
        folders = []
        for graph in (True, False):
            config = tiny_config(
                tmp_path / f"graph-{graph}", optim={**(optim or {}), "graph": graph}, **parts
            )
            fit(config, model=make(), data=tiny_data, quiet=True)
            folders.append(RunFolder(config.run.out))
        return folders[0], folders[1]

    return train


BATCHED = {"strategy": "batched"}
SINGLE_STEP = {"steps": 1, "noise": 2.0, "alpha_rule": "radius", "project": False}


@pytest.mark.parametrize(
    ("phases", "parts"),
    [
        (1, {"method": "clean"}),
        (1, {"method": "adv", "attack": {"targeted": "random"}}),
        (1, {"method": "adv", "attack": {"bn": "train"}}),
        (1, {"method": "adv", "attack": {"precision": "bf16"}}),
        (1, {"method": "adv", "optim": {"amp": "bf16"}}),
        (1, {"method": "adv", "optim": {"momentum": 0.0}}),
        (1, {"method": "mixup", "optim": {"accumulate": 2}}),
        (1, {"method": "trades"}),
        (1, {"method": "mart"}),
        (1, {"method": "adv", "baseline": {"awp_gamma": 0.02}, "optim": {"accumulate": 2}}),
        (2, {"method": "trades", "baseline": {"awp_gamma": 0.02, "awp_warmup_epochs": 1}}),
        (1, {"method": "nfgsm"}),
        (2, {"epsilon": BATCHED, "attack": SINGLE_STEP}),
        (2, {"epsilon": {**BATCHED, "final": "reuse"}, "optim": {"ema_decay": 0.9}}),
        (2, {"epsilon": {**BATCHED, "selection_steps": 2}, "data": {"augment": True}}),
        (2, {"protocol": "released", "optim": {"batch_size": 5}}),
    ],
    ids=str,
)
def test_steps_in_graphs_are_the_eager_ones(
    tape: Tape, both: Runs, phases: int, parts: dict[str, Any]
) -> None:
    schedule = {"decay_epochs": [1, 2], "decay_factor": 0.5, **parts.pop("optim", {})}
    graphed, eager = both(optim=schedule, **parts)
    assert_same_checkpoints(graphed, eager)
    assert (tape.warmed, tape.captured) == (phases, phases)
    assert tape.replayed == EPOCHS * FULL - phases


@pytest.mark.parametrize(
    "parts",
    [
        {"method": "mma", "baseline": {"mma_bisections": 4}},
        {"method": "cat", "baseline": {"cat_loss": "mix"}, "optim": {"accumulate": 2}},
    ],
    ids=str,
)
def test_radii_that_are_stored_in_graphs_are_the_eager_ones(
    parts: dict[str, Any], tape: Tape, both: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the CPU alone, storing looks at the radii's values.
    store = EpsilonMemory._write
    monkeypatch.setattr(
        EpsilonMemory, "store", lambda self, index, eps, findings: store(self, index, index, eps)
    )
    assert_same_checkpoints(*both(**parts))
    assert (tape.captured, tape.replayed) == (1, EPOCHS * FULL - 1)


def test_the_tape_freezes_numbers_and_restores_what_a_capture_changed() -> None:
    """Else none of the tests above could fail."""
    x, rate, norm = torch.ones(3), torch.tensor(2.0), nn.BatchNorm1d(3)
    numbers = iter([5.0, 7.0, 11.0])
    drawn: list[Tensor] = []

    def work() -> None:
        x.mul_(rate).add_(next(numbers))
        drawn.append(torch.rand(3))
        norm(drawn[-1].expand(2, 3) * x)

    torch.manual_seed(1)
    expected = torch.rand(3), torch.rand(3)
    torch.manual_seed(1)
    replay = Tape()(work)
    assert torch.equal(x, torch.ones(3))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    replay()
    assert torch.equal(x, torch.full((3,), 7.0))
    assert torch.equal(drawn[0], expected[0])
    rate.fill_(3.0)
    replay()
    assert torch.equal(x, torch.full((3,), 26.0))
    assert torch.equal(drawn[0], expected[1])
    assert norm.num_batches_tracked == 2
    assert norm.running_mean.abs().sum() > 0
    for reads in (lambda: float(x[0]), lambda: x[x > 0], lambda: x.copy_(torch.tensor([1.0] * 3))):
        with pytest.raises(RuntimeError, match="not permitted"):
            Tape()(reads)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bits(
    tape: Tape,
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resumed, other steps than before are the warm-up and the capture."""
    parts: dict[str, Any] = {
        "epsilon": BATCHED,
        "optim": {"ema_decay": 0.9, "decay_epochs": [2]},
        "run": {"checkpoint_steps": 1},
    }
    reference = tiny_fit(tiny_config(tmp_path / "reference", **parts)).folder
    launched = CudaGraphStep.__call__
    for step in (2, 6, 13):
        config = tiny_config(tmp_path / f"killed-{step}", **parts)
        steps = iter(range(step))

        def killed(self: CudaGraphStep, *args: Any, **kwargs: Any) -> None:
            if next(steps, None) is None:  # noqa: B023 - used only in this turn
                raise Killed
            launched(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(CudaGraphStep, "__call__", killed)
            with pytest.raises(Killed):
                tiny_fit(config)
        assert_same_checkpoints(tiny_fit(config, resume=True).folder, reference)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of the training itself; of a preset's decays that three epochs never reach it says more."""
    told = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    return [text for text in told if text.startswith("training: ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "after"),
    [
        (RuntimeError("operation not permitted\nlong text"), 0),
        (torch.OutOfMemoryError("none"), 100),
    ],
)
def test_a_capture_that_fails_loses_nothing_and_is_named_once(
    use: Callable[[Tape], Tape],
    both: Runs,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    after: int,
) -> None:
    tape = use(Tape(failure, after))
    parts = {"epsilon": BATCHED, "optim": {"ema_decay": 0.9}}
    assert_same_checkpoints(*both(**parts))
    first = str(failure).splitlines()[0]
    assert said(caplog) == [
        f"training: whole steps cannot be captured in a CUDA graph ({first}); running eagerly"
    ]
    assert (tape.warmed, tape.captured, tape.replayed) == (1, 0, 0)


class Reading(nn.Sequential):
    """Looks at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.detach().mean()) > -1 else 2.0)


class Drawing(nn.Sequential):
    """Draws on the host, as some implementations of stochastic depth do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (random.random() if self.training else 1.0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Reading, "operation not permitted"), (Drawing, "the model draws random numbers on the host")],
)
def test_a_model_that_cannot_be_captured_trains_eagerly(
    tape: Tape,
    both: Runs,
    tiny_model: Callable[[], nn.Module],
    caplog: pytest.LogCaptureFixture,
    kind: Callable[..., nn.Module],
    reason: str,
) -> None:
    def make() -> nn.Module:
        random.seed(5)
        return kind(*tiny_model().children())

    assert_same_checkpoints(*both(make, method="adv"))
    assert len(said(caplog)) == 1
    assert reason in said(caplog)[0]
    assert tape.captured == 0


def with_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda *_: None)
    return model


def counting_batches(model: nn.Module) -> nn.Module:
    model[1].momentum = None  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize(
    ("change", "parts", "reason"),
    [
        (with_hook, {"method": "adv"}, "the model has hooks"),
        (counting_batches, {"method": "adv"}, "1 reads how many batches it has seen"),
        (None, {"method": "adv", "optim": {"amp": "fp16"}}, "fp16 reads whether"),
    ],
)
def test_what_is_known_not_to_be_captured_is_not_tried(
    tape: Tape,
    both: Runs,
    tiny_model: Callable[[], nn.Module],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[nn.Module], nn.Module] | None,
    parts: dict[str, Any],
    reason: str,
) -> None:
    make = tiny_model if change is None else lambda: change(tiny_model())
    assert_same_checkpoints(*both(make, **parts))
    ours = [text for text in said(caplog) if text.startswith("training:")]
    assert len(ours) == 1
    assert reason in ours[0]
    assert tape.warmed == 0


def test_lazy_candidates_are_captured_in_the_warm_up_alone(
    tape: Tape, both: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    assert_same_checkpoints(*both(epsilon={"strategy": "lazy"}))
    assert (tape.captured, tape.replayed) == (1, FULL - 1)
    assert len(said(caplog)) == 1
    assert "strategy 'lazy'" in said(caplog)[0]


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [(1, "the optimizer reads its learning rate on the host"), (2, "the ranks exchange gradients")],
)
def test_a_step_put_together_by_hand_is_not_captured_wrongly(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    caplog: pytest.LogCaptureFixture,
    ranks: int,
    reason: str,
) -> None:
    model, cpu = tiny_model(), torch.device("cpu")
    config = tiny_config(method="adv")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainingStep(config, model, make_memory(config, 24, cpu), optimizer, cpu)
    step.ranks = Ranks(count=ranks)
    CudaGraphStep(step, size=5, capture=Tape())
    assert reason in said(caplog)[0]


def test_the_switch_turns_graphs_off_also_for_a_run_that_goes_on(
    tape: Tape, tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    on = tiny_config(tmp_path / "run", method="adv", optim={"epochs": 1})
    assert on.optim.graph
    off = override(on, {"optim": {"graph": False}})
    tiny_fit(off)
    assert tape.warmed == 0
    tiny_fit(on, resume=True)


def test_a_run_of_before_the_switch_is_resumed(
    tape: Tape, tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", method="adv")
    folder = tiny_fit(override(config, {"optim": {"epochs": 3}})).folder
    plain = json.loads(folder.config_path.read_text())
    del plain["optim"]["graph"]
    folder.config_path.write_text(json.dumps(plain))
    assert recorded_config(folder).optim.graph
    assert tiny_fit(recorded_config(folder), resume=True).metrics[-1]["epoch"] == 3


class Diverging(nn.Module):
    """From its seventh step on, the second of the second epoch, every loss is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
        return self.linear(x.flatten(1)) + (6 - self.steps).sqrt() * 0


def test_a_loss_that_is_not_finite_is_named_as_by_eager_steps(
    tape: Tape, tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    """An eager step, the first epoch's last, lies between the capture and the loss."""
    messages = []
    for graph in (True, False):
        config = tiny_config(tmp_path / f"{graph}", method="clean", optim={"graph": graph})
        with pytest.raises(FloatingPointError, match=r"at step 7 .* 5 of the 5 samples") as caught:
            fit(config, model=Diverging(), data=tiny_data, quiet=True)
        messages.append(str(caught.value).split("; the last good")[0])
    assert messages[0] == messages[1]
    assert tape.replayed == FULL - 1 + 2


class Decaying(nn.Module):
    """From its third step on its gradients are 0, and a weight that it does not use is NaN if `spoils`."""

    def __init__(self, spoils: bool) -> None:
        super().__init__()
        self.linear, self.spoils = nn.Linear(36, 3), spoils
        self.spare = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
            if self.spoils:
                self.spare.copy_((2 - self.steps).sqrt())
        return self.linear(x.flatten(1)) * (self.steps < 3)


def test_what_attacks_find_in_a_replay_is_told(
    tape: Tape, tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", method="adv", optim={"epochs": 1, "batch_size": 3})
    with pytest.warns(RuntimeWarning, match="more than half of the gradient entries are 0"):
        fit(config, model=Decaying(spoils=False), data=tiny_data, quiet=True)
    assert tape.replayed == 24 // 3 - 1
    config = override(config, {"run": {"out": str(tmp_path / "other")}})
    with pytest.raises(ValueError, match="the weight 'spare' holds NaN"):
        fit(config, model=Decaying(spoils=True), data=tiny_data, quiet=True)


@pytest.mark.slow
def test_decoded_images_are_copied_to_where_the_graph_reads_them(
    tape: Tape, image_folder: Path, tmp_path: Path
) -> None:
    folders = []
    for graph in (True, False):
        config = preset(
            "imagenet-resnet50",
            data={"path": str(image_folder), "workers": 0, "limit": 4},
            model={"name": "imagenet-resnet18", "width": 4},
            attack={"steps": 1, "precision": "fp32"},
            epsilon={"warmup_epochs": 1, "selection_steps": 1, "strategy": "batched"},
            optim={"epochs": 2, "batch_size": 2, "graph": graph},
            evaluation={"steps": 1},
            run={"out": str(tmp_path / f"{graph}"), "device": "cpu", "tensorboard": False},
        )
        folders.append(fit(config, quiet=True).folder)
    assert_same_checkpoints(*folders)
    assert tape.captured == 2
    assert tape.replayed > 0
