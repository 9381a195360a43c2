"""What a call finds out is heard in one read at its end, or later, and is what a CPU would have raised at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    APGDT,
    DIFGSM,
    FABT,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    DeepFool,
    EngineOptions,
    Findings,
    Square,
    active_set,
    cudagraph,
)
from iaat_fast.attacks import call as calls
from iaat_fast.attacks import findings as found
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.cudagraph import GraphRunner
from tests.attacks.like_a_gpu import Recorder, check_late

Change = Callable[[Tensor], Tensor]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    check_late(monkeypatch)


@pytest.fixture
def late_with_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For values that are as they should be."""
    monkeypatch.setattr(found, "checked_late", lambda device: True)
    monkeypatch.setattr(active_set, "_READS_FREELY", set())


def spoiled(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = value
    return tensor


WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "exact": {"engine": "exact"},
    "fast": {"engine": "fast"},
    "bf16": {"precision": "bf16"},
    "targets": {"targeted": True},
    "random targets": {"targeted": "random"},
    "cw": {"loss": "cw"},
    "dlr": {"loss": "dlr"},
    "dlr, random targets": {"loss": "dlr", "targeted": "random"},
    "kl": {"loss": "kl"},
    "batch statistics": {"bn": "train"},
    "from x": {"random_start": False},
    "step of the radius": {"alpha": lambda eps: eps / 4},
}
ways = pytest.mark.parametrize("options", WAYS.values(), ids=list(WAYS))


@ways
@pytest.mark.usefixtures("late_with_our_kernels")
def test_a_call_reads_once_and_last(bn_net: nn.Module, x: Tensor, options: dict[str, Any]) -> None:
    y = torch.arange(8)
    pgd = PGD(bn_net, seed=0, steps=3, **options)
    pgd(x, y)  # a copy of the model is compared with it when it is made
    with Recorder() as seen:
        pgd(x, y)
    assert seen.reads == ["tolist"]
    assert seen.names[-1] == "tolist"


@ways
@pytest.mark.usefixtures("late_with_our_kernels")
def test_a_call_over_candidates_reads_once(
    bn_net: nn.Module, x: Tensor, options: dict[str, Any]
) -> None:
    y, radii = torch.arange(8), torch.linspace(0, 0.1, 24)
    pgd = PGD(bn_net, seed=0, steps=3, **options)
    pgd(x, y, eps=radii)
    with Recorder() as seen:
        pgd(x, y, eps=radii, alpha=radii / 2, index=torch.arange(8), candidate=1)
    assert seen.reads == ["tolist"]


