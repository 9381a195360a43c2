"""Real networks through the engine: what of each runs as a program, how near its gradients are, how fast it is.

The networks are those of torchvision, timm and transformers at their full size, with random weights, on random images.
`pip install 'iaat-fast[zoo]'` brings timm and transformers; without them their rows are missing.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.attacks.engines import engines
from benchmarks.attacks.providers import LOOPS, PLAIN, Attack, Provider, Setting
from benchmarks.interleave import interleave, wait
from benchmarks.precisions import first_signs
from benchmarks.record import Record, Row, one_line, say
from benchmarks.registry import positive
from benchmarks.targets import Target, smooth_noise, take_statistics
from iaat_fast.attacks import PGD
from iaat_fast.data._torchvision import torchvision
from iaat_fast.models import STATISTICS, normalized

LIBRARIES = {
    "torchvision": (
        *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"),
        *("densenet121", "googlenet", "inception_v3", "squeezenet1_1", "mnasnet1_0"),
        *("mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "efficientnet_b0"),
        *("efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "swin_t"),
    ),
    "timm": (
        *("resnet50", "resnet50d", "seresnet50", "ecaresnet50d", "skresnet18", "resnest14d"),
        *("resnetv2_50", "resnetv2_50x1_bit", "res2net50_26w_4s", "regnety_008", "gernet_s"),
        *("tf_efficientnet_b0", "efficientnet_lite0", "mobilenetv3_large_100", "mixnet_s"),
        *("ghostnet_100", "fbnetc_100", "rexnet_100", "lcnet_050", "mobileone_s0", "repvgg_a0"),
        *("dpn68", "dla34", "hrnet_w18_small", "cspresnet50", "darknet53", "ese_vovnet19b_dw"),
        *("selecsls42b", "inception_v4", "convnext_atto", "mobilevit_xxs", "levit_128s"),
        *("vit_tiny_patch16_224", "mixer_s32_224"),
    ),
    "transformers": ("ResNet", "MobileNetV2", "RegNet", "ConvNext", "ViT", "Swin"),
}
"""The networks by library: their names in it; of transformers the configurations, with their default sizes."""

LOGGER = logging.getLogger("iaat_fast")
CLASSES = 10
# Means of BatchNorm's weights and biases that leave most units open. With 1 and 0 a MobileNetV2 of random weights is so
# chaotic that bfloat16 autocast turns 47 % of the signs of its gradient, with these 7 %.
OPEN = {"weight": 0.5, "bias": 1.0}
PROVIDERS = (PLAIN.name, "plain-loop-bf16", "fast", "bf16")
KINDS = ("whole", "in parts", "a copy of its modules", "live")
"""Whence gradients come: a program, one with calls by autograd, autograd on a copy, autograd on the live model."""


@dataclass(frozen=True)
class Served:
    """What the engine makes of a network, from its own words.

    Attributes:
        kind: of KINDS.
        folded: BatchNorm layers folded into the layer before them.
        words: `gradient_source`, with the reasons if there is no program.
    """

    kind: str
    folded: int
    words: str

    @classmethod
    def of(cls, words: str) -> Served:
        folded = re.search(r"with (\d+) BatchNorm layers folded", words)
        if not words.startswith("a copy"):
            kind = "live"
        elif folded is None:
            kind = "a copy of its modules"
        else:
            kind = "in parts" if "by autograd" in words else "whole"
        return cls(kind, int(folded[1]) if folded else 0, words)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--libraries", nargs="+", choices=LIBRARIES, help="all")
    add("--networks", nargs="+", metavar="NAME", help="of these libraries: all")
    add("--batch-size", type=positive, metavar="N", help="4")
    add("--steps", type=positive, metavar="K", help="of the timed attack (10)")
    add("--rounds", type=positive, metavar="N", help="timed calls of each (3)")
    registry.add_device(parser)
    registry.add_time_limit(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options,
        libraries=(["torchvision"], list(LIBRARIES)),
        batch_size=(2, 4),
        steps=(1, 10),
        rounds=(1, 3),
    )
    known = [name for library in options.libraries for name in LIBRARIES[library]]
    if options.networks is None:
        options.networks = ["squeezenet1_1"] if options.quick else known
    for name in options.networks:
        if name not in known:
            parser.error(f"--networks: {name}, expected among {', '.join(dict.fromkeys(known))}")


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    served = record.facts["served"] = dict.fromkeys(KINDS, 0)
    for library in options.libraries:
        for name in LIBRARIES[library]:
            case = f"{library} {name}"
            if name not in options.networks or record.out_of_time(case):
                continue
            say(f"{case}, {record.seconds:.0f} s")
            try:
                target = build(library, name, options.batch_size, options.device)
            except ImportError as error:
                yield Row(case=case, provider=PLAIN.name).refused("missing", one_line(error))
                continue
            for row in measure_network(case, target, options.steps, rounds=options.rounds):
                if row.provider == "fast" and "served" in row.figures:
                    served[row.figures["served"]] += 1
                yield row
    say(", ".join(f"{count} {kind}" for kind, count in served.items()))


def build(library: str, name: str, batch: int, device: str) -> Target:
    """A network in eval mode, with random weights, and images of its size with its own predictions.

    Raises:
        ImportError: the library is not installed.
    """
    torch.manual_seed(0)
    made, size = _made(library, name)
    net = normalized(made, *STATISTICS["imagenet"]).to(device)
    # Inside [0, 1], so that no clamp hides a step.
    x = (0.1 + 0.8 * smooth_noise(batch, size)).to(device)
    take_statistics(net, x, torch.Generator().manual_seed(0), **OPEN)
    with torch.no_grad():
        y = net(x).argmax(1)
    return Target(net, x, y, CLASSES)


def _made(library: str, name: str) -> tuple[nn.Module, int]:
    """A network of a library, and the height and width of its images."""
    models = torchvision("models")  # the other two import it, and could not on their own everywhere
    if library == "torchvision":
        auxiliary: dict[str, Any] = {"aux_logits": False, "init_weights": False}
        further = auxiliary if name in ("googlenet", "inception_v3") else {}
        size = 299 if name == "inception_v3" else 224
        return getattr(models, name)(num_classes=CLASSES, **further), size
    package = importlib.import_module(library)
    if library == "timm":
        net = package.create_model(name, num_classes=CLASSES)
        return net, net.pretrained_cfg["input_size"][-1]
    config = getattr(package, f"{name}Config")(num_labels=CLASSES)
    return Logits(getattr(package, f"{name}ForImageClassification")(config)), 224


class Logits(nn.Module):
    """A network of transformers as a function from images to logits, for loops that know of no other output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).logits
        return logits


