"""The suite's benchmark compares like with like: same starts, same steps, same verdicts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import suite
from benchmarks.__main__ import main
from iaat_fast import ops
from iaat_fast.data import Split, fetch

pytest.importorskip("torchattacks")


@pytest.fixture
def task() -> suite.Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    x, _ = fetch(Split(images, torch.zeros(64, dtype=torch.int64)), torch.arange(64))
    split = Split(images, model(x).argmax(1))
    return suite.Task(model, split, ((2, 3), (9, 2)), 8 / 255, 2 / 255)


def test_torchattacks_starts_where_this_project_does(task: suite.Task) -> None:
    class FirstInput(nn.Module):
        first: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.first = x.detach().clone() if self.first is None else self.first
            return task.model(x)

    import torchattacks

    watched, index = FirstInput().eval(), torch.arange(5, 37)
    x, y = fetch(task.split, index)
    drawn = torch.Tensor.uniform_
    with suite.given_noise(x, task.eps, index, 2):
        torchattacks.PGD(watched, eps=task.eps, alpha=task.alpha, steps=1)(x, y)
    assert torch.Tensor.uniform_ is drawn
    start = ops.random_start_linf(x, task.eps, suite.SEED, index, restart=2)
    assert watched.first is not None
    assert torch.equal(watched.first, start)
    assert suite.differing_bits(task) == 0


def test_all_providers_are_done_and_agree(task: suite.Task) -> None:
    _, outcomes = suite.race(task, dict.fromkeys(suite.PROVIDERS, 32))
    peer, last, any_ = (outcomes[name] for name in (suite.PEER, suite.LAST, suite.ANY))
    assert peer.passes == task.passes == 64 * (2 * 3 + 9 * 2)
    assert last.passes < peer.passes
    for key in ("2x3", "9x2"):
        assert torch.equal(last.verdicts[key], peer.verdicts[key])
        assert bool((any_.verdicts[key] <= peer.verdicts[key]).all())
        assert 0 < int(peer.verdicts[key].sum()) < 64


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["suite", "--model", str(tmp_path / "gone"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
    for word in ("10", "x5", "10x0", "axb"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected STEPSxRESTARTS"):
            suite.attack_of(word)
