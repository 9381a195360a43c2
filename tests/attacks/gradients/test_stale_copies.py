"""A copy that is not the live model any more, or never was, is seen in every attack, whatever the reason."""

from __future__ import annotations

import functools
import io
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD, EngineOptions, Findings
from iaat_fast.attacks.cudagraph import GraphRunner
from iaat_fast.attacks.findings import Stale
from iaat_fast.attacks.model.snapshot import AttributeSnapshot
from tests.attacks.every_attack import EVERY_ATTACK
from tests.attacks.like_a_gpu import Recorder, check_late
from tests.train.tape import Tape

LEVERS = {"channels_last": False, "saturation_proof": False}
COPIES: dict[str, dict[str, Any]] = {
    "program": {"engine": EngineOptions(**LEVERS)},
    "program in bf16": {"precision": "bf16"},
    "modules": {"engine": EngineOptions(fold=False, **LEVERS)},
    "modules in bf16": {"precision": "bf16", "engine": EngineOptions(fold=False)},
}
copies = pytest.mark.parametrize("options", COPIES.values(), ids=list(COPIES))
LIVE = EngineOptions(shadow=False, fold=False, **LEVERS)
SMOOTH = {"smooth": False}  # what a forward may look at, and no attribute shows


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)
        self.scale, self.act, self.smooth = 1.0, F.relu, False
        self.mean = torch.tensor(0.1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # its own business
        if self.smooth or SMOOTH["smooth"]:
            x = F.avg_pool2d(x, 3, 1, 1)
        return self.last(self.act(self.conv((x - self.mean) * self.scale)).flatten(1))


class OtherNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(1 - x)


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def y(model: Net, x: Tensor) -> Tensor:
    return model(x).argmax(1)


def attack(model: nn.Module, **options: Any) -> PGD:
    return PGD(model, 0.1, 0.03, 3, seed=0, **options)


def another_forward(model: Net) -> None:
    before = model.forward
    model.forward = lambda x: before(1 - x)  # type: ignore[method-assign]


def hook_of_all(model: Net) -> None:
    nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: (1 - args[0],) if module is model else None
    )