def measure_network(case: str, target: Target, steps: int, *, rounds: int) -> list[Row]:
    """A row for the plain loop, the same under autocast and the engine in both precisions, in turn.

    Figures: `first_call_s`, in which copies are made and compared; `over_plain_loop`, how many times faster it is;
    `signs`, the share of pixels where the first gradient has the sign of the plain loop's. Of the engine also `served`,
    `folded` and `words`, see `Served`, and `batchnorm`, the network's BatchNorm layers.
    """
    setting = Setting(steps=steps, random_start=False)
    known = [*LOOPS, *engines(target.x.device, tf32=False, with_compile=False)]
    providers = [each for each in known if each.name in PROVIDERS]
    rows = {each.name: Row(case=case, provider=each.name) for each in providers}
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in target.model.modules())
    runs: dict[str, Callable[[], None]] = {}
    signs: dict[str, Tensor] = {}
    for each in providers:
        row = rows[each.name]
        started = time.perf_counter()
        try:
            attack = each.make(target, setting)
            run = _timed(attack, target)
            with _Said() as said:
                run()
            row.figures["first_call_s"] = time.perf_counter() - started
            signs[each.name] = _first_signs(each, attack, target)
        except Exception as error:  # a network that others wrote may raise anything
            row.failed(error)
            continue
        runs[each.name] = run
        if isinstance(attack, PGD):
            served = Served.of(said.words)
            row.figures |= {"served": served.kind, "folded": served.folded, "batchnorm": norms}
            row.figures["words"] = served.words
    timings = interleave(runs, rounds=rounds, untimed=0)
    for name in runs:
        row = rows[name].sampled(timings.seconds[name])
        if PLAIN.name in runs:
            row.figures["over_plain_loop"] = timings.ratio(PLAIN.name, name)
            row.figures["signs"] = float((signs[name] == signs[PLAIN.name]).double().mean())
    return list(rows.values())


def _timed(attack: Attack, target: Target) -> Callable[[], None]:
    def call() -> None:
        attack(target.x, target.y)
        wait(target.x.device)

    return call


def _first_signs(provider: Provider, attack: Attack, target: Target) -> Tensor:
    """The sign of the gradient at the images themselves."""
    if isinstance(attack, PGD):
        return first_signs(attack, target.x, target.y)
    step = provider.make(target, Setting(steps=1, random_start=False))
    return (step(target.x, target.y) - target.x).sign().to(torch.int8)


class _Said(logging.Handler):
    """Hears what the engine logs of the source of its gradients.

    Attributes:
        words: the last that it said of it, "" before.
    """

    _BEGINNING = "attack: gradients come from "
    words = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(self._BEGINNING):
            self.words = text.removeprefix(self._BEGINNING)

    def __enter__(self) -> Self:
        self._level = LOGGER.level
        LOGGER.setLevel(logging.INFO)
        LOGGER.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        LOGGER.removeHandler(self)
        LOGGER.setLevel(self._level)
