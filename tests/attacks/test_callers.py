"""PGD works for every kind of model and caller, and hands back images like those it was given."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD

OPTIONS = {"eps": 0.1, "alpha": 0.03, "steps": 3, "seed": 0}


@pytest.mark.parametrize(
    "options", [{}, {"restarts": 2}, {"early_stop": True}, {"random_start": False}]
)
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_that_switch_gradients_off(
    net: nn.Module, x: Tensor, y: Tensor, caller: Any, options: dict[str, Any]
) -> None:
    pgd = PGD(net, **OPTIONS, **options)
    expected = pgd(x, y)
    with caller():
        inside = pgd(x, y)
        # tensors made in inference mode may not be saved for a backward pass
        own = pgd(x.clone(), y.clone(), eps=torch.full((8,), 0.1), index=torch.arange(8))
        started = pgd(x.clone(), y.clone(), start=x.clone()) if options == {} else own
        logits = pgd.logits(x.clone())
    assert torch.equal(inside, expected)
    assert torch.equal(own, expected)
    assert ((started - x).abs() <= 0.1 + 1e-6).all()
    assert not inside.requires_grad
    assert not inside.is_inference()
    assert torch.equal(logits, net(x))


def test_inference_tensors_are_accepted_outside(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, **OPTIONS)
    with torch.inference_mode():
        frozen_x, frozen_y, eps = x.clone(), y.clone(), torch.full((8,), 0.1)
    assert torch.equal(
        pgd(frozen_x, frozen_y, eps=eps, alpha=eps / 3.3), pgd(x, y, alpha=eps / 3.3)
    )


def test_images_that_require_grad_are_constants(net: nn.Module, x: Tensor, y: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    x_adv = PGD(net, **OPTIONS)(leaf, y)
    assert not x_adv.requires_grad
    assert leaf.grad is None
    assert torch.equal(x_adv, PGD(net, **OPTIONS)(x, y))


def test_the_arguments_are_not_written(net: nn.Module, x: Tensor, y: Tensor) -> None:
    args = (x, y, torch.full((8,), 0.1), torch.full((8,), 0.03), x + 0.0, torch.arange(8))
    before = [t.clone() for t in args]
    pgd = PGD(net, steps=3)
    for options in ({}, {"random_start": False}, {"early_stop": True}):
        pgd = PGD(net, steps=3, **options)
        x_adv = pgd(x, y, eps=args[2], alpha=args[3], start=args[4], index=args[5])
        assert x_adv.data_ptr() not in {t.data_ptr() for t in args}
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))


def test_a_plain_function_is_a_model(net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert torch.equal(PGD(lambda a: net(a), **OPTIONS)(x, y), PGD(net, **OPTIONS)(x, y))


@pytest.mark.parametrize("random_start", [False, True])
def test_channels_last_images(net: nn.Module, x: Tensor, y: Tensor, random_start: bool) -> None:
    net, x = net.double(), x.double()
    packed = x.contiguous(memory_format=torch.channels_last)
    pgd = PGD(net, **OPTIONS, random_start=random_start)
    for result, expected in (
        (pgd(packed, y), pgd(x, y)),
        (pgd(packed, y, start=x), pgd(x, y, start=x)),
        (pgd(packed, y, eps=torch.full((16,), 0.1)), pgd(x, y, eps=torch.full((16,), 0.1))),
    ):
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(result, expected)
    restarted = PGD(net, **OPTIONS, restarts=2)(packed, y, eps=torch.full((16,), 0.1))
    assert restarted.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "make", [lambda x: x[::2], lambda x: x[..., 1:7], lambda x: x.transpose(2, 3)]
)
def test_views_of_larger_tensors(make: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).double()
    x = make(torch.rand(8, 3, 8, 8, generator=torch.manual_seed(0)).double())
    y = net(x).argmax(1)
    for options in ({}, {"random_start": False}, {"restarts": 2}):
        pgd = PGD(net, **OPTIONS, **options)
        assert torch.equal(pgd(x, y), pgd(x.contiguous(), y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(net: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    net, x = net.to(dtype), x.to(dtype)
    y = net(x).argmax(1)
    for engine in ("auto", "exact"):
        x_adv = PGD(net, **OPTIONS, engine=engine)(x, y)
        assert x_adv.dtype is dtype
        assert ((x_adv - x).abs() <= 0.1 + 1e-2).all()
        assert (net(x_adv).argmax(1) != y).any()


@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_autocast(net: nn.Module, x: Tensor, y: Tensor, engine: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = PGD(net, **OPTIONS, engine=engine)(x, y)
    assert x_adv.dtype is torch.float32
    assert (net(x_adv).argmax(1) != y).any()


@pytest.mark.parametrize("shape", [(8, 5), (8, 1), (8, 2, 3, 4, 5), (8,)])
def test_images_of_any_shape(shape: tuple[int, ...]) -> None:
    def model(x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1) if x.dim() > 1 else x
        return torch.stack([total, -total], 1)

    x = torch.full(shape, 0.5)
    x_adv = PGD(model, 0.125, 0.125, 2, random_start=False)(x, torch.arange(8) % 2)
    assert torch.equal(x_adv[::2], torch.full_like(x[::2], 0.375))
    assert torch.equal(x_adv[1::2], torch.full_like(x[1::2], 0.625))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (0,)])
@pytest.mark.parametrize("options", [{}, {"restarts": 2}, {"early_stop": True}])
def test_an_empty_batch(net: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    pgd = PGD(net, **OPTIONS, **options)
    none = torch.zeros(0, dtype=torch.int64)
    assert pgd(torch.zeros(shape), none).shape == shape
    assert pgd(torch.zeros(shape), none, eps=torch.zeros(0)).shape == shape
    assert pgd.stats.total == 0


def test_deterministic_algorithms(net: nn.Module, x: Tensor, y: Tensor) -> None:
    expected = PGD(net, **OPTIONS, restarts=2)(x, y)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, False)
        torch.use_deterministic_algorithms(True)
        assert torch.equal(PGD(net, **OPTIONS, restarts=2)(x, y), expected)


def test_a_compiled_model(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    expected = PGD(net, **OPTIONS)(x, y)
    assert torch.equal(PGD(torch.compile(net, backend="aot_eager"), **OPTIONS)(x, y), expected)