CHANGES: dict[str, Callable[[Net], Any]] = {
    "hook": lambda model: model.register_forward_pre_hook(lambda _, args: (1 - args[0],)),
    "hook within": lambda model: model.conv.register_forward_hook(lambda _, __, out: -out),
    "hook of all modules": hook_of_all,
    "forward": another_forward,
    "class": lambda model: setattr(model, "__class__", OtherNet),
    "flag": lambda model: setattr(model, "smooth", True),
    "number": lambda model: setattr(model, "scale", -1.0),
    "function": lambda model: setattr(model, "act", torch.tanh),
    "tensor": lambda model: setattr(model, "mean", torch.tensor(0.9)),
    "values of a tensor": lambda model: model.mean.fill_(0.9),
    "global": lambda model: SMOOTH.update(smooth=True),
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    SMOOTH.update(smooth=False)
    nn.modules.module._global_forward_pre_hooks.clear()


# In half precision those changes that only the logits betray, which rounding could hide.
@pytest.mark.parametrize(
    ("change", "copy"),
    [
        (change, copy)
        for change in CHANGES
        for copy in COPIES
        if "bf16" not in copy or change in ("hook", "values of a tensor", "global")
    ],
)
def test_what_changes_after_the_first_attack_is_attacked(
    change: str, copy: str, model: Net, x: Tensor, y: Tensor
) -> None:
    options = COPIES[copy]
    pgd = attack(model, **options)
    before = pgd(x, y)
    CHANGES[change](model)
    again = pgd(x, y)
    assert not torch.equal(again, before)
    assert (
        torch.equal(again, attack(model, **options)(x, y)) or "live" in pgd.network.gradient_source
    )
    # Other precisions have other signs of gradients near 0, a copy of another model has many more.
    plain = attack(model, engine="exact")(x, y)
    assert (again != plain).sum() < (before != plain).sum() / 4


@pytest.mark.parametrize("name", [name for name in EVERY_ATTACK if name != "DeepFool"])
def test_every_attack_compares_its_copy_and_is_made_again_with_the_live_model(
    name: str, model: Net, x: Tensor, y: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    made = EVERY_ATTACK[name](model, engine=COPIES["program"]["engine"])
    made(x, y)
    assert "copy" in made.network.gradient_source
    SMOOTH.update(smooth=True)
    live = EVERY_ATTACK[name](model, engine=LIVE)
    caplog.clear()
    for _ in range(2):
        assert torch.equal(made(x, y), live(x, y))
        assert made.stats == live.stats
    assert made.network.gradient_source == "the live model"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "off by" in caplog.text


def test_so_does_deepfool(model: Net, x: Tensor, y: Tensor) -> None:
    test = EVERY_ATTACK["DeepFool"](model, engine=COPIES["program"]["engine"])
    test(x, y)
    SMOOTH.update(smooth=True)
    assert torch.equal(test(x, y), EVERY_ATTACK["DeepFool"](model, engine=LIVE)(x, y))
    assert test.network.gradient_source == "the live model"


@pytest.mark.parametrize("given", [False, True])
def test_on_a_gpu_it_comes_with_the_one_read(
    given: bool, model: Net, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pgd, live = attack(model, **COPIES["program"]), attack(model, engine=LIVE)
    pgd(x, y)
    check_late(monkeypatch)
    SMOOTH.update(smooth=True)
    if not given:
        assert torch.equal(pgd(x, y), live(x, y))
        return
    findings = Findings(x.device)
    with Recorder() as seen:
        pgd(x, y, findings=findings)
    assert not seen.reads
    with pytest.raises(Stale, match="its copy, or its captured forward, is off by"):
        findings.settle()
    findings.settle()  # forgotten


def test_given_findings_count_the_gradients_of_the_attack_that_counts(
    model: Net, x: Tensor, y: Tensor
) -> None:
    pgd, live = attack(model, **COPIES["program"]), attack(model, engine=LIVE)
    pgd(x, y)
    SMOOTH.update(smooth=True)
    found, expected = Findings("cpu"), Findings("cpu")
    assert torch.equal(pgd(x, y, findings=found), live(x, y, findings=expected))
    assert found.settle() == expected.settle()
    assert pgd.stats == live.stats


def test_a_seed_drawn_from_torch_is_drawn_once(model: Net, x: Tensor, y: Tensor) -> None:
    pgd, live = (PGD(model, 0.1, 0.03, 3, engine=e) for e in (COPIES["program"]["engine"], LIVE))
    pgd(x, y)
    SMOOTH.update(smooth=True)
    made = []
    for each in (pgd, live):
        torch.manual_seed(5)
        made.append((each(x, y), torch.rand(3)))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_forwards_own_counters_and_caches_are_no_change(model: Net, x: Tensor, y: Tensor) -> None:
    model.register_forward_hook(lambda m, args, out: setattr(m, "features", out))
    hooked = attack(model, **COPIES["program"])
    hooked(x, y)
    made = hooked.network._source
    model(x)
    hooked(x, y)
    assert hooked.network._source is made
    model._forward_hooks.clear()
    pgd = attack(model, **COPIES["program"])
    pgd(x, y)
    made = pgd.network._source
    model(x)
    pgd(x, y)
    assert pgd.network._source is made


def test_attributes_stand_until_one_changes(model: Net) -> None:
    seen = AttributeSnapshot(list(model.modules()))
    assert seen.unchanged()
    model.scale = 2.0
    model.scale = 3.0
    assert not seen.unchanged()
    model.scale = 1.0
    assert seen.unchanged()
    model.scale = 4.0
    seen.ignore_changes()
    model.scale = 5.0
    assert seen.unchanged()
    del model.act
    assert not seen.unchanged()


def captured(model: nn.Module) -> PGD:
    """Of the live model, its steps captured: the second call records them, the third replays."""
    pgd = attack(model, engine="exact")
    pgd.network._graphs = GraphRunner(lambda body, pool: Tape()(body))
    pgd.network._capturable = ("cpu",)
    return pgd


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("change", ["hook", "flag", "global"])
def test_what_captured_steps_have_frozen_is_seen(
    change: str, calls: int, model: Net, x: Tensor, y: Tensor
) -> None:
    pgd = captured(model)
    for _ in range(calls):
        before = pgd(x, y)
    CHANGES[change](model)
    expected = attack(model, engine="exact")(x, y)
    assert not torch.equal(expected, before)
    for _ in range(3):
        assert torch.equal(pgd(x, y), expected)


def test_steps_that_draw_are_not_captured(x: Tensor, y: Tensor) -> None:
    model = Drawing(DRAWS["python"], 1.0).eval()
    pgd, eager = captured(model), attack(model, engine="exact")
    for call in range(4):
        random.seed(call)
        made = pgd(x, y)
        random.seed(call)
        assert torch.equal(made, eager(x, y))


class Drawing(Net):
    """Adds noise that a trace would freeze, or not see at all."""

    def __init__(self, draw: Callable[[], Any], size: float) -> None:
        super().__init__()
        self.draw, self.size = draw, size

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.size * self.draw()


DRAWS = {
    "torch": lambda: torch.randn(5),
    "python": lambda: random.random() - 0.5,
    "numpy": lambda: float(np.random.rand()) - 0.5,
}


@copies
@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("name", DRAWS)
def test_a_model_that_draws_gets_no_copy_and_its_draws_are_its_own(
    name: str,
    size: float,
    options: dict[str, Any],
    x: Tensor,
    y: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Drawing(DRAWS[name], size).eval()
    pgd = attack(model, **options)
    states = []
    for each in (pgd, attack(model, engine=LIVE)):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        each(x, y)
        states.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert "the live model" in pgd.network.gradient_source
    assert "its forward is random" in caplog.text
    assert states[0] == states[1]


def test_masked_classes_do_not_make_a_copy_a_false_one(model: Net, x: Tensor) -> None:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.masked_fill(torch.arange(5) == 2, -torch.inf)

    pgd = attack(Masked().eval(), **COPIES["program"])
    pgd(x, torch.zeros(6, dtype=torch.int64))
    assert "copy" in pgd.network.gradient_source


@pytest.mark.slow
def test_of_a_compiled_model_the_module_that_was_is_copied(x: Tensor, y: Tensor) -> None:
    model = torch.compile(Net().eval(), backend="eager")
    pgd = attack(model, **COPIES["program"])
    assert torch.equal(pgd(x, y), attack(Net().eval(), **COPIES["program"])(x, y))
    assert "folded" in pgd.network.gradient_source
    model.register_forward_hook(lambda _, __, out: -out)
    pgd(x, y)
    assert "the live model" in pgd.network.gradient_source


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.linspace(0, 0.3, size)


class WithTable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + table(8))


@copies
def test_a_table_in_a_global_is_left_as_it_is(options: dict[str, Any], x: Tensor) -> None:
    table.cache_clear()
    model, y = WithTable().eval(), torch.zeros(6, dtype=torch.int64)
    pgd = attack(model, **options)
    assert torch.equal(pgd(x, y), pgd(x, y))
    assert type(table(8)) is Tensor
    assert type(model(x)) is Tensor
    torch.save(model, io.BytesIO())


def test_a_global_that_copying_has_spoilt_is_said(model: Net, x: Tensor, y: Tensor) -> None:
    kept: dict[int, Tensor] = {}

    class Keeps(Net):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            kept["last"] = (
                kept["last"] + 0 * out if "last" in kept and len(kept["last"]) == len(out) else out
            )  # type: ignore[index]
            return out + 0 * kept["last"]  # type: ignore[index]

    pgd = attack(Keeps().eval(), **COPIES["program"])
    with pytest.raises(ValueError, match="model: its forward keeps tensors outside of its modules"):
        pgd(x[:2], y[:2])


@copies
def test_a_part_that_copies_as_itself_is_attacked_live(
    options: dict[str, Any], x: Tensor, y: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    class Alone(Net):
        def __deepcopy__(self, memo: Any) -> Alone:
            return self

    model = nn.Sequential(Alone()).eval()
    with caplog.at_level(logging.INFO, "iaat_fast"):
        pgd = attack(model, **options)
        pgd(x, y)
    assert "the live model" in pgd.network.gradient_source
    assert "its copy is itself" in caplog.text


def test_an_object_that_takes_anothers_place_in_memory_is_another() -> None:
    """CPython gives the place of one that is freed to the next of its size, and with it its identity."""

    class Defence:
        def __init__(self, strength: float) -> None:
            self.strength = strength

    module = nn.Identity()
    module.defence = Defence(1.0)
    attributes = AttributeSnapshot([module])
    assert attributes.unchanged()
    del module.defence
    module.defence = Defence(2.0)
    assert not attributes.unchanged()
