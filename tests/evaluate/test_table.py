"""A suite's record on a terminal of 80 columns: every measurement on one line, under its part."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from iaat_fast.evaluate.table import suite_table


def row(part: str, key: str, kind: str, **more: Any) -> dict[str, Any]:
    counts = {"accuracy": 0.25, "correct": 2500, "samples": 10_000, "interval_95": [0.24, 0.26]}
    return {"part": part, "key": key, "kind": kind, **counts, **more}


def attack(part: str, kind: str, steps: int, eps: int, **more: Any) -> dict[str, Any]:
    settings = {"eps": eps / 255, "alpha": 2 / 255, "steps": steps, "restarts": 2, "targeted": "no"}
    return row(part, f"{part}-{steps}", kind, **settings, **more)


def printed(*rows: dict[str, Any]) -> list[str]:
    content = {
        "data": {"samples": 10_000, "name": "cifar10"},
        "suite": "cifar",
        "rule": "last",
        "complete": True,
        "parts": list(dict.fromkeys(row["part"] for row in rows)),
        "measurements": list(rows),
    }
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(suite_table(content))
    return capture.get().splitlines()


def test_the_widest_measurements_take_a_line_each() -> None:
    lines = printed(
        row("natural", "natural", "natural"),
        attack("pgd", "pgd", 1000, 16),
        attack("transfer", "transfer", 1000, 16, surrogate={"run": "runs/[b]other"}),
        row("corruptions", "corruption-fog", "corruption", corruption="elastic_transform"),
        row(
            "corruptions", "corruptions", "corruptions", source="official", mce=None, complete=True
        ),
        row("adversarial", "mine[b].npz", "adversarial"),
        attack("autoattack", "autoattack", 100, 16),
    )
    body = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    name = "PGD-1000 × 2 at ε = 16/255"
    assert body == [
        "natural",
        "pgd",
        name,
        "transfer",
        name,
        "corruptions",
        "elastic_transform",
        "mean",
        "adversarial",
        "mine[b].npz",
        "autoattack",
        "AutoAttack at ε = 16/255",
    ]
    assert sum("25.00% │ 24.00% – 26.00% │ 2500 / 10000" in line for line in lines) == 7
    assert "transfer: crafted on runs/[b]other" in " ".join(lines)


def test_parts_are_in_the_order_of_the_record_and_radii_rise_within() -> None:
    lines = printed(
        attack("eps-sweep", "pgd", 100, 8),
        attack("eps-sweep", "pgd", 100, 2),
        row("natural", "natural", "natural"),
    )
    body = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert body == ["eps-sweep", *(f"PGD-100 × 2 at ε = {eps}/255" for eps in (2, 8)), "natural"]
