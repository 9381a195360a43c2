"""Small networks of every kind that a program must serve, with statistics that are not those BatchNorm starts with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast import models

BatchNorm = nn.modules.batchnorm._BatchNorm


def with_statistics(model: nn.Module) -> nn.Module:
    """Running statistics and affine weights that are not those BatchNorm starts with; in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.4, 1.6),
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.2, 0.2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def conv_norm(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> list[nn.Module]:
    padding = options.pop("padding", kernel // 2)
    return [
        nn.Conv2d(c_in, c_out, kernel, padding=padding, bias=False, **options),
        nn.BatchNorm2d(c_out),
    ]


class Sum(nn.Module):
    """`x + body(x)`, or with `out += x` in place, and what follows it."""

    def __init__(self, body: nn.Module, after: nn.Module | None = None, *, in_place: bool = False):
        super().__init__()
        self.body, self.after, self.in_place = body, after or nn.Identity(), in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.in_place:
            out += x
        else:
            out = x + out
        return self.after(out)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.act = nn.Conv2d(channels, 2, 1), act
        self.up, self.gate = nn.Conv2d(2, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


class LinearSqueezeExcite(nn.Module):
    """The gate from linear layers and a view, as in SE-ResNets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3)).view(n, c)))))
        return x * gate.view(n, c, 1, 1).expand_as(x)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(channels, 10)]


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *conv_norm(8, 8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(16, 10),
    )


def _inverted(act: Callable[[], nn.Module], squeeze: nn.Module | None = None) -> nn.Module:
    """An inverted bottleneck of 8 channels: expansion, depthwise convolution, projection."""
    return Sum(
        nn.Sequential(
            *conv_norm(8, 16, 1),
            act(),
            *conv_norm(16, 16, 3, groups=16),
            act(),
            *([] if squeeze is None else [squeeze]),
            *conv_norm(16, 8, 1),
        )
    )


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        *conv_norm(3, 8, stride=2),
        nn.ReLU6(True),
        _inverted(nn.ReLU6),
        _inverted(nn.ReLU6),
        *head(8),
    )


def mobilenet_v3() -> nn.Module:
    def squeeze() -> nn.Module:
        return SqueezeExcite(16, nn.ReLU(), nn.Hardsigmoid())

    return nn.Sequential(
        *conv_norm(3, 8, stride=2),
        nn.Hardswish(True),
        _inverted(nn.Hardswish, squeeze()),
        _inverted(nn.ReLU, squeeze()),
        *head(8)[:-1],
        nn.Linear(8, 16),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(16, 10),
    )


def efficientnet() -> nn.Module:
    def squeeze() -> nn.Module:
        return SqueezeExcite(16, nn.SiLU(), nn.Sigmoid())

    return nn.Sequential(
        *conv_norm(3, 8, stride=2),
        nn.SiLU(True),
        _inverted(nn.SiLU, squeeze()),
        _inverted(nn.SiLU, squeeze()),
        *head(8),
    )


class DenseBlock(nn.Module):
    """Pre-activation layers that read all that was made before them."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth),
                nn.ReLU(True),
                *conv_norm(channels + i * growth, 8, 1),
                nn.ReLU(True),
                nn.Conv2d(8, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        *conv_norm(3, 6),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2, 1),
        DenseBlock(6, 3, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(True),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.AvgPool2d(2, 2),
        DenseBlock(6, 3, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(True),
        *head(12),
    )


class PreActivation(nn.Module):
    """BatchNorm and ReLU before the convolutions; the shortcut reads what the first of them gave, or the sum itself."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.norm2(self.conv1(out)))) + shortcut


def preactivation_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        PreActivation(4, 4),
        PreActivation(4, 8),
        PreActivation(8, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        *head(8),
    )


def se_resnet() -> nn.Module:
    def block() -> nn.Module:
        body = [*conv_norm(8, 8), nn.ReLU(), *conv_norm(8, 8), LinearSqueezeExcite(8)]
        return Sum(nn.Sequential(*body), nn.ReLU(True), in_place=True)

    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(True), block(), block(), *head(8))


class BatchNormAct2d(nn.BatchNorm2d):
    """BatchNorm through the functional form and an activation in one module, as timm has it."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            0.1,
            self.eps,
        )
        return self.act(self.drop(x))


def batchnorm_act() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        BatchNormAct2d(8, nn.ReLU(True)),
        nn.Conv2d(8, 8, 3, bias=False),
        BatchNormAct2d(8, nn.SiLU(True)),
        *head(8),
    )


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: half the channels go through, then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *conv_norm(half, half, 1),
            nn.ReLU(True),
            *conv_norm(half, half, 3, groups=half),
            *conv_norm(half, half, 1),
            nn.ReLU(True),
        )

    def forward(self, x: Tensor) -> Tensor:
        still, moved = x.chunk(2, dim=1)
        out = torch.cat((still, self.body(moved)), dim=1)
        n, c, h, w = out.size()
        out = out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
        return out.view(n, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(*conv_norm(3, 8), nn.ReLU(True), Shuffle(8), Shuffle(8), *head(8))


def transposed() -> nn.Module:
    return nn.Sequential(
        *conv_norm(3, 8, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        *head(6),
    )


def linear_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * 16 * 16, 12),
        nn.BatchNorm1d(12),
        nn.LeakyReLU(0.1),
        nn.Linear(12, 12, bias=False),
        nn.BatchNorm1d(12, affine=False),
        nn.Tanh(),
        nn.Linear(12, 10),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 6, 5, stride=3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(1),
        nn.Linear(504, 10),
    )  # fmt: skip


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ELU(),
        nn.Flatten(1, 2), *head(12),
    )  # fmt: skip


