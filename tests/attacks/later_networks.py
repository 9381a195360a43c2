"""Small networks of later designs that a program must serve: mixed, ghost and selective kernels, norms, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.attacks.networks import CONVOLUTIONAL, StandardisedConv2d, Sum, conv_norm, head


class MixedConvolution(nn.Module):
    """Convolutions of several sizes, each of its share of the channels, whose outputs are joined, as in MixNet."""

    def __init__(self, shares: list[int], *, depthwise: bool) -> None:
        super().__init__()
        self.shares = shares
        self.convs = nn.ModuleList(
            nn.Conv2d(n, n, 2 * i + 1, padding=i, groups=n if depthwise else 1, bias=i == 1)
            for i, n in enumerate(shares)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.convs, x.split(self.shares, 1), strict=True)
        return torch.cat([conv(part) for conv, part in parts], 1)


def mixnet() -> nn.Module:
    return nn.Sequential(
        *conv_norm(3, 9),
        nn.SiLU(),
        MixedConvolution([2, 4, 3], depthwise=True),
        nn.BatchNorm2d(9),
        nn.SiLU(),
        Sum(
            nn.Sequential(
                MixedConvolution([4, 5], depthwise=False), nn.BatchNorm2d(9, affine=False)
            ),
            nn.ReLU(),
        ),
        *head(9),
    )


class Ghost(nn.Module):
    """Twice the channels from cheap operations, and all of them but one; a shortcut is added to that slice in place."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.first = nn.Sequential(*conv_norm(4, 4, 1), nn.ReLU())
        self.cheap = nn.Sequential(*conv_norm(4, 4, groups=4))
        self.back = nn.Sequential(*conv_norm(left, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x)
        found = torch.cat([found, self.cheap(found)], 1)[:, : self.left, :, :]
        found += found.mean((2, 3), keepdim=True)
        return self.back(found) + x


def ghostnet() -> nn.Module:
    return nn.Sequential(*conv_norm(3, 4), nn.ReLU(), Ghost(8), Ghost(8), *head(4))


class SelectiveKernel(nn.Module):
    """Two branches weighed by a softmax over them, as in SKNet and ResNeSt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*conv_norm(channels, channels, k), nn.ReLU()) for k in (1, 3)
        )
        self.attention = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.stack([branch(x) for branch in self.branches], 1)
        n, k, c, _, _ = found.shape
        gates = self.attention(found.sum(1).mean((2, 3), keepdim=True))
        return (found * gates.view(n, k, c, 1, 1).softmax(1)).sum(1)


def sknet() -> nn.Module:
    return nn.Sequential(*conv_norm(3, 4), nn.ReLU(), SelectiveKernel(4), *head(4))


class TwoScales(nn.Module):
    """A branch at half the height and width, enlarged and added, as in HRNet."""

    def __init__(self, channels: int, **size: Any) -> None:
        super().__init__()
        self.large = nn.Sequential(*conv_norm(channels, channels))
        self.small = nn.Sequential(*conv_norm(channels, channels, stride=2))
        self.up = nn.Upsample(**size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.up(self.small(x)))


def hrnet() -> nn.Module:
    return nn.Sequential(
        *conv_norm(3, 4), TwoScales(4, scale_factor=2), TwoScales(4, size=(16, 16)), *head(4)
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        StandardisedConv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(True),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.GroupNorm(8, 8, affine=False),
        nn.GELU(),
        *head(8),
    )


class ConvNext(nn.Module):
    """ConvNeXt's block: layer norm and linear layers over the channels, a learned scale, a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 8), nn.Linear(8, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x).permute(0, 2, 3, 1))
        out = self.down(F.gelu(self.up(out))).permute(0, 3, 1, 2)
        return self.scale * out + x


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), ConvNext(4), ConvNext(4), *head(4))


class Windows(nn.Module):
    """Swin's attention in windows of 2 by 2 tokens that are shifted by one, with a mask made anew in every forward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.bias = nn.Parameter(torch.randn(1, 2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        windows = (h // 2) * (w // 2)
        out = F.pad(self.norm(x), (0, 0, 0, 0, 0, 0)).roll((-1, -1), (1, 2))
        out = out.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n * windows, 4, c)
        q, k, v = self.qkv(out).reshape(n * windows, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = (q * 0.5) @ k.transpose(-2, -1) + self.bias
        places = x.new_zeros((h, w))
        places[-1] = 1
        places[:, -1] += 2
        places = places.view(h // 2, 2, w // 2, 2).transpose(1, 2).reshape(windows, 1, 4)
        mask = places - places.transpose(1, 2)
        mask = mask.masked_fill(mask != 0, -100.0)
        scores = scores.view(n, windows, 2, 4, 4) + mask.unsqueeze(1)
        out = scores.view(-1, 2, 4, 4).softmax(-1) @ v
        out = self.out(out.transpose(1, 2).reshape(-1, 4, c))
        out = out.view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
        return x + out.roll((1, 1), (1, 2))


class LastChannels(nn.Module):
    """Images with their channels last, and back."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def swin() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), LastChannels(Windows(4)), *head(4))


class LinearNorm(nn.Sequential):
    """A linear layer over tokens, and BatchNorm of all of them, as in LeViT."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        return self[1](x.flatten(0, 1)).reshape_as(x)


def levit() -> nn.Module:
    tokens = [LinearNorm(8, 8), nn.Hardswish(), LinearNorm(8, 6), nn.Flatten(1), nn.Linear(96, 10)]
    return nn.Sequential(*conv_norm(3, 8, 4, stride=4, padding=0), Tokens(), *tokens)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


# As `CONVOLUTIONAL`, with the number of BatchNorm layers that are folded.
WHOLE = CONVOLUTIONAL | {
    "mixnet": (mixnet, 3),
    "ghostnet": (ghostnet, 7),
    "selective kernels": (sknet, 3),
    "upsampling": (hrnet, 5),
    "group norm": (group_norm, 0),
    "convnext": (convnext, 0),
    "swin": (swin, 0),
    "levit": (levit, 3),
}
