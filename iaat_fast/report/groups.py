"""Sorts runs into groups of one data set and network, and within them into variants of methods, over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from iaat_fast.methods import method_key, reads
from iaat_fast.report import naming
from iaat_fast.report.records import RunRecord

SHARED = ("protocol", "data.", "model.", "optim.")
"""Fields in which the runs of a group must agree. Runs that differ in other fields are variants of a method."""

CARRIED_OUT = ("run.", "data.path", "data.workers", "optim.graph")
"""Where, how and with which seed a run was carried out."""

NOT_COMPARED = (*CARRIED_OUT, "preset", "method", "evaluation.")
"""Fields that make no variants: methods are told apart already, and evaluations are compared by their records."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The runs of one method in one setting, which differ only in their seed.

    Args:
        key: the method, see `method_key`.
        name: the method and the fields that tell this variant from others.
        runs: by rising seed.
    """

    key: str
    name: str
    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run with the smallest seed."""
        return self.runs[0]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs on one data set with one network.

    Args:
        dataset: name of the data set.
        network: name of the network, as `config.json` has it.
        title: the network with width and depth.
        variants: in the order of the tables.
    """

    dataset: str
    network: str
    title: str
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """Data set and network: `CIFAR-10, ResNet-18, width 16`."""
        return f"{naming.dataset_name(self.dataset)}, {self.title}"

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All its runs."""
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def stem(self) -> str:
        """Short and free of blanks, for file names: `cifar10-resnet18-width16`."""
        return slug(f"{self.dataset} {self.title}")


def slug(text: str) -> str:
    """`text` as part of a file name."""
    return "-".join(
        "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    )


def group(records: Sequence[RunRecord]) -> list[Group]:
    """Sort runs into groups.

    Raises:
        ValueError: runs on one data set with one network that differ in data, optimisation or protocol, or two runs of
            one variant with the same seed; the message names both.
    """
    found: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        title = naming.network_name(record.config)
        key = (record.config["data.name"], record.config["model.name"], title)
        found.setdefault(key, []).append(record)
    known = list(naming.DATASETS), list(naming.NETWORKS)
    order = sorted(
        found, key=lambda key: (_place(key[0], known[0]), _place(key[1], known[1]), key[2])
    )
    return [
        Group(dataset=key[0], network=key[1], title=key[2], variants=_variants(found[key]))
        for key in order
    ]


def _place(name: str, known: list[str]) -> tuple[int, str]:
    return (known.index(name), "") if name in known else (len(known), name)


def _variants(runs: Sequence[RunRecord]) -> tuple[Variant, ...]:
    for run in runs[1:]:
        refuse(runs[0], run, _changed(runs[0].config, run.config, SHARED))
    methods: dict[str, list[RunRecord]] = {}
    for run in runs:
        methods.setdefault(method_key(run.config), []).append(run)
    variants = []
    for key in sorted(methods, key=naming.method_order):
        members = methods[key]
        fields = sorted(
            {
                name
                for run in members
                for name in _differing(members[0].config, run.config)
                if not name.startswith(SHARED) and reads(key, name)
            }
        )
        settings: dict[tuple[Any, ...], list[RunRecord]] = {}
        for run in members:
            settings.setdefault(tuple(run.config.get(name) for name in fields), []).append(run)
        for setting in sorted(settings, key=lambda values: [_sortable(v) for v in values]):
            same = sorted(settings[setting], key=lambda run: run.seed)
            for one, other in itertools.pairwise(same):
                if one.seed == other.seed:
                    raise ValueError(
                        f"{one.name} and {other.name}: the same method with the same seed, {one.seed}"
                    )
            name = naming.variant_name(same[0].config, fields)
            variants.append(Variant(key=key, name=name, runs=tuple(same)))
    return tuple(variants)


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return (not number, float(value) if number else 0.0, str(value))


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The fields, except `NOT_COMPARED`, in which two configurations differ."""
    return [
        name
        for name in sorted({*one, *other})
        if not name.startswith(NOT_COMPARED) and one.get(name) != other.get(name)
    ]


def _changed(one: dict[str, Any], other: dict[str, Any], among: tuple[str, ...]) -> list[str]:
    return [
        f"{name} ({one.get(name)!r}, {other.get(name)!r})"
        for name in _differing(one, other)
        if name.startswith(among)
    ]


def refuse(one: RunRecord, other: RunRecord, changed: Iterable[str]) -> None:
    """Raise ValueError naming both runs if anything changed between them."""
    if changed := list(changed):
        raise ValueError(
            f"{one.name} and {other.name} cannot stand in one table: they differ in {', '.join(changed)}"
        )
