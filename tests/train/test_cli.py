"""The command line: flags, units, help, and one line on standard error for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from iaat_fast.run_folder import RunFolder
from iaat_fast.train.cli import Command, main, parse
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import FREE, override
from iaat_fast.train.presets import PRESETS, preset


def words(line: str) -> list[str]:
    return line.split()


def test_the_default_is_iaat_on_digits_by_the_paper() -> None:
    command = parse([])
    assert command.config == preset("digits", method="iaat", protocol="paper")
    assert not command.resume
    assert not command.overwrite


@pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, "paper") for name in PRESETS]
    + [("digits", "released"), ("cifar10-wrn32-10", "released")],
)
def test_preset_method_and_protocol_select_the_defaults(name: str, protocol: Any) -> None:
    command = parse([name, "--protocol", protocol, "--method=adv"])
    assert command.config == preset(name, method="adv", protocol=protocol)


def test_every_flag_of_the_design_reaches_its_field() -> None:
    line = (
        "cifar10-resnet18 --method adv --protocol released --data images.npz --out run "
        "--epochs 3 --batch-size 32 --seed 7 --limit 64 --width 16 --device cpu "
        "--checkpoint-steps 9 --overwrite"
    )
    command = parse(words(line))
    config = command.config
    assert (config.preset, config.method, config.protocol) == (
        "cifar10-resnet18",
        "adv",
        "released",
    )
    assert (config.data.path, config.data.limit) == ("images.npz", 64)
    assert (config.optim.epochs, config.optim.batch_size) == (3, 32)
    assert (config.run.out, config.run.seed, config.run.device) == ("run", 7, "cpu")
    assert config.run.checkpoint_steps == 9
    assert config.model.width == 16
    assert command.overwrite
    assert not command.resume


PIXEL_FLAGS = {
    "--eps": ("attack", "eps"),
    "--alpha": ("attack", "alpha"),
    "--eps-w": ("epsilon", "eps_w"),
    "--gamma": ("epsilon", "gamma"),
    "--eps-min": ("epsilon", "eps_min"),
    "--mma-d-max": ("baseline", "mma_d_max"),
    "--cat-eta": ("baseline", "cat_eta"),
    "--eval-eps": ("evaluation", "eps"),
    "--eval-alpha": ("evaluation", "alpha"),
}


def method_that_reads(flag: str) -> list[str]:
    others = {"--eps": ["adv"], "--mma-d-max": ["mma", "--mma-d-min", "0.1"], "--cat-eta": ["cat"]}
    return ["--method", *others.get(flag, ["iaat"])]


@pytest.mark.parametrize("flag", PIXEL_FLAGS)
@pytest.mark.parametrize("units", ["8", "1.9", "0.5"])
def test_epsilon_like_flags_are_in_units_of_1_255(flag: str, units: str) -> None:
    part, field = PIXEL_FLAGS[flag]
    config = parse([*method_that_reads(flag), flag, units]).config
    assert getattr(getattr(config, part), field) == float(units) / 255


@pytest.mark.parametrize("flag", PIXEL_FLAGS)
def test_fractions_are_on_the_scale_of_the_pixels(flag: str) -> None:
    part, field = PIXEL_FLAGS[flag]
    config = parse([*method_that_reads(flag), flag, "8/255"]).config
    assert getattr(getattr(config, part), field) == 8 / 255


@pytest.mark.parametrize("flag", ["--eps", "--eps-w", "--eval-eps", "--alpha", "--gamma"])
def test_numbers_of_the_unit_scale_are_warned_of(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method = method_that_reads(flag)
    assert main(["cifar10-resnet18", *method, flag, "0.03", "--data", "nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"python -m iaat_fast.train: warning: {flag}: 0.03/255")
    assert "nowhere" in lines[1]


def test_beta_is_not_in_units_of_1_255() -> None:
    assert parse(["--beta", "0.2"]).config.epsilon.beta == 0.2


def test_every_field_of_the_configuration_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", text))
    renamed = {"name", "path"}  # --dataset, --data, --model
    for part, fields in TrainConfig().to_dict().items():
        for field in fields if isinstance(fields, dict) else []:
            prefix = "eval-" if part == "evaluation" else ""
            flag = f"--{prefix}{field.replace('_', '-')}"
            assert field in renamed or flag in flags, flag
    assert {"--dataset", "--data", "--model", "--method", "--protocol"} <= flags
    assert {"--resume", "--overwrite"} <= flags


def test_help_lists_the_presets_groups_flags_and_prints_1_255_units(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["cifar10-wrn32-10", "--help"])
    text = capsys.readouterr().out
    for name in PRESETS:
        assert name in text
    for group in ("data", "model", "attack", "epsilon", "optim", "evaluation", "run"):
        assert f"{group} options" in text
    flat = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    assert re.search(r"--gamma N/255 [^-]*\(default: 1\.9\)", flat)
    assert re.search(r"--epochs INT [^-]*\(default: 110\)", flat)


BAD_LINES = [
    ("digit", "did you mean 'digits'"),
    ("cifar10-resnet19", "did you mean 'cifar10-resnet18'"),
    ("--method iat", "did you mean 'iaat'"),
    ("--protocol papr", "did you mean 'paper'"),
    ("--epoch 3", "--epoch: unknown flag, did you mean '--epochs'"),
    ("--batchsize 3", "did you mean '--batch-size'"),
    ("--epochs ten", "--epochs"),
    ("--epochs", "--epochs"),
    ("--epochs 0", "error: --epochs: 0"),
    ("--eps 256", "256/255"),
    ("--eps -1", "error: --eps: "),
    ("--eps nan", "error: --eps: nan"),
    ("--eps 8/0", "'8/0', expected a number of units of 1/255, or a fraction such as 8/255"),
    ("--strategy eager", "'lazy'"),
    ("--model resnet19", "did you mean 'resnet18'"),
    ("--dataset cifar11", "did you mean 'cifar10'"),
    ("--method adv cifar10-resnet18", "PRESET comes before the flags"),
    ("digits cifar10-resnet18", "cifar10-resnet18"),
    ("--device cuda:99 --out run", "cuda:99"),
    ("cifar10-resnet18 --data nowhere --out run", "--data nowhere: no such folder"),
    ("--data cifar.npz --out run", "expected none with --dataset 'digits'"),
    ("--resume", "--resume needs"),
    ("--resume --out run", "no run there"),
    ("--resume --overwrite --out run --epochs 1", "exclude each other"),
    ("--decay-epochs 9 3", "error: --decay-epochs: "),
    ("--out /proc/run", "error: --out /proc/run: cannot be made"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
def test_bad_input_is_status_2_and_one_line(
    line: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(line)) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert expected in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path).create(preset("digits").to_dict(), {})
    (tmp_path / "config.json").write_text('{"attack": {"epss": 1}}')
    assert main(["--resume", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "config.json" in err
    assert "'eps'" in err


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run folder of an unusual configuration, killed before its first checkpoint."""
    config = preset("cifar10-resnet18", method="adv", protocol="released")
    config = override(config, {"optim": {"epochs": 3}, "attack": {"eps": 3 / 255}})
    RunFolder(tmp_path / "run").create(config.to_dict(), {})
    return tmp_path / "run"


