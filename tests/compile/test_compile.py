"""Every public op traces under `torch.compile` without a graph break and gives the same results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from iaat_fast import ops

pytestmark = pytest.mark.slow  # torch.compile is imported, and traces

EPS = torch.tensor([0.0, 0.1])
GRAD = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def project(x: Tensor) -> Tensor:
    return ops.project_linf(x + 0.2, x, EPS) * 2


def step(x: Tensor) -> tuple[Tensor, Tensor]:
    stats = torch.zeros(2, dtype=torch.int64)
    x_adv = x.clone()
    for _ in range(2):
        ops.pgd_step_linf_(x_adv, GRAD, x, EPS, 0.03, stats=stats)
    return x_adv + 1, stats


def start(x: Tensor) -> Tensor:
    return ops.random_start_linf(x, EPS, 7, restart=1) + ops.random_start_linf(x, 0.1, 3)


def cotangent(x: Tensor) -> Tensor:
    return ops.ce_cotangent(100 * x.flatten(1), torch.tensor([3, 5]))


def select(x: Tensor) -> tuple[Tensor, ...]:
    memory = torch.full((4,), 0.05)
    logits = x.flatten()[:12].view(6, 2)
    eps, choice = ops.select_epsilon_(
        memory, torch.tensor([2, 0]), logits, torch.tensor([1, 0]), 0.01, 0.1
    )
    return memory * 2, eps, choice


def crop(x: Tensor) -> Tensor:
    data, index = (255 * x).byte().permute(0, 2, 3, 1).contiguous(), torch.tensor([1, 0, 1])
    plain = ops.random_crop_flip(data, index, torch.tensor([7, 2]), padding=0, flip=False)
    return ops.random_crop_flip(data, index, 7, stream=2) + 2 * plain


def mask(x: Tensor) -> tuple[Tensor, Tensor]:
    grad, out = x * 2, torch.relu(x - 0.5)
    return ops.relu_backward_(grad, out, x) + 1, ops.relu_backward_(GRAD.clone(), out, ceiling=0.3)


def normalise(x: Tensor) -> tuple[Tensor, ...]:
    total, scale = x + 0, torch.tensor([2.0, -1.0, 0.5])
    out = ops.scale_shift_relu(total, scale, scale / 2, x)
    plain = ops.scale_shift_relu(x, scale, scale, ceiling=6.0)
    grad = ops.scale_shift_relu_backward_(GRAD.clone(), out, scale, x)
    return total * 2, out * 2, plain * 2, grad * 2


FUNCTIONS = [project, step, start, cotangent, select, crop, mask, normalise]
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images() -> list[Tensor]:
    contiguous = torch.rand(2, 3, 8, 8, generator=torch.manual_seed(0))
    return [
        contiguous,
        contiguous.contiguous(memory_format=torch.channels_last),
        contiguous.transpose(2, 3),
        torch.cat([contiguous, contiguous], 3)[..., 4:12],
    ]


@pytest.mark.slow
@functions
def test_ops_trace_without_graph_breaks(function: Callable[[Tensor], object]) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    # To trace takes its time for every layout: two a function, in turn.
    for x in images()[FUNCTIONS.index(function) % 2 :: 2]:
        torch.testing.assert_close(compiled(x), function(x), rtol=0, atol=0, check_stride=True)


@pytest.mark.slow
def test_the_gradient_of_the_projection_is_traced() -> None:
    def loss(x_adv: Tensor) -> Tensor:
        return (ops.project_linf(x_adv, X, EPS) ** 2).sum()

    X = images()[0]
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x_adv = (X + 0.05).requires_grad_()
        gradients += torch.autograd.grad(function(x_adv), x_adv)
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_a_traced_step_is_traced_for_any_batch_size() -> None:
    def one_step(x_adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return ops.pgd_step_linf_(x_adv.clone(), x - 0.5, x, eps, 0.02)

    compiled = torch.compile(one_step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 5, 9):
        x, eps = torch.rand(n, 7), torch.rand(n)
        assert torch.equal(compiled(x, x, eps), one_step(x, x, eps))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_reads_the_results_with_the_right_strides() -> None:
    def project_a_start(x: Tensor) -> Tensor:
        return ops.project_linf(ops.random_start_linf(x, EPS, 7), x, EPS / 2) * 2

    compiled = torch.compile(project_a_start, fullgraph=True)
    x = images()[0].transpose(2, 3)
    assert torch.equal(compiled(x), project_a_start(x))