class StandardisedConv2d(nn.Conv2d):
    """Weights of mean 0 and variance 1 per output channel, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - m) / torch.sqrt(v + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def standardised() -> nn.Module:
    return nn.Sequential(
        StandardisedConv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        StandardisedConv2d(8, 8, 3, stride=2),
        nn.GELU(),
        *head(8),
    )


class Normalised(nn.Module):
    """(x - mean) / std, then a convolution whose zero padding means the mean colour, and numbers here and there."""

    def __init__(self, *, scalars: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.49, 0.45, 0.40]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.24, 0.22, 0.27]).view(1, 3, 1, 1))
        self.scalars = scalars
        self.body = nn.Sequential(*conv_norm(3, 8, padding=1), nn.ReLU(), *conv_norm(8, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = 2 * images - 1 if self.scalars else (images - self.mean) / self.std
        out = self.body(x)
        if self.scalars:
            out = (1.5 - out) / 3 + 0.25 * out.sigmoid()
        return self.head(out.mean((2, 3)).view(images.size(0), -1))


class InPlace(nn.Module):
    """Sums, activations and numbers, all in place, and a value read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_norm(3, 8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(*conv_norm(8, 8), nn.ReLU6(inplace=True))
        self.third = nn.Sequential(*conv_norm(8, 8))
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.first(x)
        out = self.second(shortcut)
        out = self.third(out)
        out += shortcut
        out = F.relu_(out) * 0.5
        out.add_(shortcut).mul_(1.5)
        return self.head(out)


class Attention(nn.Module):
    """A convolution with BatchNorm, then tokens, layer norm and attention, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, 4, stride=4, padding=0), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(tokens.mean(1))


def _build(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: models.build(name, **options)


def _two_stages_of_resnet50() -> nn.Module:
    """The others repeat the second."""
    model = models.build("imagenet-resnet50", width=4)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(32, 10)
    return model


# Each with the number of its BatchNorm layers that stand alone behind a convolution or a linear layer.
CONVOLUTIONAL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (_build("resnet18", width=4), 20),
    "wrn32-10": (_build("wrn32-10", width=1, depth=8), 3),
    "digits-cnn": (_build("digits-cnn", width=4, in_channels=3), 3),
    "imagenet-resnet18": (_build("imagenet-resnet18", width=4), 20),
    "imagenet-resnet50": (_two_stages_of_resnet50, 24),
    "vgg": (vgg, 2),
    "mobilenet_v2": (mobilenet_v2, 7),
    "mobilenet_v3": (mobilenet_v3, 7),
    "efficientnet": (efficientnet, 7),
    "densenet": (densenet, 5),
    "preactivation resnet": (preactivation_resnet, 3),
    "se_resnet": (se_resnet, 5),
    "batchnorm act": (batchnorm_act, 2),
    "shufflenet": (shufflenet, 7),
    "transposed convolution": (transposed, 2),
    "linear layers": (linear_norm, 2),
    "1d": (conv1d, 1),
    "3d": (conv3d, 1),
    "standardised weights": (standardised, 1),
    "normalised": (lambda: Normalised(scalars=False), 2),
    "scalars": (lambda: Normalised(scalars=True), 2),
    "in place": (InPlace, 3),
}
