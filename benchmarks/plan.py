"""The predictions of `iaat_fast.plan` against this machine, against records of a GPU, and against the paper's Table 9.

1. Whole training steps of small networks on the CPU, against the plan made from pass times measured just before, with
   the share of fooled samples found in the steps.
2. The all-reduce of gloo between two local processes, over message sizes: latency and bandwidth are fitted to every
   second size, and predict the others.
3. The committed records of training steps on an H100, against the model; computed, on any machine.
4. The hours of the paper's Table 9, by the model with the numbers of part 3 and a V100's data sheet; computed as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import recorded_steps, registry
from benchmarks.record import Record, Row
from benchmarks.registry import positive
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.plan.cost import Counts, build, images_of
from iaat_fast.plan.estimate import Plan, make_plan
from iaat_fast.plan.hardware import GPUS, Assumptions, Modelled
from iaat_fast.plan.hardware import measure as measure_passes
from iaat_fast.plan.interconnect import Network, ring
from iaat_fast.train import preset
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods.passes import Fooled
from iaat_fast.train.step import TrainingStep, make_memory

PARTS = ("steps", "all-reduce", "gpu", "table9")
# GPUs and hours of the paper's Table 9.
TABLE9 = {50: (64, 92), 101: (128, 78), 152: (128, 94)}
# Precision and engine of the attacks that its hours are predicted for.
ENGINES = {
    "fp16 program": ("fp16", "auto"),
    "fp16 autograd": ("fp16", "exact"),
    "fp32 autograd": ("fp32", "exact"),
}
SINGLE_GPU = Network(link=1.0, between=1.0, per_node=1, latency=0.0, latency_between=0.0)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch-size", type=positive, metavar="N", help="64")
    add("--steps", type=positive, metavar="N", help="timed steps of each (7)")
    add("--repeats", type=positive, metavar="N", help="of each message (50)")
    add("--only", choices=PARTS)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(options, batch_size=(8, 64), steps=(1, 7), repeats=(2, 50))


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    quick = options.quick
    if options.only in (None, "steps"):
        known = configurations(options.batch_size)
        for name, config in list(known.items())[: 1 if quick else None]:
            yield check_step(name, config, options.steps)
    if options.only in (None, "all-reduce"):
        # Also in a rehearsal up to 64 MiB, which takes longer than 64 bytes on a busy machine too.
        sizes = [4**k for k in ((3, 6, 13) if quick else range(3, 14))]
        rows, record.facts["all_reduce"] = check_all_reduce(sizes, options.repeats)
        yield from rows
    if options.only in (None, "gpu"):
        found = list(recorded_steps.expected(recorded_steps.NETWORKS[: 1 if quick else None]))
        record.facts["host_s"] = recorded_steps.host_of(found)
        record.facts["host_slowed_in_steps"] = recorded_steps.slowed()
        yield from (each.row for each in found)
    if options.only in (None, "table9"):
        # In a rehearsal the engine whose passes are counted soonest.
        engines = list(ENGINES)[-1:] if quick else ENGINES
        yield from table9(list(TABLE9)[: 1 if quick else None], engines)


def configurations(batch: int) -> dict[str, TrainConfig]:
    """The configurations of part 1: two networks, each with two strategies."""
    return {
        f"{name}, {strategy}": preset(
            name,
            optim={"batch_size": batch},
            epsilon={"strategy": strategy, "warmup_epochs": 0},
            model={"width": 16} if name != "digits" else {},
        )
        for name in ("digits", "cifar10-resnet18")
        for strategy in ("lazy", "batched")
    }


def check_step(name: str, config: TrainConfig, steps: int) -> Row:
    """The row of a training step: its measured and its predicted seconds."""
    device, batch = torch.device("cpu"), config.optim.batch_size
    counts = Counts(config, "fp32")
    rates = measure_passes(config, device, batch=batch)
    torch.manual_seed(0)
    images, model = images_of(config), build(config, device)
    memory = make_memory(config, batch, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainingStep(config, model, memory, optimizer, device)
    x, index = torch.rand(batch, *images.shape), torch.arange(batch)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    fooled: list[float] = []
    _watch(memory, fooled)
    seconds = []
    for number in range(steps + 1):
        start = time.perf_counter()
        step(GlobalBatch.of(x, y, index), epoch=0, seed=number)
        seconds.append(time.perf_counter() - start)
    seconds, fooled = seconds[1:], fooled[1:]  # the first is a warm-up
    share = statistics.mean(fooled)
    plan = make_plan(
        counts,
        rates,
        SINGLE_GPU,
        gpus=1,
        batch_size=batch,
        fooled=Fooled(once=share, twice=0.0),
        capacity=1.0,
    )
    predicted = sum(plan.steps[-1].compute.values())
    row = Row(case=f"{name}, batch {batch}", provider="step").sampled(seconds)
    measured = statistics.median(seconds)
    row.figures = {
        "predicted_s": predicted,
        "predicted_over_measured": predicted / measured,
        "fooled": share,
        "pass_seconds_per_image": rates.per_image,
        "measured_all_s": seconds,
    }
    return row


def _watch(memory: EpsilonMemory, fooled: list[float]) -> None:
    """Append the share of samples that the first candidate fools to `fooled`, at every selection."""
    select = memory.select

    def watched(*args: Any, **kwargs: Any) -> Any:
        selection = select(*args, **kwargs)
        fooled.append(float((selection.choice != 0).float().mean()))
        return selection

    memory.select = watched  # type: ignore[method-assign]


def check_all_reduce(sizes: Sequence[int], repeats: int) -> tuple[list[Row], dict[str, float]]:
    """Rows of gloo's all-reduce between two processes; second, the ring model's values, fitted to every second size."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_reduce, (folder, list(sizes), repeats), nprocs=2)
        samples = json.loads((Path(folder) / "seconds.json").read_text())
    fitted, seconds = range(0, len(sizes), 2), [statistics.median(each) for each in samples]
    latency, bandwidth = fit_ring([sizes[i] for i in fitted], [seconds[i] for i in fitted])
    rows = []
    for number, size in enumerate(sizes):
        predicted = ring(size, 2, bandwidth, latency)
        row = Row(case=f"{size} bytes", provider="2 processes", metric="all-reduce")
        row.sampled(samples[number]).figures = {
            "fitted": number in fitted,
            "predicted_s": predicted,
            "predicted_over_measured": predicted / seconds[number],
        }
        rows.append(row)
    return rows, {"latency_s": latency, "bandwidth_bytes_per_s": bandwidth}


