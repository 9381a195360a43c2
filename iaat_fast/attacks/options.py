"""Options of the attacks' constructors: step sizes, shared keywords, precision and engine."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from iaat_fast import units, validate
from iaat_fast.attacks.channel_box import ChannelBox

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "auto")
StepSize = float | Tensor | Callable[[Tensor], Tensor]
"""A step size, one per sample, or a function of the radii [N], such as `scaled_step(steps)`."""
Targeting = bool | Literal["random", "least-likely"] | Callable[[Tensor, Tensor], Tensor]
"""What a targeted attack aims at, see `PGD`; a function of the logits [N, C] at x and of y gives int64 [N]."""


def scaled_step(steps: int, floor: float = 2 / 255) -> Callable[[Tensor], Tensor]:
    """The step size max(eps / (steps / 2), floor), with which `steps` steps can cross the whole ball.

    Pass it as `PGD(alpha=scaled_step(10))`. Raises ValueError for steps < 1 or floor <= 0.

    Source: the authors' released code for IAAT.
    """
    validate.integer("steps", steps, 1)
    validate.number("floor", floor, above=True)

    def alpha(eps: Tensor) -> Tensor:
        return (eps / (0.5 * steps)).clamp(min=floor)

    return alpha


Bound = float | Sequence[float] | Tensor
"""The smallest or largest value of the pixels: a number, or one per channel, a sequence, [C] or [C, 1, 1]."""


class SharedOptions(TypedDict, total=False):
    """Keywords of every attack's constructor. `PGD` says what they mean, `Attack` has the defaults."""

    lo: Bound
    hi: Bound
    bn: str
    precision: str
    engine: str | EngineOptions


class RestartOptions(SharedOptions, total=False):
    """Keywords of attacks that draw random numbers."""

    restarts: int
    seed: int | None


class GradientOptions(RestartOptions, total=False):
    """Keywords of attacks whose every step follows a gradient."""

    eot: int


class PGDOptions(GradientOptions, total=False):
    """Keywords of `PGD` and its subclasses."""

    clamp_start: bool
    targeted: Targeting
    early_stop: bool
    loss: str


def whole_box(options: SharedOptions) -> float | Tensor:
    """The radius hi - lo, whose ball around any image is the whole box. Raises ValueError for lo > hi."""
    lo, hi = options.get("lo", 0.0), options.get("hi", 1.0)
    box = ChannelBox.of(lo, hi)
    return hi - lo if box is None else box.widths  # type: ignore[operator]


def full_signature(init: Callable[..., None], base: Callable[..., None]) -> inspect.Signature:
    """The signature of a constructor, its `**options: Unpack[SomeOptions]` replaced by the keywords of SomeOptions.

    Their defaults are those of `base`. Other `**keywords` stay as they are.
    """
    _, *own = inspect.signature(init).parameters.values()
    if not own or not str(own[-1].annotation).startswith("Unpack["):
        return inspect.Signature(own)
    (options,) = typing.get_args(typing.get_type_hints(init)[own.pop().name])
    shared = inspect.signature(base).parameters
    return inspect.Signature([*own, *(shared[name] for name in options.__annotations__)])


def refuse_unknown(attack: type, given: Iterable[str]) -> None:
    """Raise TypeError for a keyword that the constructor of an attack does not take."""
    known = inspect.signature(attack).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in given:
        if name not in known:
            hint = validate.nearest(name, known.keys())
            raise TypeError(f"{attack.__name__}: unknown argument {name!r}, {hint}")


def described(attack: object) -> str:
    """`PGD(ResNet, eps=8/255, alpha=2/255, steps=10)`: options by position, and the others that are not the defaults.

    Each is an attribute of its name; precision and engine are the network's.
    """
    shown = []
    for name, option in inspect.signature(type(attack)).parameters.items():
        holder = attack if hasattr(attack, name) else attack.network  # type: ignore[attr-defined]
        value = getattr(holder, name)
        if name == "model":
            shown.append(_named(value) if inspect.isroutine(value) else type(value).__name__)
        elif option.kind is not option.KEYWORD_ONLY or not _is(value, option.default):
            shown.append(f"{name}={_shown(name, value)}")
    return f"{type(attack).__name__}({', '.join(shown)})"


def _is(value: object, default: object) -> bool:
    return value is default or (not isinstance(value, Tensor) and value == default)


