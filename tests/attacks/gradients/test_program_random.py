"""Random networks: whatever is read twice, summed, gated, split or overwritten, the gradient is autograd's."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.source import ByAutograd
from tests.attacks.networks import with_statistics

CHANNELS, CALLS = 4, 9


def _layer(kind: str) -> nn.Module:
    if kind.startswith("conv"):
        norm = [] if kind == "conv" else [nn.BatchNorm2d(CHANNELS)]
        return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), *norm)
    if kind == "group norm":
        return nn.GroupNorm(2, CHANNELS)
    if kind == "layer norm":
        return nn.LayerNorm((CHANNELS, 6, 6))
    if "norm" in kind:
        return nn.BatchNorm2d(CHANNELS)
    if kind in ("cat", "gate"):
        return nn.Conv2d(CHANNELS * (2 if kind == "cat" else 1), CHANNELS, 1)
    return nn.Identity()


def _interleaved(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat((second, 2 * first), 1)


def _in_quarters(a: Tensor, b: Tensor) -> Tensor:
    """Parts of all sizes of use: read twice, multiplied, and one not read at all."""
    first, second, third, _ = a.unbind(1)
    return torch.stack((first, second * first, third, b[:, 0]), 1)


def _overlapping(x: Tensor) -> Tensor:
    """Slices with an overlap, and a gap of one channel beside the others."""
    return torch.cat((x[:, :3] + x[:, 1:], x[:, 2:3]), 1)


def _halves(a: Tensor, b: Tensor) -> Tensor:
    """A value read whole and in halves."""
    return b + torch.cat((a[:, :2].sigmoid(), a[:, 2:]), 1) * a


def _added_in_place(a: Tensor, b: Tensor) -> Tensor:
    out = 1.5 * a
    out += b
    return out


CALLS_OF = {
    "conv": lambda layer, a, b: layer(a),
    "conv norm": lambda layer, a, b: layer(a),
    "conv norm relu": lambda layer, a, b: F.relu(layer(a)),
    "conv norm add relu": lambda layer, a, b: F.relu(layer(a) + b),
    "norm": lambda layer, a, b: layer(a),
    "norm relu": lambda layer, a, b: F.relu(layer(a)),
    "add norm relu": lambda layer, a, b: F.relu(layer(a + b)),
    "relu": lambda layer, a, b: F.relu(a),
    "relu6": lambda layer, a, b: F.relu6(4 * a),
    "add": lambda layer, a, b: a + b,
    "add relu": lambda layer, a, b: F.relu(a + b),
    "add in place": lambda layer, a, b: _added_in_place(a, b),
    "mul": lambda layer, a, b: 0.5 * a * b,
    "sigmoid": lambda layer, a, b: a.sigmoid(),
    "silu": lambda layer, a, b: F.silu(a),
    "elu": lambda layer, a, b: F.elu(a),
    "average": lambda layer, a, b: F.avg_pool2d(a, 3, 1, 1),
    "maximum": lambda layer, a, b: F.max_pool2d(a, 3, 1, 1),
    "cat": lambda layer, a, b: layer(torch.cat((a, b), 1)),
    "gate": lambda layer, a, b: b * layer(F.adaptive_avg_pool2d(a, 1)).sigmoid(),
    "from one": lambda layer, a, b: 1.0 - a,
    "swap": lambda layer, a, b: _swapped(a),
    "interleave": lambda layer, a, b: _interleaved(a),
    "quarters": lambda layer, a, b: _in_quarters(a, b),
    "overlap": lambda layer, a, b: _overlapping(a),
    "halves": lambda layer, a, b: _halves(a, b),
    "every other": lambda layer, a, b: torch.cat((a[:, :, ::2], b[:, :, 1::2]), 2),
    "stack": lambda layer, a, b: (torch.stack((a, b), 1).softmax(1) * a.unsqueeze(1)).sum(1),
    "group norm": lambda layer, a, b: layer(a),
    "layer norm": lambda layer, a, b: layer(a),
    "roll": lambda layer, a, b: a.roll((1, -2), (2, 3)),
    "matmul": lambda layer, a, b: a @ b.transpose(2, 3).softmax(-1),
    "upsample": lambda layer, a, b: F.interpolate(F.avg_pool2d(a, 2), scale_factor=2.0),
    "turn": lambda layer, a, b: a.transpose(2, 3) + a,
    "shift": lambda layer, a, b: F.pad(a, (1, 0, 0, 1))[:, :, 1:, :-1],
}


class RandomNetwork(nn.Module):
    """Nine calls, each of late values or of any before them; the logits read one or two of what they give."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.plan = [
            (draw.choice(list(CALLS_OF)), draw.randrange(max(0, i - 2), i + 1), draw.randrange(i + 1))
            for i in range(CALLS)
        ]  # fmt: skip
        self.layers = nn.ModuleList(_layer(kind) for kind, _, _ in self.plan)
        self.read = sorted({CALLS, draw.randrange(CALLS // 2, CALLS + 1)})
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for (kind, a, b), layer in zip(self.plan, self.layers, strict=True):
            values.append(CALLS_OF[kind](layer, values[a], values[b]))
        return self.head(sum(values[i].mean((2, 3)) for i in self.read))


@pytest.mark.parametrize("seed", range(20))
def test_a_random_network_has_autograds_gradient(seed: int) -> None:
    torch.manual_seed(seed)
    model = with_statistics(RandomNetwork(seed)).double()
    x = torch.rand(3, 3, 6, 6, dtype=torch.float64)

    def cotangent(logits: Tensor) -> Tensor:
        return torch.tensor([0.8, 0.9, 0.1, -0.8, -1.0], dtype=logits.dtype).expand_as(logits)

    program = Program(model, x, dtype=None)
    logits, grad = program.input_vjp(x, cotangent)
    true, slope = ByAutograd(model).input_vjp(x, cotangent)
    assert program.by_autograd == ()
    torch.testing.assert_close(logits, true, rtol=1e-12, atol=1e-12 * float(true.abs().max()))
    assert grad is not None
    assert slope is not None
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-12 * float(slope.abs().max()))
