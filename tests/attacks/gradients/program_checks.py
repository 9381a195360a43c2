"""What tests hold a program to: autograd's logits and gradients, in float64, float32 and bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.program import program as program_module
from iaat_fast.attacks.gradients.program.exported import ExportedForward
from iaat_fast.attacks.gradients.shadow import Shadow
from iaat_fast.attacks.gradients.source import ByAutograd, Source

# Sums of float64 in another order: 23 networks are off by 1e-16 to 6e-15 of the largest entry.
EXACT = 1e-13


def cotangent(logits: Tensor) -> Tensor:
    """Another number for every class."""
    classes = torch.arange(1, logits.shape[1] + 1)
    return torch.sin(classes.double()).to(logits.dtype).expand_as(logits)


def off(value: Tensor, true: Tensor) -> float:
    """The largest difference, in units of the largest entry."""
    value, true = value.detach(), true.detach()
    return float((value.double() - true.double()).abs().max() / true.double().abs().max())


def assert_equal(source: Source, model: nn.Module, x: Tensor, most: float = EXACT) -> None:
    logits, grad = source.input_vjp(x, cotangent)
    true, slope = ByAutograd(model).input_vjp(x, cotangent)
    assert grad is not None
    assert slope is not None
    assert logits.shape == true.shape
    assert grad.shape == x.shape
    assert off(logits, true) < most
    assert off(grad, slope) < most


@dataclass
class InFloat32:
    """A network in float32, the graph that its programs share, and the truth from float64."""

    model: nn.Module
    x: Tensor
    exported: ExportedForward
    true: Tensor
    slope: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> InFloat32:
        exported = ExportedForward(model, x)
        true, slope = ByAutograd(model.double()).input_vjp(x.double(), cotangent)
        assert slope is not None
        return cls(model.float(), x, exported, true, slope)

    def program(self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None = None) -> Program:
        monkeypatch.setattr(program_module, "ExportedForward", lambda *_: self.exported)
        return Program(self.model, self.x, dtype=dtype)

    def assert_as_near_to_the_truth_as_autograd(self, program: Program, *, flips: int = 0) -> None:
        """Folding and fused sums round otherwise, not more: within 4 times autograd's own error, or some last bits.

        flips: of so many images the gradient may be another one: where a value is nearly 0, rounding decides on which
            side of a ReLU it lies. Among the millions of a deep network some are.
        """
        logits, grad = program.input_vjp(self.x, cotangent)
        plain, slope = ByAutograd(self.model).input_vjp(self.x, cotangent)
        assert grad is not None
        assert slope is not None
        last_bits = 16 * torch.finfo(torch.float32).eps
        assert off(logits, self.true) < max(4 * off(plain, self.true), last_bits)
        largest = self.slope.abs().max()
        errors = (grad - self.slope).abs().flatten(1).amax(1) / largest
        most = max(4 * off(slope, self.slope), last_bits)
        assert (errors >= most).sum() <= flips, errors

    def assert_as_many_signs_are_right_as_in_a_copy_of_the_modules(
        self, program: Program, *, times: float = 1.0
    ) -> None:
        """In bfloat16: 0.02 of all signs more may be wrong, or so many times as many.

        Of 3,840 entries 0.02 are 77, several deviations where one in ten is wrong and each for itself. In deep networks
        they are wrong together, where a ReLU flips: of a GoogLeNet's 0.11 to 0.17 in programs, 0.12 to 0.14 in copies,
        over three seeds.
        """
        _, grad = program.input_vjp(self.x, cotangent)
        copy = Shadow(self.model, dtype=torch.bfloat16, channels_last=True)
        copy.refresh()
        _, slope = ByAutograd(copy.module, dtype=torch.bfloat16).input_vjp(self.x, cotangent)
        assert grad is not None
        assert slope is not None
        assert grad.dtype is torch.bfloat16

        def wrong(found: Tensor) -> float:
            return float((found.sign() != self.slope.sign()).double().mean())

        assert wrong(grad) < max(times * wrong(slope), wrong(slope) + 0.02)
        assert wrong(grad) < 0.25
