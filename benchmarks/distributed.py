"""`python -m benchmarks.distributed`: what two ranks gain, and what their exchange and checkpoints cost.

- throughput of IAAT's steps on two gloo processes, each pinned to a core, over that of one pinned process with the same
  global batch; runs alternate, and each run's first epoch is not counted;
- the exchange of a batch's radii with a memory of 1.28 million, as a share of those steps;
- a checkpoint: how long the step waits for the copy, and how long the thread then writes; their sum, which is what it
  costs where the thread has no core to itself, as a share of the ten minutes between two of them.

Linux only (pinning). The images are random: no figure depends on what they show.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from iaat_fast import models
from iaat_fast.data import ImageData, Split
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import fit, override, preset
from iaat_fast.train.checkpointing import Checkpointer
from iaat_fast.train.config import RunConfig, TrainConfig
from iaat_fast.train.distributed import joined
from iaat_fast.train.step import TrainingStep, make_memory

MEMORY = 1_281_167
"""Training images of ImageNet-1k."""
EXCHANGES = 200
MINUTES = RunConfig().checkpoint_minutes


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
    """In each pinned process: seconds of the counted epochs and, on two ranks, of an exchange."""
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
                ranks.largest(
                    0
                )  # Both start together: waiting for the other is no cost of the exchange.
                start = time.perf_counter()
                step.exchange(whole, torch.zeros_like(step.totals))
                times.append(time.perf_counter() - start)
            found["exchange"] = times
    return found


def run(argv: Sequence[str], ranks: int) -> dict[str, Any]:
    """The first rank's findings of a run on so many pinned processes."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = str(server.getsockname()[1])
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.distributed", "--rank", *argv]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a rank of the benchmark failed, see above")
    found: dict[str, Any] = json.loads(outputs[0])
    return found


def checkpoint(options: argparse.Namespace) -> dict[str, list[float] | int]:
    """Seconds of the copy and of the writing, with the momentum of every weight and 1.28 million radii."""
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
    with tempfile.TemporaryDirectory(dir=options.out.parent) as out:
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


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="resnet18", metavar="NAME")
    parser.add_argument("--width", type=int, default=16, metavar="W", help="of its first stage")
    parser.add_argument("--checkpoint-model", default="wrn32-10", metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="over all ranks")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, metavar="E")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each kind")
    parser.add_argument("--out", type=Path, default=Path("build/distributed.json"), metavar="FILE")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    if options.rank:
        print(json.dumps(rank_of_a_run(options)))
        return 0
    if len(os.sched_getaffinity(0)) < 2:
        parser().error("two cores are needed, this process may use one")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    one, two = [], []
    for _ in range(options.repeats):
        one.append(run(argv, 1))
        two.append(run(argv, 2))
    rates = [
        [options.images / seconds for found in kind for seconds in found["seconds"]]
        for kind in (one, two)
    ]
    step = options.batch_size / statistics.median(rates[1])
    exchange = statistics.median(t for found in two for t in found["exchange"])
    saved = checkpoint(options)
    cost = statistics.median(map(sum, zip(saved["copy"], saved["write"], strict=True)))  # type: ignore[arg-type]
    summary = {
        "images_per_second": [statistics.median(kind) for kind in rates],
        "speedup": statistics.median(rates[1]) / statistics.median(rates[0]),
        "step_seconds": step,
        "exchange_seconds": exchange,
        "exchange_share": exchange / step,
        "checkpoint_seconds": cost,
        "checkpoint_share": cost / (60 * MINUTES),
    }
    for name, value in summary.items():
        print(f"{name:20}", value)
    result = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.distributed", *argv],
        "machine": machine.describe(),
        "summary": summary,
        "one": one,
        "two": two,
        "checkpoint": saved,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
