"""Which backend is faster, per op and class of size: what decides the default of an op."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from benchmarks.kernels.contenders import BACKENDS
from benchmarks.kernels.measure import Record

CLASSES = {False: "small", True: "bandwidth-bound"}


def faster(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row per op and class: the geometric mean of each backend's time over that of the fastest one.

    Small sizes are compared by their time inside a CUDA graph where there is one, as that is how an attack runs them;
    the others by their median sample. Only problems that every backend named in the row was measured at count.
    """
    rows = []
    measured = [r for r in records if r.status == "ok" and r.backend in BACKENDS and r.counted]
    for op in dict.fromkeys(r.op for r in measured):
        for bound, name in CLASSES.items():
            group = [r for r in measured if r.op == op and r.bandwidth_bound is bound]
            row = _compare(group)
            if row is not None:
                rows.append({"op": op, "sizes": name, **row})
    return rows


def _compare(group: list[Record]) -> dict[str, Any] | None:
    times: dict[str, dict[tuple[str, str], float]] = {}
    for record in group:
        graph = None if record.bandwidth_bound else record.graph_us
        time = record.p50_us if graph is None else graph
        assert time is not None
        times.setdefault(record.backend, {})[record.problem, record.dtype] = time
    if not times:
        return None
    shared = set.intersection(*(set(t) for t in times.values()))
    if not shared:
        return None
    means = {
        name: math.exp(sum(math.log(t[key]) for key in shared) / len(shared))
        for name, t in times.items()
    }
    best = min(means, key=lambda name: means[name])
    relative = {name: mean / means[best] for name, mean in means.items()}
    return {"faster": best, "problems": len(shared), "relative_time": relative}
