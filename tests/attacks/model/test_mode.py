"""The model is after an attack what it was before, and BatchNorm runs in the mode asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD
from iaat_fast.attacks.model.modules import buffers_of, modules_of, parameters_of

OPTIONS = {"eps": 0.05, "alpha": 0.02, "steps": 3, "seed": 0}
LABELS = torch.arange(8)


def mixed(net: nn.Sequential) -> nn.Sequential:
    """Modes, frozen parameters and gradients as a fine-tuning loop may have them."""
    net.train()
    net[1].eval()
    net[5].eval()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    return net


def state(net: nn.Module) -> list[object]:
    tensors = [t.clone() for t in net.state_dict(keep_vars=True).values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    return [
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [id(t) for t in net.state_dict(keep_vars=True).values()],
        tensors,
        gradients,
        torch.get_rng_state(),
    ]


def assert_state(net: nn.Module, before: list[object]) -> None:
    after = state(net)
    assert after[:3] == before[:3]
    for name, old, new in zip(("tensors", "gradients"), before[3:5], after[3:5], strict=True):
        for a, b in zip(old, new, strict=True):  # type: ignore[call-overload]
            assert (a is None and b is None) or torch.equal(a, b), name
    assert torch.equal(before[5], after[5])  # type: ignore[arg-type]


class Breaks(nn.Module):
    """Fails at the third forward, in the middle of an attack."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory")
        return x


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_nothing_changes(bn_net: nn.Sequential, x: Tensor, bn: str, restarts: int) -> None:
    net = mixed(bn_net)
    before = state(net)
    pgd = PGD(net, **OPTIONS, bn=bn, restarts=restarts)
    pgd(x, LABELS)
    pgd.logits(x)
    assert_state(net, before)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_nothing_changes_when_the_model_fails_in_the_middle(
    bn_net: nn.Sequential, x: Tensor, bn: str
) -> None:
    net = mixed(bn_net).append(Breaks())
    before = state(net)
    with pytest.raises(RuntimeError, match="out of memory"):
        PGD(net, **OPTIONS, bn=bn)(x, LABELS)
    assert_state(net, before)


@pytest.mark.parametrize("bn", ["eval", "train", "train_update"])
def test_batch_norm_runs_in_its_mode_and_dropout_is_off(
    bn_net: nn.Sequential, x: Tensor, bn: str
) -> None:
    """Against the plain loop over a copy whose modules are switched by hand."""
    pgd = PGD(bn_net.train(), **OPTIONS, bn=bn, random_start=False)
    plain = copy.deepcopy(bn_net).eval()
    plain[1].train(bn != "eval")
    x_adv = x
    for _ in range(OPTIONS["steps"]):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(plain(leaf), LABELS, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        x_adv = x_adv.detach() + OPTIONS["alpha"] * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-OPTIONS["eps"], OPTIONS["eps"])).clamp(0, 1)
    before = copy.deepcopy(bn_net.state_dict())
    assert torch.equal(pgd(x, LABELS), x_adv)
    expected = plain.state_dict() if bn == "train_update" else before
    for name, value in bn_net.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert bn == "eval" or not torch.equal(plain[1].running_mean, before["1.running_mean"])
    assert torch.equal(pgd.logits(x), plain(x).detach())
    assert not pgd.logits(x).requires_grad


def test_a_module_that_appears_twice_and_tied_weights(x: Tensor) -> None:
    linear = nn.Linear(192, 192)
    net = nn.Sequential(nn.Flatten(), linear, nn.ReLU(), linear, nn.Linear(192, 10))
    before = state(net)
    PGD(net, **OPTIONS)(x, LABELS)
    assert_state(net, before)


def test_what_is_in_a_model_is_what_torch_finds(bn_net: nn.Sequential) -> None:
    """With a module and a weight that appear twice, a child and a bias that are None, and a buffer of its own."""
    net = nn.Sequential(bn_net, bn_net[1], nn.Linear(10, 10, bias=False), nn.Linear(10, 10))
    net[3].weight = net[2].weight
    net.add_module("missing", None)
    net.register_buffer("offset", torch.zeros(1), persistent=False)
    modules = modules_of(net)
    for ours, theirs in (
        (modules, net.modules()),
        (parameters_of(modules), net.parameters()),
        (buffers_of(modules), net.buffers()),
    ):
        assert sorted(map(id, ours)) == sorted(map(id, theirs))


def test_a_module_hears_of_its_mode_where_it_wants_to(net: nn.Sequential, x: Tensor) -> None:
    class Listens(nn.Identity):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "training":
                heard.append(value)
            super().__setattr__(name, value)

    heard: list[object] = []
    net = nn.Sequential(Listens(), net).train()
    heard.clear()
    PGD(net, **OPTIONS)(x, LABELS)
    assert heard == [False, True]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_module_is_switched_too(bn_net: nn.Sequential, x: Tensor) -> None:
    with torch.random.fork_rng():
        traced = torch.jit.trace(bn_net.eval(), x)
    traced.train()
    PGD(traced, **OPTIONS)(x, LABELS)
    assert all(module.training for module in traced.modules())
    assert torch.equal(PGD(traced, **OPTIONS)(x, LABELS), PGD(bn_net, **OPTIONS)(x, LABELS))


def test_hooks_run_and_may_not_keep_weight_gradients_alive(net: nn.Sequential, x: Tensor) -> None:
    forwards, backwards = [], []
    net[0].register_forward_hook(lambda *_: forwards.append(1))
    net[0].register_full_backward_hook(lambda *_: backwards.append(1))
    PGD(net, **OPTIONS)(x, LABELS)
    assert len(forwards) == len(backwards) == OPTIONS["steps"]
    assert all(p.grad is None for p in net.parameters())


def test_no_weight_gradient_is_computed(net: nn.Sequential, x: Tensor) -> None:
    touched = []
    for p in net.parameters():
        p.register_hook(touched.append)
    PGD(net, **OPTIONS)(x, LABELS)
    assert not touched


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_distributed_wrapper_is_left_out(bn_net: nn.Sequential, x: Tensor) -> None:
    wrapper = nn.parallel.DistributedDataParallel(bn_net)
    through = []
    wrapper.register_forward_pre_hook(lambda *_: through.append(1))
    pgd = PGD(wrapper, **OPTIONS)
    assert torch.equal(pgd(x, LABELS), PGD(bn_net, **OPTIONS)(x, LABELS))
    assert pgd.model is bn_net
    assert not through
