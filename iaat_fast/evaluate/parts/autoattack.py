"""The part "autoattack" of a suite: AutoAttack at each radius, resumed in the middle of an attack."""

from __future__ import annotations

import dataclasses

from iaat_fast import units
from iaat_fast.evaluate.autoattack import AutoAttackResult, autoattack
from iaat_fast.evaluate.parts.part import Context, Part
from iaat_fast.evaluate.record import rounded

VERSION = "standard"

# The gradient passes that each attack takes on a robust sample; a forward alone counts as half a pass.
_PASSES = {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1350, "square": 2500}


def measure(context: Context) -> None:
    """Add a row per radius. AutoAttack always counts any iterate, independent of `settings.any_iterate`."""
    for eps in context.suite.eps:
        key = f"autoattack-eps{units.to_text(eps)}"
        if not context.record.has(key):
            _at_radius(context, key, eps)


def _at_radius(context: Context, key: str, eps: float) -> None:
    record, target = context.record, context.target
    state = record.progress(key)
    resumed = None if state is None else AutoAttackResult.from_state(state)
    latest = resumed

    def save(result: AutoAttackResult) -> None:
        nonlocal latest
        latest = result
        context.tell(f"AutoAttack, {units.radius_name(eps)}/255", *passes(result))
        if context.save_is_due:
            context.save(key, result.state())

    try:
        result = autoattack(
            target.model,
            target.split,
            eps=eps,
            batch_size=context.settings.batch_size,
            seed=context.settings.seed,
            version=VERSION,
            resume=resumed,
            save=save,
        )
    except BaseException:
        if latest is not None:
            context.save(key, latest.state())
        raise
    row = {
        "key": key,
        "kind": "autoattack",
        "part": "autoattack",
        "eps": eps,
        "version": VERSION,
        "rule": "any",
        "stages": [dataclasses.asdict(stage) for stage in result.stages],
        "seconds": rounded(sum(stage.seconds for stage in result.stages)),
    }
    record.add(row, {key: result.correct.numpy()})
    record.save_progress(key, None)


def passes(result: AutoAttackResult) -> tuple[float, float]:
    """Gradient passes taken, and those to come if all samples that are still robust stay so."""
    through = dict(zip(result.attacks, (s.standing_before for s in result.stages), strict=False))
    done, remaining = 0.0, 0.0
    standing = int(result.correct.sum())
    for number, attack in enumerate(result.attacks):
        if number < len(result.stages):
            done += through[attack] * _PASSES[attack]
        elif number == len(result.stages) and result.tested is not None:
            done += int(result.tested.sum()) * _PASSES[attack]
            remaining += int((result.correct & ~result.tested).sum()) * _PASSES[attack]
        else:
            remaining += standing * _PASSES[attack]
    return done, remaining


AUTOATTACK = Part(
    name="autoattack", help="AutoAttack's standard version, at each radius", measure=measure
)
