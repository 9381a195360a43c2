"""The public functions on CUDA tensors, by the backend that is the default or that IAAT_FAST_BACKEND forces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from iaat_fast import ops
from iaat_fast.ops import reference

pytestmark = pytest.mark.gpu

_ops = torch.ops.iaat_fast

Arguments = Callable[..., tuple[Any, ...]]
On = Callable[[tuple[Any, ...]], tuple[Any, ...]]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_backend_is_the_one_asked_for(device: torch.device) -> None:
    forced = os.environ.get("IAAT_FAST_BACKEND")
    assert ops.backend(device) == forced if forced else ops.backend(device) in ("native", "triton")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(op: str, k: int, dtype: torch.dtype, arguments: Arguments, on: On) -> None:
    torch.library.opcheck(
        getattr(_ops, op).default, on(arguments(op, k=k, dtype=dtype, ordinary=True))
    )


@pytest.mark.parametrize("layout", ["channels_last", "misaligned", "every_second"])
@pytest.mark.parametrize(
    "op",
    [
        *("project_linf", "pgd_step_linf_", "random_start_linf"),
        *("relu_backward_", "scale_shift_relu", "scale_shift_relu_backward_"),
    ],
)
def test_opcheck_of_layouts(op: str, layout: str, arguments: Arguments, on: On) -> None:
    args = on(arguments(op, layout=layout, ordinary=True))
    torch.library.opcheck(getattr(_ops, op).default, args)


def test_the_projection_differentiates(device: torch.device) -> None:
    x = torch.rand(2, 3, 8, 8, device=device)
    leaf = (x + 0.2 * torch.rand_like(x)).requires_grad_()
    eps = torch.tensor([0.0, 0.1], device=device)
    torch.library.opcheck(_ops.project_linf, (leaf, x, eps, 0.0, 1.0))
    (ops.project_linf(leaf, x, eps) ** 2).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any()
    assert not leaf.grad[0].any()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.usefixtures("fresh_compiler")
def test_all_ops_trace_without_graph_breaks(
    op: str, compiler: str, arguments: Arguments, on: On
) -> None:
    """Compiled between ordinary operations, so that inductor reads and writes the ops' tensors."""

    def around(*args: Any) -> list[Tensor]:
        own = [a.clone() if isinstance(a, Tensor) else a for a in args]
        returned = getattr(_ops, op).default(*own)
        results = returned if isinstance(returned, tuple) else (returned,)
        tensors = [t for t in (*own, *results) if isinstance(t, Tensor)]
        return [t * 2 if t.is_floating_point() else t + 0 for t in tensors]

    args = on(arguments(op, k=3, ordinary=True))
    compiled = torch.compile(around, fullgraph=True, backend=compiler)
    for expected, found in zip(around(*args), compiled(*args), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_whole_iteration_of_the_radii_in_one_graph(device: torch.device) -> None:
    """Start, three steps on K = 3 candidates and selection, captured together, seeds and images exchanged in place."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).to(device)
    x, y = torch.rand(16, 3, 8, 8, device=device), torch.randint(10, (16,), device=device)
    memory = torch.full((40,), 0.05, device=device)
    index, seed = torch.arange(3, 19, device=device), torch.tensor([1, 0, 0], device=device)

    def iteration(functions: Any) -> tuple[Tensor, ...]:
        prev = memory[index]
        eps = torch.cat([prev + 0.02, prev, prev - 0.02])
        x_adv = functions.random_start_linf(x, eps, seed, index, 0.0, 1.0)
        for _ in range(3):
            leaf = x_adv.detach().requires_grad_()
            logits = net(leaf)
            cotangent = functions.ce_cotangent(logits.detach(), y, False)
            (grad,) = torch.autograd.grad(logits, leaf, cotangent)
            functions.pgd_step_linf_(x_adv, grad, x, eps, eps / 2, 0.0, 1.0, False, None)
        with torch.no_grad():
            logits = net(x_adv)
        return functions.select_epsilon_(memory, index, logits, y, 0.02, 0.1, 0.0, 1.0, False, None)

    before = memory.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        iteration(_ops)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eps, choice = iteration(_ops)
    for key in (5, 6):
        seed.copy_(torch.tensor([key, 0, 0]))
        x.copy_(torch.rand(16, 3, 8, 8))
        memory.copy_(before)
        graph.replay()
        found = memory.clone(), eps.clone(), choice.clone()
        memory.copy_(before)
        expected = (memory, *iteration(reference))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_tensors_on_different_devices_are_refused(device: torch.device) -> None:
    x = torch.rand(2, 3, device=device)
    with pytest.raises(ValueError, match="device"):
        ops.project_linf(x.cpu(), x, 0.1)
    with pytest.raises(ValueError, match="device"):
        ops.project_linf(x, x, torch.tensor([0.1, 0.1]))
    with pytest.raises(ValueError, match="device"):
        ops.random_start_linf(x, 0.1, torch.tensor([1]))
    with pytest.raises(TypeError, match="dtype"):
        ops.pgd_step_linf_(x, x.half(), x, 0.1, 0.1)
