"""Figures 3, 4 and 9: natural against robust accuracy, and robust accuracy over radii and over steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from iaat_fast import methods, units
from iaat_fast.evaluate.results import Evaluation, Measurement, targets
from iaat_fast.evaluate.suites import CLOSING
from iaat_fast.report.figures.drawing import (
    QUIET,
    Drawing,
    blank,
    legend_above,
    not_below_zero,
    series,
)
from iaat_fast.report.groups import Group, Variant

Point = tuple[float, float, float, float]
"""Position on the x axis, accuracy in percent, and the length of its error bar below and above."""


def draw_tradeoff(group: Group) -> list[Drawing]:
    """Figure 3: adversarial training at several radii joined by a line, other methods as points."""
    found = _evaluations(group)
    attack = _strongest([e for _, evaluations in found for e in evaluations])
    if attack is None:
        return []
    points = []
    for variant, evaluations in found:
        natural = [e.of("natural")[:1] for e in evaluations]
        if methods.row(variant.key).radius != "none" and all(natural):
            robust = [m for e in evaluations if (m := _find(e, attack)) is not None]
            points.append((variant, _mean([m for (m,) in natural]), _mean(robust)))
    fixed = [point for point in points if point[0].key == methods.ADV]
    others = [point for point in points if point[0].key != methods.ADV]
    if len(points) < 2:
        return []
    figure, axes = blank()
    styles = series([methods.ADV, *(variant.key for variant, _, _ in others)])
    if fixed:
        fixed.sort(key=lambda point: point[0].first.config.get("attack.eps", 0.0))
        styles = [styles[0]] * len(fixed) + styles[1:]
        middle = [(x[0], y[0]) for _, x, y in fixed]
        axes.plot(*zip(*middle, strict=True), label="Adversarial, fixed ε", **styles[0])
        for (variant, _, _), at in zip(fixed, middle, strict=True):
            radius = units.to_text(variant.first.config["attack.eps"])
            axes.annotate(
                f"ε = {radius}", at, (6, 5), textcoords="offset points", fontsize=8, color=QUIET
            )
    else:
        styles = styles[1:]
    for (variant, x, y), style in zip([*fixed, *others], styles, strict=True):
        axes.errorbar(
            x[0],
            y[0],
            xerr=[[x[1]], [x[2]]],
            yerr=[[y[1]], [y[2]]],
            label=None if variant.key == methods.ADV else variant.name,
            elinewidth=0.8,
            **{**style, "linestyle": "none", "ms": 6 if variant.key == methods.ADV else 9},
        )
    axes.set(xlabel="natural accuracy (%)", ylabel="robust accuracy (%)")
    axes.margins(0.12)
    not_below_zero(axes)
    legend_above(figure, axes)
    said = "; ".join(
        f"{variant.name}: {x[0]:.1f} natural, {y[0]:.1f} robust"
        for variant, x, y in [*fixed, *others]
    )
    return [
        Drawing(
            number=3,
            stem=f"figure-3-{group.stem}",
            title="Natural against robust accuracy",
            caption=f"{group.name}, {_test(found)}, robust against {_attack_text(attack)}. {BARS}",
            alt=f"Scatter plot. {said}; in percent.",
            figure=figure,
        )
    ]


def draw_eps_sweep(group: Group) -> list[Drawing]:
    """Figure 4: accuracy over the radius of the attack, the natural one at 0."""

    def points(evaluation: Evaluation) -> list[tuple[float, Measurement]]:
        natural = [(0.0, m) for m in evaluation.of("natural")]
        swept = [(255 * m.row["eps"], m) for m in evaluation.of("pgd", "eps-sweep")]
        return [*natural, *swept] if swept else []

    return _sweep(
        group,
        points,
        number=4,
        title="Accuracy over the radius of the attack",
        label="ε of the attack (1/255)",
        part="eps-sweep",
    )


def draw_steps_sweep(group: Group) -> list[Drawing]:
    """Figure 9: accuracy over the steps of the attack."""

    def points(evaluation: Evaluation) -> list[tuple[float, Measurement]]:
        return [(float(m.row["steps"]), m) for m in evaluation.of("pgd", "steps-sweep")]

    return _sweep(
        group,
        points,
        number=9,
        title="Accuracy over the steps of the attack",
        label="steps of PGD",
        part="steps-sweep",
    )


def _sweep(
    group: Group,
    points: Callable[[Evaluation], list[tuple[float, Measurement]]],
    *,
    number: int,
    title: str,
    label: str,
    part: str,
) -> list[Drawing]:
    every = _evaluations(group)
    few = _few([variant for variant, _ in every])
    found = [(variant, evaluations) for variant, evaluations in every if variant in few]
    curves = [(v, _curve([points(e) for e in evaluations])) for v, evaluations in found]
    curves = [(variant, curve) for variant, curve in curves if curve]
    if not curves:
        return []
    figure, axes = blank()
    styles = series([variant.key for variant, _ in curves])
    for (variant, curve), style in zip(curves, styles, strict=True):
        x, y, below, above = zip(*curve, strict=True)
        axes.errorbar(
            x, y, yerr=[below, above], label=variant.name, elinewidth=0.8, **{**style, "ms": 5}
        )
    axes.set(xlabel=label, ylabel="accuracy (%)")
    axes.set_ylim(bottom=0)
    if number == 9:
        # Before any limit: 0, where the axis of a linear scale may start, is infinitely far from 1 on this one.
        axes.set_xscale("log")
        steps = sorted({point[0] for _, curve in curves for point in curve})
        axes.set_xticks(steps, [f"{step:.0f}" for step in steps])
        axes.minorticks_off()
    not_below_zero(axes)
    legend_above(figure, axes)
    said = "; ".join(
        f"{v.name} from {curve[0][1]:.1f} to {curve[-1][1]:.1f} %" for v, curve in curves
    )
    attacks = {
        _attack_text(m, eps=number == 9, steps=number == 4)
        for _, evaluations in found
        for e in evaluations
        for m in e.of("pgd", part)
    }
    return [
        Drawing(
            number=number,
            stem=f"figure-{number}-{group.stem}",
            title=title,
            caption=(
                f"{group.name}, {_test(found)}, {' and '.join(sorted(attacks))}. {BARS}"
                + (" Adversarial training at two of its radii." if len(found) < len(every) else "")
            ),
            alt=f"Line chart. {said}.",
            figure=figure,
        )
    ]


def _few(variants: Sequence[Variant]) -> list[Variant]:
    """The variants to draw. Of more than three radii of adversarial training, two: ε = 2 and 8 as in the paper, or the
    smallest and the largest."""
    radii = [
        round(255 * v.first.config.get("attack.eps", 0), 3)
        for v in variants
        if v.key == methods.ADV
    ]
    if len(radii) <= 3:
        return list(variants)
    kept = {2.0, 8.0} if {2.0, 8.0} <= set(radii) else {min(radii), max(radii)}
    return [
        v
        for v in variants
        if v.key != methods.ADV or round(255 * v.first.config.get("attack.eps", 0), 3) in kept
    ]


def _evaluations(group: Group) -> list[tuple[Variant, list[Evaluation]]]:
    """The evaluations of each variant, without those at the end of a training if there are suites."""
    every = [run.evaluation for run in group.runs if run.evaluation is not None]
    suites = any(e.suite != CLOSING for e in every)
    found = [
        (
            variant,
            [
                run.evaluation
                for run in variant.runs
                if run.evaluation is not None and not (suites and run.evaluation.suite == CLOSING)
            ],
        )
        for variant in group.variants
    ]
    return [(variant, evaluations) for variant, evaluations in found if evaluations]


def _strongest(evaluations: Sequence[Evaluation]) -> Measurement | None:
    """The attack with the most steps among those that all evaluations have measured."""
    if not evaluations:
        return None
    common = [m for m in evaluations[0].of("pgd", "pgd") if all(_find(e, m) for e in evaluations)]
    return max(common, key=lambda m: (m.row["steps"], m.row["eps"]), default=None)


def _find(evaluation: Evaluation, attack: Measurement) -> Measurement | None:
    found = evaluation.of("pgd", attack.part)
    return next((m for m in found if m.setting == attack.setting), None)


def _curve(runs: Sequence[Sequence[tuple[float, Measurement]]]) -> list[Point]:
    """Mean and error bar at every position that all seeds have."""
    at = set.intersection(*({x for x, _ in run} for run in runs))
    return [
        (x, *_mean([next(m for position, m in run if position == x) for run in runs]))
        for x in sorted(at)
    ]


BARS = "Bars: the 95 % interval of a single run, or the standard deviation over seeds."


def _mean(found: Sequence[Measurement]) -> tuple[float, float, float]:
    """The mean accuracy in percent, and the length of its error bar below and above."""
    accuracies = [100 * m.accuracy for m in found]
    mean = statistics.fmean(accuracies)
    if len(accuracies) > 1:
        spread = statistics.stdev(accuracies)
        # Cut at 0 and 100, beyond which there are no accuracies.
        return mean, min(spread, mean), min(spread, 100 - mean)
    low, high = found[0].interval or (found[0].accuracy, found[0].accuracy)
    return mean, max(mean - 100 * low, 0.0), max(100 * high - mean, 0.0)


def _attack_text(m: Measurement, *, eps: bool = True, steps: bool = True) -> str:
    """`PGD-10 × 5 at ε = 8`, without the radius or the steps if an axis shows them."""
    name = units.pgd_name(m.row) if steps else f"PGD × {m.row['restarts']}"
    name = f"targeted {name}" if targets(m.row) else name
    return f"{name} at {units.radius_name(m.row['eps'])}" if eps else name


def _test(found: Sequence[tuple[Variant, list[Evaluation]]]) -> str:
    samples = sorted({e.samples for _, evaluations in found for e in evaluations})
    text = " or ".join(f"{n:,}" for n in samples) + " test images"
    unfinished = any(not e.complete for _, evaluations in found for e in evaluations)
    return text + (" (some evaluations not complete)" if unfinished else "")
