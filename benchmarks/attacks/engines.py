"""PGD of iaat_fast at every setting of its engine, and the order in which its levers are pulled."""

from __future__ import annotations

import dataclasses
import functools

import torch

from benchmarks.attacks.contender import Attack, Contender, Missing, Setting, Target
from iaat_fast.attacks import PGD
from iaat_fast.attacks.options import EngineOptions

LEVERS = tuple(field.name for field in dataclasses.fields(EngineOptions))
# Pulled after the precision: what they gain depends on it most.
LAST = ("graph", "compile")
# A matter of right results; costs and gains nothing.
NOT_SPEED = ("saturation_proof",)


def pgd(target: Target, setting: Setting, *, precision: str, engine: str | EngineOptions) -> Attack:
    """iaat_fast's PGD; `Missing` where the device has no such precision."""
    if precision == "fp16" and target.x.device.type == "cpu":
        if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
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


def levers(*names: str) -> EngineOptions:
    """Those levers alone, and right results where the loss saturates."""
    return EngineOptions(**{name: name in (*names, *NOT_SPEED) for name in LEVERS})


def engines(device: torch.device, *, tf32: bool, with_compile: bool) -> list[Contender]:
    """The public settings, and each lever alone.

    Args:
        device: what it runs on; graphs are CUDA's.
        tf32: TF32 is allowed for everyone, so that it is no precision of its own.
        with_compile: also what `torch.compile` adds, which takes minutes.
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
    alone = [name for name in LEVERS if name not in (*LAST, *NOT_SPEED, "shadow")]
    found.append(_engine("shadow", levers("shadow"), "a frozen copy, nothing else"))
    found += [
        _engine(f"shadow+{name}", levers("shadow", name), f"a frozen copy and {name}")
        for name in alone
    ]
    known = {contender.name for contender in found}
    found += [
        contender
        for contender in ladder(device, with_compile=with_compile)
        if contender.kind == "engine" and contender.name not in known
    ]
    return found


def ladder(device: torch.device, *, with_compile: bool) -> list[Contender]:
    """Contenders of iaat_fast in the order in which levers are added one at a time, each on top of all before.

    Where an engine of this name is the same thing it is that contender, so that nothing is timed twice.
    """
    names = [name for name in LEVERS if name not in (*LAST, *NOT_SPEED)]
    late = [name for name in LAST if name in LEVERS and _applies(name, device, with_compile)]
    graphed = "graph" in late  # then the engines by name have graphs, and the first rungs are others
    first = _engine("fused-step", levers(), "the fused step, no graph", plain=True)
    rungs = [first if graphed else _engine("exact", "exact", "the fused step", plain=True)]
    for count in range(1, len(names) + 1):
        some = names[:count]
        whole = count == len(names) and not graphed
        rungs.append(
            _engine("fast", "fast", names[-1])
            if whole
            else _engine("+".join(some), levers(*some), f"{some[-1]}")
        )
    rungs.append(
        _engine("bf16-eager", levers(*names), "bfloat16", precision="bf16")
        if graphed
        else _engine("bf16", "auto", "bfloat16", precision="bf16")
    )
    for count in range(1, len(late) + 1):
        some = late[:count]
        rungs.append(
            _engine("bf16", "auto", "graph", precision="bf16")
            if some == ["graph"]
            else _engine(
                f"bf16+{'+'.join(some)}", levers(*names, *some), some[-1], precision="bf16"
            )
        )
    return rungs


def _applies(lever: str, device: torch.device, with_compile: bool) -> bool:
    return with_compile if lever == "compile" else device.type == "cuda"


def _engine(
    name: str,
    engine: str | EngineOptions,
    what: str,
    *,
    precision: str = "fp32",
    plain: bool = False,
) -> Contender:
    make = functools.partial(pgd, precision=precision, engine=engine)
    return Contender(
        name=name, kind="engine", make=make, what=what, precision=precision, plain=plain
    )
