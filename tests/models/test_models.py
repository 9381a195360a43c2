"""The networks of the presets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iaat_fast import models


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        # 1*32*9+32, 32*64*9+64, 64*64*9+64, 256*10+10
        ("digits-cnn", 10, 288 + 18432 + 36864 + 2 * (32 + 64 + 64) + 2570),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_173_962 + 90 * 513),
        ("wrn32-10", 10, 46_160_474),
        ("wrn32-10", 100, 46_160_474 + 90 * 641),
        ("imagenet-resnet18", 1000, 11_689_512),
        ("imagenet-resnet34", 1000, 21_797_672),
        ("imagenet-resnet50", 1000, 25_557_032),
        ("imagenet-resnet101", 1000, 44_549_160),
        ("imagenet-resnet152", 1000, 60_192_808),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, num_classes: int, expected: int
) -> None:
    with torch.device("meta"):
        assert parameters(models.build(name, num_classes=num_classes)) == expected


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "slim"),
    [
        ("digits-cnn", {"width": 4}),
        ("resnet18", {"width": 4, "depth": 10}),
        ("wrn32-10", {"width": 1, "depth": 8}),
        ("imagenet-resnet18", {"width": 4}),
    ],
)
def test_every_network_takes_grey_and_colour_images_of_any_size(
    name: str, slim: dict[str, int], in_channels: int, size: int
) -> None:
    model = models.build(name, num_classes=7, in_channels=in_channels, **slim)
    logits = model(torch.rand(2, in_channels, size, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_wide_resnet_has_the_convolutions_of_its_name() -> None:
    """Madry et al.'s count: a stem, 30 in the blocks and the linear layer; shortcuts apart."""
    with torch.device("meta"):
        model = models.build("wrn32-10")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len([conv for conv in convolutions if conv.kernel_size == (3, 3)]) == 31
    assert len([conv for conv in convolutions if conv.kernel_size == (1, 1)]) == 3
    assert sorted({conv.out_channels for conv in convolutions}) == [16, 160, 320, 640]


def test_width_and_depth_slim_a_network_down() -> None:
    with torch.device("meta"):
        resnet, wide = models.build("resnet18", width=16), models.build("wrn32-10", width=2)
        assert parameters(models.build("resnet18", width=16, depth=10)) < parameters(resnet)
        assert parameters(models.build("wrn32-10", width=2, depth=14)) < parameters(wide)
        assert parameters(models.build("digits-cnn", width=8)) < 5_000
        assert parameters(models.build("imagenet-resnet50", width=8)) < 1_000_000
    assert resnet.get_submodule("layer4").get_submodule("1.conv2").out_channels == 128
    assert wide.get_submodule("block3").get_submodule("4.conv2").out_channels == 128


@pytest.mark.parametrize("name", models.NAMES)
def test_normalisation_is_inside_and_except_for_imagenet_in_the_state_dict(name: str) -> None:
    model = models.build(name, width=1).eval()
    imagenet = name.startswith("imagenet-")
    statistics = "digits" if name == "digits-cnn" else "imagenet" if imagenet else "cifar10"
    mean, std = (torch.tensor(value) for value in models.STATISTICS[statistics])
    assert torch.equal(model.get_buffer("normalize.mean"), mean)
    assert torch.equal(model.get_buffer("normalize.std"), std)
    # The state dict of an ImageNet network is torchvision's, which knows no normalisation.
    assert ("normalize.mean" in model.state_dict()) is not imagenet
    seen = []
    model.get_submodule("conv1").register_forward_hook(lambda _, x, __: seen.append(x[0]))
    x = torch.rand(2, len(mean), 8, 8)
    model(x)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(len(mean))], dim=1)
    assert torch.equal(seen[0], expected)


def test_normalisation_statistics_can_be_chosen_and_travel_with_the_weights() -> None:
    mean, std = models.STATISTICS["cifar100"]
    source = models.build("resnet18", width=2, depth=10, mean=mean, std=std)
    target = models.build("resnet18", width=2, depth=10)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.get_buffer("normalize.mean"), torch.tensor(mean))


def test_cifar10_statistics_are_those_of_the_authors() -> None:
    mean, std = models.STATISTICS["cifar10"]
    assert [value * 255 for value in mean] == pytest.approx([125.3, 123.0, 113.9])
    assert [value * 255 for value in std] == pytest.approx([63.0, 62.1, 66.7])


