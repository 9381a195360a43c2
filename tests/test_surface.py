"""What users rely on, held as text in tests/surface: names, flags, files and exit statuses.

A change on purpose is taken over by `python -m pytest tests/test_surface.py --renew-surface`, and is then a diff to
read before it is committed.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast import data, ops  # noqa: F401 (registers the ops)
from iaat_fast.evaluate import EvalTarget, evaluate_suite
from iaat_fast.evaluate.cli import main as evaluate
from iaat_fast.models import build
from iaat_fast.storage import load_tensors, read_json
from iaat_fast.train.cli import main as train
from iaat_fast.train.cli import parse

PACKAGES = ("ops", "attacks", "epsilon", "evaluate", "report", "train", "data", "models")
COMMANDS = ("train", "evaluate", "report", "sweep", "plan")

Snapshot = Callable[[str, Iterable[str]], None]


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """Compares lines with those of the file of that name; with --renew-surface, replaces them."""
    folder = Path(__file__).parent / "surface"

    def check(name: str, lines: Iterable[str]) -> None:
        file, now = folder / f"{name}.txt", list(lines)
        if request.config.getoption("--renew-surface"):
            file.write_text("".join(f"{line}\n" for line in now))
        before = file.read_text().splitlines()
        names = (f"surface/{name}.txt", "now")
        changes = list(difflib.unified_diff(before, now, *names, n=1, lineterm=""))
        if changes:
            pytest.fail("\n".join([*changes, "", str(__doc__)]), pytrace=False)

    return check


def test_public_names_and_their_parameters_stay(snapshot: Snapshot) -> None:
    snapshot("python", (line for package in PACKAGES for line in public(f"iaat_fast.{package}")))


def public(module: str) -> Iterator[str]:
    """The names of `__all__` with their parameters, and the methods and properties of classes."""
    package = importlib.import_module(module)
    for name in sorted(package.__all__):
        value = getattr(package, name)
        full = f"{module.removeprefix('iaat_fast.')}.{name}"
        if getattr(value, "__name__", name) != name:
            yield f"{full} is {value.__name__}"
        elif inspect.isclass(value):
            yield f"class {full}({parameters(value)})"
            for member, inner in sorted(members(value).items()):
                inner = getattr(inner, "__func__", inner)
                called = f"({parameters(inner)})" if inspect.isroutine(inner) else ""
                yield f"    .{member}{called}"
        elif callable(value):
            yield f"{full}({parameters(value)})"
        else:
            yield f"{full}: {type(value).__name__} of {', '.join(map(str, value))}"


def members(kind: type) -> dict[str, Any]:
    """The public attributes, except fields, that a class of the project has from it and its bases here."""
    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("iaat_fast")]
    found = {name: value for base in ours for name, value in vars(base).items()}
    fields = {*getattr(kind, "__dataclass_fields__", ()), *getattr(kind, "_fields", ())}
    names = {name for name in found if name[0] != "_" or name == "__call__"} - fields
    return {name: found[name] for name in names}


def parameters(value: Callable[..., Any]) -> str:
    """Names and defaults, in the order of their kinds; keywords, which have no order, by name."""
    kind = inspect.Parameter
    plain = [each.replace(annotation=kind.empty) for each in accepted(value)]
    plain.sort(key=lambda each: (each.kind, each.name if each.kind is kind.KEYWORD_ONLY else ""))
    return str(inspect.Signature(plain))[1:-1]


def accepted(value: Callable[..., Any]) -> list[inspect.Parameter]:
    """What may be given; for the **keywords that a constructor hands on to its base class, those of that one."""
    try:
        given = list(inspect.signature(value).parameters.values())
    except ValueError:  # of an exception without a constructor of its own
        return []
    kind = inspect.Parameter
    if not inspect.isclass(value) or all(each.kind is not kind.VAR_KEYWORD for each in given):
        return given
    own = {each.name: each for each in given if each.kind is not kind.VAR_KEYWORD}
    base = {
        each.name: each for each in accepted(value.__mro__[1]) if each.kind is kind.KEYWORD_ONLY
    }
    return list((base | own).values())


def test_the_ops_of_the_namespace_keep_their_schemas(snapshot: Snapshot) -> None:
    every = (str(schema) for schema in torch._C._jit_get_all_schemas())
    snapshot("ops", sorted(schema for schema in every if schema.startswith("iaat_fast::")))


def test_flags_and_their_defaults_stay(
    snapshot: Snapshot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = []
    for command in COMMANDS:
        cli = importlib.import_module(f"iaat_fast.{command}.cli")
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(["--help"])
        # A flag and its values, up to the text about it, which is on the next line or two spaces on.
        flags = re.findall(
            r"^[│ ] ((?:--[a-z]\S|\[\S|RUN \[).*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE
        )
        lines += [f"{command}: {flag.rstrip(' │')}" for flag in flags]
        default = parse([]) if command == "train" else cli.Command
        lines += [f"{command}: {line}" for line in defaults(default)]
    snapshot("flags", lines)


def defaults(command: Any, prefix: str = "") -> Iterator[str]:
    """The default of every field; floats as Python has them, on the [0, 1] scale where they are distances."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name, dataclasses.MISSING)
        if dataclasses.is_dataclass(value):
            yield from defaults(value, f"{prefix}{field.name}.")
        else:
            shown = "required" if value is dataclasses.MISSING else repr(value)
            yield f"{prefix}{field.name} = {shown}"