def fit_ring(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency and bandwidth of a ring of two, bytes / bandwidth + 2 latency, by least squares of the relative errors.

    Raises:
        ValueError: the times do not grow with the sizes, as on a busy machine.
    """
    from scipy.optimize import nnls

    design = np.array([[size, 2.0] for size in sizes]) / np.array(seconds)[:, None]
    (inverse, latency), _ = nnls(design, np.ones(len(sizes)))
    if inverse == 0:
        raise ValueError("all-reduce: no bandwidth fits times that do not grow with the sizes")
    return float(latency), 1 / float(inverse)


def _reduce(rank: int, folder: str, sizes: list[int], repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    samples = []
    for size in sizes:
        message, seconds = torch.zeros(size // 4), []
        for repeat in range(repeats + 2):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
        samples.append(seconds)
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(samples))
    dist.destroy_process_group()


def table9(depths: Sequence[int], engines: Iterable[str] = ENGINES) -> Iterator[Row]:
    """A row per network of Table 9: the plan's operations, the rate that the published hours imply, predicted hours.

    The paper says that its attacks were in half precision, and nothing of its engine. So hours are predicted for three:
    this package's program in fp16, and the live network by autograd in fp16 and in fp32.
    """
    for depth in depths:
        gpus, hours = TABLE9[depth]
        plans = {name: _planned(depth, gpus, *ENGINES[name]) for name in engines}
        plan = next(iter(plans.values()))
        operations = sum(
            step.operations * step.epochs * plan.samples / plan.batch_size for step in plan.steps
        )
        rate = operations / (hours * 3600)
        row = Row(case=f"resnet{depth} on {gpus} V100s", provider="plan", metric="Table 9")
        row.figures = {
            "gpus": gpus,
            "published_h": hours,
            "images_per_second_and_gpu": 110 * plan.samples / (hours * 3600 * gpus),
            "operations_per_gpu": operations,
            "operations_per_second_and_gpu": rate,
            "share_of_fp16_peak": rate / GPUS["v100"].fp16,
            "share_of_fp32_peak": rate / GPUS["v100"].fp32,
            "predicted_h": {name: each.hours for name, each in plans.items()},
            "predicted_over_published": {name: each.hours / hours for name, each in plans.items()},
            "fooled": Fooled().once,
        }
        yield row


def _planned(depth: int, gpus: int, precision: Any, engine: Any) -> Plan:
    config = preset(
        f"imagenet-resnet{depth}",
        epsilon={"strategy": "lazy"},
        attack={"precision": precision, "engine": engine},
    )
    return make_plan(
        Counts(config, precision),
        Modelled(gpu=GPUS["v100"], assumed=Assumptions()),
        Network(
            link=GPUS["v100"].link, between=12.5e9, per_node=8, latency=5e-6, latency_between=15e-6
        ),
        gpus=gpus,
        batch_size=config.optim.batch_size,
        fooled=Fooled(),
        capacity=GPUS["v100"].memory,
    )
