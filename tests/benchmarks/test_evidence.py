"""The test of the claim that IAAT lies beyond the curve of fixed radii, the table of methods, and their runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import write
from benchmarks.evidence.__main__ import chosen_grid, main, parse
from benchmarks.evidence.comparison import tables
from benchmarks.evidence.frontier import Verdicts, accuracies, beyond, compare
from benchmarks.evidence.grids import CIFAR10, DIGITS, DIGITS_MORE, METHODS, METHODS_CIFAR10
from benchmarks.evidence.jobs import jobs_of, suite
from benchmarks.evidence.measured import attacks, by_image
from benchmarks.evidence.pack import PART, pack, unpack
from benchmarks.evidence.schedule import epochs_within
from iaat_fast.evaluate.results import wilson
from iaat_fast.methods import method_key
from iaat_fast.run_folder import RunFolder, flat
from iaat_fast.storage import read_json, write_json

CURVE = np.array([[90.0, 40.0], [80.0, 60.0]])


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((90, 40), 0),  # a vertex
        ((85, 50), 0),  # the middle of the line
        ((88, 53), 3),  # (85, 50) in reach by giving up 3 points of both
        ((80, 45), -15 / 3),  # (85, 50) is 5 points better in both
        ((95, 30), 5),  # to (90, 25), which is no better than (90, 40) anywhere
        ((70, 66), 6),
        ((0, 0), -60),  # (80, 60) is at least 60 points better in both
    ],
)
def test_beyond_is_what_a_point_can_lose_of_both_accuracies(point, distance):
    by_search = min(
        max(point[0] - q[0], point[1] - q[1])
        for q in CURVE[0] + np.linspace(0, 1, 100_001)[:, None] * (CURVE[1] - CURVE[0])
    )
    found = beyond(np.float64(point[0]), np.float64(point[1]), CURVE)
    assert found == pytest.approx(by_search, abs=2e-4)
    assert found == pytest.approx(distance)


def test_beyond_is_a_curve_of_its_own_for_every_replicate():
    random = np.random.default_rng(0)
    curves, points = random.uniform(0, 100, (5, 4, 2)), random.uniform(0, 100, (5, 2))
    together = beyond(points[:, 0], points[:, 1], curves)
    alone = [beyond(p[0], p[1], curve) for p, curve in zip(points, curves, strict=True)]
    np.testing.assert_allclose(together, alone)


def test_a_single_radius_is_a_curve():
    assert beyond(np.float64(70), np.float64(50), np.array([[60.0, 45.0]])) == 10


def _drawn(random, natural, robust, seeds=3, images=400):
    shape = (seeds, images)
    return Verdicts(natural=random.random(shape) < natural, robust=random.random(shape) < robust)


def test_a_setting_far_beyond_the_curve_is_found_and_one_inside_is_not():
    random = np.random.default_rng(1)
    fixed = {eps: _drawn(random, n, r) for eps, n, r in ((0.1, 0.9, 0.4), (0.2, 0.8, 0.6))}
    others = {"beyond": _drawn(random, 0.95, 0.75), "inside": _drawn(random, 0.7, 0.4)}
    _, found = compare(fixed, others, replicates=1000)
    assert found["beyond"].beyond.interval(tests=20)[0] > 0
    assert found["inside"].beyond.interval(tests=20)[1] < 0


def test_a_setting_on_the_curve_is_rarely_called_beyond_it():
    random = np.random.default_rng(2)
    wrong = 0
    for trial in range(100):
        fixed = {eps: _drawn(random, n, r) for eps, n, r in ((0.1, 0.9, 0.4), (0.2, 0.8, 0.6))}
        _, found = compare(fixed, {"on": _drawn(random, 0.85, 0.5)}, replicates=200, seed=trial)
        wrong += found["on"].beyond.interval()[0] > 0
    # 2.5 expected of a perfect interval; more than 8 of 100 has a chance of 0.1 %.
    assert wrong <= 8


def test_seeds_that_disagree_widen_the_interval_as_the_error_of_their_mean():
    images = 50
    natural = np.stack([np.full(images, value) for value in (True, True, False)])
    fixed = {0.1: Verdicts(natural=natural, robust=natural)}
    (point,) = compare(fixed, {}, replicates=20_000)[0].values()
    # The seeds' accuracies are 100, 100, 0: their standard deviation over the root of 3.
    assert point.natural.replicates.std() == pytest.approx(57.735 / 3**0.5, rel=0.02)


def test_what_cannot_be_compared_is_refused():
    one, other = (np.ones((2, n), dtype=bool) for n in (3, 4))
    with pytest.raises(ValueError, match=r"robust: \[2, 4\], expected the shape of natural"):
        Verdicts(natural=one, robust=other)
    with pytest.raises(ValueError, match="natural: float64"):
        Verdicts(natural=one.astype(float), robust=one)
    whole = Verdicts(natural=one, robust=one)
    with pytest.raises(ValueError, match="at least one radius"):
        compare({}, {"iaat": whole})
    with pytest.raises(ValueError, match=r"of \[3, 4\] images"):
        compare({0.1: whole}, {"iaat": Verdicts(natural=other, robust=other)})


@pytest.mark.slow
def test_every_run_is_trained_then_evaluated_in_two_jobs(tmp_path: Path):
    runs = DIGITS.runs(tmp_path, (0, 1))
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 2 * len(DIGITS.settings)
    jobs = jobs_of(DIGITS, runs)
    assert len({job.name for job in jobs}) == len(jobs) == 3 * len(runs)
    assert {job.state for job in jobs} == {"new"}


def test_the_page_states_the_claim_for_every_attack_and_what_is_not_measured():
    random = np.random.default_rng(3)
    named = {s.name: _drawn(random, 0.8, 0.5) for s in DIGITS.settings if s.eps is not None}
    named["iaat-epsw51"] = _drawn(random, 0.95, 0.8)
    analysis = write.analyse(DIGITS, {next(iter(attacks(DIGITS))): named})
    facts = {"title": "T", "commands": ["c"], "measured": "M.", "seeds": "3 seeds", "images": 400}
    shown = write.tables(DIGITS, write.record(DIGITS, analysis, facts))
    assert "Beyond: IAAT, ε_w = 51. Inside: none. Undecided: none." in shown
    assert "| IAAT, ε_w = 60 | not measured |  |  |  |  |" in shown


def test_more_settings_are_compared_with_the_runs_at_fixed_radii_that_are_there():
    shared = set(DIGITS.settings) & set(DIGITS_MORE.settings)
    assert shared == {setting for setting in DIGITS.settings if setting.eps is not None}
    own = {setting.name for setting in set(DIGITS_MORE.settings) - shared}
    assert not own & {setting.name for setting in DIGITS.settings}
    how = ("folder", "preset", "flags", "eps", "alpha", "attacks", "engine")
    assert all(getattr(DIGITS_MORE, name) == getattr(DIGITS, name) for name in how)


def test_every_method_trains_in_the_slim_setting(tmp_path: Path):
    runs = METHODS_CIFAR10.runs(tmp_path, [0])
    configs = [flat(run.config.to_dict()) for run in runs]
    assert [method_key(config) for config in configs] == [s.name for s in METHODS.settings]
    for config in configs:
        assert (config["model.width"], config["data.limit"], config["optim.epochs"]) == (
            8,
            8000,
            10,
        )
        assert config["attack.engine"] == "fast"


@pytest.mark.parametrize(
    ("grid", "flags", "key"),
    [
        (METHODS, [], "autoattack-eps51"),
        (DIGITS, ["--autoattack-engine", "fast"], "autoattack-eps51-fast"),
        (CIFAR10, ["--autoattack-precision", "bf16"], "autoattack-eps8-bf16"),
    ],
)
def test_the_tables_read_autoattack_with_the_gradients_that_it_is_run_with(grid, flags, key):
    given = suite(grid).flags
    start = given.index("autoattack") + 1
    assert list(given[start : start + 2]) == flags
    assert next(iter(attacks(grid).values())) == key


def test_a_rehearsal_attacks_no_more_images_than_it_trains_on(tmp_path: Path):
    for limit, attacked in (("64", 64), ("600", 500)):
        words = ["methods-cifar10", "--data", "x.npz", "--only", "adv", "--limit", limit]
        grid = chosen_grid(parse(words), tmp_path)
        evaluate = jobs_of(grid, grid.runs(tmp_path, [0]))[1].command
        assert evaluate[evaluate.index("--limit") + 1] == str(attacked) == str(grid.images)


def _measured(folder: Path, **arrays: np.ndarray) -> None:
    """A run folder, trained and evaluated, as far as the evidence reads it."""
    rows = [{"key": key} for key in arrays]
    header = {"schema": 1, "suite": "quick", "rule": "last", "complete": True}
    record = {**header, "settings": {}, "parts": [], "data": {}, "measurements": rows}
    radii = {"eps_mean": 0.2, "eps_std": 0.0, "samples": 50}
    RunFolder(folder).create({}, {"commit": "0123456789", "threads": 1})
    for seconds in (3.0, 2.0):
        RunFolder(folder).append_metrics({"epoch": 1, "step": 1, "seconds": seconds})
    write_json(folder / "results.json", {**record, **radii})
    labels = np.zeros(50, dtype=int)
    np.savez(folder / "verdicts.npz", labels=labels, allow_pickle=False, **arrays)


def test_methods_are_compared_over_all_seeds_that_each_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(4)
    natural, pgd, autoattack = (random.random((2, 50)) < share for share in (0.9, 0.7, 0.6))
    names = {"pgd10x5-eps51": pgd, "autoattack-eps51": autoattack}
    for seed in (0, 1):
        attacked = {key: each[seed] for key, each in names.items()}
        _measured(tmp_path / "methods" / f"adv-seed{seed}", natural=natural[seed], **attacked)
    # CAT: one seed, the same natural verdicts as adv's first, no AutoAttack.
    first = tmp_path / "methods" / "cat-seed0"
    _measured(first, natural=natural[0], **{"pgd10x5-eps51": pgd[0]})
    command = ["methods", "--analyse", "--out", str(tmp_path), "--seeds", "0", "1", "2"]
    assert main([*command, "--only", "adv", "cat", "mma"]) == 0
    page, content = map(Path, capsys.readouterr().out.splitlines())
    record, text = read_json(content), page.read_text()
    adv, cat, mma = record["rows"]
    assert [adv["seeds"], cat["seeds"], mma["seeds"]] == [2, 1, 0]
    assert adv["accuracies"]["natural"]["value"] == pytest.approx(100 * natural.mean())
    found = cat["accuracies"]["natural"]["interval_95"]
    assert found == pytest.approx([100 * end for end in wilson(int(natural[0].sum()), 50)])
    apart = cat["accuracies"]["natural"]["difference"]
    assert apart["value"] == pytest.approx(100 * (natural[0].mean() - natural.mean()))
    assert (adv["eps_mean"], adv["seconds_per_epoch"], adv["seconds"]) == (51, 2.5, 5)
    assert cat["accuracies"]["AutoAttack, ε = 51"] is None
    assert f"| MMA | 0{' | not measured' * 6} |" in text
    assert "\n".join(tables(record)) in text
    assert "3 of 9 runs, trained at commit 0123456 with 1 thread each" in text


def test_a_difference_is_of_the_same_images():
    verdicts = np.random.default_rng(5).random((1, 200)) < 0.7
    better = verdicts.copy()
    better[0, np.flatnonzero(~verdicts[0])[:10]] = True
    found = accuracies({"one": verdicts, "same": verdicts, "better": better}, replicates=2000)
    assert not found["same"].minus(found["one"]).replicates.any()
    apart = found["better"].minus(found["one"])
    assert apart.value == pytest.approx(5)
    # Ten of 200 images differ, one way: the error of the share 0.05 of 200, and not of two shares of 0.7.
    assert apart.replicates.std() == pytest.approx(100 * (0.05 * 0.95 / 200) ** 0.5, rel=0.1)


def test_of_a_training_measured_on_all_images_those_count_that_are_attacked(tmp_path: Path):
    grid = dataclasses.replace(METHODS, settings=METHODS.settings[:1], images=20)
    (run,) = grid.runs(tmp_path, [0])
    natural = np.arange(50) % 3 > 0
    _measured(run.folder, natural=natural)
    found = by_image(grid, run)
    assert list(found) == ["natural"]
    np.testing.assert_array_equal(found["natural"], natural[:20])


def test_minutes_become_epochs_once_by_a_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    class Ended:
        returncode, stderr = 0, ""

    def train(command: list[str], **_: object) -> type[Ended]:
        asked.append(command)
        folder = RunFolder(command[command.index("--out") + 1])
        folder.path.mkdir(parents=True)
        for seconds in (30.0, 3.0, 2.5):
            folder.append_metrics({"epoch": 1, "step": 1, "seconds": seconds})
        return Ended

    monkeypatch.setattr("benchmarks.evidence.schedule.subprocess.run", train)
    # 2.5 s for 12,800 images are 9.8 s an epoch of 50,000.
    assert epochs_within(CIFAR10, 3, tmp_path) == 18
    assert epochs_within(CIFAR10, 3, tmp_path) == 18
    assert len(asked) == 1
    with pytest.raises(ValueError, match=r"--minutes: 2, expected 3"):
        epochs_within(CIFAR10, 2, tmp_path)


def test_the_runs_of_cifar10_warm_up_for_the_papers_share_of_the_epochs(tmp_path: Path) -> None:
    grid = chosen_grid(parse(["cifar10", "--epochs", "80", "--data", "x.npz"]), tmp_path)
    runs = {run.setting: run.config for run in grid.runs(tmp_path, [0])}
    assert {config.optim.epochs for config in runs.values()} == {80}
    assert runs["iaat-epsw8"].epsilon.warmup_epochs == 2
    assert runs["iaat-no-warmup"].epsilon.warmup_epochs == 0
    assert runs["adv-eps8"].data.path == "x.npz"
    assert all(config.optim.lr_schedule == "one-cycle" for config in runs.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits --minutes 3", "--minutes: not read by digits, expected cifar10"),
        (
            "methods --data x.npz",
            "--data: not read by methods, expected cifar10 or methods-cifar10",
        ),
        ("methods-cifar10 --epochs 2", "--epochs: not read by methods-cifar10, expected cifar10"),
        ("methods-cifar10", "--data: missing, expected CIFAR-10's folder or .npz"),
        ("methods --only adv-eps51", "--only: adv-eps51, expected among adv, iaat, cat"),
        ("cifar10", "--epochs or --minutes: expected one of them"),
        ("cifar10 --minutes 3 --epochs 2", "--epochs or --minutes: expected one of them"),
        ("cifar10 --minutes -1", "--minutes: -1, expected a number above 0"),
        ("digits --only adv-eps52", "--only: adv-eps52, expected among adv-eps12.75"),
        ("digits --jobs 0", "--jobs: 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_runs_are_packed_into_small_files_and_come_back(tmp_path: Path) -> None:
    out, parts, back = (tmp_path / name for name in ("out", "parts", "back"))
    content = np.random.default_rng(0).bytes(PART + 1000)
    for run in ("whole", "half"):
        (out / run / "plots").mkdir(parents=True)
        for name in ("checkpoint.pt", "checkpoint-previous.pt", "plots/loss.svg"):
            (out / run / name).write_bytes(content)
        (out / run / "results.json").write_text("{}")
    (out / "schedule.json").write_text("[]")
    files = pack(out, parts, ["whole"])
    assert len(files) == 2
    assert all(file.stat().st_size <= PART for file in files)
    unpack(parts, back)
    found = {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()}
    assert found == {
        "schedule.json",
        "whole/results.json",
        "half/results.json",
        "half/checkpoint.pt",
    }
    assert (back / "half" / "checkpoint.pt").read_bytes() == content
    with pytest.raises(ValueError, match="holds files, expected an empty folder"):
        pack(out, parts, [])
    with pytest.raises(FileExistsError, match="expected a new folder"):
        unpack(parts, back)
    files[1].unlink()
    with pytest.raises(ValueError, match="a last file is missing"):
        unpack(parts, tmp_path / "other")
    files[0].unlink()
    with pytest.raises(ValueError, match="expected all of evidence-000"):
        unpack(parts, tmp_path / "other")


def test_what_could_not_be_packed_or_analysed_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    out = ["--out", str(tmp_path / "runs")]
    assert main(["digits", *out, "--pack", str(tmp_path / "full")]) == 2
    assert main(["cifar10", *out, "--minutes", "1", "--analyse"]) == 2
    assert main(["methods-cifar10", *out, "--data", str(tmp_path / "none.npz")]) == 2
    assert main(["methods", *out, "--analyse", "--only", "adv"]) == 2
    packed, analysed, without_data, unmeasured = capsys.readouterr().err.splitlines()
    assert "holds files, expected an empty folder" in packed
    assert "--analyse: no runs in" in analysed
    assert "none.npz: no such folder or .npz" in without_data
    assert "no method is measured" in unmeasured
    assert not (tmp_path / "runs").exists()