def test_convolutions_start_as_he_et_al_prescribe() -> None:
    torch.manual_seed(0)
    for name in models.NAMES:
        model = models.build(name, width=None if name == "digits-cnn" else 4)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
                variance = 2 / (module.out_channels * module.kernel_size[0] ** 2)
                assert module.weight.var().item() == pytest.approx(variance, rel=0.1)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                assert not module.bias.any()


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 4), ("imagenet-resnet50", 4), ("wrn32-10", 1)]
)
def test_weights_are_channels_last(name: str, width: int) -> None:
    weights = [p for p in models.build(name, width=width).parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_a_seed_fixes_the_initial_weights() -> None:
    torch.manual_seed(5)
    first = models.build("wrn32-10", width=1, depth=8).state_dict()
    torch.manual_seed(5)
    again = models.build("wrn32-10", width=1, depth=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", models.NAMES)
def test_networks_can_be_traced_symbolically(name: str) -> None:
    """BatchNorm folding needs a trace; it must compute the same."""
    model = models.build(name, width=2).eval()
    x = torch.rand(2, 1 if name == "digits-cnn" else 3, 16, 16)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_images_of_another_channel_count_are_refused() -> None:
    model = models.build("resnet18", width=2, depth=10)
    with pytest.raises(ValueError, match=r"expected images \[N, 3, H, W\], got shape \[2, 1, 8, 8"):
        model(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \[3, 8, 8\]"):
        model(torch.rand(3, 8, 8))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("resnet-18", {}, r"^name: 'resnet-18', expected one of .*; did you mean 'resnet18'\?"),
        ("?", {}, r"^name: '\?', expected one of 'digits-cnn', 'resnet18', 'wrn32-10'"),
        ("resnet18", {"num_classes": 0}, "num_classes: 0, expected at least 1"),
        ("resnet18", {"width": -4}, "width: -4, expected at least 1"),
        ("resnet18", {"depth": 20}, r"depth: 20, expected 8n \+ 2"),
        ("resnet18", {"depth": 2}, r"depth: 2, expected 8n \+ 2"),
        ("wrn32-10", {"depth": 34}, r"depth: 34, expected 6n \+ 2"),
        ("wrn32-10", {"depth": 2}, r"depth: 2, expected 6n \+ 2"),
        ("digits-cnn", {"depth": 4}, "depth: 4, expected 3, the only one of digits-cnn"),
        (
            "imagenet-resnet50",
            {"depth": 101},
            "depth: 101, expected 50, the only one of imagenet-resnet50",
        ),
        ("resnet50", {}, "did you mean"),
        ("digits-cnn", {"in_channels": 2}, "in_channels: 2, expected 1 or 3, or "),
        ("resnet18", {"mean": (0.5,) * 3}, "mean and std: expected both or neither"),
        ("resnet18", {"mean": (0.5,), "std": (0.5,)}, "mean: .*0.5.*, expected 3 values"),
        ("resnet18", {"mean": (0.5,) * 3, "std": (0.5,)}, "std: .*, expected 3 values as in mean"),
        (
            "resnet18",
            {"mean": (0.5,) * 3, "std": (0.5, 0.0, 1.0)},
            "std: .*, expected values above 0",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(name: str, bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, **bad)


def test_a_network_for_a_data_set_has_its_channels_and_statistics() -> None:
    for dataset, channels, statistics in (
        ("cifar100", 3, "cifar100"),
        ("cifar10", 3, "cifar10"),
        ("cifar10", 1, "digits"),
        ("my images", 3, "cifar10"),
    ):
        model = models.build_for(
            dataset, "resnet18", num_classes=7, in_channels=channels, width=4, depth=10
        )
        mean, std = models.STATISTICS[statistics]
        assert model.normalize.mean.tolist() == pytest.approx(mean)
        assert model.normalize.std.tolist() == pytest.approx(std)
        assert model(torch.rand(2, channels, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("name", ["digits-cnn", "imagenet-resnet18"])
def test_sizes_of_numpy_are_sizes(name: str) -> None:
    sizes = {"num_classes": 3, "width": 2, "depth": 3 if name == "digits-cnn" else 18}
    model = models.build(name, **{key: np.int64(size) for key, size in sizes.items()})
    assert parameters(model) == parameters(models.build(name, **sizes))