def _shown(name: str, value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if callable(value):
        return _named(value)
    if name in ("eps", "alpha") and isinstance(value, float):
        return f"{units.to_text(value)}/255" if 0 < value < 1 else f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(f'{number:.4g}' for number in value)}]"
    return repr(value)


def _named(function: object) -> str:
    """A function by its name, or that of the one that has made it: `scaled_step`."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return str(name).partition(".<locals>")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine's options; each may be switched alone, except that `fold` and `compile` need `shadow`.

    shadow: take gradients from a frozen copy of the model. Off: from the live model, under autocast in half precision.
    fold: lower the copy to a program of fused operations without autograd, BatchNorm in eval mode folded into the layer
        before it.
    channels_last: store the copy's weights and the images channels last.
    compile: `torch.compile` the copy instead of lowering it, which takes minutes the first time.
    saturation_proof: keep the gradient of samples whose "ce" (`ops.ce_cotangent`) or "kl" saturates.
    graph: on CUDA, capture the steps once per shape in a CUDA graph and replay it: the same kernels, launched at once.

    Raises:
        TypeError: an option that is not a bool.
        ValueError: `fold` or `compile` without `shadow`.
    """

    shadow: bool = True
    fold: bool = True
    channels_last: bool = True
    compile: bool = False
    saturation_proof: bool = True
    graph: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                raise TypeError(f"{field.name}: {value!r}, expected True or False")
        needing = [name for name in ("fold", "compile") if getattr(self, name)]
        if needing and not self.shadow:
            raise ValueError(f"{needing[0]}: True without the shadow, which it changes")


EXACT = EngineOptions(
    shadow=False, fold=False, channels_last=False, compile=False, saturation_proof=False
)
PLAIN = dataclasses.replace(EXACT, saturation_proof=True)
FAST = EngineOptions()


def check(precision: str, engine: str | EngineOptions) -> None:
    """Raise ValueError for a precision or an engine that does not exist."""
    validate.choice("precision", precision, PRECISIONS)
    if not isinstance(engine, EngineOptions):
        validate.choice("engine", engine, ("auto", "exact", "fast"))


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 or fp16 if its matrix units compute in it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has AMX or AVX512_BF16: without either, bf16 is slower than fp32 (AVX512_BF16: twice as fast)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve(
    precision: str, engine: str | EngineOptions, device: torch.device, model: object
) -> tuple[str, EngineOptions]:
    """The precision and the engine's options for a model on a device.

    On a CPU, precision="auto" is fp32 for models that are mostly depthwise convolutions, which are slower in bf16
    (speed of PGD-10 relative to the plain loop, MobileNetV2: 1.18 in bf16, 1.90 in fast fp32; EfficientNet-B0: 1.18
    and 1.52).
    """
    resolved = resolve_precision(precision, device)
    could = precision == "auto" and device.type == "cpu" and resolved != "fp32"
    if could and mostly_depthwise(model):
        return "fp32", FAST if engine == "auto" else resolve_engine(engine, "fp32")
    return resolved, resolve_engine(engine, resolved)


# Weights of other layers for each channel of depthwise convolutions. On a Xeon with AMX the program is no faster in
# bf16 for networks with at most 816 (MobileNet, EfficientNet, MixNet, GhostNet; but EfficientNetV2-S, 584), and faster
# from 1,502 on (ConvNeXt, 4,142: twice as fast; but MobileViT-XXS, 2,170). By `python -m benchmarks networks`, six of
# these 22 networks over 10 steps, the others over 2.
_DENSE = 1100


def mostly_depthwise(model: object) -> bool:
    """Whether depthwise convolutions, with one group for each input channel, take much of a model's time."""
    if not isinstance(model, nn.Module):
        return False
    channels = weights = last = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            last = layer.in_features * layer.out_features
            weights += last
        elif isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            channels += layer.out_channels
        elif isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels // layer.groups
            weights += layer.out_channels * inputs * math.prod(layer.kernel_size)
    # Without the last linear layer, the classifier: large for many classes, and run for one position only.
    return weights - last < _DENSE * channels


def resolve_engine(engine: str | EngineOptions, precision: str) -> EngineOptions:
    """What "auto", "exact" and "fast" mean: "auto" is plain arithmetic in fp32 and fast in any lower precision."""
    if isinstance(engine, EngineOptions):
        return engine
    if engine == "exact":
        return EXACT
    return PLAIN if engine == "auto" and precision == "fp32" else FAST
