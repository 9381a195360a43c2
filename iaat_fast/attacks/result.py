"""`Attack.run`: its radii, its result, and its loop over radii, the smallest first, each on samples not fooled yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.channel_box import Boxed, ChannelBox
from iaat_fast.attacks.passes import among
from iaat_fast.attacks.recorder import Recorder
from iaat_fast.attacks.trace import Trace, put_together
from iaat_fast.ops import checks


@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack has found per sample: [N, ...], or [E, N, ...] for a list of E radii, in the order of the list.

        result = attack.run(x, y, epsilons=[2 / 255, 4 / 255, 8 / 255])
        robust_accuracy = 1 - result.success.float().mean(-1)       # [3]

    Args:
        x_adv: images, in the dtype and on the device of x.
        success: bool, whether the live model predicts a class other than y for x_adv, or with `targeted=True` the
            target y.
        predictions: int64, the class that the live model predicts for x_adv.
        distances: float32, from x to x_adv in the L-infinity norm; with `lo`, `hi` per channel, as shares of hi - lo.
        forwards, backwards: int64, passes of the sample through the network or its copy, for gradients, queries and
            verdicts; for a list, those at each radius, whose sum over E is the total cost. Comparing a copy with the
            model is not counted.
        trace: of the iterations, with `trace=True`; else None.
    """

    x_adv: Tensor
    success: Tensor
    predictions: Tensor
    distances: Tensor
    forwards: Tensor
    backwards: Tensor
    trace: Trace | None = None


def radii_of_run(
    epsilons: float | Tensor | Sequence[float | Tensor], x: Tensor, box: Boxed
) -> tuple[float | Tensor, bool]:
    """The radii of a run on images x [N, ...], and whether `epsilons` is a list, which gives a tensor [E, N].

    Args:
        box: the attack. If its bounds are per channel, the radii are shares of hi - lo.

    Raises:
        TypeError, ValueError: of the wrong type or shape, or beyond the width of the box [lo, hi].
    """
    lo, hi = box._lo, box._hi
    if box._channels is not None:
        epsilons = box._channels.shares(epsilons, x.device)
    if isinstance(epsilons, (int, float)):
        validate.distance("epsilons", epsilons, lo, hi)
        return epsilons, False
    if isinstance(epsilons, Tensor) and epsilons.dim() < 2:
        return checks.per_row("epsilons", epsilons, len(x), x), False
    try:
        radii = list(epsilons)
    except TypeError:
        raise TypeError(
            f"epsilons: {type(epsilons).__name__}, expected a float, a Tensor, a list of them or None"
        ) from None
    if not radii:
        raise ValueError("epsilons: empty, expected at least one radius")
    for place, eps in enumerate(radii):
        validate.distance(f"epsilons[{place}]", eps, lo, hi)
    rows = [checks.per_row(f"epsilons[{e}]", eps, len(x), x) for e, eps in enumerate(radii)]
    return torch.stack(rows), True


def no_samples(x: Tensor, radii: int, record: Record | None) -> AttackResult:
    """The result [E, 0, ...] for images [0, ...] and E radii."""
    long = torch.zeros(radii, 0, dtype=torch.int64, device=x.device)
    trace = None if record is None else put_together([record(each) for each in long], long)
    images = x.new_empty(radii, *x.shape)
    return AttackResult(images, long.bool(), long, long.float(), long, long, trace)


def first_radius(result: AttackResult) -> AttackResult:
    """The result [N, ...] at the first radius of a result [E, N, ...]."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    first = {name: value[0] for name, value in values.items() if value is not None}
    return dataclasses.replace(result, **first)


Record = Callable[[Tensor], Recorder]
"""Makes the recorder of some samples, int64 [n]."""

Verdict = Callable[[Call, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a call, images [n, ...] and classes [n] to predictions, int64 [n], and success, bool [n]."""


def over_radii(
    call: Call,
    order: Tensor,
    layout: torch.memory_format,
    attack: Callable[[Call], Tensor],
    verdict: Verdict,
    record: Record | None = None,
    channels: ChannelBox | None = None,
) -> AttackResult:
    """Attack, at each radius, the samples that no smaller one has fooled; the others keep their images.

    Waits for the device at each radius, to read which samples these are.

    Args:
        call: a call with a counter of passes; the E candidates of a sample are its radii, the smallest first.
        order: int64 [E, N], the position of each of these radii in the result.
        layout: memory format of the images in verdicts and, for a single radius, in the result.
        attack: maps a call with one candidate per sample to images [n, ...], as they were given.
        verdict: the live model's, of such images.
        record: None without a trace.
        channels: the bounds, where they are per channel.

    Returns:
        [E, N, ...] each.
    """
    assert call.passes is not None
    n, samples = len(call.y), torch.arange(len(call.y), device=call.x.device)
    eps, alpha = call.eps.view(-1, n), call.alpha.view(-1, n)
    images = call.images.contiguous(memory_format=layout)
    predictions, fooled = verdict(call, images, call.y)
    norms = torch.zeros(n, dtype=torch.float32, device=images.device)
    found: list[Any] = [
        tensor.new_empty((len(eps), *tensor.shape))
        for tensor in (images, fooled, predictions, norms, samples, samples)
    ]
    if len(eps) == 1:  # in its layout
        found[0] = torch.empty_like(images, memory_format=layout).unsqueeze(0)
    recorders: list[Recorder] = []
    for k in range(len(eps)):
        remaining = (~fooled).nonzero()[:, 0]
        rows = samples if call.coupled and len(remaining) else remaining
        if record is not None:
            recorders.append(record(rows))
        if len(rows):
            part = call.of_samples(rows, eps[k], alpha[k])
            part.trace = recorders[-1] if recorders else None
            with among(call.passes, rows):
                made = attack(part).contiguous(memory_format=layout)
                predicted, success = verdict(part, made, part.y)
            call.add(part, of=len(eps))
            remains = ~fooled[rows]
            images = images.index_copy(
                0, rows, torch.where(as_column(remains, made), made, images[rows])
            )
            predictions = predictions.index_copy(
                0, rows, torch.where(remains, predicted, predictions[rows])
            )
            fooled = fooled.index_copy(0, rows, success | ~remains)
            norms = distances(images, call.images, channels)
        now = (images, fooled, predictions, norms, *call.passes.take())
        for whole, tensor in zip(found, now, strict=True):
            whole[order[k], samples] = tensor
    found.append(put_together(recorders, order) if recorders else None)
    return AttackResult(*found)


def distances(images: Tensor, x: Tensor, channels: ChannelBox | None = None) -> Tensor:
    """The distances in the L-infinity norm between images and x, [N, ...] each; float32 [N].

    With bounds per channel, as shares of hi - lo.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    apart = images.to(wide) - x.to(wide)
    if channels is not None:
        apart = apart / channels.constants(x)[2]
    return apart.flatten(1).abs().amax(1).float()
