"""The effect of the attack's precision on verdicts, on trained networks.

Each network is attacked in fp32 by the plain arithmetic, and by the fast engine in every precision, from the same
starts. Verdicts are those of the live network in fp32. Needs the folder of real data that IAAT_FAST_DATA names.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.record import Record, Row
from benchmarks.registry import positive
from benchmarks.targets import CHECKPOINTS, SMALL, load_trained
from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.ops.primitives import softmax_minus_onehot

EPS, ALPHA, SEED = 8 / 255, 2 / 255, 0
PLAIN = "fp32, plain"
PROVIDERS: dict[str, tuple[str, str | EngineOptions]] = {
    PLAIN: ("fp32", "auto"),
    "fp32, fast": ("fp32", "fast"),
    "bf16, fast": ("bf16", "fast"),
    "fp16, fast": ("fp16", "fast"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", choices=(*CHECKPOINTS, SMALL), help="resnet4b")
    add("--providers", nargs="+", choices=PROVIDERS, help=f"all; {PLAIN} always")
    add("--images", type=positive, metavar="N", help="the first N (10,000)")
    add("--steps", type=positive, metavar="K", help="10")
    add("--batch-size", type=positive, default=250, metavar="N")
    registry.add_device(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options, models=([SMALL], [CHECKPOINTS[0]]), images=(8, 10_000), steps=(2, 10)
    )
    chosen = options.providers or PROVIDERS
    options.providers = [name for name in PROVIDERS if name == PLAIN or name in chosen]


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    for name in options.models:
        net, x, y, record.facts["images"] = load_trained(name, options.images, options.device)
        case = f"{name}, PGD-{options.steps}, {len(x)} images"
        yield from measure_providers(
            case, net, x, y, options.steps, options.batch_size, options.providers
        )


def measure_providers(
    case: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch: int,
    providers: Sequence[str],
) -> Iterator[Row]:
    """A row for each of the providers, the plain arithmetic first, on the same images [N, 3, H, W] and their classes.

    Images that the live network misclassifies are not attacked, as in a robust accuracy. The time is for the others,
    measured once and not interleaved, so only a rough value. Figures: `natural`, share of the images that it classifies
    right; `robust`, share of them all that the attack's last iterate does not fool either, by the live network in fp32;
    `points`, its difference to the plain arithmetic, in percentage points; `differ`, share of them all with another
    verdict than by the plain arithmetic; `flipped`, share of the attacked images' pixels where the first gradient, at
    the image itself, has another sign.
    """
    index = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        right = torch.cat([net(x[part]).argmax(1) == y[part] for part in index.split(batch)])
    parts = index[right].split(batch)
    robust: dict[str, Tensor] = {}
    signs: dict[str, Tensor] = {}
    for name in providers:
        precision, engine = PROVIDERS[name]
        attack = PGD(net, EPS, ALPHA, steps, precision=precision, engine=engine, seed=SEED)
        started = time.perf_counter()
        robust[name] = torch.zeros_like(right)
        for part in parts:
            x_adv = attack(x[part], y[part], index=part)
            robust[name][part] = attack.logits(x_adv).argmax(1) == y[part]
        share = float(robust[name].double().mean())
        row = Row(case=case, provider=name).sampled([time.perf_counter() - started])
        signs[name] = torch.cat([first_signs(attack, x[part], y[part]) for part in parts])
        row.figures = {
            "taken": attack.network.gradient_source,
            "natural": float(right.double().mean()),
            "robust": share,
            "points": 100 * (share - float(robust[PLAIN].double().mean())),
            "differ": float((robust[name] != robust[PLAIN]).double().mean()),
            "flipped": float((signs[name] != signs[PLAIN]).double().mean()),
        }
        yield row


def first_signs(attack: PGD, x: Tensor, y: Tensor) -> Tensor:
    """The sign of the attack's gradient of the cross-entropy at x, int8, like x."""
    with attack.network.attacked(x):
        _, grad = attack.network.input_vjp(x, lambda logits: softmax_minus_onehot(logits, y))
    return grad.sign().to(torch.int8)
