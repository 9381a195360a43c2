"""The speedup of two ranks, and the cost of their exchange and of checkpoints.

- throughput of IAAT's steps on two gloo processes, each pinned to a core, over that of one pinned process with the same
  global batch; runs alternate, and each run's first epoch is not counted;
- the exchange of a batch's radii with a memory of 1.28 million radii, as a share of those steps;
- a checkpoint: how long the step waits for the copy, and how long the thread then writes. Their sum, the cost if the
  thread has no core of its own, is given as a share of the ten minutes between two checkpoints.

Linux only (pinning). The images are random: the results do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import registry
from benchmarks.record import Record, Row
from benchmarks.registry import positive
from iaat_fast import models
from iaat_fast.data import ImageData, Split
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import fit, override, preset
from iaat_fast.train.checkpoint import Checkpointer
from iaat_fast.train.config import RunConfig, TrainConfig
from iaat_fast.train.distributed import joined
from iaat_fast.train.step import TrainingStep, make_memory

MEMORY = 1_281_167
"""Training images of ImageNet-1k."""
EXCHANGES = 200
MINUTES = RunConfig().checkpoint_minutes


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="resnet18", metavar="NAME")
    add("--width", type=positive, metavar="W", help="of its first stage (16)")
    add("--checkpoint-model", metavar="NAME", help="wrn32-10")
    add("--batch-size", type=positive, metavar="N", help="over all ranks (128)")
    add("--images", type=positive, metavar="N", help="of an epoch (256)")
    add("--epochs", type=positive, metavar="E", help="3; the first is not counted")
    add("--repeats", type=positive, metavar="N", help="runs of each kind (3)")


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed, this process may use one")
    registry.defaults(
        options,
        width=(4, 16),
        checkpoint_model=("resnet18", "wrn32-10"),
        batch_size=(8, 128),
        images=(16, 256),
        epochs=(2, 3),
        repeats=(1, 3),
    )
    if options.epochs < 2:
        parser.error(f"--epochs: {options.epochs}, expected at least 2, the first is not counted")


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for ranks, found in runs.items():
            found.append(run(options, ranks))
    case = f"{options.model} of width {options.width}, global batch {options.batch_size}"
    rows = {}
    for ranks, found in runs.items():
        row = Row(case=case, provider=f"{ranks} process{'es' * (ranks > 1)}", metric="epoch")
        rows[ranks] = row.sampled(second for each in found for second in each["seconds"])
        # The median of the rates, not the rate of the median time: with an even number of epochs they differ.
        rates = [options.images / second for each in found for second in each["seconds"]]
        row.figures["images_per_second"] = statistics.median(rates)
    one, two = (rows[ranks].figures["images_per_second"] for ranks in (1, 2))
    rows[2].figures["speedup"] = two / one
    yield from rows.values()
    step = options.batch_size / two
    exchange = Row(case=f"radii of {MEMORY} images", provider="2 processes", metric="exchange")
    exchange.sampled(second for each in runs[2] for second in each["exchange"])
    assert exchange.p50 is not None
    exchange.figures = {"step_s": step, "share_of_step": exchange.p50 / step}
    yield exchange
    saved = checkpoint(options)
    sums = [copy + write for copy, write in zip(saved["copy"], saved["write"], strict=True)]
    case = f"{options.checkpoint_model} and {MEMORY} radii"
    row = Row(case=case, provider="1 process", metric="checkpoint").sampled(sums)
    row.figures = {"share_of_time": row.p50 / (60 * MINUTES), **saved}  # type: ignore[operator]
    yield row


def random_images(size: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, 32, 32, 3), generator=generator, dtype=torch.uint8)
    split = Split(images=pixels, labels=torch.arange(size) % 10)
    return ImageData(name="random", train=split, test=split.first(8), num_classes=10)


def setting(options: argparse.Namespace, out: str) -> TrainConfig:
    """IAAT as on CIFAR-10, without a warm-up, all epochs at one learning rate."""
    return override(
        preset("cifar10-resnet18"),
        {
            "epsilon": {"warmup_epochs": 0},
            "optim": {"epochs": options.epochs, "batch_size": options.batch_size},
            "run": {"out": out, "device": "cpu", "tensorboard": False, "checkpoint_minutes": 0},
        },
    )


def rank_of_a_run(options: argparse.Namespace) -> dict[str, Any]:
    """Run in each pinned process: returns the seconds of the counted epochs and, on two ranks, of each exchange."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ.get("RANK", "0"))]})
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same weights on both ranks
    model = models.build_for(
        "cifar10", options.model, num_classes=10, in_channels=3, width=options.width
    )
    data = random_images(options.images)
    with joined() as ranks, tempfile.TemporaryDirectory() as out:
        config = setting(options, out)
        result = fit(config, model=model, data=data, quiet=True)
        found: dict[str, Any] = {"seconds": [row["seconds"] for row in result.metrics[1:]]}
        if ranks.count > 1:
            device = torch.device("cpu")
            memory = make_memory(config, MEMORY, device)
            step = TrainingStep(config, model, memory, torch.optim.SGD(model.parameters()), device)
            step.ranks = ranks
            whole = torch.randperm(MEMORY, generator=torch.Generator().manual_seed(0))
            whole = whole[: options.batch_size]
            times = []
            for _ in range(EXCHANGES):
                # Both ranks start together, so that waiting for the other is not counted.
                ranks.all_max(0)
                start = time.perf_counter()
                step.exchange(whole, torch.zeros_like(step.totals))
                times.append(time.perf_counter() - start)
            found["exchange"] = times
    return found


def run(options: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """What `rank_of_a_run` returns on the first of `ranks` pinned processes."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = str(server.getsockname()[1])
    names = ("model", "width", "batch_size", "images", "epochs")
    words = json.dumps({name: getattr(options, name) for name in names})
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.distributed", words]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a rank of the benchmark failed, see above")
    found: dict[str, Any] = json.loads(outputs[0])
    return found


def checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of copying and of writing a checkpoint, with the momentum of every weight and 1.28 million radii."""
    model = models.build_for("cifar10", options.checkpoint_model, num_classes=10, in_channels=3)
    momentum = {
        number: {"momentum_buffer": p.detach().clone()}
        for number, p in enumerate(model.parameters())
    }
    state = {
        "model": model.state_dict(),
        "optimizer": {"state": momentum},
        "epsilon": torch.zeros(MEMORY),
        "epoch": 0,
        "step": 0,
        "config": {},
    }
    copied, written = [], []
    options.out.mkdir(parents=True, exist_ok=True)
    # On the disk of the results, because /tmp is often in memory.
    with tempfile.TemporaryDirectory(dir=options.out) as out:
        folder = RunFolder(out)
        with Checkpointer(folder, RunConfig()) as checkpoints:
            for _ in range(options.repeats):
                start = time.perf_counter()
                checkpoints.save(state)
                copied.append(time.perf_counter() - start)
                checkpoints.wait()
                written.append(time.perf_counter() - start - copied[-1])
        size = folder.checkpoint_path.stat().st_size
    return {"bytes": size, "copy": copied, "write": written}


if __name__ == "__main__":
    print(json.dumps(rank_of_a_run(argparse.Namespace(**json.loads(sys.argv[1])))))
