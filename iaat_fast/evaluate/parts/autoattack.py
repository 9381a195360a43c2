"""Two parts of a suite, AutoAttack's versions, at each radius; each is resumed in the middle of an attack."""

from __future__ import annotations

import dataclasses
from functools import partial

from iaat_fast import units
from iaat_fast.evaluate.autoattack import AutoAttackResult, autoattack
from iaat_fast.evaluate.parts.part import Context, Part, Settings
from iaat_fast.evaluate.record import rounded

# The gradient passes that each attack takes on a robust sample; a forward alone counts as half a pass.
_PASSES = {
    "standard": {"apgd-ce": 100, "apgd-t": 900, "fab-t": 1350, "square": 2500},
    "rand": {"apgd-ce": 2000, "apgd-dlr": 2000},
}


def measure(context: Context, *, part: str, version: str) -> None:
    """Add a row per radius. AutoAttack always counts any iterate, independent of `settings.any_iterate`."""
    how = _gradients(context.settings)
    for eps in context.suite.eps:
        key = "-".join((f"{part}-eps{units.to_text(eps)}", *how.values()))
        if not context.record.has(key):
            _at_radius(context, key, eps, how, part, version)


def _gradients(settings: Settings) -> dict[str, str]:
    """The precision and the engine of the gradients, each only where it is not the default."""
    asked = {
        "precision": settings.autoattack_precision,
        "engine": settings.autoattack_engine,
    }
    return {
        name: value for name, value in asked.items() if value != getattr(AutoAttackResult, name)
    }


def _at_radius(
    context: Context, key: str, eps: float, how: dict[str, str], part: str, version: str
) -> None:
    record, target = context.record, context.target
    state = record.progress(key)
    resumed = None if state is None else AutoAttackResult.from_state(state)
    latest = resumed

    def save(result: AutoAttackResult) -> None:
        nonlocal latest
        latest = result
        context.tell(f"AutoAttack, {units.radius_name(eps)}/255", *passes(result, version))
        if context.save_is_due:
            context.save(key, result.state())

    try:
        result = autoattack(
            target.model,
            target.split,
            eps=eps,
            batch_size=context.settings.batch_size,
            seed=context.settings.seed,
            version=version,
            precision=context.settings.autoattack_precision,
            engine=context.settings.autoattack_engine,
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
        "part": part,
        "eps": eps,
        "version": version,
        **how,
        "rule": "any",
        "stages": [dataclasses.asdict(stage) for stage in result.stages],
        "seconds": rounded(sum(stage.seconds for stage in result.stages)),
    }
    record.add(row, {key: result.correct.numpy()})
    record.save_progress(key, None)


def passes(result: AutoAttackResult, version: str) -> tuple[float, float]:
    """Gradient passes taken, and those to come if all samples that are still robust stay so."""
    through = dict(zip(result.attacks, (s.standing_before for s in result.stages), strict=False))
    done, remaining, of_attack = 0.0, 0.0, _PASSES[version]
    standing = int(result.correct.sum())
    for number, attack in enumerate(result.attacks):
        if number < len(result.stages):
            done += through[attack] * of_attack[attack]
        elif number == len(result.stages) and result.tested is not None:
            done += int(result.tested.sum()) * of_attack[attack]
            remaining += int((result.correct & ~result.tested).sum()) * of_attack[attack]
        else:
            remaining += standing * of_attack[attack]
    return done, remaining


AUTOATTACK = Part(
    name="autoattack",
    help="AutoAttack's standard version, at each radius",
    measure=partial(measure, part="autoattack", version="standard"),
)
AUTOATTACK_RAND = Part(
    name="autoattack-rand",
    help="AutoAttack's version for randomised models",
    measure=partial(measure, part="autoattack-rand", version="rand"),
)
