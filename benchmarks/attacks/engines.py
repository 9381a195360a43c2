"""Providers of iaat_fast's PGD at every setting of its engine, and an ablation of the engine's options."""

from __future__ import annotations

import dataclasses
import functools

import torch

from benchmarks.attacks.providers import Attack, Missing, Provider, Setting
from benchmarks.targets import Target
from iaat_fast.attacks import PGD
from iaat_fast.attacks.options import EngineOptions

OPTIONS = tuple(field.name for field in dataclasses.fields(EngineOptions))
# Added after the precision, on which their gain depends most.
LAST = ("graph", "compile")
# For right results; it costs no time.
NOT_SPEED = ("saturation_proof",)


def pgd(target: Target, setting: Setting, *, precision: str, engine: str | EngineOptions) -> Attack:
    """iaat_fast's PGD; `Missing` where the device has no such precision."""
    on_cpu = target.x.device.type == "cpu"
    if precision == "fp16" and on_cpu and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise Missing("this processor has no float16 convolutions")
    return PGD(
        target.model,
        setting.eps,
        setting.alpha,
        setting.steps,
        random_start=setting.random_start,
        precision=precision,
        engine=engine,
    )


def only(*names: str) -> EngineOptions:
    """Only these options, plus right results where the loss saturates."""
    return EngineOptions(**{name: name in (*names, *NOT_SPEED) for name in OPTIONS})


def engines(device: torch.device, *, tf32: bool, with_compile: bool) -> list[Provider]:
    """The public settings, and each option alone.

    Args:
        device: of the attack; only CUDA has graphs.
        tf32: whether TF32 is allowed for all providers, and so is no precision of its own.
        with_compile: whether to add `torch.compile`, which takes minutes.
    """
    found = [
        _engine("exact", "exact", "the plain loop's arithmetic, bit for bit", plain=True),
        _engine("auto", "auto", "the default", plain=True),
        _engine("fast", "fast", "a folded copy, channels last"),
        _engine("bf16", "auto", "fast in bfloat16", precision="bf16"),
        _engine("fp16", "auto", "fast in float16", precision="fp16"),
    ]
    if device.type == "cuda" and not tf32:
        found.append(_engine("tf32", "auto", "TF32", precision="tf32"))
    alone = [name for name in OPTIONS if name not in (*LAST, *NOT_SPEED, "shadow")]
    found.append(_engine("shadow", only("shadow"), "a frozen copy, nothing else"))
    found += [
        _engine(f"shadow+{name}", only("shadow", name), f"shadow and {name}") for name in alone
    ]
    known = {provider.name for provider in found}
    steps = [step.provider for step in ablations(device, with_compile=with_compile)]
    return found + [provider for provider in steps if provider.name not in known]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A provider, and the option that it has in addition to the previous one."""

    adds: str
    provider: Provider


def ablations(device: torch.device, *, with_compile: bool) -> list[Ablation]:
    """Settings of the engine, each with one option more than the previous one; the first has only the fused step.

    A setting that is equal to a public setting is that provider, so that nothing is timed twice.
    """
    names = [name for name in OPTIONS if name not in (*LAST, *NOT_SPEED)]
    late = [name for name in LAST if name in OPTIONS and _applies(name, device, with_compile)]
    # If graphs apply, the public settings use them, so the ablations before the graph need settings of their own.
    graphed = "graph" in late
    if graphed:
        steps = [Ablation("fused step", _engine("fused-step", only(), "no graph", plain=True))]
    else:
        exact = _engine("exact", "exact", "the plain loop's arithmetic, bit for bit", plain=True)
        steps = [Ablation("fused step", exact)]
    for count in range(1, len(names) + 1):
        name, what = "+".join(names[:count]), " and ".join(names[:count])
        if count == len(names) and not graphed:
            steps.append(Ablation(names[count - 1], _engine("fast", "fast", what)))
        else:
            steps.append(Ablation(names[count - 1], _engine(name, only(*names[:count]), what)))
    if graphed:
        eager = _engine("bf16-eager", only(*names), "fast in bfloat16, no graph", precision="bf16")
        steps.append(Ablation("bf16", eager))
    else:
        steps.append(
            Ablation("bf16", _engine("bf16", "auto", "fast in bfloat16", precision="bf16"))
        )
    for count in range(1, len(late) + 1):
        some = late[:count]
        name = "bf16" if some == ["graph"] else f"bf16+{'+'.join(some)}"
        engine = "auto" if some == ["graph"] else only(*names, *some)
        what = f"fast in bfloat16, {' and '.join(some)}"
        steps.append(Ablation(some[-1], _engine(name, engine, what, precision="bf16")))
    return steps


def _applies(option: str, device: torch.device, with_compile: bool) -> bool:
    return with_compile if option == "compile" else device.type == "cuda"


def _engine(
    name: str,
    engine: str | EngineOptions,
    what: str,
    *,
    precision: str = "fp32",
    plain: bool = False,
) -> Provider:
    make = functools.partial(pgd, precision=precision, engine=engine)
    return Provider(
        name=name, kind="engine", make=make, what=what, precision=precision, plain=plain
    )
