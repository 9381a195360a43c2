"""What the method does not read, and what the run never reaches, is said; nothing asked for is left out in silence."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iaat_fast.data import ImageData
from iaat_fast.methods import NAMES, ROWS, reads
from iaat_fast.train import fit, override, preset
from iaat_fast.train.cli import _given, main
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.flags import FLAGS
from iaat_fast.train.optim import never_reached
from iaat_fast.train.overrides import PARTS, differences, refuse_unread
from iaat_fast.train.step import TrainingStep
from tests.train.same_run import Fit

DIVIDED = [
    *(
        f"{part}.{f.name}"
        for part in ("attack", "epsilon", "baseline")
        for f in dataclasses.fields(PARTS[part])
    ),
    "run.snapshot_epochs",
]
"""The fields of which a method reads some only."""

CHANGES: dict[str, Any] = {
    "attack.targeted": "random",
    "attack.alpha_rule": "scaled",
    "attack.bn": "train",
    "attack.clamp_start": False,
    "attack.project": False,
    "attack.precision": "bf16",
    "attack.engine": "fast",
    "baseline.cat_loss": "mix",
    "epsilon.selection_steps": 3,
    "epsilon.strategy": "batched",
    "epsilon.final": "reuse",
    "epsilon.clamp": "candidate",
    "epsilon.eps_min_bounds": "images",
    "epsilon.misclassified": "shrink",
    "epsilon.misclassified_input": "adversarial",
    "epsilon.warmup_rule": "correct",
    "baseline.nfgsm_project": True,
}
"""A value other than the default, where it is no number."""


def changed(field: str) -> Any:
    part, _, name = field.partition(".")
    old = getattr(getattr(preset("digits"), part), name)
    return (
        CHANGES[field]
        if field in CHANGES
        else old + 1
        if isinstance(old, int)
        else old * 0.75 + 0.01
    )


def words_for(field: str) -> list[str]:
    name, value = "--" + field.partition(".")[2].replace("_", "-"), changed(field)
    if isinstance(value, bool):
        return [name if value else "--no-" + name[2:]]
    pixels = f"{value * 255:.10g}" if isinstance(value, float) else str(value)
    return [name, pixels if "weight" not in name and "beta" not in name else str(value)]


def method_of(key: str) -> tuple[str, dict[str, Any]]:
    """The method of a row, and the fields that make it this variant."""
    parts: dict[str, dict[str, Any]] = {}
    for field, value in ROWS[key].when:
        part, _, name = field.partition(".")
        parts.setdefault(part, {})[name] = value
    return ROWS[key].variant_of or key, parts


@pytest.mark.parametrize("method", NAMES)
def test_a_field_that_the_method_does_not_read_is_refused_when_given(method: Any) -> None:
    for field in DIVIDED:
        part, _, name = field.partition(".")
        config, (flag, *value) = preset("digits", method=method), words_for(field)
        given = {f"{part}.{name}": " ".join([flag, *value])}
        assert _given(["digits", "--method", method, "--epochs=3", flag, *value]) == given
        if reads(method, field):
            refuse_unread(config, given, FLAGS.__getitem__)
            continue
        with pytest.raises(
            ValueError, match=rf"^{flag}.*: not read by method '{method}', expected --"
        ):
            refuse_unread(config, given, FLAGS.__getitem__)
        with pytest.raises(
            ValueError, match=rf"^{field} is .*: not read by method '{method}', exp"
        ):
            preset("digits", method=method, **{part: {name: changed(field)}})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--eps 4", "--eps 4: not read by method 'iaat', expected --eps-w"),
        (
            "--lr-schedule cosine --decay-epochs 4",
            "--decay-epochs 4: not read by the schedule 'cosine', expected --lr-schedule step",
        ),
        ("--eps=76.5", "--eps=76.5: not read by method 'iaat', expected --eps-w"),
        ("--method adv --eps-w 4", "--eps-w 4: not read by method 'adv', expected --eps"),
        ("--method mma --eps 4", "expected --mma-d-max"),
        ("--method mma --alpha 4", "expected --mma-step-scale"),
        ("--method cat --eps 4", "expected --cat-eps-max"),
        ("--method cat --gamma 4", "expected --cat-eta"),
        ("--method trades --beta 0.5", "expected --trades-beta"),
        ("--method nfgsm --noise 1", "expected --nfgsm-noise"),
        ("--method nfgsm --alpha 10", "expected --nfgsm-step"),
        ("--method adv --nfgsm-project", "expected --project"),
        ("--method adv --gamma 2", "expected --method iaat"),
        (
            "--method clean --steps 3",
            "expected --method adv or mixup or trades or mart or mma or cat or iaat",
        ),
        ("--warmup-epochs 0 --eps-w 4", "expected --warmup-epochs of at least 1"),
        ("--fast --protocol released --method adv --no_clamp_start --mart-beta 2", "--method mart"),
    ],
)
def test_the_message_names_what_is_read_instead(
    words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ROWS)
def test_what_a_method_does_not_read_changes_no_bit(
    key: str,
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tiny_model: Callable[[], torch.nn.Module],
) -> None:
    """The table is true: all that it leaves out is changed at once."""
    from iaat_fast.train.optim import make_optimizer
    from iaat_fast.train.step import make_memory

    method, parts = method_of(key)
    config = tiny_config(method=method, **parts)
    others: dict[str, dict[str, Any]] = {}
    for field in DIVIDED:
        if not reads(key, field):
            part, _, name = field.partition(".")
            others.setdefault(part, {})[name] = changed(field)
    if "selection_steps" in others.get("epsilon", {}):
        del others["epsilon"]["final"]  # which contradicts it
    other, cpu = override(config, others), torch.device("cpu")
    assert config != other
    assert differences(config, other) == []
    ends = []
    for each in (config, other):
        model = tiny_model()
        memory = make_memory(each, 24, cpu)
        step = TrainingStep(
            each, model, memory, make_optimizer(model, each.optim, on_device=False), cpu
        )
        torch.manual_seed(0)
        index = torch.arange(8)
        x, y = tiny_data.train.gather(index), tiny_data.train.labels[index]
        for epoch in range(2):
            step(GlobalBatch.of(x, y, index), epoch=epoch, seed=epoch)
        ends.append([*model.state_dict().values(), memory.values, step.totals])
    assert all(map(torch.equal, *ends))


def test_a_run_resumes_with_the_fields_that_its_method_does_not_read(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], tiny_fit: Fit
) -> None:
    """Runs of earlier versions may have recorded other values of them."""
    config = tiny_config(tmp_path / "run", method="adv", epsilon={"gamma": 0.3})
    tiny_fit(config)
    again = override(config, {"epsilon": {"gamma": 0.1}})
    assert len(tiny_fit(again, resume=True).metrics) == 3


@pytest.mark.parametrize(
    ("method", "parts", "numbers"),
    [
        ("iaat", {"epsilon": {"warmup_epochs": 3}}, [("warmup_epochs is 3", "optim.epochs 3")]),
        ("adv", {"epsilon": {"warmup_epochs": 3}}, []),
        ("iaat", {"optim": {"decay_epochs": (2, 3, 9)}}, [("has 3, 9", "epochs is 3")]),
        (
            "clean",
            {"optim": {"lr_reference_batch": 2, "lr_warmup_epochs": 4}},
            [("lr_warmup_epochs is 4", "epochs 3")],
        ),
        ("iaat", {"optim": {"decay_epochs": (9,), "lr_schedule": "cosine"}}, []),
        ("iaat", {}, []),
    ],
)
def test_what_the_epochs_never_reach_is_warned_of_with_both_numbers(
    method: str, parts: dict[str, Any], numbers: list[tuple[str, str]], tiny_config: Any
) -> None:
    config = override(tiny_config(method=method, optim={"decay_epochs": (2,)}), parts)
    found = never_reached(config)
    assert len(found) == len(numbers)
    assert all(
        one in line and other in line for line, (one, other) in zip(found, numbers, strict=True)
    )


def test_the_warning_is_one_line_and_the_run_goes_its_way(
    tmp_path: Path, tiny_config: Any, tiny_fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"epsilon": {"warmup_epochs": 1}, "optim": {"epochs": 1, "decay_epochs": ()}}
    with caplog.at_level(logging.WARNING):
        tiny_fit(tiny_config(tmp_path / "run", **parts))
    (message,) = caplog.messages
    assert (
        message
        == "epsilon.warmup_epochs is 1 and optim.epochs 1: the warm-up never ends, no radius adapts"
    )


@pytest.mark.parametrize("method", ["clean", "adv", "iaat"])
def test_radii_are_shown_where_samples_have_their_own(
    method: str,
    tmp_path: Path,
    tiny_config: Any,
    tiny_data: ImageData,
    tiny_model: Any,
    capsys: Any,
) -> None:
    from rich.console import Console

    from iaat_fast.train.finish import close_run

    parts = {"optim": {"epochs": 1}, "evaluation": {"steps": 1, "restarts": 1}}
    config = tiny_config(tmp_path / "run", method=method, **parts)
    close_run(fit(config, model=tiny_model(), data=tiny_data), Console())
    shown = capsys.readouterr().out
    assert ("mean eps" in shown) is (method == "iaat")
    assert ("ε memory" in shown) is (method == "iaat")
