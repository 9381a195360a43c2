"""A function that runs a module is attacked as the module is: in its mode, and with its statistics left alone."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, Square
from iaat_fast.attacks.model.modules import roots_of

OPTIONS = {"eps": 0.05, "alpha": 0.02, "steps": 3, "seed": 0}
LABELS = torch.arange(8)

shared: nn.Module = nn.Identity()
this_file = sys.modules[__name__]


def use_the_global(x: Tensor) -> Any:
    return shared(x)


class Wrapper:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Any:
        return self.net(x)

    def predict(self, x: Tensor) -> Any:
        return self.net(x)


class CallsTheGlobal:
    def __call__(self, x: Tensor) -> Any:
        return shared(x)


class Slotted:
    """It hides what it holds."""

    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Any:
        return self.net(x)


def no_grad(net: nn.Module) -> Callable[[Tensor], Any]:
    @functools.wraps(net.forward)
    def decorated(*args: Any) -> Any:
        return net(*args)

    return torch.enable_grad()(decorated)


FUNCTIONS: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "method": lambda net: net.forward,
    "closure": lambda net: lambda x: net(x),
    "default": lambda net: lambda x, model=net: model(x),
    "partial": lambda net: functools.partial(
        torch.func.functional_call, net, dict(net.named_parameters())
    ),
    "partial by name": lambda net: functools.partial(lambda x, model: model(x), model=net),
    "global": lambda net: lambda x: shared(x),
    "global of another file": lambda net: lambda x: this_file.shared(x),
    "global in a function": lambda net: lambda x: use_the_global(x),
    "global in an object": lambda net: CallsTheGlobal(),
    "object": Wrapper,
    "object's method": lambda net: Wrapper(net).predict,
    "object in an object": lambda net: Wrapper(Wrapper(net)),  # type: ignore[arg-type]
    "object in a closure": lambda net: (lambda held: lambda x: held.net(x))(Wrapper(net)),
    "ensemble": lambda net: lambda x, members=[net]: sum(member(x) for member in members),
    "dict": lambda net: lambda x, members={"net": net}: members["net"](x),
    "decorated": no_grad,
    "compiled": lambda net: torch.compile(lambda x: net(x), backend="eager"),
    "mapped": lambda net: torch.vmap(lambda x: net(x.unsqueeze(0))[0], randomness="same"),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


@functions
def test_the_module_behind_a_function_is_found(
    name: str, bn_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "shared", bn_net)
    assert roots_of(FUNCTIONS[name](bn_net)) == [bn_net]


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("name", ["method", "closure", "global", "object's method"])
def test_a_function_in_training_mode_is_attacked_as_its_module(
    name: str, bn: str, bn_net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "shared", bn_net.train())
    before = copy.deepcopy(bn_net.state_dict())
    pgd = PGD(FUNCTIONS[name](bn_net), **OPTIONS, bn=bn)
    assert torch.equal(pgd(x, LABELS), PGD(bn_net, **OPTIONS, bn=bn)(x, LABELS))
    assert torch.equal(pgd.logits(x), PGD(bn_net, **OPTIONS, bn=bn).logits(x))
    assert all(module.training for module in bn_net.modules())
    assert all(torch.equal(value, before[key]) for key, value in bn_net.state_dict().items())


def test_what_a_closure_holds_may_change(bn_net: nn.Module, net: nn.Module, x: Tensor) -> None:
    model: nn.Module = net
    pgd = PGD(lambda x: model(x), **OPTIONS)
    pgd(x, LABELS)
    model = bn_net.train()
    assert torch.equal(pgd(x, LABELS), PGD(bn_net, **OPTIONS)(x, LABELS))


@pytest.mark.parametrize(("attack", "budget"), [(PGD, {"steps": 1}), (Square, {"n_queries": 1})])
def test_a_module_in_training_mode_that_cannot_be_found_is_refused(
    attack: Any, budget: dict[str, int], bn_net: nn.Module, x: Tensor
) -> None:
    hidden = Slotted(bn_net.train())
    before = bn_net[1].running_mean.clone()  # type: ignore[index]
    with pytest.raises(ValueError, match=r"^model: a function that runs a BatchNorm2d in training"):
        attack(hidden, 0.05, **budget)(x, LABELS)
    assert torch.equal(bn_net[1].running_mean, before)  # type: ignore[index]
    hidden.net.eval()
    attack(hidden, 0.05, **budget)(x, LABELS)


def test_batch_statistics_of_a_function_without_a_module_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^bn: 'train' for a function in which no module is"):
        PGD(lambda x: x.flatten(1), bn="train")


def test_nan_weights_behind_a_function_are_named(net: nn.Sequential, x: Tensor) -> None:
    net[0].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"^model: the weight '0.weight' holds NaN"):
        PGD(net.forward)(x, LABELS)


def test_a_function_that_changes_its_modules_mode_is_refused(bn_net: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^model: its forward changes its mode"):
        PGD(lambda x: bn_net.train()(x))(x, LABELS)


def test_a_class_in_place_of_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model: the class Linear, expected an instance"):
        PGD(nn.Linear)
