"""The residual blocks compute what their papers define, written out here in plain functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iaat_fast.models.resnet import BasicBlock, PreActivationBlock

SHAPES = [(4, 4, 1), (4, 6, 1), (4, 6, 2)]


def with_random_statistics(block: nn.Module) -> nn.Module:
    """In eval mode, every BatchNorm with its own scale, shift, mean and variance."""
    generator = torch.Generator().manual_seed(0)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (*module.parameters(), module.running_mean, module.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    return block.eval()


def batch_norm(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)


@pytest.mark.parametrize(("in_channels", "channels", "stride"), SHAPES)
def test_basic_block_adds_its_shortcut_before_the_last_relu(
    in_channels: int, channels: int, stride: int
) -> None:
    block = with_random_statistics(BasicBlock(in_channels, channels, stride))
    x = torch.randn(2, in_channels, 8, 8)
    out = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(F.relu(batch_norm(out, block.bn1)), block.conv2.weight, padding=1)
    shortcut = x
    if (in_channels, stride) != (channels, 1):
        projected = F.conv2d(x, block.shortcut[0].weight, stride=stride)
        shortcut = batch_norm(projected, block.shortcut[1])
    torch.testing.assert_close(block(x), F.relu(batch_norm(out, block.bn2) + shortcut))


@pytest.mark.parametrize(("in_channels", "channels", "stride"), SHAPES)
def test_pre_activation_block_leaves_the_identity_untouched(
    in_channels: int, channels: int, stride: int
) -> None:
    block = with_random_statistics(PreActivationBlock(in_channels, channels, stride))
    x = torch.randn(2, in_channels, 8, 8)
    activated = F.relu(batch_norm(x, block.bn1))
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(F.relu(batch_norm(out, block.bn2)), block.conv2.weight, padding=1)
    shortcut = x
    if (in_channels, stride) != (channels, 1):
        shortcut = F.conv2d(activated, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), out + shortcut)
