"""MultiAttack: a sample keeps the first attack that fools the model, and later attacks leave it out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import FGSM, MIFGSM, PGD, MultiAttack, Square

EPS = 0.012


@pytest.fixture
def many() -> Tensor:
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()


def attacks_of(net: nn.Module, **options: Any) -> list[Any]:
    return [
        FGSM(net, EPS / 2, **options),
        PGD(net, EPS, 0.004, 4, seed=1, **options),
        MIFGSM(net, 2 * EPS, 0.006, 6, **options),
    ]


@pytest.mark.parametrize("targeted", [False, True])
def test_a_sample_keeps_the_first_attack_that_fools(
    targeted: bool, net: nn.Module, many: Tensor
) -> None:
    net = net.double()
    y = net(many).topk(2).indices[:, 1 if targeted else 0]
    attacks = attacks_of(net, targeted=targeted)
    made = [attack(many, y) for attack in attacks]
    logits = [net(x_adv) for x_adv in made]
    fooled = [(z.argmax(1) == y) == targeted for z in logits]
    losses = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits])
    worst = (-losses if targeted else losses).argmax(0)
    expected = torch.stack([made[k][i] for i, k in enumerate(worst.tolist())])
    for x_adv, fell in zip(reversed(made), reversed(fooled), strict=True):
        expected[fell] = x_adv[fell]
    multi = MultiAttack(attacks)
    torch.testing.assert_close(multi(many, y), expected, rtol=0, atol=1e-12)
    left = [24, int((~fooled[0]).sum()), int((~(fooled[0] | fooled[1])).sum())]
    assert 24 > left[1] > left[2] > 0
    assert multi.stats.gradients == left[0] + 4 * left[1] + 6 * left[2]
    assert multi.stats.gradients == multi.stats.planned


def test_it_is_that_of_torchattacks_where_all_fall(net: nn.Module, x: Tensor, y: Tensor) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    peers = [torchattacks.FGSM(net, 0.02), torchattacks.MIFGSM(net, 0.15, 0.03, 6)]
    attacks = [FGSM(net, 0.02), MIFGSM(net, 0.15, 0.03, 6)]
    made = MultiAttack(attacks)(x, y)
    assert (net(made).argmax(1) != y).all()
    assert 0 < (net(attacks[0](x, y)).argmax(1) != y).sum() < 8
    torch.testing.assert_close(made, torchattacks.MultiAttack(peers)(x, y), rtol=0, atol=1e-6)


def test_radii_and_noise_follow_the_samples(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y, radii, index = net(many).argmax(1), torch.linspace(0, 0.03, 24), torch.arange(24) + 7
    multi = MultiAttack([*attacks_of(net), Square(net, EPS, 5)])
    whole = multi(many, y, eps=radii, index=index, seed=3)
    part = torch.tensor([20, 3, 11])
    alone = multi(many[part], y[part], eps=radii[part], index=index[part], seed=3)
    torch.testing.assert_close(whole[part], alone, rtol=0, atol=1e-8)
    assert ((whole - many).abs().flatten(1).amax(1) <= radii + 1e-9).all()
    with torch.inference_mode():
        assert torch.equal(multi(many, y, eps=radii, index=index, seed=3), whole)


def test_nothing_is_attacked_where_nothing_is_left(net: nn.Module, x: Tensor, y: Tensor) -> None:
    multi = MultiAttack([FGSM(net, EPS), PGD(net, EPS, 0.004, 3)])
    assert multi(x, (y + 1) % 10).shape == x.shape
    assert multi.stats.gradients == 8, "the first fools all, whose labels are wrong"
    assert multi(x[:0], y[:0]).shape == (0, 3, 8, 8)
    assert multi.stats.gradients == 0


def test_batch_statistics_keep_all_samples_together(bn_net: nn.Module, x: Tensor) -> None:
    y = torch.arange(8)
    attacks = [FGSM(bn_net, 0.05, bn="train"), PGD(bn_net, 0.05, 0.02, 2, bn="train", seed=0)]
    multi = MultiAttack(attacks)
    x_adv = multi(x, y)
    first = attacks[0](x, y)
    fell = attacks[0].logits(first).argmax(1) != y
    assert torch.equal(x_adv[fell], first[fell])
    assert multi.stats.gradients in (8, 8 + 2 * 8)


def test_bad_attacks_are_refused(net: nn.Module, bn_net: nn.Module, x: Tensor, y: Tensor) -> None:
    fgsm = FGSM(net)
    with pytest.raises(ValueError, match=r"^attacks: none, expected at least 1"):
        MultiAttack([])
    with pytest.raises(TypeError, match=r"^attacks\[1\]: Sequential, expected an attack"):
        MultiAttack([fgsm, net])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^attacks\[1\]: of another model, expected that of att"):
        MultiAttack([fgsm, FGSM(bn_net)])
    with pytest.raises(ValueError, match=r"^attacks\[1\]: targeted=True, expected False as of att"):
        MultiAttack([fgsm, FGSM(net, targeted=True)])
    with pytest.raises(ValueError, match=r"^eps: shape \(16,\), expected \[8\], a radius per sam"):
        MultiAttack([fgsm])(x, y, eps=torch.full((16,), 0.1))
    assert repr(MultiAttack([fgsm, PGD(net)])) == "MultiAttack([FGSM, PGD])"


def test_a_run_is_that_of_each_attack_on_what_is_left(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    y[0] = (y[0] + 1) % 10  # wrong as it is
    attacks = attacks_of(net)
    found = MultiAttack(attacks).run(many, y)
    first = attacks[0].run(many, y)
    rest = (~first.success).nonzero()[:, 0]
    second = attacks[1].run(many[rest], y[rest], index=rest)
    assert found.forwards[0] == 1
    assert found.distances[0] == 0
    kept = first.success
    for name in ("x_adv", "predictions", "forwards", "backwards"):
        assert torch.equal(getattr(found, name)[kept], getattr(first, name)[kept])
    now = rest[second.success]
    assert len(now)
    assert torch.equal(found.x_adv[now], second.x_adv[second.success])
    assert torch.equal(found.forwards[now], first.forwards[now] + second.forwards[second.success])
    assert torch.equal(found.success, net(found.x_adv).argmax(1) != y)
    assert torch.equal(found.predictions, net(found.x_adv).argmax(1))
    torch.testing.assert_close(
        found.distances, (found.x_adv - many).flatten(1).abs().amax(1).float()
    )


def test_a_run_over_radii_attacks_at_each_what_no_smaller_one_has_fooled(
    net: nn.Module, many: Tensor
) -> None:
    net = net.double()
    y = net(many).argmax(1)
    attacks = attacks_of(net)
    radii = [2 * EPS, EPS / 4, EPS]
    found = MultiAttack(attacks).run(many, y, epsilons=radii)
    alone = MultiAttack(attacks).run(many, y, epsilons=EPS / 4)
    assert torch.equal(found.x_adv[1], alone.x_adv)
    assert torch.equal(found.success[1], alone.success)
    large, small, middle = found.success
    assert small.sum() < middle.sum() < large.sum()
    assert (middle >= small).all()
    assert (large >= middle).all()
    assert torch.equal(found.x_adv[0][middle], found.x_adv[2][middle])
    assert not found.forwards[0][middle].any()
    assert (found.distances <= torch.tensor(radii).unsqueeze(1) * (1 + 1e-6)).all()


def test_a_mask_of_each_sample_stays_with_it(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    mask = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.5
    attack = MultiAttack(attacks_of(net))
    for made in (attack(many, y, mask=mask), attack.run(many, y, mask=mask).x_adv):
        changed = made != many
        assert changed.any()
        assert not (changed & ~mask).any()


def test_no_images_have_a_result_too(net: nn.Module) -> None:
    none = torch.rand(0, 3, 8, 8).double()
    found = MultiAttack(attacks_of(net.double())).run(none, torch.zeros(0).long(), [0.1, 0.2])
    assert found.x_adv.shape == (2, 0, 3, 8, 8)
    assert found.success.shape == found.forwards.shape == (2, 0)
