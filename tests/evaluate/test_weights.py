"""Fitting a state dict as projects save it into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.evaluate.weights import fit_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


STATE = {name: torch.rand(value.shape) for name, value in network().state_dict().items()}
STATE["1.num_batches_tracked"] = torch.tensor(5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}},
    ],
)
def test_a_state_dict_loads_however_it_is_wrapped(wrap: Callable[[Any], Any]) -> None:
    model = network()
    fit_weights(model, wrap(STATE), "w.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, STATE[name]), name


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


@pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3), {"a": 1}, {1: torch.zeros(2)}])
def test_what_is_no_state_dict_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"w\.pt: expected a state dict"):
        fit_weights(network(), content, "w.pt")
