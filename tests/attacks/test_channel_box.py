"""Bounds per channel: the attack is that of `normalized(model, mean, std)` in [0, 1], brought back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    FABT,
    FGSM,
    MIFGSM,
    PGD,
    AttackBenchAdapter,
    DeepFool,
    Ensemble,
    Findings,
    MultiAttack,
    masking_report,
    scaled_step,
)
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.evaluate import autoattack
from iaat_fast.models import STATISTICS, normalized
from tests.attacks.every_attack import EVERY_ATTACK
from tests.attacks.like_a_gpu import Recorder, check_late

MEAN, STD = (torch.tensor(each).double().view(-1, 1, 1) for each in STATISTICS["imagenet"])
LO, HI = -MEAN / STD, (1 - MEAN) / STD
WIDTH = HI - LO
BOX: dict[str, Any] = {"lo": LO, "hi": HI}

every_attack = pytest.mark.parametrize("name", EVERY_ATTACK)
# One of each way in which attacks treat their images.
each_kind = pytest.mark.parametrize(
    "name", ["PGD", "VNIFGSM", "APGDT", "FABT", "Square", "DeepFool"]
)


@pytest.fixture
def net(net: nn.Sequential) -> nn.Sequential:
    return net.double()


@pytest.fixture
def x() -> Tensor:
    """Images in [0, 1], some at its ends."""
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    x[:, :, 0], x[:, :, 1] = 0, 1
    return x


@pytest.fixture
def z(x: Tensor) -> Tensor:
    return (x - MEAN) / STD


@pytest.fixture
def y(net: nn.Sequential, z: Tensor) -> Tensor:
    return net(z).argmax(1)


def over_pixels(net: nn.Module) -> nn.Module:
    """The same network over images in [0, 1]."""
    network: Any = normalized(net, MEAN.flatten(), STD.flatten()).double()
    network.normalize.mean, network.normalize.std = MEAN.flatten(), STD.flatten()
    return network


def distances(x_adv: Tensor, x: Tensor) -> Tensor:
    """In shares of hi - lo, [N]."""
    return ((x_adv - x).double() / WIDTH).flatten(1).abs().amax(1)


def assert_inside(images: Tensor) -> None:
    assert (images >= LO.to(images.dtype)).all()
    assert (images <= HI.to(images.dtype)).all()


def per_channel(name: str, net: nn.Module, **options: Any) -> Any:
    """The attack of that name with the options of its scalar version, as shares of hi - lo."""
    scalar: Any = EVERY_ATTACK[name](net)
    sizes = {"eps": scalar.eps * WIDTH}
    if isinstance(scalar.alpha, float):
        sizes["alpha"] = scalar.alpha * WIDTH
    return EVERY_ATTACK[name](net, **{**sizes, **BOX, **options})


@every_attack
def test_the_attack_is_that_of_the_normalised_model_in_0_1(
    name: str, net: nn.Module, x: Tensor, y: Tensor, z: Tensor
) -> None:
    pixels = EVERY_ATTACK[name](over_pixels(net))
    attack = per_channel(name, net)
    plain, result = pixels.run(x, y), attack.run(z, y)
    torch.testing.assert_close(result.x_adv * STD + MEAN, plain.x_adv, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.distances, plain.distances, atol=1e-6, rtol=0)
    for field in ("success", "predictions", "forwards", "backwards"):
        assert torch.equal(getattr(result, field), getattr(plain, field))
    assert (result.x_adv != z).any()
    assert_inside(result.x_adv)
    assert (distances(result.x_adv, z) <= pixels.eps * (1 + 1e-12)).all()  # type: ignore[operator]
    torch.testing.assert_close(attack(z, y) * STD + MEAN, pixels(x, y), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_are_kept(
    dtype: torch.dtype, layout: torch.memory_format, net: nn.Module, z: Tensor, y: Tensor
) -> None:
    z = z.to(dtype).contiguous(memory_format=layout)
    attack = PGD(net.to(dtype), 0.1 * WIDTH, 0.03 * WIDTH, 3, **BOX)
    for x_adv in (attack(z, y), attack.run(z, y).x_adv):
        assert x_adv.dtype is dtype
        assert x_adv.is_contiguous(memory_format=layout)
        assert_inside(x_adv)
        # One rounding to the dtype at most 2.64 in size, on the narrowest of the boxes.
        rounding = 2.64 * torch.finfo(dtype).eps / float(WIDTH.amin())
        assert (distances(x_adv, z) <= 0.1 + rounding).all()
        assert distances(x_adv, z).amax() > 0.09


@each_kind
def test_pixels_that_are_not_attacked_keep_their_bits(
    name: str, net: nn.Module, z: Tensor, y: Tensor
) -> None:
    net, z = net.float(), z.float()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 1:7] = True
    result = per_channel(name, net).run(z, y, mask=mask)
    moved = result.x_adv != z
    assert not (moved & ~mask).any()
    assert (moved & mask).any()
    wrong = (y + 1) % 10
    assert torch.equal(per_channel(name, net).run(z, wrong).x_adv, z)


def test_a_verdict_is_that_of_the_model_on_the_images_that_are_returned(
    net: nn.Module, z: Tensor, y: Tensor
) -> None:
    seen: list[Tensor] = []

    def model(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return net(images)

    result = FGSM(model, 0.05 * WIDTH, **BOX).run(z, y)
    assert torch.equal(seen[0], z)
    assert torch.equal(seen[-1], result.x_adv[: len(seen[-1])])
    assert torch.equal(result.predictions, net(result.x_adv).argmax(1))


FORMS: list[dict[str, Any]] = [
    {"lo": LO.flatten().tolist(), "hi": HI.flatten().tolist()},
    {"lo": tuple(LO.flatten().tolist()), "hi": HI.flatten()},
    {"lo": LO.numpy(), "hi": HI},
]


@pytest.mark.parametrize("bounds", FORMS)
def test_bounds_are_sequences_or_tensors(bounds: Any, net: nn.Module, z: Tensor, y: Tensor) -> None:
    expected = FGSM(net, 0.05 * WIDTH, **BOX)(z, y)
    assert torch.equal(FGSM(net, 0.05 * WIDTH, **bounds)(z, y), expected)


def test_a_number_holds_for_all_channels(net: nn.Module, x: Tensor, y: Tensor) -> None:
    above = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    attack = FGSM(net, 0.05 * above, lo=0, hi=[1, 2, 3])
    assert (attack.lo, attack.hi) == ((0, 0, 0), (1, 2, 3))
    x_adv = attack(x, y)
    assert (x_adv - x).abs().amax((0, 2, 3)).tolist() == pytest.approx([0.05, 0.1, 0.15], rel=1e-6)


def test_radii_of_samples_and_of_candidates(
    net: nn.Module, x: Tensor, y: Tensor, z: Tensor
) -> None:
    shares = torch.linspace(0, 0.1, 16).double()
    attack = PGD(net, 0.1 * WIDTH, lambda eps: eps / 4, 3, seed=0, **BOX)
    pixels = PGD(over_pixels(net), 0.1, lambda eps: eps / 4, 3, seed=0)
    for each in (shares[:8], shares):
        eps = each.view(-1, 1, 1, 1) * WIDTH
        back = attack(z, y, eps=eps) * STD + MEAN
        torch.testing.assert_close(back, pixels(x, y, eps=each), atol=1e-9, rtol=0)
    steps = torch.full((8, 3, 1, 1), 0.02, dtype=torch.float64) * WIDTH
    back = attack(z, y, alpha=steps) * STD + MEAN
    torch.testing.assert_close(back, pixels(x, y, alpha=0.02), atol=1e-9, rtol=0)


def test_a_function_is_given_shares(net: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> None:
    back = PGD(net, 0.1 * WIDTH, scaled_step(40), 3, seed=0, **BOX)(z, y) * STD + MEAN
    expected = PGD(over_pixels(net), 0.1, scaled_step(40), 3, seed=0)(x, y)
    torch.testing.assert_close(back, expected, atol=1e-9, rtol=0)


def test_the_largest_radius_is_the_whole_box(
    net: nn.Module, x: Tensor, y: Tensor, z: Tensor
) -> None:
    for kind in (DeepFool, FABT):
        options: dict[str, Any] = {"eps": None, "steps": 3}
        attack = kind(net, **options, **BOX)
        back = attack(z, y) * STD + MEAN
        torch.testing.assert_close(back, kind(over_pixels(net), **options)(x, y), atol=1e-9, rtol=0)


def test_start_restarts_seed_and_several_radii(
    net: nn.Module, x: Tensor, y: Tensor, z: Tensor
) -> None:
    options: dict[str, Any] = {"steps": 2, "early_stop": True}
    pixels = PGD(over_pixels(net), 0.1, 0.01, restarts=2, **options)
    attack = PGD(net, 0.1 * WIDTH, 0.01 * WIDTH, restarts=2, **options, **BOX)
    shares = [0.02, 0.002, 0.01]
    plain = pixels.run(x, y, shares, seed=3, trace=True)
    result = attack.run(z, y, [share * WIDTH for share in shares], seed=3, trace=True)
    torch.testing.assert_close(result.x_adv * STD + MEAN, plain.x_adv, atol=1e-9, rtol=0)
    for field in ("success", "predictions", "forwards", "backwards"):
        assert torch.equal(getattr(result, field), getattr(plain, field))
    assert result.trace is not None
    assert plain.trace is not None
    for field in ("loss", "step_size"):
        torch.testing.assert_close(
            getattr(result.trace, field), getattr(plain.trace, field), equal_nan=True
        )
    one = attack.with_steps(3, 0.02 * WIDTH)
    one.restarts = pixels.restarts = 1
    start = (x + 0.01).clamp(0, 1)
    back = one(z, y, start=(start - MEAN) / STD) * STD + MEAN
    expected = pixels.with_steps(3, 0.02)(x, y, start=start)
    torch.testing.assert_close(back, expected, atol=1e-9, rtol=0)


def as_function(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: net(images)


def of_losses(net: nn.Module) -> nn.Module:
    return Ensemble([net, nn.Sequential(net, nn.Tanh())], mean="losses", weights=[1, 3])


@pytest.mark.parametrize("wrap", [as_function, of_losses])
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_models_of_every_kind(
    wrap: Any, bn: str, bn_net: nn.Module, x: Tensor, y: Tensor, z: Tensor
) -> None:
    net, options = bn_net.double().train(), {"steps": 2, "seed": 0, "bn": bn}
    attack = PGD(wrap(net), 0.1 * WIDTH, 0.03 * WIDTH, **options, **BOX)
    expected = PGD(wrap(over_pixels(net)), 0.1, 0.03, **options)(x, y)
    torch.testing.assert_close(attack(z, y) * STD + MEAN, expected, atol=1e-9, rtol=0)
    assert net.training


def test_a_function_that_hides_its_batchnorm_is_still_found_out(
    bn_net: nn.Module, z: Tensor, y: Tensor
) -> None:
    bn_net.double().train()
    hidden = dict.fromkeys(range(101), bn_net)  # longer than is searched
    with pytest.raises(ValueError, match=r"^model: a function that runs a BatchNorm2d in training"):
        FGSM(lambda images: hidden[0](images), 0.1 * WIDTH, **BOX)(z, y)


@pytest.mark.slow
def test_a_copy_is_a_program_with_the_scale_in_its_first_convolution(
    bn_net: nn.Module, x: Tensor, z: Tensor
) -> None:
    net, z, x = bn_net.eval(), z.float(), x.float()
    y = net(z).argmax(1)
    options: dict[str, Any] = {"steps": 3, "seed": 0, "engine": "fast"}
    attack = PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, **options, **BOX)
    pixels = PGD(normalized(net, *STATISTICS["imagenet"]), 0.1, 0.03, **options)
    back, expected = attack(z, y) * STD + MEAN, pixels(x, y)
    made, of_pixels = (each.network._source for each in (attack, pixels))
    assert isinstance(made, Program)
    assert isinstance(of_pixels, Program)
    names = [operation.name for operation in made.operations]
    assert names == [operation.name for operation in of_pixels.operations]
    assert not {"mul", "add", "sub", "div"} & set(names)
    # Rounding turns the sign of a gradient near 0, of few pixels.
    assert ((back - expected).abs() > 1e-5).double().mean() < 0.02


def test_the_model_may_move_and_change_its_dtype(net: nn.Module, z: Tensor, y: Tensor) -> None:
    attack = FGSM(net, 0.05 * WIDTH, **BOX)
    before = attack(z, y)
    net.float()
    torch.testing.assert_close(attack(z.float(), y), before.float(), atol=1e-5, rtol=0)
    net.double()
    assert torch.equal(attack(z, y), before)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_callers_of_every_kind(context: Any, net: nn.Module, z: Tensor, y: Tensor) -> None:
    attack = PGD(net, 0.05 * WIDTH, 0.02 * WIDTH, 2, seed=0, **BOX)
    expected = attack(z, y)
    with context():
        images, radius = z.clone(), (0.05 * WIDTH).requires_grad_(context is torch.enable_grad)
        images.requires_grad_(context is torch.enable_grad)
        x_adv = attack(images, y, eps=radius)
        result = attack.run(images, y, [radius])
    assert torch.equal(x_adv, expected)
    assert not x_adv.requires_grad
    assert not result.x_adv.requires_grad


def test_no_images(net: nn.Module, z: Tensor, y: Tensor) -> None:
    attack = PGD(net, 0.05 * WIDTH, 0.02 * WIDTH, 2, **BOX)
    assert attack(z[:0], y[:0]).shape == (0, 3, 8, 8)
    assert attack.run(z[:0], y[:0], [0.05 * WIDTH]).x_adv.shape == (1, 0, 3, 8, 8)


def test_logits_are_those_of_the_images_as_they_are(net: nn.Module, z: Tensor) -> None:
    assert torch.equal(FGSM(net, 0.05 * WIDTH, **BOX).logits(z), net(z))


def test_its_repr_can_be_read(net: nn.Module) -> None:
    attack = PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, 3, **BOX)
    assert repr(attack) == (
        "PGD(Sequential, eps=tensor[3, 1, 1], alpha=tensor[3, 1, 1], steps=3, "
        "lo=[-2.118, -2.036, -1.804], hi=[2.249, 2.429, 2.64])"
    )


def test_several_attacks_in_turn(net: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> None:
    model = over_pixels(net)
    pixels = MultiAttack([FGSM(model, 0.01), APGD(model, 0.05, steps=4, seed=0)])
    attack = MultiAttack(
        [FGSM(net, 0.01 * WIDTH, **BOX), APGD(net, 0.05 * WIDTH, steps=4, seed=0, **BOX)]
    )
    torch.testing.assert_close(attack(z, y) * STD + MEAN, pixels(x, y), atol=1e-9, rtol=0)
    eps = torch.linspace(0.01, 0.05, 8).double()
    back = attack(z, y, eps=eps.view(-1, 1, 1, 1) * WIDTH) * STD + MEAN
    torch.testing.assert_close(back, pixels(x, y, eps=eps), atol=1e-9, rtol=0)
    for shares, radii in (
        ([0.02, 0.002], [0.02 * WIDTH, 0.002 * WIDTH]),
        (0.01, 0.01 * WIDTH),
        (None, None),
    ):
        plain, result = pixels.run(x, y, shares), attack.run(z, y, radii)
        torch.testing.assert_close(result.x_adv * STD + MEAN, plain.x_adv, atol=1e-9, rtol=0)
        torch.testing.assert_close(result.distances, plain.distances, atol=1e-6, rtol=0)
        assert torch.equal(result.success, plain.success)
    with pytest.raises(ValueError, match=r"^attacks\[1\]: lo, hi: 0\.0, 1\.0, expected those of"):
        MultiAttack([FGSM(net, 0.01 * WIDTH, **BOX), FGSM(net, 0.01)])


def test_attackbench_attacks_the_smallest_radius_first(
    net: nn.Module, z: Tensor, y: Tensor
) -> None:
    radii = [0.02 * WIDTH, 0.002 * WIDTH]
    adapter = AttackBenchAdapter(FGSM, radii, eps=WIDTH, **BOX)
    x_adv = adapter(net, z, y)
    assert torch.equal(x_adv, FGSM(net, WIDTH, **BOX).run(z, y, radii[::-1]).x_adv[-1])


def test_the_report_on_masking(net: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> None:
    report = masking_report(net, z, y, 0.02 * WIDTH, 0.005 * WIDTH, steps=2, **BOX)
    assert report == masking_report(over_pixels(net), x, y, 0.02, 0.005, steps=2)


def test_it_is_torchattacks_with_its_normalisation(net: nn.Module, z: Tensor, y: Tensor) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, z = net.float(), z.float()
    for theirs, ours in (
        (torchattacks.FGSM(net, 0.05), FGSM(net, 0.05 * WIDTH, **BOX)),
        (
            torchattacks.PGD(net, 0.05, 0.01, 3, random_start=False),
            PGD(net, 0.05 * WIDTH, 0.01 * WIDTH, 3, random_start=False, **BOX),
        ),
    ):
        theirs.set_normalization_used(*STATISTICS["imagenet"])
        torch.testing.assert_close(ours(z, y), theirs(z, y), atol=2e-6, rtol=0)


@pytest.mark.slow
def test_it_is_art_with_clip_values_per_channel(net: nn.Module, z: Tensor, y: Tensor) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    net, z = net.float(), z.float()
    lo, hi, eps, alpha = (
        each.float().numpy() for each in (LO, HI, 0.05 * WIDTH[None], 0.01 * WIDTH[None])
    )
    classifier = estimators.PyTorchClassifier(
        net,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 8, 8),
        nb_classes=10,
        clip_values=(lo, hi),
        device_type="cpu",
    )
    fgsm = evasion.FastGradientMethod(classifier, eps=eps, eps_step=eps)
    pgd = evasion.ProjectedGradientDescentPyTorch(
        classifier, eps=eps, eps_step=alpha, max_iter=3, verbose=False
    )
    for theirs, ours in (
        (fgsm, FGSM(net, 0.05 * WIDTH, lo=lo, hi=hi)),
        (
            pgd,
            PGD(net, 0.05 * WIDTH, 0.01 * WIDTH, 3, random_start=False, lo=lo, hi=hi),
        ),
    ):
        expected = torch.from_numpy(theirs.generate(z.numpy(), y.numpy()))
        torch.testing.assert_close(ours(z, y), expected, atol=2e-6, rtol=0)


@each_kind
def test_the_host_waits_no_more_often(
    name: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_late(monkeypatch)
    each = (0.1 * WIDTH).expand(8, 3, 1, 1).clone()
    # A step size of few numbers on the CPU is read at once; on a GPU its device says which it is.
    steps = {} if EVERY_ATTACK[name](net).alpha is None else {"alpha": lambda eps: 0.3 * eps}
    pixels, attack = EVERY_ATTACK[name](over_pixels(net)), per_channel(name, net)
    pixels(x, y), attack(z, y)
    reads = []
    for call in (
        lambda: pixels(x, y, eps=torch.full((8,), 0.1).double(), **steps),
        lambda: attack(z, y, eps=each, **steps),
    ):
        with Recorder() as recorder:
            call()
        reads.append(recorder.reads)
    assert reads[1] == reads[0]


# What is refused.


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"lo": "imagenet"}, r"lo: 'imagenet', expected a number, or one per channel: a sequence"),
        ({"lo": torch.zeros(2, 3)}, r"lo: shape \(2, 3\), expected a number, or one per channel"),
        ({"hi": torch.ones(1, 3, 1, 1)}, r"hi: shape \(1, 3, 1, 1\), expected a number, or one"),
        ({"lo": []}, r"lo: shape \(0,\), expected a number, or one per channel"),
        ({"lo": [0, None, 0]}, r"lo: \[0, None, 0\], expected a number, or one per channel"),
        ({"lo": [0, 0, 0], "hi": [1, 1]}, r"hi: 2 values, expected 3, one per channel as in lo"),
        ({"lo": [0, 0.5, 1]}, r"lo, hi: 1, 1 in channel 2, expected lo < hi"),
        ({"lo": [0, 0, float("nan")]}, r"lo: \[0\.0, 0\.0, nan\], expected finite numbers"),
        ({"hi": [1, float("inf")]}, r"hi: \[1\.0, inf\], expected finite numbers"),
    ],
)
def test_other_bounds_are_refused(bounds: Any, message: str, net: nn.Module) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, 3, **bounds)


UNEVEN = WIDTH * torch.tensor([0.02, 0.03, 0.02]).view(3, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"eps": 0.03},
            r"eps: 0\.03, expected a tensor \[3, 1, 1\], such as 0\.03 \* \(hi - lo\)$",
        ),
        ({"eps": 8}, r"eps: 8, expected a tensor \[3, 1, 1\], such as 8/255 \* \(hi - lo\)$"),
        (
            {"eps": torch.full((8,), 0.1)},
            r"eps: shape \(8,\), expected a tensor \[3, 1, 1\], or \[N, 3,",
        ),
        ({"eps": WIDTH[:2]}, r"eps: shape \(2, 1, 1\), expected a tensor \[3, 1, 1\]"),
        ({"eps": WIDTH.long()}, r"eps: dtype torch\.int64, expected a floating-point type"),
        (
            {"eps": UNEVEN},
            r"eps / \(hi - lo\): 0\.02, 0\.03, 0\.02, expected the same in every chan",
        ),
        (
            {"eps": 1.1 * WIDTH},
            r"eps / \(hi - lo\): 1\.1, 1\.1, 1\.1, expected numbers in \[0, 1\]",
        ),
        ({"eps": -WIDTH}, r"eps / \(hi - lo\): -1, -1, -1, expected numbers in \[0, 1\]"),
        (
            {"eps": torch.nan * WIDTH},
            r"eps / \(hi - lo\): nan, nan, nan, expected numbers in \[0, 1",
        ),
        (
            {"alpha": 2 / 255},
            r"alpha: 0\.00784.*, expected a tensor .*, or a function of the radii$",
        ),
        (
            {"alpha": 0 * WIDTH},
            r"alpha / \(hi - lo\): 0.*, expected (numbers in \(0, 1\]|a number > 0)",
        ),
        (
            {"alpha": UNEVEN},
            r"alpha / \(hi - lo\): 0\.02, 0\.03, 0\.02, expected the same in every",
        ),
    ],
)
def test_other_radii_and_steps_are_refused(
    options: Any, message: str, net: nn.Module, z: Tensor, y: Tensor
) -> None:
    sound = {"eps": 0.1 * WIDTH, "alpha": 0.03 * WIDTH}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        PGD(net, steps=3, **{**sound, **options}, **BOX)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        PGD(net, steps=3, **sound, **BOX)(z, y, **options)


def test_the_defaults_are_of_images_in_0_1_and_are_refused(net: nn.Module) -> None:
    for kind in (PGD, FGSM, MIFGSM, APGD, FABT):
        with pytest.raises(TypeError, match=r"^eps: 0\.0313.*, such as 0\.0313725 \* \(hi - lo\)$"):
            kind(net, **BOX)
    with pytest.raises(TypeError, match=r"^alpha: 0\.00784"):
        PGD(net, 8 / 255 * WIDTH, **BOX)
    with pytest.raises(TypeError, match=r"^eps: 0\.0313"):
        masking_report(net, torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), **BOX)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": UNEVEN}, r"eps / \(hi - lo\): nan at index 7, .*, the same in every channel$"),
        ({"alpha": UNEVEN}, r"alpha / \(hi - lo\): nan at index 7, .*, the same in every channel$"),
        ({"eps": 2 * WIDTH}, r"eps / \(hi - lo\): 2.* at index 7, expected at most 1"),
        (
            {"x": WIDTH},
            r"\(x - lo\) / \(hi - lo\): values from .*, expected images in \[0, 1\]$",
        ),
    ],
    ids=["eps", "alpha", "width", "x"],
)
def test_values_of_samples_are_refused_where_they_are_read(
    change: dict[str, Any],
    message: str,
    late: bool,
    net: nn.Module,
    z: Tensor,
    y: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if late:
        check_late(monkeypatch)
    attack = PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, 3, **BOX)
    (name, value), images = next(iter(change.items())), z
    options = {name: torch.stack([0.1 * WIDTH] * 7 + [value])}
    if name == "x":
        options, images = {}, 10 * z
    with pytest.raises(ValueError, match=f"^{message}"):
        attack(images, y, **options)
    if late:
        findings = Findings("cpu")
        attack(images, y, findings=findings, **options)
        with pytest.raises(ValueError, match=f"^{message.replace(' at index 7', '')}"):
            findings.settle()


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (8, 3, 64), (3, 8, 8)])
def test_images_of_other_channels_are_refused(
    shape: tuple[int, ...], net: nn.Module, y: Tensor
) -> None:
    attack = FGSM(net, 0.1 * WIDTH, **BOX)
    for call in (attack, attack.run):
        with pytest.raises(
            ValueError, match=r"^x: shape .*, expected \[N, 3, H, W\], the channels"
        ):
            call(torch.zeros(shape), y)


def test_other_radii_of_a_run_are_refused(net: nn.Module, z: Tensor, y: Tensor) -> None:
    attack = FGSM(net, 0.1 * WIDTH, **BOX)
    for epsilons, message in (
        (0.1, r"epsilons: 0\.1, expected a tensor \[3, 1, 1\], such as 0\.1 \* "),
        (
            [0.1 * WIDTH, 0.2],
            r"epsilons\[1\]: 0\.2, expected a tensor \[3, 1, 1\], such as 0\.2 \* ",
        ),
        ([UNEVEN], r"epsilons\[0\] / \(hi - lo\): 0\.02, 0\.03, 0\.02, expected the same"),
        ([], r"epsilons: empty, expected at least one radius"),
        (object(), r"epsilons: object, expected a float, a Tensor, a list"),
        (torch.full((2, 8), 0.1), r"epsilons: shape \(2, 8\), expected a tensor \[3, 1, 1\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            attack.run(z, y, epsilons)  # type: ignore[arg-type]


def test_radii_and_steps_of_other_samples_are_refused(net: nn.Module, z: Tensor, y: Tensor) -> None:
    attack = PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, 3, **BOX)
    five = 0.03 * WIDTH.expand(5, 3, 1, 1)
    message = r"shape \(5, 3, 1, 1\), expected \[3, 1, 1\] or \[8, 3, 1, 1\]$"
    with pytest.raises(ValueError, match=f"^alpha: {message}"):
        attack.run(z, y, alpha=five)
    with pytest.raises(ValueError, match=f"^eps: {message}"):
        MultiAttack([attack])(z, y, eps=five)
    with pytest.raises(ValueError, match=r"^eps: length 5, expected a multiple of the 8 samples"):
        attack(z, y, eps=five)


def test_what_keeps_one_radius_per_sample_refuses_it(
    net: nn.Module, x: Tensor, z: Tensor, y: Tensor
) -> None:
    attack = PGD(net, 0.1 * WIDTH, 0.03 * WIDTH, 2, **BOX)
    memory = EpsilonMemory(8, gamma=0.01, beta=0.1, init=0.1)
    with pytest.raises(ValueError, match=r"^attack: lo, hi per channel, expected a number each"):
        memory.select(attack, z, y, torch.arange(8))
    with pytest.raises(ValueError, match=r"^final_attack: lo, hi per channel, expected a number"):
        memory.select(PGD(net), z, y, torch.arange(8), final_attack=attack)
    with pytest.raises(ValueError, match=r"^attacks\['pgd'\]: lo, hi per channel, expected a num"):
        autoattack(net, x.float(), y, 0.1, attacks={"pgd": attack})
