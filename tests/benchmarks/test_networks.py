"""What the engine makes of a network, in the words of the benchmark of real ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.__main__ import main
from benchmarks.networks import measure_network
from benchmarks.targets import Target, smooth_noise, take_statistics
from iaat_fast.storage import read_json


class Undecided(nn.Module):
    """Whose layers depend on the values of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(12, 10), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(1)
        return self.high(features) if bool((x > 0.5).sum() > x.numel() // 2) else self.low(features)


class Noisy(nn.Module):
    """Another output every time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * torch.randn_like(x)


NETWORKS = {
    "whole": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
    ),
    "in parts": lambda: nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(12, 10)),
    "a copy of its modules": Undecided,
    "live": lambda: nn.Sequential(Noisy(), nn.Flatten(), nn.Linear(12, 10)),
}


def target(name: str) -> Target:
    torch.manual_seed(0)
    net, x = NETWORKS[name](), 0.1 + 0.8 * smooth_noise(4, 2)
    take_statistics(net, x, torch.Generator().manual_seed(0))
    return Target(net, x, net(x).argmax(1), 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_serves_a_network_is_named(name: str) -> None:
    rows = {row.provider: row for row in measure_network("it", target(name), 1, rounds=1)}
    assert {row.status for row in rows.values()} == {"ok"}
    assert set(rows) == set(networks.PROVIDERS)
    for provider in ("fast", "bf16"):
        figures = rows[provider].figures
        assert figures["served"] == name
        assert (figures["folded"], figures["batchnorm"]) == ((1, 1) if name == "whole" else (0, 0))
    assert rows["fast"].figures["signs"] > 0.9
    assert rows["plain-loop"].figures["signs"] == 1


def test_a_network_that_fails_is_a_row_and_the_others_are_measured() -> None:
    broken = target("whole")
    broken.model[-1] = nn.Linear(3, 10)
    rows = measure_network("it", broken, 1, rounds=1)
    assert {row.status for row in rows} == {"failed"}
    assert all("shapes cannot be multiplied" in row.detail for row in rows)


def test_a_library_that_is_not_there_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    record = tmp_path / "it.json"
    argv = ["--libraries", "timm", "--networks", "resnet50", "--record", str(record)]
    assert main(["networks", *argv]) == 0
    (row,) = read_json(record)["rows"]
    assert (row["case"], row["status"]) == ("timm resnet50", "missing")


def test_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["networks", "--libraries", "transformers", "--networks", "resnet50"])
    assert "--networks: resnet50, expected among ResNet, MobileNetV2" in capsys.readouterr().err
