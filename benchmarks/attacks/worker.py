"""What needs a process of its own: trying layouts (cuDNN's plans stay), and profiling (launches stay slow).

A worker answers requests, a line of JSON each, one after the other; it is started ahead, so that importing torch costs
no one time, and leaves no memory on the device between two requests.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.attacks.layouts import Layout, try_out
from benchmarks.attacks.profiling import DeviceTime, device_time
from benchmarks.attacks.providers import Provider, Setting
from benchmarks.record import one_line
from benchmarks.targets import Spec

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """What a worker was asked for went wrong; the message says how."""


class Worker:
    """A process that answers `try_out` and `profile` on a device. Whatever is left of it ends with the context.

    Args:
        options: the command line of the benchmark, from which the worker makes the same providers.
    """

    def __init__(self, options: list[str]) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attacks.worker", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def try_out(
        self, spec: Spec, setting: Setting, names: list[str], layouts: list[Layout]
    ) -> dict[str, dict[str, list[float]]]:
        """`layouts.try_out` of the named providers."""
        request = {"names": names, "layouts": [dataclasses.asdict(layout) for layout in layouts]}
        found: dict[str, dict[str, list[float]]] = self._ask("try_out", spec, setting, request)
        return found

    def profile(self, spec: Spec, setting: Setting, name: str, layout: Layout) -> DeviceTime:
        """What a provider's time is spent on, by kind of kernel."""
        request = {"names": [name], "layouts": [dataclasses.asdict(layout)]}
        return DeviceTime(**self._ask("profile", spec, setting, request))

    def _ask(self, what: str, spec: Spec, setting: Setting, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request |= {"what": what, "spec": spec.to_dict(), "setting": dataclasses.asdict(setting)}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"{what}: the process has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{what}: the process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{what}: {answer['error']}")
        return answer["found"]


def answer(request: dict[str, Any], known: dict[str, Provider]) -> Any:
    """What a request asks for, fit for JSON."""
    spec, setting = Spec(**request["spec"]), Setting(**request["setting"])
    layouts = [Layout(**layout) for layout in request["layouts"]]
    some = [known[name] for name in request["names"]]
    target, _ = spec.build()
    if request["what"] == "try_out":
        return try_out(target, some, layouts, setting)
    (provider,), (layout,) = some, layouts
    torch.backends.cudnn.benchmark = layout.cudnn_benchmark
    own = layout.of(target)
    attack = provider.make(own, setting)
    found = device_time(lambda: attack(own.x, own.y), own.x.device)
    return dataclasses.asdict(found)


def main(argv: list[str]) -> int:
    from benchmarks import attacks, registry

    # What a library prints must not get among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    options = registry.parse("attacks", argv)
    registry.set_tf32(options)
    known = {provider.name: provider for provider in attacks.providers_of(options)}
    for line in sys.stdin:
        try:
            result = {"found": answer(json.loads(line), known)}
        # Whatever it is, the other requests are answered.
        except Exception as error:
            result = {"error": one_line(error)}
        if options.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(result), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