def resumed(folder: Path, *flags: str) -> Command:
    return parse([*flags, "--resume", "--out", str(folder)])


def test_resume_without_flags_takes_everything_from_the_folder(recorded: Path) -> None:
    config = resumed(recorded).config
    assert config.to_dict() == {
        **RunFolder(recorded).config(),
        "run": {**RunFolder(recorded).config()["run"], "out": str(recorded)},
    }


@pytest.mark.parametrize(
    "flags",
    [
        "--epochs 3 --eps 3",
        "cifar10-resnet18 --method adv --protocol released",
        "--device cpu --data elsewhere --checkpoint-steps 5 --no-tensorboard",
    ],
)
def test_resume_accepts_flags_that_agree_or_do_not_matter(recorded: Path, flags: str) -> None:
    from iaat_fast.train.setup import open_folder

    command = resumed(recorded, *words(flags))
    folder, going_on = open_folder(command.config, resume=True, overwrite=False)
    assert going_on
    assert folder.path == recorded


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--epochs 2", "--epochs (3 there, 2 given)"),
        ("--eps 8", "--eps ("),
        ("--method iaat", "method ('adv' there, 'iaat' given)"),
        ("--protocol paper", "protocol"),
        ("digits", "preset ('cifar10-resnet18' there, 'digits' given)"),
        ("--seed 1", "--seed ("),
    ],
)
def test_resume_refuses_flags_that_disagree(
    recorded: Path, flags: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(flags), "--resume", "--out", str(recorded)]) == 2
    err = capsys.readouterr().err
    assert field in err
    assert err.count("\n") == 1


