"""The host waits for a GPU once per call, or never; what is wrong is heard of then, and the device stays usable."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, Findings

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "exact": {"engine": "exact"},
    "fast": {"engine": "fast"},
    "bf16": {"precision": "bf16"},
    "random targets": {"targeted": "random"},
    "dlr": {"loss": "dlr"},
    "kl": {"loss": "kl"},
    "batch statistics": {"bn": "train"},
}
each_way = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@pytest.fixture(autouse=True)
def same_kernels_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may otherwise choose another algorithm, with other roundings, for each call."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture
def net(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ]
    return nn.Sequential(*layers).to(device).eval()


@pytest.fixture
def batch(net: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(device)
    return x, net(x).argmax(1)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_way
@pytest.mark.parametrize("candidates", [1, 3])
def test_a_call_with_findings_never_waits(
    net: nn.Module, batch: tuple[Tensor, Tensor], options: dict[str, Any], candidates: int
) -> None:
    x, y = batch
    radii = torch.linspace(0.01, 0.1, 32 * candidates, device=x.device)
    seed = torch.tensor([3], device=x.device)
    pgd, findings = PGD(net, 0.05, 0.01, 5, **options), Findings(x.device)
    for _ in range(4):  # a copy is made, the number of classes is learnt, the warm-up, the capture
        expected = pgd(x, y, eps=radii, seed=3)
    stats = pgd.stats
    with no_waiting():
        x_adv = pgd(x, y, eps=radii, seed=seed, findings=findings)
    assert torch.equal(x_adv, expected)
    assert findings.settle() == (stats.zero, stats.nan)


@each_way
def test_a_call_waits_for_its_last_read_alone(
    net: nn.Module,
    batch: tuple[Tensor, Tensor],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = batch
    pgd = PGD(net, 0.05, 0.01, 5, seed=0, **options)
    for _ in range(4):
        pgd(x, y)
    read, reads = Findings._read, []

    def allowed(findings: Findings) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            reads.append(findings)
            return read(findings)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Findings, "_read", allowed)
    with no_waiting():
        pgd(x, y)
    assert len(reads) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"engine": "exact"}, {"precision": "bf16"}, {"targeted": "random"}, {"loss": "dlr"}],
    ids=str,
)
def test_a_call_in_a_graph_of_the_callers(
    net: nn.Sequential, batch: tuple[Tensor, Tensor], options: dict[str, Any]
) -> None:
    """A replay attacks the images, classes and weights that its tensors then hold, and adds to the findings."""
    x, y = (tensor.clone() for tensor in batch)
    seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    pgd, eager = (PGD(net, 0.05, 0.01, 5, **options) for _ in range(2))
    findings = Findings(x.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            pgd(x, y, seed=seed, findings=findings)
    torch.cuda.current_stream().wait_stream(side)
    findings.settle()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_adv = pgd(x, y, seed=seed, findings=findings)
    findings.settle()  # of the capture, which has run nothing
    for draw in (7, 8):
        x.copy_(batch[0].flip(0) * (0.9 if draw == 8 else 1.0))
        y.copy_(batch[1].flip(0))
        seed.fill_(draw)
        with torch.no_grad():
            net[6].weight.mul_(1.1)
        graph.replay()
        assert torch.equal(x_adv, eager(x, y, seed=draw))
        assert findings.settle() == (eager.stats.zero, eager.stats.nan)
    y[5] = 10
    graph.replay()
    with pytest.raises(ValueError, match=r"^y: 10, expected a class in 0 \.\.\. 9"):
        findings.settle()
    y[5] = 0
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = math.nan
    graph.replay()
    with pytest.raises(ValueError, match=r"^model: the weight '3\.weight' holds NaN"):
        findings.settle()


def test_what_cannot_be_captured_is_refused_and_spoils_no_capture(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    pgd, findings = PGD(net, steps=2), Findings(x.device)
    restarts = PGD(net, steps=2, restarts=2)
    seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    for attack in (pgd, restarts):
        attack(x, y, seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(ValueError, match=r"^findings: None while a CUDA graph is captured"):
            pgd(x, y, seed=seed)
        with pytest.raises(ValueError, match=r"^seed: None while a CUDA graph is captured"):
            pgd(x, y, findings=findings)
        with pytest.raises(
            ValueError, match=r"^findings: asked for while a CUDA graph is captured"
        ):
            restarts(x, y, seed=seed, findings=findings)
        x_adv = pgd(x, y, seed=seed, findings=findings)
    graph.replay()
    assert torch.equal(x_adv, pgd(x, y, seed=0))


def spoiled(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", math.nan, r"^x: values from nan to nan, expected images in \[0, 1\]"),
        ("x", 1.5, r"^x: values from .* to 1\.5, expected images in \[0, 1\]"),
        ("y", 10, r"^y: 10, expected a class in 0 \.\.\. 9"),
        ("y", 2**40, r"^y: 1099511627776, expected a class in 0 \.\.\. 9"),
        ("y", -1, r"^y: -1, expected a class >= 0"),
        ("eps", -0.5, r"^eps: -0\.5 at index 5, expected a number >= 0"),
        ("eps", math.nan, r"^eps: nan at index 5, expected a number >= 0"),
        ("alpha", 0.0, r"^alpha: 0\.0 at index 5, expected a number > 0"),
        ("alpha", math.nan, r"^alpha: nan at index 5, expected a number > 0"),
    ],
)
@each_way
def test_bad_values_are_named_and_the_device_stays_usable(
    net: nn.Module,
    batch: tuple[Tensor, Tensor],
    options: dict[str, Any],
    name: str,
    value: float,
    message: str,
) -> None:
    x, y = batch
    tensors = {
        "x": x,
        "y": y,
        **{n: torch.full((32,), 0.05, device=x.device) for n in ("eps", "alpha")},
    }
    pgd = PGD(net, 0.05, 0.01, 3, seed=0, **options)
    expected = pgd(**tensors)
    with pytest.raises(ValueError, match=message):
        pgd(**{**tensors, name: spoiled(tensors[name], value)})
    assert torch.equal(pgd(**tensors), expected)
