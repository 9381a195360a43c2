"""The part "corruptions" of a suite: recorded one by one, resumed, completed, and refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iaat_fast.data import Split
from iaat_fast.evaluate import EvalTarget, evaluate_suite, read_record, recount
from iaat_fast.evaluate.corruptions import ALL, footnotes
from iaat_fast.evaluate.evaluation import folder_name
from iaat_fast.evaluate.parts import choose
from iaat_fast.evaluate.suites import suite_named

PARTS = ("natural", "corruptions")


@pytest.fixture
def target(published: Any) -> EvalTarget:
    return EvalTarget.of(published.model, published.split, dataset="cifar10")


def rows_of(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in content["measurements"]}


def test_rows_verdicts_and_summary_are_recorded(
    published: Any, target: EvalTarget, tmp_path: Path
) -> None:
    content = evaluate_suite(
        target, folder=tmp_path / "out", parts=PARTS, corruptions=published.folder
    )
    kept, verdicts = read_record(tmp_path / "out")
    assert kept == content
    assert content["complete"]
    rows = rows_of(content)
    assert list(rows) == ["natural", *(f"corruption-{name}" for name in ALL), "corruptions"]
    for name in ALL:
        right = [published.right(name, severity) for severity in range(1, 6)]
        assert verdicts[f"corruption-{name}"].sum(1).tolist() == right
        assert rows[f"corruption-{name}"]["accuracy"] == sum(right) / 100
    assert rows["corruptions"]["types"] == 19
    counted = recount(tmp_path / "out", [0, 1, 2])["corruption-fog"]
    right = [min(3, published.right("fog", severity)) for severity in range(1, 6)]
    assert counted["accuracy"] == pytest.approx(sum(right) / 15)


def test_what_was_measured_when_it_was_stopped_is_not_measured_again(
    published: Any, target: EvalTarget, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    told: list[tuple[str, float, float]] = []

    def tell(name: str, done: float, remaining: float) -> None:
        told.append((name, done, remaining))
        if name == "corruption impulse_noise":
            raise Stop

    settings: dict[str, Any] = {
        "folder": tmp_path / "out", "parts": PARTS, "corruptions": published.folder, "batch_size": 20,
    }  # fmt: skip
    with pytest.raises(Stop):
        evaluate_suite(target, tell=tell, **settings)
    kept, _ = read_record(tmp_path / "out")
    before = rows_of(kept)
    assert list(before) == ["natural", "corruption-gaussian_noise", "corruption-shot_noise"]
    assert not kept["complete"]
    assert told[0] == ("corruption gaussian_noise", 20, 1880)
    assert told[5] == ("corruption shot_noise", 120, 1780)

    told.clear()
    content = evaluate_suite(target, tell=lambda *what: told.append(what), **settings)
    assert told[0] == ("corruption impulse_noise", 20, 1680)
    assert told[-1] == ("corruption saturate", 1700, 0)
    after = rows_of(content)
    assert [after[key] for key in before] == list(before.values())
    assert content["complete"]
    assert len(after) == 21


def test_files_that_were_missing_are_measured_when_they_have_come(
    published: Any, target: EvalTarget, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "folder": tmp_path / "out", "parts": PARTS, "corruptions": published.folder
    }  # fmt: skip
    file = published.folder / "fog.npy"
    aside = file.rename(tmp_path / "fog.npy")
    rows = rows_of(evaluate_suite(target, **settings))
    assert not rows["corruptions"]["complete"]
    assert rows["corruptions"]["missing"] == ["fog: missing"]
    assert footnotes(rows["corruptions"]) == ["corruptions: incomplete, 18 measured; fog: missing"]
    aside.rename(file)
    again = rows_of(evaluate_suite(target, **settings))
    assert again["corruption-snow"] == rows["corruption-snow"]
    assert again["corruptions"]["complete"]
    assert again["corruptions"]["types"] == 19
    assert footnotes(again["corruptions"]) == []
    # And a file that goes once it has been measured takes nothing away.
    file.unlink()
    assert rows_of(evaluate_suite(target, **settings)) == again


def test_bad_corruptions_are_refused_before_anything_is_written(
    published: Any, target: EvalTarget, tmp_path: Path
) -> None:
    labels = np.load(published.folder / "labels.npy")
    np.save(published.folder / "labels.npy", (labels + 1) % 10)
    for folder, error in ((published.folder, ValueError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            evaluate_suite(target, folder=tmp_path / "out", parts=PARTS, corruptions=folder)
    with pytest.raises(ValueError, match="not among those asked for"):
        evaluate_suite(
            target, folder=tmp_path / "out", parts=("natural",), corruptions=published.folder
        )
    assert not (tmp_path / "out").exists()


def test_images_too_small_to_corrupt_have_no_such_part_unless_it_is_asked_for(
    target: EvalTarget,
) -> None:
    with pytest.raises(ValueError, match="at least 32x32, got 4x4"):
        evaluate_suite(target, parts=("corruptions",))
    cifar = suite_named("cifar")
    assert "corruptions" in choose(cifar, None, given=())
    assert "corruptions" not in choose(cifar, None, given=(), split=target.split)


class Bright(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], 1)


@pytest.mark.slow
def test_published_files_take_the_place_of_generated_images_and_never_the_reverse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imagecorruptions")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1]))
    target = EvalTarget.of(Bright(), split, dataset="cifar10")
    folder = tmp_path / folder_name(target, "quick")
    generated = rows_of(evaluate_suite(target, "quick", folder=folder, parts=PARTS))
    assert generated["corruptions"]["source"] == "generated"
    assert generated["corruptions"]["types"] == 19
    assert "not the published files" in footnotes(generated["corruptions"])[0]

    published = tmp_path / "CIFAR-10-C"
    published.mkdir()
    np.save(published / "labels.npy", np.tile([0, 1], 5))
    np.save(published / "fog.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
    settings: dict[str, Any] = {"folder": folder, "parts": PARTS}
    official = evaluate_suite(target, "quick", corruptions=published, **settings)
    rows = rows_of(official)
    assert list(rows) == ["natural", "corruption-fog", "corruptions"]
    assert rows["corruption-fog"]["source"] == "official"
    assert rows["corruption-fog"]["accuracy"] == 0.5
    assert rows["natural"] == generated["natural"]
    _, verdicts = read_record(folder)
    assert set(verdicts) == {"labels", "natural", "corruption-fog"}

    assert rows_of(evaluate_suite(target, "quick", **settings)) == rows
