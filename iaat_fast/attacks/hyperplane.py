"""The nearest point of a hyperplane within the box, in the L-infinity norm."""

from __future__ import annotations

import torch
from torch import Tensor


def step_to_hyperplane(x: Tensor, w: Tensor, gap: Tensor, lo: float, hi: float) -> Tensor:
    """The smallest step d, in the L-infinity norm, with <w, d> = gap and x + d in [lo, hi].

    Where the hyperplane misses the box, d goes as far towards it as the box allows.

    With a step of size t every pixel moves by min(t, its room in the direction of w), so <w, d> is a concave function
    of t, piecewise linear; Newton's method from t = 0 climbs it from below and meets the solution after as many steps
    as pieces it crosses, at worst. In practice that is about five passes over the images, where the paper's algorithm
    sorts them.

    Args:
        x: points [N, D] in the box, float32 or float64.
        w: normals [N, D].
        gap: [N], what is missing: b - <w, x> for the hyperplane <w, .> = b.

    Returns:
        [N, D]. Entries of w that are 0 give 0.

    Source: the problem: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", the projection onto a hyperplane and the box; the algorithm: derived here.
    """
    way = torch.where((gap < 0).unsqueeze(1), -w, w)
    room = torch.where(way > 0, hi - x, x - lo).clamp(min=0)
    weight, missing = w.abs(), gap.abs()
    size = torch.zeros_like(gap)
    moving_before = torch.full_like(gap, -1, dtype=torch.int64)
    while True:
        moving = room > size.unsqueeze(1)
        count = moving.sum(1)
        if torch.equal(
            count, moving_before
        ):  # no more pieces were crossed: the last step was exact
            break
        reached = (weight * torch.minimum(room, size.unsqueeze(1))).sum(1)
        step = (missing - reached) / (weight * moving).sum(1)
        size = torch.where(step > 0, size + step, size)
        moving_before = count
    return torch.minimum(room, size.unsqueeze(1)) * way.sign()
