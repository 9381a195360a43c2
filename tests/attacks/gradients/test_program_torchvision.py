"""torchvision's networks as programs: served whole, every BatchNorm behind a layer folded, autograd's gradients.

Families whose blocks only repeat have a few of them: an export takes its time for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.attacks.gradients.program import Program
from iaat_fast.data._torchvision import torchvision
from tests.attacks.gradients.program_checks import InFloat32
from tests.attacks.networks import BatchNorm, with_statistics

pytestmark = pytest.mark.slow

CLASSES = 10


@dataclass
class Network:
    """How a network is made, how many of its BatchNorm layers stand alone behind a layer, how large images are."""

    make: Callable[[], nn.Module]
    folded: int
    side: int = 32


def _named(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision("models"), name)(num_classes=CLASSES, **options)


def _resnet(block: str, layers: list[int], **options: Any) -> nn.Module:
    """Its first two stages; the others repeat the second."""
    models = torchvision("models.resnet")
    made: nn.Module = models.ResNet(getattr(models, block), [*layers, 1, 1], **options)
    made.layer3 = made.layer4 = nn.Identity()
    made.fc = nn.Linear(made.fc.in_features // 4, CLASSES)
    return made


def _vgg() -> nn.Module:
    """An eighth as wide, with a classifier that has not 120 million weights."""
    models = torchvision("models.vgg")
    widths = [width if width == "M" else width // 8 for width in models.cfgs["A"]]
    layers = models.make_layers(widths, batch_norm=True)
    with torch.device("meta"):
        made: nn.Module = models.VGG(layers, init_weights=False)
    made.classifier = nn.Sequential(
        nn.Linear(64 * 7 * 7, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, CLASSES)
    )
    return made


def _mobilenet_v3() -> nn.Module:
    """With and without squeeze-and-excitation, a shortcut and either activation."""
    models = torchvision("models.mobilenetv3")
    blocks, last_channel = models._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.5)
    made: nn.Module = models.MobileNetV3(blocks[:5], last_channel, num_classes=CLASSES)
    return made


def _shufflenet() -> nn.Module:
    models = torchvision("models.shufflenetv2")
    made: nn.Module = models.ShuffleNetV2([2, 1, 1], [24, 48, 96, 192, 256], num_classes=CLASSES)
    return made


def _mnasnet() -> nn.Module:
    """Of its six stacks of blocks the first has a shortcut."""
    made: nn.Module = torchvision("models").mnasnet0_5(num_classes=CLASSES)
    for number in range(8, 14):
        made.layers[number] = made.layers[number][: 2 if number == 8 else 1]
    return made


def _inception(name: str, repeated: list[str], channels: int = 2048) -> nn.Module:
    made: nn.Module = getattr(torchvision("models"), name)(
        num_classes=CLASSES, aux_logits=False, init_weights=False
    )
    for block in repeated:
        setattr(made, block, nn.Identity())
    made.fc = nn.Linear(channels, CLASSES)
    return made


def _convnext() -> nn.Module:
    """Its blocks weigh in: 1e-6 of them is what a training starts with."""
    models = torchvision("models.convnext")
    stages = [models.CNBlockConfig(16, 32, 1), models.CNBlockConfig(32, None, 1)]
    made: nn.Module = models.ConvNeXt(stages, num_classes=CLASSES)
    for name, parameter in made.named_parameters():
        if name.endswith("layer_scale"):
            parameter.data.fill_(0.5)
    return made


def _swin() -> nn.Module:
    """Two stages, the second of each pair of blocks with shifted windows and the mask for them."""
    made: nn.Module = torchvision("models.swin_transformer").SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES
    )
    return made


def _vit() -> nn.Module:
    """Its head, which starts with zeros, gives logits."""
    models = torchvision("models.vision_transformer")
    made: nn.Module = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(made.heads.head.weight)
    return made


def _regnet(se_ratio: float | None = None) -> nn.Module:
    models = torchvision("models.regnet")
    blocks = models.BlockParams([1, 2], [32, 64], [16] * 2, [1.0] * 2, [2] * 2, se_ratio)
    made: nn.Module = models.RegNet(blocks, num_classes=CLASSES)
    return made


def _efficientnet() -> nn.Module:
    models = torchvision("models.efficientnet")
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1)]
    blocks = [models.MBConvConfig(*stage) for stage in stages]
    made: nn.Module = models.EfficientNet(blocks, dropout=0.2, num_classes=CLASSES)
    return made


def _densenet() -> nn.Module:
    made: nn.Module = torchvision("models.densenet").DenseNet(
        growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=CLASSES
    )
    return made


WHOLE = {
    "resnet18": Network(partial(_resnet, "BasicBlock", [1, 1]), 6),
    "resnet50": Network(partial(_resnet, "Bottleneck", [1, 2]), 12),
    "resnext50": Network(
        partial(_resnet, "Bottleneck", [1, 1], groups=32, width_per_group=4), 9
    ),
    "vgg11_bn": Network(_vgg, 8),
    "mobilenet_v2": Network(
        _named("mobilenet_v2", inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]), 13
    ),
    "mobilenet_v3_small": Network(_mobilenet_v3, 16),
    "efficientnet": Network(_efficientnet, 13),
    "densenet121": Network(_densenet, 5),
    "regnet_x": Network(_regnet, 12),
    "regnet_y": Network(partial(_regnet, 0.25), 12),
    "shufflenet_v2_x0_5": Network(_shufflenet, 20),
    "squeezenet1_1": Network(_named("squeezenet1_1"), 0),
    "mnasnet0_5": Network(_mnasnet, 25),
    "googlenet": Network(
        partial(
            _inception, "googlenet",
            ["inception4b", "inception4c", "inception4d", "inception4e", "inception5a", "inception5b"],
            512,
        ), 21
    ),
    "inception_v3": Network(
        partial(_inception, "inception_v3", ["Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"]),
        48, side=75,
    ),
    "convnext": Network(_convnext, 0),
    "swin": Network(_swin, 0),
}  # fmt: skip
MIXED = {"vit": Network(_vit, 0)}
NETWORKS = WHOLE | MIXED


@dataclass
class Served:
    name: str
    norms: int
    net: InFloat32


@pytest.fixture(scope="module", params=list(NETWORKS))
def served(request: pytest.FixtureRequest) -> Served:
    torch.manual_seed(0)
    network = NETWORKS[request.param]
    model = with_statistics(network.make())
    x = torch.rand(4, 3, network.side, network.side)
    norms = sum(isinstance(layer, BatchNorm) for layer in model.modules())
    return Served(request.param, norms, InFloat32.of(model, x))


def assert_served(served: Served, program: Program) -> None:
    """Whole, or attention by autograd, and no BatchNorm left that stands alone behind a layer."""
    folded = NETWORKS[served.name].folded
    left = [step for step in program.operations if step.name == "batch_norm"]
    assert (program.folded, len(left)) == (folded, served.norms - folded)
    assert bool(program.by_autograd) == (served.name in MIXED)
    assert not any("conv" in call or "linear" in call for call in program.by_autograd)


def test_in_float32_it_is_as_near_to_the_truth_as_autograd(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = served.net.program(monkeypatch)
    assert_served(served, program)
    served.net.assert_as_near_to_the_truth_as_autograd(program, flips=1)


def test_in_bfloat16_as_many_signs_are_right_as_in_a_copy_of_the_modules(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = served.net.program(monkeypatch, torch.bfloat16)
    served.net.assert_as_many_signs_are_right_as_in_a_copy_of_the_modules(program, times=1.5)