@ways
@pytest.mark.usefixtures("late_with_our_kernels")
def test_a_call_with_findings_reads_nothing_and_gives_the_same(
    bn_net: nn.Module, x: Tensor, options: dict[str, Any]
) -> None:
    y, radii = torch.arange(8), torch.linspace(0, 0.1, 24)
    pgd = PGD(bn_net, steps=3, **options)
    expected = pgd(x, y, eps=radii, seed=5)
    stats = pgd.stats
    findings, seed = Findings(x.device), torch.tensor([5])
    with Recorder() as seen:
        made = [pgd(x, y, eps=radii, seed=seed, findings=findings) for _ in range(2)]
    assert not seen.reads
    assert "lift_fresh" not in seen.names, "a tensor was made of numbers of the host"
    assert all(torch.equal(x_adv, expected) for x_adv in made)
    with Recorder() as seen:
        assert findings.settle() == (2 * stats.zero, 2 * stats.nan)
    assert seen.reads == ["tolist"]
    assert findings.settle() == (0, 0)
    assert (pgd.stats.total, pgd.stats.gradients) == (stats.total, stats.gradients)
    assert (pgd.stats.zero, pgd.stats.nan) == (0, 0)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (FGSM, {}),
        (MIFGSM, {"steps": 3}),
        (SINIFGSM, {"steps": 2}),
        (VNIFGSM, {"steps": 2, "N": 2}),
        (TIFGSM, {"steps": 2}),
        (APGD, {"steps": 9, "early_stop": False}),
    ],
)
@pytest.mark.usefixtures("late_with_our_kernels")
def test_other_attacks_read_once_too(
    cls: type[Attack], options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack: Any = cls(net, seed=0, **options)  # type: ignore[call-arg]
    with Recorder() as seen:
        attack(x, y)
    assert seen.reads == ["tolist"]


@pytest.mark.usefixtures("late_with_our_kernels")
def test_replayed_steps_read_once(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, seed=0)
    pgd.network._graphs = GraphRunner(lambda body, pool: body)
    pgd.network._capturable = ("cpu",)
    for _ in range(3):
        with Recorder() as seen:
            pgd(x, y)
    assert seen.reads == ["tolist"]
    assert seen.names.count("_foreach_copy_") == 4, "float32 and int64, in and out"


@pytest.mark.usefixtures("late_with_our_kernels")
def test_what_is_read_where_samples_leave(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Bad values before the first restart, who is left before each of the others, and the counts."""
    pgd = PGD(net, 1e-4, 1e-4, 3, seed=0, restarts=4)
    with Recorder() as seen:
        pgd(x, y)
    assert seen.reads == ["tolist", *3 * ["nonzero"], "tolist"]


def test_a_read_would_show() -> None:
    x = torch.arange(3.0)
    with Recorder() as seen:
        x.tolist()
        x.cpu()
        x.to("cpu")
        x.to(device=torch.device("cpu"))
        x.numpy()
        float(x.sum())
        x[x > 1]
        x.nonzero()
    assert seen.reads == [
        "tolist",
        "cpu",
        "cpu",
        "cpu",
        "numpy",
        "_local_scalar_dense",
        "nonzero",
        "nonzero",
    ]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "above": (
        {"x": lambda x: spoiled(x, 1.01)},
        r"^x: values from .* to 1\.01, expected images in \[0, 1\]",
    ),
    "below": (
        {"x": lambda x: spoiled(x, -0.01)},
        r"^x: values from -0\.01 to .*, expected images in",
    ),
    "nan": ({"x": lambda x: spoiled(x, math.nan)}, r"^x: values from nan to nan, expected"),
    "inf": ({"x": lambda x: spoiled(x, math.inf)}, r"^x: values from .* to inf, expected"),
    "bytes": ({"x": lambda x: 255 * x}, r"^x: values .*normalisation belongs in the model"),
    "class": ({"y": lambda y: spoiled(y, 10)}, r"^y: 10, expected a class in 0 \.\.\. 9"),
    "large class": (
        {"y": lambda y: spoiled(y, 2**40)},
        r"^y: 1099511627776, expected a class in 0",
    ),
    "negative class": ({"y": lambda y: spoiled(y, -1)}, r"^y: -1, expected a class >= 0"),
    "eps": ({"eps": spoiled(torch.ones(8), -0.5)}, r"^eps: -0\.5{place}, expected a number >= 0"),
    "eps nan": (
        {"eps": spoiled(torch.zeros(8), math.nan)},
        r"^eps: nan{place}, expected a number >= 0",
    ),
    "alpha": (
        {"alpha": spoiled(torch.ones(8), 0.0)},
        r"^alpha: 0\.0{place}, expected a number > 0 \(or 0",
    ),
    "alpha negative": (
        {"alpha": spoiled(torch.ones(8), -1)},
        r"^alpha: -1\.0{place}, expected a number > 0",
    ),
    "alpha nan": (
        {"alpha": spoiled(torch.ones(8), math.nan)},
        r"^alpha: nan{place}, expected a number > 0",
    ),
    "alpha nan, eps 0": (
        {"eps": torch.zeros(8), "alpha": spoiled(torch.zeros(8), math.nan)},
        r"^alpha: nan{place}, expected a number > 0",
    ),
    "no alpha": ({"alpha": 0.0}, r"^alpha: 0\.0( at index 0)?, expected a number > 0"),
}
bad = pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=list(BAD))
PLACE = " at index 5"


def arguments(
    x: Tensor, y: Tensor, changes: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    options = dict(changes)
    return options.pop("x", lambda x: x)(x), options.pop("y", lambda y: y)(y), options


@bad
@pytest.mark.parametrize("path", ["on a CPU", "late"])
@pytest.mark.parametrize("given", [False, True])
def test_bad_values(
    path: str,
    given: bool,
    changes: dict[str, Any],
    message: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same error on both paths; only findings that outlive the call's tensors cannot say where in one it was."""
    if path == "late":
        check_late(monkeypatch)
    images, labels, options = arguments(x, y, changes)
    pgd = PGD(net.train(), steps=2, seed=0)
    expected = pgd(x, y)
    before, stats = copy.deepcopy(net.state_dict()), pgd.stats
    findings = Findings(x.device) if given else None
    place = "" if given and path == "late" else PLACE
    if given and path == "late":
        pgd(images, labels, findings=findings, **options)
        with pytest.raises(ValueError, match=message.replace("{place}", place)):
            findings.settle()  # type: ignore[union-attr]
        assert findings.settle() == (0, 0), "what has been raised is forgotten"  # type: ignore[union-attr]
    else:
        with pytest.raises(ValueError, match=message.replace("{place}", place)):
            pgd(images, labels, findings=findings, **options)
        assert pgd.stats == stats
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(pgd(x, y), expected)


@ways
@pytest.mark.parametrize("label", [10, 2**40, -1])
@pytest.mark.usefixtures("late")
def test_a_class_out_of_range_indexes_nothing(
    label: int, options: dict[str, Any], bn_net: nn.Module, x: Tensor
) -> None:
    """A GPU's process would be lost; here the reference raises IndexError or RuntimeError."""
    y = spoiled(torch.arange(8), label)
    pgd = PGD(bn_net, seed=0, steps=3, **options)
    expected = r"a class >= 0" if label < 0 else r"a class in 0 \.\.\. 9"
    for _ in range(2):  # the second time the number of classes is known beforehand
        with pytest.raises(ValueError, match=rf"^y: {label}, expected {expected}"):
            pgd(x, y)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (PGD, {"restarts": 2}),
        (PGD, {"early_stop": True}),
        (PGD, {"early_stop": True, "steps": 0}),
        (APGD, {"steps": 3}),
        (APGD, {"steps": 3, "early_stop": False}),
        (APGD, {"steps": 3, "loss": "dlr", "restarts": 2}),
        (APGDT, {"steps": 2}),
        (DeepFool, {"steps": 2}),
        (FABT, {"steps": 2}),
        (Square, {"n_queries": 3}),
    ],
)
@pytest.mark.parametrize("label", [10, -1])
@pytest.mark.usefixtures("late")
def test_nor_in_other_attacks(
    cls: type[Attack], label: int, options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack: Any = cls(net, **options)  # type: ignore[call-arg]
    attack(x, y)
    for changed in (spoiled(y, label), y * 0 + label):
        with pytest.raises(ValueError, match=rf"^y: {label}, expected a class"):
            attack(x, changed)


@pytest.mark.parametrize(
    "cls",
    [
        *(PGD, FGSM, MIFGSM, NIFGSM, SINIFGSM, VMIFGSM, VNIFGSM, DIFGSM, TIFGSM),
        *(APGD, APGDT, DeepFool, FABT, Square),
    ],
    ids=lambda cls: cls.__name__,
)
@pytest.mark.usefixtures("late")
def test_every_attack_names_nan_images_and_nan_weights(
    cls: type[Attack], net: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    attack: Any = cls(net)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^x: values from nan to nan"):
        attack(spoiled(x, math.nan), y)
    with torch.no_grad():
        net[2].bias[3] = math.nan
    with pytest.raises(
        ValueError, match=r"^model: the weight '2\.bias' holds NaN, expected numbers"
    ):
        attack(x, y)


@pytest.mark.parametrize("options", [{}, {"engine": "fast"}, {"precision": "bf16"}], ids=str)
@pytest.mark.usefixtures("late")
def test_nan_weights_are_named_after_the_call_and_mended_weights_attacked_again(
    options: dict[str, Any], bn_net: nn.Module, x: Tensor
) -> None:
    y, pgd, findings = torch.arange(8), PGD(bn_net, seed=0, **options), Findings("cpu")
    expected, taken = pgd(x, y), pgd.network.gradient_source
    weight = bn_net[0].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0, 0, 0] = math.nan
    message = r"^model: the weight '0\.weight' holds NaN, expected numbers; has training diverged\?"
    with pytest.raises(ValueError, match=message):
        pgd(x, y)
    pgd(x, y, findings=findings)
    with pytest.raises(ValueError, match=message):
        findings.settle()
    with torch.no_grad():
        weight.copy_(kept)
    assert torch.equal(pgd(x, y), expected)
    assert pgd.network.gradient_source == taken


@pytest.mark.parametrize("options", [{}, {"engine": "fast"}, {"precision": "bf16"}], ids=str)
@pytest.mark.usefixtures("late")
def test_nan_statistics_are_named_after_the_call_with_the_same_read(
    options: dict[str, Any], bn_net: nn.Module, x: Tensor
) -> None:
    y, pgd, findings = torch.arange(8), PGD(bn_net, seed=0, steps=2, **options), Findings("cpu")
    pgd(x, y)
    bn_net[1].running_var[3] = math.nan
    message = r"^model: the buffer '1\.running_var' holds NaN, expected numbers; has training dive"
    with pytest.raises(ValueError, match=message):
        pgd(x, y)
    with Recorder() as seen:
        pgd(x, y, findings=findings)
    assert not seen.reads
    with pytest.raises(ValueError, match=message):
        findings.settle()


def test_nan_statistics_that_are_not_read_are_no_finding(bn_net: nn.Module, x: Tensor) -> None:
    bn_net[1].running_mean.fill_(math.nan)
    assert not PGD(bn_net, seed=0, bn="train")(x, torch.arange(8)).isnan().any()


@pytest.mark.parametrize("spoil", ["x", "weights"])
@pytest.mark.usefixtures("late")
def test_a_copy_is_not_judged_by_nan(spoil: str, bn_net: nn.Module, x: Tensor) -> None:
    y, pgd = torch.arange(8), PGD(bn_net, seed=0, engine="fast")
    kept = bn_net[0].weight.detach().clone()
    if spoil == "weights":
        with torch.no_grad():
            bn_net[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"nan|NaN"):
        pgd(spoiled(x, math.nan) if spoil == "x" else x, y)
    with torch.no_grad():
        bn_net[0].weight.copy_(kept)
    pgd(x, y)
    assert pgd.network.gradient_source.startswith("a copy")


@pytest.mark.usefixtures("late")
def test_radii_beyond_the_box_are_named_late(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd, findings, radii = PGD(net, steps=2), Findings("cpu"), spoiled(torch.zeros(8), 8)
    with pytest.raises(
        ValueError, match=r"^eps: 8\.0 at index \d, expected at most 1, the width of"
    ):
        pgd(x, y, eps=radii)
    pgd(x, y, eps=radii, findings=findings)
    with pytest.raises(ValueError, match=r"^eps: 8\.0, expected at most 1, the width .*; 8/255\?"):
        findings.settle()


@pytest.mark.usefixtures("late")
def test_running_statistics_are_not_spoilt(bn_net: nn.Module, x: Tensor) -> None:
    """`train_update` would keep what NaN pixels have made of them."""
    before = copy.deepcopy(bn_net.state_dict())
    with pytest.raises(ValueError, match=r"^x: values from nan"):
        PGD(bn_net, bn="train_update")(spoiled(x, math.nan), torch.arange(8))
    assert all(torch.equal(value, before[name]) for name, value in bn_net.state_dict().items())


@pytest.mark.usefixtures("late")
def test_the_first_of_several_problems_is_that_of_a_cpu(
    net: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    with torch.no_grad():
        net[0].weight[0] = math.nan
    radii = spoiled(torch.ones(8), -1)
    for images, labels, eps, message in (
        (2 * x, y + 20, radii, "^x: values"),
        (x, y + 20, radii, "^eps: -1"),
        (x, y + 20, radii.abs(), "^model: the weight '0.weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            PGD(net, steps=2)(images, labels, eps=eps)


@pytest.mark.usefixtures("late")
def test_calls_share_findings_and_one_bad_call_is_enough(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd, findings = PGD(net, steps=2), Findings("cpu")
    for images in (x, spoiled(x, 3.0), x):
        pgd(images, y, findings=findings)
    with pytest.raises(ValueError, match=r"^x: values from .* to 3, expected"):
        findings.settle()


@pytest.mark.usefixtures("late")
def test_findings_are_of_one_kind_of_calls(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    findings = Findings("cpu")
    PGD(net, steps=1)(x, y, findings=findings)
    with pytest.raises(
        ValueError, match=r"^findings: .*range and dtype of x is \(0\.0, 1\.0, torch.float32\)"
    ):
        PGD(net, steps=1, lo=-1.0)(x, y, findings=findings)
    net[5] = nn.Linear(256, 12)
    with pytest.raises(ValueError, match=r"^findings: .*number of classes is 10, expected .* 12"):
        PGD(net, steps=1)(x, y, findings=findings)


def test_findings_that_are_none(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(TypeError, match=r"^findings: Tensor, expected Findings or None"):
        PGD(net)(x, y, findings=torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^findings: device meta, expected that of x, cpu"):
        PGD(net)(x, y, findings=Findings("meta"))


def test_findings_made_in_inference_mode(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.inference_mode():
        findings = Findings("cpu")
        PGD(net)(x, y, findings=findings)
    PGD(net)(x, y, findings=findings)
    findings.settle()


def test_blind_attacks_are_counted_in_findings(x: Tensor, y: Tensor) -> None:
    def half(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10]

    findings, pgd = Findings("cpu"), PGD(half, steps=3, engine="exact")
    pgd(x, y, findings=findings)
    zero, nan = findings.settle()
    assert (zero, nan) == (3 * 8 * 182, 0)
    with pytest.warns(RuntimeWarning, match="more than half"):
        pgd(x, y)
    assert pgd.stats.zero == zero


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_seed_tensor_draws_what_its_number_draws(
    shape: tuple[int, ...], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd = PGD(net, targeted="random")
    for seed in (0, 7, -(2**63), 2**63 - 1):
        assert torch.equal(pgd(x, y, seed=torch.tensor(seed).view(shape)), pgd(x, y, seed=seed))


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (torch.zeros(1), TypeError, r"^seed: dtype torch.float32, expected int64"),
        (torch.zeros(2).long(), ValueError, r"^seed: shape \(2,\), expected \[\] or \[1\]"),
        (
            torch.zeros(1, device="meta").long(),
            ValueError,
            r"^seed: device meta, expected that of x, cpu",
        ),
    ],
)
def test_seeds_that_are_none(
    seed: Tensor, error: type[Exception], message: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    with pytest.raises(error, match=message):
        PGD(net)(x, y, seed=seed)


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the caller is capturing a CUDA graph."""
    for module in (cudagraph, calls, found):
        monkeypatch.setattr(module, "capturing", lambda device: True)


@pytest.mark.usefixtures("late_with_our_kernels")
def test_inside_a_capture_steps_are_launched_into_it(
    net: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(body: Callable[[], None], pool: object) -> Callable[[], None]:
        raise AssertionError("a capture within a capture")

    pgd, findings = PGD(net, engine="fast"), Findings("cpu")
    pgd.network._graphs = GraphRunner(never)
    pgd.network._capturable = ("cpu",)
    expected = pgd(x, y, seed=3)
    with monkeypatch.context() as patches:
        for module in (cudagraph, calls, found):
            patches.setattr(module, "capturing", lambda device: True)
        for _ in range(3):
            assert torch.equal(pgd(x, y, seed=torch.tensor(3), findings=findings), expected)
    findings.settle()


@pytest.mark.usefixtures("capturing", "late_with_our_kernels")
def test_what_cannot_be_captured_is_refused(net: nn.Module, x: Tensor, y: Tensor) -> None:
    findings = Findings("cpu")
    with pytest.raises(ValueError, match=r"^findings: None while a CUDA graph is captured"):
        PGD(net, seed=0)(x, y)
    with pytest.raises(ValueError, match=r"^seed: None while a CUDA graph is captured"):
        PGD(net)(x, y, findings=findings)
    for cls, options in (
        (PGD, {"restarts": 2}),
        (PGD, {"early_stop": True}),
        (PGD, {"engine": EngineOptions(fold=False)}),
        (DeepFool, {}),
        (APGDT, {}),
    ):
        attack: Any = cls(net, **options)  # type: ignore[operator]
        with pytest.raises(
            ValueError, match=r"^findings: asked for while a CUDA graph is captured"
        ):
            attack(x, y, seed=torch.tensor(0), findings=findings)
    PGD(net)(x, y, seed=0, findings=findings)