def test_the_free_fields_are_those_the_help_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    sentence = re.search(r"must agree with it; only (.*?) may differ", text)
    assert sentence is not None
    names = {"data.path": "--data"}
    flags = {names.get(f, "--" + f.partition(".")[2].replace("_", "-")) for f in FREE - {"run.out"}}
    assert set(re.findall(r"--[a-z-]+", sentence[1])) == flags


SMALL = [
    *["--limit", "32", "--width", "4", "--device", "cpu", "--no-tensorboard"],
    *["--epochs", "2", "--warmup-epochs", "1", "--decay-epochs", "1"],
]


@pytest.mark.slow
def test_a_run_ends_with_the_table_the_folder_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--out", str(out)]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    results = json.loads((out / "results.json").read_text())
    assert f"{results['natural_accuracy']:.2%}" in text
    assert f"{results['robust_accuracy']:.2%}" in text
    assert "51/255" in text
    assert results["attack"] == {"eps": 0.2, "alpha": 12.75 / 255, "steps": 10, "restarts": 5}
    assert results["eps_mean"] == pytest.approx(RunFolder(out).metrics()[-1]["eps_mean"])
    assert f"python -m iaat_fast.evaluate {out}" in text
    for method in ("adv", "clean"):
        again = f"python -m iaat_fast.train digits --method {method} "
        (line,) = [line for line in text.splitlines() if again in line]
        flags = ("--limit 32", "--epochs 2", "--device cpu", "--no-tensorboard")
        assert all(flag in line for flag in flags)
    assert list((out / "plots").glob("*.png"))
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["epsilon"].shape == (32,)


def test_the_same_run_again_is_refused_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path).create(preset("digits").to_dict(), {})
    assert main([*SMALL, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path) in err
    assert "--resume" in err
    assert "--overwrite" in err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "iaat_fast.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_status_and_streams_of_the_real_command() -> None:
    bad = run("digitz")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.count("\n") == 1
    assert "did you mean 'digits'" in bad.stderr


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    save = RunFolder.save_checkpoint

    def killed_after_it(self: RunFolder, state: dict[str, Any]) -> None:
        save(self, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed_after_it)
        with pytest.raises(Killed):
            main([*SMALL, "--batch-size", "16", "--out", str(folder.path)])
    before = folder.checkpoint_path.read_bytes()
    capsys.readouterr()
    with files_of_at_most(len(before) // 2):
        assert main(["--resume", "--out", str(folder.path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "checkpoint.pt" in err
    assert os.strerror(27) in err
    assert folder.checkpoint_path.read_bytes() == before
    assert not list(folder.path.glob(".*"))


@pytest.mark.slow
def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, iaat_fast.train\n"
        "heavy = {'tyro', 'matplotlib', 'tensorboard', 'torchvision', 'sklearn'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
