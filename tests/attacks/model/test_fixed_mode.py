"""Scripted modules are switched like others; what was traced, frozen or exported is refused in another mode."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.attacks.model.fixed_mode import fixed_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)

OPTIONS = {"eps": 0.05, "alpha": 0.02, "steps": 2, "seed": 0}
LABELS = torch.arange(8)


def example() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def loaded(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def traced(net: nn.Module) -> Any:
    with torch.random.fork_rng():
        return torch.jit.trace(net, example(), check_trace=False)


def exported(net: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(net, (example(),))


class OwnNorm(nn.BatchNorm2d):
    """Of another name."""


def own(net: nn.Sequential) -> nn.Sequential:
    norm = OwnNorm(8)
    norm.load_state_dict(net[1].state_dict())
    net[1] = norm
    return net


class Functional(nn.Module):
    """Dropout whose mode becomes a constant of a traced graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(F.dropout(x, 0.5, self.training))


FREE: dict[str, Callable[[Any], Any]] = {
    "scripted": torch.jit.script,
    "scripted and loaded": lambda net: loaded(torch.jit.script(net)),
    "scripted, of its own class": lambda net: torch.jit.script(own(net)),
    "scripted inside": lambda net: nn.Sequential(nn.Identity(), torch.jit.script(net)),
    "symbolic": torch.fx.symbolic_trace,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
}
FIXED: dict[str, Callable[[nn.Module], Any]] = {
    "traced": traced,
    "traced and loaded": lambda net: loaded(traced(net)),
    "traced inside": lambda net: nn.Sequential(nn.Identity(), traced(net)),
    "exported": lambda net: exported(net).module(),
    "exported, with its modules": lambda net: torch.export.unflatten(exported(net)),
}
FROZEN: dict[str, Callable[[nn.Module], Any]] = {
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "frozen and loaded": lambda net: loaded(torch.jit.freeze(torch.jit.script(net))),
}


def modes(model: Any) -> list[object]:
    return [getattr(module, "training", None) for module in model.modules()]


@pytest.mark.parametrize("bn", ["eval", "train", "train_update"])
@pytest.mark.parametrize("name", FREE)
def test_a_module_whose_mode_is_free_is_attacked_in_it(
    name: str, bn: str, bn_net: nn.Sequential
) -> None:
    x, pgd = example(), PGD(bn_net.train(), **OPTIONS, bn=bn)
    model = FREE[name](bn_net)
    before, statistics = modes(model), [buffer.clone() for buffer in model.buffers()]
    x_adv = PGD(model, **OPTIONS, bn=bn)(x, LABELS)
    assert modes(model) == before
    changed = not all(map(torch.equal, model.buffers(), statistics))
    assert changed == (bn == "train_update")
    for buffer, value in zip(model.buffers(), statistics, strict=True):
        buffer.copy_(value)
    assert torch.equal(x_adv, pgd(x, LABELS))


@pytest.mark.parametrize("name", FIXED | FROZEN)
def test_a_module_fixed_in_eval_mode_is_attacked_in_it_alone(
    name: str, bn_net: nn.Sequential
) -> None:
    model, x = (FIXED | FROZEN)[name](bn_net.eval()), example()
    before = modes(model)
    assert torch.equal(PGD(model, **OPTIONS)(x, LABELS), PGD(bn_net, **OPTIONS)(x, LABELS))
    assert modes(model) == before
    for bn in ("train", "train_update"):
        with pytest.raises(ValueError, match=rf"^bn: '{bn}' for a model whose BatchNorm was fixed"):
            PGD(model, bn=bn)


@pytest.mark.parametrize("name", FIXED)
def test_a_module_fixed_in_training_mode_is_refused(name: str, bn_net: nn.Sequential) -> None:
    model = FIXED[name](bn_net.train())
    with pytest.raises(ValueError, match=r"^model: its BatchNorm was fixed in training mode"):
        PGD(model)
    with pytest.raises(ValueError, match=r"^model: its BatchNorm was fixed in training mode"):
        PGD(lambda x: model(x))


@pytest.mark.parametrize("fix", [torch.fx.symbolic_trace, traced])
def test_dropout_fixed_in_training_mode_is_refused(fix: Any, net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^model: its dropout was fixed in training mode"):
        PGD(fix(Functional(net).train()))
    PGD(fix(Functional(net).eval()))


@pytest.mark.parametrize("fix", [torch.jit.script, traced, FIXED["exported"]])
def test_a_batch_norm_without_statistics_couples_samples_in_either_mode(fix: Any) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).eval()
    assert PGD(fix(net)).network.couples_samples()


@pytest.mark.parametrize(
    ("operation", "arguments", "training"),
    [
        ("_native_batch_norm_legit_no_training", (0.1, 1e-5), False),
        ("_native_batch_norm_legit_functional", (True, 0.1, 1e-5), True),
        ("_native_batch_norm_legit", (True, 0.1, 1e-5), True),
        ("_batch_norm_with_update", (0.1, 1e-5), True),
        ("native_batch_norm", (False, 0.1, 1e-5), False),
        ("cudnn_batch_norm", (True, 0.1, 1e-5), True),
    ],
)
def test_the_mode_of_a_decomposed_batch_norm_is_known(
    operation: str, arguments: tuple[Any, ...], training: bool
) -> None:
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "weight", "bias", "mean", "var")]
    graph.call_function(getattr(torch.ops.aten, operation).default, (*inputs, *arguments))
    module = torch.fx.GraphModule(nn.Module(), graph)
    assert fixed_layers([module]) == [(training, True, True)]


def test_an_exported_program_is_refused_and_its_module_named(net: nn.Module) -> None:
    program = exported(net)
    with pytest.raises(TypeError, match=r"^model: an ExportedProgram, expected what its module"):
        PGD(program)  # type: ignore[arg-type]


class CopiesItself(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesItself:
        import copy

        return CopiesItself(copy.deepcopy(self.net))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("fix", [torch.jit.script, CopiesItself])
def test_a_copy_with_weights_of_its_own_is_not_taken(fix: Any, fold: bool, net: nn.Module) -> None:
    """It would stand still while the live weights change."""
    model, x = fix(net), example()
    pgd = PGD(model, **OPTIONS, engine=EngineOptions(fold=fold))
    pgd(x, LABELS)
    with torch.no_grad():
        for weight in net.parameters():
            weight.neg_()
    assert torch.equal(pgd(x, LABELS), PGD(net, **OPTIONS)(x, LABELS))
