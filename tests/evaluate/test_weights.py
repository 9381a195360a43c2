"""Fitting a state dict as projects save it into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.evaluate.weights import AVERAGES, WRAPPERS, fit_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


STATE = {name: torch.rand(value.shape) for name, value in network().state_dict().items()}
STATE["1.num_batches_tracked"] = torch.tensor(5)


def prefixed(prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        *({key: STATE, "epoch": 3, "optimizer": {"state": {}}} for key in (*WRAPPERS, *AVERAGES)),
        {"model": {"state_dict": STATE}},
        {"state_dict": [STATE]},
        {"state_dict": {**STATE, "shapes": [1, 2], "epoch": 3}},
        {"model": STATE, "net": dict(STATE)},
        {"generator": {}, "state_dict": prefixed("module.")},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        {name.replace("0.", "0._orig_mod."): value for name, value in STATE.items()},
        {"ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}},
    ],
)
def test_a_state_dict_loads_however_it_is_wrapped(content: Any) -> None:
    model = network()
    fit_weights(model, content, "w.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, STATE[name]), name


class Wrapping(nn.Module):
    """A model with an attribute of its own that is called as wrappers call theirs, and an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 2)
        self._orig_mod = nn.Linear(2, 2)
        self.bias = nn.Parameter(torch.rand(2))
        self.seen: list[int] = []

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_models_own_state_dict_fits_whatever_its_attributes_are_called(prefix: str) -> None:
    saved, model = Wrapping(), Wrapping()
    saved.seen = [1, 2]
    fit_weights(model, {prefix + k: v for k, v in saved.state_dict().items()}, "w.pt")
    for name, value in saved.state_dict().items():
        assert name == "_extra_state" or torch.equal(value, model.state_dict()[name])
    assert model.seen == [1, 2]


def test_a_compiled_model_takes_plain_names() -> None:
    model = torch.compile(network(), backend="eager")
    fit_weights(model, STATE, "w.pt")  # type: ignore[arg-type]
    assert torch.equal(model.state_dict()["_orig_mod.3.weight"], STATE["3.weight"])


def test_of_several_the_one_that_fits_is_taken_and_weights_before_their_average(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = {name: value + 1 for name, value in STATE.items()}
    model = network()
    fit_weights(model, {"state_dict": [{"a": torch.zeros(2)}, STATE]}, "w.pt")
    fit_weights(model, {"ema": STATE, "model": {"fc.weight": torch.zeros(2)}}, "w.pt")
    assert not caplog.records
    fit_weights(model, {"ema": other, "model": STATE}, "w.pt")
    assert torch.equal(model.state_dict()["3.weight"], STATE["3.weight"])
    (record,) = caplog.records
    message = "w.pt: the weights in 'model' are taken, not their average in 'ema'"
    assert record.getMessage() == message


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda one, two: {"model": one, "net": two}, "('model', 'net')"),
        (
            lambda one, two: {"state_dict": [one, two]},
            "('state_dict'[0], 'state_dict'[1])",
        ),
        (lambda one, two: {"ema": one, "model_ema": two}, "('ema', 'model_ema')"),
    ],
)
def test_several_that_fit_and_differ_are_refused(wrap: Callable[..., Any], names: str) -> None:
    other = {name: value + 1 for name, value in STATE.items()}
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"w\.pt: holds several state dicts that fit") as error:
        fit_weights(model, wrap(STATE, other), "w.pt")
    assert names in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batch_counters_that_old_versions_of_torch_did_not_save_may_be_missing() -> None:
    fit_weights(network(), {k: v for k, v in STATE.items() if "tracked" not in k}, "w.pt")


def test_what_does_not_fit_is_named_but_only_the_first_few() -> None:
    def refused(state: dict[str, Any]) -> str:
        with pytest.raises(ValueError, match=r"w\.pt: does not fit the model") as error:
            fit_weights(network(), state, "w.pt")
        return str(error.value)

    renamed = {name.replace("3.", "fc."): value for name, value in STATE.items()}
    message = refused(renamed)
    assert "2 missing (3.weight, 3.bias)" in message
    assert "2 unexpected (fc.weight, fc.bias)" in message

    message = refused({f"backbone.{name}": value for name, value in STATE.items()})
    assert "and 5 more" in message
    assert message.count("backbone.") == 3

    message = refused({**STATE, "3.weight": torch.rand(10, 8)})
    assert "3.weight [10, 8], in the model [3, 8]" in message


@pytest.mark.parametrize(
    "content", [[1, 2], {}, torch.zeros(3), {"a": 1}, {1: torch.zeros(2)}, {"student": STATE}]
)
def test_what_is_no_state_dict_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"w\.pt: expected a state dict"):
        fit_weights(network(), content, "w.pt")
