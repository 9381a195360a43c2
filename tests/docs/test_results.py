"""The tables of a recorded result are those of its record."""

from __future__ import annotations

import importlib.util
import json

from tests.docs.snippets import ROOT

RESULTS = ROOT / "docs" / "results"


def test_the_tables_of_the_methods_on_digits_are_those_of_the_record() -> None:
    spec = importlib.util.spec_from_file_location("digits_methods", RESULTS / "digits_methods.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    runs = json.loads((RESULTS / "digits-methods.json").read_text())["runs"]
    shown = (RESULTS / "digits-methods.md").read_text()
    assert "\n".join(made.tables(runs)).replace("\n\n", "\n").splitlines() == [
        line for line in shown.splitlines() if line.startswith("|")
    ]
