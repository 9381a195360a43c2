"""PGD works for every kind of model and caller, and hands back images like those it was given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, masking_report
from tests.attacks.every_attack import EVERY_ATTACK

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


@contextlib.contextmanager
def of_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CALLERS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": of_double,
    "deterministic": deterministic,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=list(CALLERS))
@pytest.mark.parametrize("name", EVERY_ATTACK)
def test_what_a_caller_has_switched_on_changes_no_attack(
    name: str, caller: Callable[[], Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    expected, logits = EVERY_ATTACK[name](net)(x, y), net(x)
    with caller():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        attack = EVERY_ATTACK[name](net)
        made, judged = attack(x, y), attack.logits(x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert torch.equal(made, expected)
    assert made.dtype is torch.float32
    assert torch.equal(judged, logits)


@pytest.mark.parametrize("caller", CALLERS.values(), ids=list(CALLERS))
@pytest.mark.parametrize(
    "options", [{"engine": "exact"}, {"engine": "fast"}, {"precision": "bf16"}], ids=str
)
def test_nor_any_engine(
    options: dict[str, Any], caller: Callable[[], Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = PGD(net, **OPTIONS, **options)
    expected = attack(x, y)
    with caller():
        assert torch.equal(attack(x, y), expected)
        assert torch.equal(PGD(net, **OPTIONS, **options)(x, y), expected)


def test_the_modules_in_no_copy_see_autocast_either(net: nn.Module, x: Tensor, y: Tensor) -> None:
    seen = set()

    def model(images: Tensor) -> Tensor:
        logits: Tensor = net(images)
        seen.add(logits.dtype)
        return logits

    with torch.autocast("cpu", torch.bfloat16):
        PGD(model, **OPTIONS, restarts=2)(x, y)
        masking_report(model, x, y, 0.1, 0.03, 1)
    assert seen == {torch.float32}


@pytest.mark.slow
def test_a_compiled_model(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    expected = PGD(net, **OPTIONS)(x, y)
    assert torch.equal(PGD(torch.compile(net, backend="aot_eager"), **OPTIONS)(x, y), expected)


class MakesTable(nn.Module):
    """Makes a buffer at its first forward, as rotary embeddings do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if "shift" not in self._buffers:
            self.register_buffer("shift", torch.full((3, 1, 1), 0.1))
        logits: Tensor = self.net(x + self.shift)
        return logits


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("options", [{}, {"engine": "fast"}, {"precision": "bf16"}], ids=str)
def test_a_buffer_made_in_inference_mode(
    options: dict[str, Any], bn: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    usual, model = MakesTable(net).eval(), MakesTable(net).eval()
    usual(x)
    with torch.inference_mode():
        model(x)
    assert model.shift.is_inference()
    pgd = PGD(model, **OPTIONS, **options, bn=bn)
    assert torch.equal(pgd(x, y), PGD(usual, **OPTIONS, **options, bn=bn)(x, y))
    assert torch.equal(pgd(x, y), pgd(x, y))


def test_weights_made_in_inference_mode_are_copied_or_named(x: Tensor, y: Tensor) -> None:
    with torch.inference_mode():
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        ).eval()
    with pytest.raises(ValueError, match="model: weights made in torch"):
        PGD(model, **OPTIONS)(x, y)
    assert PGD(model, **OPTIONS).logits(x).shape == (8, 10)


def test_weights_made_in_inference_mode_that_autograd_need_not_keep(x: Tensor, y: Tensor) -> None:
    """A bias is only added: the plain loop works, and so does the attack."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.linspace(-1, 1, 10))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).unflatten(1, (-1, 12)).square().sum(1)[:, :10] + self.bias

    with torch.inference_mode():
        model = Added()
    assert torch.equal(PGD(model, **OPTIONS)(x, y), PGD(Added(), **OPTIONS)(x, y))
