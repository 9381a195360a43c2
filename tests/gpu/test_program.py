"""The gradient program on a GPU: cuDNN's fused convolutions, the stem's kernels, and its refresh in a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from iaat_fast import models
from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.shadow import Shadow
from iaat_fast.attacks.gradients.source import ByAutograd
from iaat_fast.attacks.losses import cotangent
from tests.attacks.later_networks import WHOLE
from tests.attacks.networks import with_statistics

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(params=WHOLE)
def network(request: pytest.FixtureRequest, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, and images."""
    torch.manual_seed(0)
    make, _ = WHOLE[request.param]
    return with_statistics(make()).to(device), torch.rand(6, 3, 16, 16, device=device)


def of_classes(logits: Tensor) -> Tensor:
    return torch.sin(torch.arange(1.0, logits.shape[1] + 1, device=logits.device)).expand_as(logits)


def off(value: Tensor, true: Tensor) -> float:
    return float((value.double() - true).norm() / true.norm())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_it_is_as_near_to_float64_as_a_copy_by_autograd(
    network: tuple[nn.Module, Tensor], dtype: torch.dtype | None
) -> None:
    """Twice the copy's error at most, and in float32 at least what a few flipped ReLUs make, 0.01."""
    model, x = network
    logits, grad = ByAutograd(copy.deepcopy(model).double()).input_vjp(x.double(), of_classes)
    shadow = Shadow(model, dtype=dtype, channels_last=True)
    shadow.refresh()
    copied = ByAutograd(shadow.module, dtype=dtype).input_vjp(x, of_classes)
    lowered = Program(model, x, dtype=dtype).input_vjp(x, of_classes)
    for true, by_autograd, by_program in zip((logits, grad), copied, lowered, strict=True):
        assert true is not None
        assert by_autograd is not None
        assert by_program is not None
        assert off(by_program, true) <= max(2 * off(by_autograd, true), 0.01)


@pytest.fixture
def resnet(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = with_statistics(models.build("resnet18", width=16)).to(device)
    x = torch.rand(16, 3, 32, 32, device=device)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_stem_takes_the_step_that_its_gradient_gives(
    resnet: tuple[nn.Module, Tensor, Tensor], layout: torch.memory_format
) -> None:
    """But for entries so small that the order of the sum decides their sign: fewer than one in 100."""
    model, x, y = resnet
    x = x.contiguous(memory_format=layout)
    program = Program(model, x, dtype=torch.bfloat16)
    assert program.takes_steps

    def of_loss(logits: Tensor) -> Tensor:
        return cotangent("ce", logits, y, targeted=False, saturation_proof=True)

    eps, alpha = (torch.full((len(x),), size, device=x.device) for size in (8 / 255, 2 / 255))
    rest = (x, eps, alpha, 0.0, 1.0, False, None)
    _, grad = program.input_vjp(x, of_loss)
    assert grad is not None
    expected, stepped = x.clone(), x.clone()
    torch.ops.iaat_fast.pgd_step_linf_(expected, grad.to(x.dtype), *rest)
    program.step_(stepped, of_loss, *rest)
    assert float((stepped == expected).float().mean()) > 0.99


def test_the_refresh_in_a_graph_follows_the_weights(
    resnet: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, _ = resnet
    program = Program(model, x, dtype=torch.bfloat16)
    for factor in (0.9, 1.1, 0.8):  # eager, captured, replayed
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(factor)
        program.refresh()
        fresh = Program(model, x, dtype=torch.bfloat16)
        for mine, made in zip(program.tensors(), fresh.tensors(), strict=True):
            assert torch.equal(mine, made)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_steps_are_the_eager_ones(
    resnet: tuple[nn.Module, Tensor, Tensor], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model, x, y = resnet
    eager = PGD(model, seed=0, precision=precision, engine=EngineOptions(graph=False))(x, y)
    captured = PGD(model, seed=0, precision=precision, engine=EngineOptions())
    for _ in range(3):
        same = float((captured(x, y) == eager).float().mean())
        assert same > 0.999  # atomic additions in no kernel that is known, but none is promised
