"""PGD by iaat_fast against torchattacks: the small version of `python -m benchmarks.attacks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.attacks import images, networks
from benchmarks.attacks.contender import Setting, Target
from benchmarks.attacks.engines import engines
from benchmarks.attacks.measure import Record, measure
from benchmarks.attacks.peers import PEERS

BATCH, STEPS, ROUNDS = 64, 2, 3  # 7e12 operations in all: 83 s of one core
TIMED = ("torchattacks", "exact", "fast", "bf16")


def line(found: Record) -> str:
    if found.p50_s is None or found.agreement is None:
        return f"  {found.name}: {found.status}: {found.detail}"
    return (
        f"  {found.name}: {found.p50_s:.2f} s [p20 {found.p20_s:.2f}, p80 {found.p80_s:.2f}], "
        f"{found.over_best_peer:.2f}x the best peer, {found.agreement.same_pixels:.1%} of the plain loop's pixels, "
        f"{found.agreement.flipped_signs:.2%} of its first signs flipped"
    )


def test_pgd_on_resnet18(benchmark: Any, record: Callable[..., None]) -> None:
    """ResNet-18 of width 64, fewer steps than usual: all steps take the same time."""
    pytest.importorskip("torchattacks")
    x, _, source = images.load(BATCH, 32)
    net = networks.make("resnet18", x)
    with torch.no_grad():
        target = Target(net, x, net(x).argmax(1), 10)
    known = [*PEERS, *engines(x.device, tf32=False, with_compile=False)]
    contenders = [c for c in known if c.name in TIMED]
    setting = Setting(steps=STEPS)
    _, records, _, best = measure(target, contenders, (), setting, rounds=ROUNDS, rates={}, check=8)
    lines = [f"PGD-{STEPS}, resnet18, batch {BATCH} ({source}), best peer {best}"]
    figures: dict[str, float] = {}
    for found in records:
        lines.append(line(found))
        figures |= {f"{found.name}_over_{peer}": ratio for peer, ratio in found.over.items()}
        if found.p50_s is not None and found.agreement is not None:
            figures[f"{found.name}_p50_s"] = found.p50_s
            figures[f"{found.name}_flipped_signs"] = found.agreement.flipped_signs
    record("\n".join(lines), **figures)
    fast = next(c for c in contenders if c.name == "bf16").make(target, setting)
    benchmark.pedantic(fast, args=(target.x, target.y), rounds=1)