TRAIN = (
    "--method iaat --limit 8 --epochs 2 --batch-size 4 --width 1 --steps 1 --warmup-epochs 0 --ema-decay 0.5 "
    "--eval-steps 1 --eval-restarts 1 --device cpu"
)
SUITE = "--suite quick --parts natural pgd transfer autoattack --limit 2 --eps 255 --device cpu"


@pytest.mark.slow
def test_files_keep_their_names_and_keys(
    snapshot: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run, other, stopped = (Path(name) for name in ("run", "other", "stopped"))
    assert train([*TRAIN.split(), "--out", str(run)]) == 0
    seed_1 = ["--seed", "1", "--no-tensorboard"]
    assert train([*TRAIN.split(), *seed_1, "--out", str(other)]) == 0
    assert evaluate([str(run), *SUITE.split(), "--against", str(other), "--save-adversarial"]) == 0
    for part in ("pgd", "autoattack"):
        stop_in(part, stopped / part)
        # Of a record they hold what the run's has, and this.
        for file in ("results.json", "verdicts.npz"):
            (stopped / part / file).unlink()
    capsys.readouterr()  # tables and hints, which are no part of it
    snapshot("files", [*contents(run), *contents(stopped)])


class Stop(Exception):
    pass


def stop_in(part: str, folder: Path) -> None:
    """Measure a part until it has something to save, and leave it there."""

    def stop(name: str, done: float, remaining: float) -> None:
        raise Stop

    model = build("digits-cnn", width=4).eval()
    images = data.load("digits", limit=2).test.images
    x, _ = data.fetch(data.Split(images, torch.zeros(2, dtype=torch.int64)), torch.arange(2))
    target = EvalTarget.of(model, data.Split(images, model(x).argmax(1)))
    with pytest.raises(Stop):
        evaluate_suite(target, "quick", folder=folder, parts=[part], tell=stop)


def contents(folder: Path) -> Iterator[str]:
    """Files by name, each with the keys it has."""
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file.name.startswith("events."):
            continue
        yield str(file)
        content: Any = {}
        if file.suffix == ".json":
            content = read_json(file)
        elif file.suffix == ".pt" and "previous" not in file.name:
            content = load_tensors(file)
        elif file.suffix == ".npz":
            content = dict(np.load(file))
        elif file.suffix == ".jsonl":
            content = json.loads(file.read_text().splitlines()[0])
        yield from sorted({f"    {line}" for key in content for line in keys(content[key], key)})


ELSEWHERE = ("config", "environment", "ema", "native", "packages", "state", "param_groups")
"""What is in these another file or "model" has too, or the build and torch decide."""


def keys(value: Any, path: str) -> Iterator[str]:
    """The keys of nested plain values, and the dtype and number of dimensions of arrays."""
    several = isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value)
    if path.split(".")[-1] in ELSEWHERE:
        yield path
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from keys(inner, f"{path}.{key}")
    elif several:
        for inner in value:
            yield from keys(inner, f"{path}[{inner.get('kind', '')}]")
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "str" if str(value.dtype).startswith("<U") else str(value.dtype)
        yield f"{path}: {kind.removeprefix('torch.')} [{value.ndim}]"
    else:
        yield path


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command's own handling of signals and exceptions, undone."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("restored", "capsys")
def test_exit_statuses_stay(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for command in COMMANDS:
        for words in ("--help", "--version", "--unknown", "missing"):
            lines.append(f"{command} {words}: {status(command, words, monkeypatch)}")
        # Ended from outside, in the middle of what it does.
        signals = (signal.SIGINT, signal.SIGTERM)
        for signum in signals if command not in ("report", "plan") else signals[:1]:
            with monkeypatch.context() as patched:
                cli = importlib.import_module(f"iaat_fast.{command}.cli")
                patched.setattr(
                    cli, "main", lambda argv, signum=signum: signal.raise_signal(signum)
                )
                lines.append(f"{command}, {signum.name}: {status(command, '', patched)}")
    snapshot("statuses", lines)


def status(command: str, words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How `python -m iaat_fast.<command>` ends with these arguments."""
    monkeypatch.setattr(sys, "argv", [command, *words.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"iaat_fast.{command}", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code
