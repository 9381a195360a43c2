"""`fit` with a module and images from Python: the run folder, what is printed and recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from iaat_fast import ops
from iaat_fast.data import ImageData, Split, epoch_order, fetch
from iaat_fast.evaluate import read_record, robust_accuracy
from iaat_fast.evaluate.eval_target import weights_sha256
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import FitResult, TrainConfig, fit
from iaat_fast.train.finish import evaluate_run
from iaat_fast.train.optim import learning_rate
from iaat_fast.train.seeds import Stream, step_seed
from tests.train.same_run import Fit, assert_same_run, bits


@pytest.mark.parametrize("method", ["clean", "adv", "iaat"])
def test_a_run_trains_and_leaves_its_folder(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, method: str
) -> None:
    config = tiny_config(tmp_path / "run", method=method, run={"tensorboard": True})
    result = tiny_fit(config)
    folder = RunFolder(tmp_path / "run")
    assert [row["epoch"] for row in result.metrics] == [1, 2, 3]
    assert [row["step"] for row in result.metrics] == [5, 10, 15]
    assert folder.metrics() == result.metrics
    checkpoint = folder.checkpoint()
    assert (checkpoint["epoch"], checkpoint["step"]) == (3, 15)
    assert checkpoint["config"] == folder.config() == result.config.to_dict()
    assert checkpoint["epsilon"].dtype == torch.float32
    assert torch.equal(checkpoint["epsilon"], result.epsilon)
    assert result.epsilon.shape == (24,)
    assert torch.equal(checkpoint["model"]["5.weight"], result.model[5].weight)
    assert folder.env()["packages"]["torch"]
    assert len(list(folder.tensorboard_dir.glob("events.out.tfevents.*"))) == 1


def test_a_model_of_one_logit_is_refused_before_the_folder_is_made(
    tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    images = Split(torch.zeros(8, 4, 4, 1, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    data = ImageData(name="one", train=images, test=images, num_classes=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(ValueError, match=r"^model: one logit per image, expected at least two cla"):
        fit(tiny_config(tmp_path / "run"), model=model, data=data)
    assert not (tmp_path / "run").exists()


def test_a_run_on_tensors_and_a_dataset_is_the_run_on_their_pixels(
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tiny_model: Callable[[], nn.Module],
    tmp_path: Path,
) -> None:
    train, test = (
        (fetch(part, torch.arange(len(part)))) for part in (tiny_data.train, tiny_data.test)
    )
    own = (train, DataLoader(TensorDataset(*test), batch_size=5))
    results = [
        fit(tiny_config(tmp_path / name), model=tiny_model(), data=data, quiet=True)
        for name, data in (("split", tiny_data), ("own", own))
    ]
    assert torch.equal(*(result.epsilon for result in results))
    assert results[0].metrics[-1]["train_loss"] == results[1].metrics[-1]["train_loss"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, r"^data: int, expected an ImageData or \(train, test\)"),
        ((torch.zeros(4, 1, 4, 4), torch.zeros(4)), r"^train: y: None, expected the labels of x"),
    ],
)
def test_other_data_are_refused_before_the_folder_is_made(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tmp_path: Path,
    data: Any,
    message: str,
) -> None:
    with pytest.raises(TypeError, match=message):
        fit(tiny_config(tmp_path / "run"), model=tiny_model(), data=data)
    assert not (tmp_path / "run").exists()


def test_the_closing_evaluation_is_a_record_of_the_runs_own_weights(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    evaluation = {"steps": 2, "restarts": 2, "targeted": "random"}
    config = tiny_config(tmp_path / "run", run={"seed": 5}, evaluation=evaluation)
    result = tiny_fit(config)
    results = evaluate_run(result)
    content, verdicts = read_record(result.folder.path)
    assert content == result.folder.results()
    assert (content["suite"], content["seed"], content["epoch"]) == ("closing", 5, 3)
    assert {name: content[name] for name in results} == results
    assert content["settings"]["weights_sha256"] == weights_sha256(result.model)
    assert not result.folder.path.joinpath("progress.pt").exists()
    natural, robust = content["measurements"]
    assert (natural["accuracy"], robust["accuracy"]) == (
        *(results["natural_accuracy"], results["robust_accuracy"]),
    )
    expected = robust_accuracy(
        result.model,
        result.data.test,
        **{name: robust[name] for name in ("eps", "alpha", "steps", "restarts", "targeted")},
        seed=5,
    )
    assert robust["targeted"] == "random"
    assert np.array_equal(verdicts[robust["key"]], expected.correct.numpy())
    assert robust["gradients"] == expected.gradients.gradients
    # A new run in its place leaves nothing of it.
    result.folder.create(config.to_dict(), {})
    assert {path.name for path in result.folder.path.iterdir()} == {"config.json", "env.json"}


def test_the_mean_of_equal_radii_is_their_radius(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """In float32 the mean of 1,437 radii of 51/255 is larger than the largest of them."""
    equal = torch.full((1437,), 51 / 255)
    assert equal.mean() > equal.max()
    result = tiny_fit(tiny_config(tmp_path / "run", method="adv"))
    results = evaluate_run(replace(result, epsilon=equal))
    assert results["eps_min"] == results["eps_mean"] == results["eps_max"]
    assert results["eps_std"] == 0
    for row in result.metrics:
        assert row["eps_min"] == row["eps_mean"] == row["eps_max"]
        assert row["eps_std"] == 0


def test_what_a_row_of_metrics_holds_under_each_method(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    rows = {
        m: tiny_fit(tiny_config(tmp_path / m, method=m)).metrics for m in ("clean", "adv", "iaat")
    }
    assert rows["clean"][0]["train_robust_accuracy"] is None
    assert rows["adv"][0]["train_clean_accuracy"] is None
    for row in rows["iaat"]:
        assert 0 <= row["train_robust_accuracy"] <= row["train_clean_accuracy"] <= 1
    assert rows["clean"][-1]["train_loss"] < rows["clean"][0]["train_loss"]
    assert {row["eps_max"] for row in rows["clean"]} == {0.0}
    assert [row["eps_mean"] for row in rows["adv"]] == pytest.approx([0.2] * 3)
    assert rows["iaat"][0]["eps_mean"] == pytest.approx(0.2)
    assert rows["iaat"][2]["eps_std"] > 0


def test_radii_are_kept_at_the_epochs_asked_for_and_the_last(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = tiny_fit(tiny_config(tmp_path / "run", run={"snapshot_epochs": 2}))
    snapshots = result.folder.epsilon_snapshots()
    assert list(snapshots) == [2, 3]
    assert np.array_equal(np.load(snapshots[3]), result.epsilon.numpy())


def test_tensorboard_shows_the_metrics_and_the_histogram(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tiny_fit(tiny_config(tmp_path / "run", run={"tensorboard": True}))
    events = EventAccumulator(str(result.folder.tensorboard_dir)).Reload()
    assert {"train/loss", "test/accuracy", "eps/mean", "run/lr"} <= set(events.Tags()["scalars"])
    assert events.Tags()["histograms"] == ["eps/histogram"]
    mean = events.Scalars("eps/mean")
    assert [event.step for event in mean] == [5, 10, 15]
    assert mean[0].value == pytest.approx(0.2 * 255)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    one = tiny_fit(tiny_config(tmp_path / "one"))
    torch.rand(3)  # the caller's random state is no input
    two = tiny_fit(tiny_config(tmp_path / "two"))
    three = tiny_fit(tiny_config(tmp_path / "three", run={"seed": 1}))
    assert_same_run(one.folder, two.folder)
    assert not torch.equal(bits(one.folder)["5.weight"], bits(three.folder)["5.weight"])


def test_the_callers_random_state_and_the_given_module_are_handled_as_documented(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    model, rows = tiny_model(), []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = fit(
        tiny_config(tmp_path / "run"), model=model, data=tiny_data, on_epoch=rows.append, quiet=True
    )
    assert torch.equal(before, torch.get_rng_state())
    assert result.model is model
    assert rows == result.metrics


def test_a_quiet_run_prints_nothing_and_another_one_line_per_epoch(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_fit(tiny_config(tmp_path / "one"))
    assert capsys.readouterr() == ("", "")
    fit(tiny_config(tmp_path / "two"), model=tiny_model(), data=tiny_data)
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.partition(":")[0] for line in out.splitlines()[1:]] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]


def test_the_learning_rate_decays_at_the_epochs_of_the_table(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", optim={"decay_epochs": (1, 2), "decay_factor": 0.1})
    rates = [learning_rate(config.optim, epoch) for epoch in range(3)]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])
    assert [row["lr"] for row in tiny_fit(config).metrics] == rates


def test_an_existing_run_is_refused_without_resume_or_overwrite(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    before = bits(tiny_fit(config).folder)
    with pytest.raises(FileExistsError, match="--resume"):
        tiny_fit(config)
    with pytest.raises(ValueError, match="exclude each other"):
        tiny_fit(config, resume=True, overwrite=True)
    assert torch.equal(bits(RunFolder(tmp_path / "run"))["epsilon"], before["epsilon"])


def test_overwrite_replaces_a_run(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    tiny_fit(tiny_config(tmp_path / "run", optim={"epochs": 2}))
    result = tiny_fit(tiny_config(tmp_path / "run", method="adv"), overwrite=True)
    assert len(result.metrics) == 3
    assert result.folder.config()["method"] == "adv"
    assert result.folder.epsilon_snapshots() == {}


@pytest.mark.parametrize("keyword", ["resume", "overwrite"])
def test_a_folder_that_holds_no_run_is_never_touched(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, keyword: str
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="no run folder"):
        tiny_fit(tiny_config(tmp_path), **{keyword: True})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_another_configuration_names_fields_and_both_values(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    tiny_fit(tiny_config(tmp_path / "run"))
    other = tiny_config(tmp_path / "run", optim={"lr": 0.2})
    with pytest.raises(ValueError, match=r"optim\.lr \(0\.05 there, 0\.2 given\)"):
        tiny_fit(other, resume=True)


def test_a_finished_run_resumed_stays_as_it_is(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    before = bits(tiny_fit(config).folder)
    result = tiny_fit(config, resume=True)
    assert len(result.metrics) == 3
    assert torch.equal(before["5.weight"], result.model[5].weight)
    assert torch.equal(before["epsilon"], result.epsilon)


@pytest.mark.slow
def test_a_compiled_module_is_saved_under_plain_names_and_goes_on(
    tiny_model: Callable[[], nn.Module],
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    def run(name: str, model: nn.Module, **keywords: Any) -> FitResult:
        config = tiny_config(tmp_path / name, method="clean", optim={"epochs": 1, "ema_decay": 0.5})
        return fit(config, model=model, data=tiny_data, quiet=True, **keywords)

    plain = run("plain", tiny_model())
    with torch.compiler.set_stance("force_eager"):
        compiled = run("compiled", torch.compile(tiny_model()))  # type: ignore[arg-type]
        again = run("compiled", torch.compile(tiny_model()), resume=True)  # type: ignore[arg-type]
    assert_same_run(plain.folder, compiled.folder)
    saved = compiled.folder.checkpoint()
    assert saved["ema"].keys() == saved["model"].keys() == tiny_model().state_dict().keys()
    assert torch.equal(again.model.state_dict()["_orig_mod.0.weight"], saved["model"]["0.weight"])
    assert weights_sha256(compiled.model) == weights_sha256(plain.model)


def test_without_a_folder_each_run_gets_a_fresh_one(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = tiny_fit(tiny_config(optim={"epochs": 1}))
    two = tiny_fit(tiny_config(optim={"epochs": 1}))
    assert one.folder.path != two.folder.path
    assert one.folder.path.parent == Path("runs")
    assert one.folder.path.name.startswith("digits-iaat-")
    with pytest.raises(ValueError, match="--resume needs"):
        tiny_fit(tiny_config(), resume=True)


def test_a_module_that_does_not_fit_the_images_is_refused_before_a_folder_is_made(
    tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    wrong_shape = nn.Sequential(nn.Flatten(), nn.Linear(35, 3))
    few_classes = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for model, message in ((wrong_shape, "does not take"), (few_classes, "classes > 2")):
        with pytest.raises(ValueError, match=message):
            fit(tiny_config(tmp_path / "run"), model=model, data=tiny_data, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_asks_for_its_module_again(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = tiny_fit(tiny_config(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"fit\(data=...\)"):
        fit(result.config, resume=True, quiet=True)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", "meta"])
def test_a_device_that_is_not_there_is_refused(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, device: str
) -> None:
    with pytest.raises(ValueError, match=f"device: '{device}'"):
        tiny_fit(tiny_config(tmp_path / "run", run={"device": device}))
    assert not (tmp_path / "run").exists()


def test_augmented_images_are_those_that_the_op_draws_for_the_step(
    tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 3)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen.append(x.detach().clone())
            return self.linear(x.flatten(1))

    # Images as a caller may have made them, stored channels first.
    stored = tiny_data.train.images.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    data = replace(tiny_data, train=Split(stored, tiny_data.train.labels))
    config = tiny_config(tmp_path / "run", method="clean", data={"augment": True}, run={"seed": 3})
    model = Recorder()
    fit(config, model=model, data=data, quiet=True)
    batches = [part for epoch in range(3) for part in epoch_order(24, seed=3, epoch=epoch).split(5)]
    assert len(model.seen) == len(batches)
    for step, (x, index) in enumerate(zip(model.seen, batches, strict=True)):
        seed = step_seed(3, step, Stream.AUGMENT)
        assert torch.equal(x, ops.random_crop_flip(tiny_data.train.images, index, seed))


def test_images_of_one_label_only_still_train(
    tiny_config: Callable[..., TrainConfig], tiny_model: Callable[[], nn.Module], tmp_path: Path
) -> None:
    split = Split(
        images=torch.zeros(4, 6, 6, 1, dtype=torch.uint8), labels=torch.zeros(4, dtype=torch.int64)
    )
    data = ImageData(name="one", train=split, test=split, num_classes=1)
    result = fit(tiny_config(tmp_path / "run"), model=tiny_model(), data=data, quiet=True)
    assert len(result.metrics) == 3
