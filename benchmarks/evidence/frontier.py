"""How far points lie beyond the curve of fixed radii in natural and robust accuracy, with bootstrap intervals.

Figure 3 of Balaji et al. 2019 claims that IAAT "breaks through the Pareto frontier" of fixed radii. Here the claim is a
number, `beyond`, the additive epsilon indicator (Zitzler et al. 2003, "Performance assessment of multiobjective
optimizers"): how much a point can lose of both accuracies at once and still reach the curve; negative inside of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

REPLICATES = 10_000


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What became of every test image, for each seed of a setting.

    Args:
        natural: bool [K, N], whether the clean image is classified right, K seeds by N images.
        robust: bool [K, N], whether it still is under the attack.
    """

    natural: Array
    robust: Array

    def __post_init__(self) -> None:
        for name, array in (("natural", self.natural), ("robust", self.robust)):
            if array.dtype != bool or array.ndim != 2 or not array.size:
                raise ValueError(
                    f"{name}: {array.dtype} {list(array.shape)}, expected bool, at least one seed by one image"
                )
        if self.natural.shape != self.robust.shape:
            raise ValueError(
                f"robust: {list(self.robust.shape)}, expected the shape of natural, {list(self.natural.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A quantity with its 95 % bootstrap interval and its replicates, float64 [B]."""

    value: float
    replicates: Array

    def interval(self, tests: int = 1) -> tuple[float, float]:
        """The interval of level 1 - 0.05 / tests: of several tests, all hold at once in 95 % (Bonferroni)."""
        tail = 2.5 / tests
        low, high = np.percentile(self.replicates, (tail, 100 - tail))
        return float(low), float(high)

    def minus(self, other: Estimate) -> Estimate:
        """The difference from another quantity; paired, as the replicates of both are of the same images."""
        return Estimate(
            value=self.value - other.value, replicates=self.replicates - other.replicates
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting: its accuracies, means over seeds, and how far it lies beyond the curve (None for a fixed radius)."""

    natural: Estimate
    robust: Estimate
    beyond: Estimate | None = None


def beyond(natural: Array, robust: Array, curve: Array) -> Array:
    """How far points lie beyond a curve in both accuracies; positive outside.

    It is the largest d for which (natural - d, robust - d) is no better in either accuracy than some point of the
    curve: min over its points q of max(natural - q_natural, robust - q_robust).

    Args:
        natural, robust: [...], the point.
        curve: [..., M, 2], at least one vertex, (natural, robust) each, joined by straight lines in this order. (A
            mixture of two networks, drawn per image, has any accuracies on the line between them.)

    Returns:
        [...], in the unit of the accuracies.
    """
    point = np.stack([natural, robust], -1)[..., None, :]
    gaps = point - curve
    found = gaps.max(-1).min(-1)
    start, along = gaps[..., :-1, :], -np.diff(curve, axis=-2)
    # On a segment both gaps are linear in t, so the larger one is least at an end or where they are equal.
    slope = along[..., 0] - along[..., 1]
    crossing = np.divide(
        start[..., 1] - start[..., 0], slope, out=np.full_like(slope, -1.0), where=slope != 0
    )
    within = (crossing > 0) & (crossing < 1)
    inner = np.where(within, start[..., 0] + crossing * along[..., 0], np.inf)
    return np.minimum(found, inner.min(-1, initial=np.inf))


def accuracies(
    settings: Mapping[str, Array], *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Estimate]:
    """Accuracies in percent, means over seeds, with replicates as `compare` draws them.

    Args:
        settings: of each setting, what became of every test image, bool [K, N], K seeds by N images. The N images are
            the same for all settings, K need not be.
        replicates, seed: how many, and of which random numbers.

    Raises:
        ValueError: verdicts of another number of images.
    """
    random = np.random.default_rng(seed)
    counts = _drawn_images(list(settings.values()), replicates, random)
    return {
        name: Estimate(
            value=float(verdicts.mean() * 100),
            replicates=_resampled((verdicts,), counts, random)[:, 0],
        )
        for name, verdicts in settings.items()
    }


def compare(
    fixed: Mapping[float, Verdicts],
    others: Mapping[str, Verdicts],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[dict[float, Point], dict[str, Point]]:
    """Accuracies of all settings in percent, and how far `others` lie beyond the curve of `fixed`.

    A replicate draws the images with replacement, the same for all settings, and for every setting K - 1 of its K
    seeds with replacement (one, if there is only one): the variance of their mean is then the usual estimate s² / K,
    where that of K draws would be a third too small for K = 3 (Rao and Wu 1988). The curve is drawn again from each
    replicate. Its vertices are noisy, and `beyond` takes the one that is best for the curve, so the noise makes
    `beyond` smaller, never larger.

    Args:
        fixed: the verdicts at each fixed radius, which is only their order.
        others: the verdicts of the settings that are compared with them.
        replicates, seed: how many, and of which random numbers.

    Raises:
        ValueError: no fixed radius, or verdicts of another number of images.
    """
    if not fixed:
        raise ValueError("fixed: none, expected at least one radius")
    every = [*fixed.values(), *others.values()]
    random = np.random.default_rng(seed)
    counts = _drawn_images([verdicts.natural for verdicts in every], replicates, random)
    drawn = [_resampled((v.natural, v.robust), counts, random) for v in every]
    means = [np.array([v.natural.mean(), v.robust.mean()]) * 100 for v in every]
    radii = sorted(range(len(fixed)), key=lambda i: list(fixed)[i])
    curve_mean = np.stack([means[i] for i in radii])
    curve_drawn = np.stack([drawn[i] for i in radii], -2)
    points = []
    for number, (mean, sample) in enumerate(zip(means, drawn, strict=True)):
        distance = None
        if number >= len(fixed):
            distance = Estimate(
                value=float(beyond(mean[0], mean[1], curve_mean)),
                replicates=beyond(sample[:, 0], sample[:, 1], curve_drawn),
            )
        points.append(
            Point(
                natural=Estimate(value=float(mean[0]), replicates=sample[:, 0]),
                robust=Estimate(value=float(mean[1]), replicates=sample[:, 1]),
                beyond=distance,
            )
        )
    return (
        dict(zip(fixed, points[: len(fixed)], strict=True)),
        dict(zip(others, points[len(fixed) :], strict=True)),
    )


def _drawn_images(verdicts: Sequence[Array], replicates: int, random: np.random.Generator) -> Array:
    """How often each replicate has drawn each image, float64 [B, N]."""
    images = {array.shape[1] for array in verdicts}
    if len(images) > 1:
        raise ValueError(f"verdicts: of {sorted(images)} images, expected the same ones everywhere")
    n = images.pop()
    return random.multinomial(n, np.full(n, 1 / n), size=replicates).astype(np.float64)


def _resampled(verdicts: Sequence[Array], counts: Array, random: np.random.Generator) -> Array:
    """Accuracies of a setting in percent, of M kinds of verdicts, in every replicate, [B, M]."""
    seeds, n = verdicts[0].shape
    # [B, K, M]: of each seed on the drawn images
    shares = np.stack([counts @ array.T for array in verdicts], -1) * (100 / n)
    chosen = random.integers(seeds, size=(len(counts), max(seeds - 1, 1)))
    return np.take_along_axis(shares, chosen[..., None], axis=1).mean(1)
