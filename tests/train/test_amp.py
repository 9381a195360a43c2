"""Mixed precision of the weight update: what it lowers, what it leaves, and that runs resume with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.data import ImageData
from iaat_fast.train import TrainConfig, fit
from iaat_fast.train.optim import MixedPrecision
from iaat_fast.train.step import TrainingStep

CPU = torch.device("cpu")
INITIAL_SCALE = 65536.0


def update(amp: MixedPrecision, *, weight: float, x: float) -> tuple[nn.Linear, torch.dtype]:
    """One step at rate 1 on the loss weight * x / 4; the layer afterwards, and the dtype of its output."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    out = amp.forward(layer, torch.full((1, 1), x))
    assert out.dtype == torch.float32
    amp.backward(out.sum() / 4)
    amp.step(optimizer)
    return layer, seen[0]


class WithLogits(nn.Linear):
    """Returns what transformers' models do: an object with the logits in it."""

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x), loss=None)


@pytest.mark.parametrize("name", ["off", "bf16"])
def test_the_logits_are_taken_out_of_the_models_output(name: str) -> None:
    layer, x = WithLogits(1, 2), torch.ones(3, 1)
    logits = MixedPrecision(name, CPU).forward(layer, x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, layer(x).logits, atol=2**-7, rtol=2**-7)


@pytest.mark.parametrize(
    ("name", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_forward_is_lowered_and_the_update_is_that_of_the_unscaled_loss(
    name: str, dtype: torch.dtype
) -> None:
    layer, found = update(MixedPrecision(name, CPU), weight=2.0, x=0.25)
    assert found == dtype
    # The gradient is x / 4, exact in every precision; the scale is a power of two.
    assert layer.weight.item() == 2 - 1 / 16
    assert layer.weight.dtype == torch.float32


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_falls() -> None:
    amp = MixedPrecision("fp16", CPU)
    layer, _ = update(amp, weight=0.5, x=4.0)  # 4 / 4 x 65,536 is beyond fp16
    assert layer.weight.item() == 0.5
    assert amp.state_dict()["scale"] == INITIAL_SCALE / 2


def test_only_fp16_has_a_state() -> None:
    assert MixedPrecision("off", CPU).state_dict() == MixedPrecision("bf16", CPU).state_dict() == {}
    first, second = MixedPrecision("fp16", CPU), MixedPrecision("fp16", CPU)
    update(first, weight=0.5, x=4.0)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_run_resumes_with_the_same_bits_and_the_same_scale(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    amp: str,
) -> None:
    def config(name: str) -> TrainConfig:
        optim = {"amp": amp, "epochs": 2}
        return tiny_config(tmp_path / name, optim=optim, run={"checkpoint_steps": 1})

    def run(name: str, **how: Any) -> dict[str, Any]:
        result = fit(config(name), model=tiny_model(), data=tiny_data, quiet=True, **how)
        return result.folder.checkpoint()

    whole = run("whole")
    call, steps = TrainingStep.__call__, 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise Killed
        return call(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        with pytest.raises(Killed):
            run("killed")
    resumed = run("killed", resume=True)
    assert resumed["scaler"] == whole["scaler"]
    assert (resumed["scaler"] != {}) is (amp == "fp16")
    assert torch.equal(resumed["epsilon"], whole["epsilon"])
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value)
