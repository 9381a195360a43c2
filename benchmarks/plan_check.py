"""`python -m benchmarks.plan_check`: what `iaat_fast.plan` predicts against what this machine does, and Table 9.

1. Whole training steps of small networks on the CPU, against the plan from the pass times measured just before, with
   the share of samples that the steps themselves fooled.
2. The all-reduce of gloo between two local processes, over message sizes: latency and bandwidth are fitted to every
   other size, and predict the rest.
3. What share of a V100's peaks explains the hours of the paper's Table 9. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import machine
from benchmarks.attacks import tables
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.messages import significant
from iaat_fast.plan.communication import Network, ring
from iaat_fast.plan.estimate import make_plan
from iaat_fast.plan.gpus import GPUS
from iaat_fast.plan.measuring import measure
from iaat_fast.plan.passes import Fooled
from iaat_fast.plan.rates import Assumptions, Modelled
from iaat_fast.plan.workload import Counts, build, images_of
from iaat_fast.train import preset
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.step import TrainingStep, make_memory

# Hours and GPUs of the paper's Table 9.
TABLE9 = {50: (64, 92), 101: (128, 78), 152: (128, 94)}
ALONE = Network(link=1.0, between=1.0, per_node=1, latency=0.0, latency_between=0.0)


def configurations(batch: int) -> dict[str, TrainConfig]:
    """Two networks by two strategies."""
    return {
        f"{name}, {strategy}": preset(
            name,
            optim={"batch_size": batch},
            epsilon={"strategy": strategy, "warmup_epochs": 0},
            **({"model": {"width": 16}} if name != "digits" else {}),
        )
        for name in ("digits", "cifar10-resnet18")
        for strategy in ("lazy", "batched")
    }


def check_step(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Median seconds of a training step, measured and predicted."""
    device, batch = torch.device("cpu"), config.optim.batch_size
    counts = Counts(config, "fp32")
    rates = measure(config, device, batch=batch)
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
        step(x, y, index, epoch=0, seed=number)
        seconds.append(time.perf_counter() - start)
    seconds, fooled = seconds[1:], fooled[1:]  # the first is a warm-up
    share = statistics.mean(fooled)
    plan = make_plan(
        counts,
        rates,
        ALONE,
        gpus=1,
        batch_size=batch,
        fooled=Fooled(once=share, twice=0.0),
        capacity=1.0,
    )
    predicted = sum(plan.steps[-1].compute.values())
    measured = statistics.median(seconds)
    return {
        "batch": batch,
        "n": steps,
        "fooled": share,
        "pass_seconds_per_image": rates.per_image,
        "measured_s": measured,
        "measured_all_s": seconds,
        "predicted_s": predicted,
        "predicted_over_measured": predicted / measured,
    }


def _watch(memory: EpsilonMemory, fooled: list[float]) -> None:
    """Note the share of samples that the first candidate fools, at every selection."""
    select = memory.select

    def watched(*args: Any, **kwargs: Any) -> Any:
        selection = select(*args, **kwargs)
        fooled.append(float((selection.choice != 0).float().mean()))
        return selection

    memory.select = watched  # type: ignore[method-assign]


def check_all_reduce(sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds of gloo's all-reduce between two processes, and of the ring model fitted to every other size."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_reduce, (folder, list(sizes), repeats), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    fitted = list(range(0, len(sizes), 2))
    latency, bandwidth = fit_ring([sizes[i] for i in fitted], [seconds[i] for i in fitted])
    rows = []
    for number, (size, measured) in enumerate(zip(sizes, seconds, strict=True)):
        predicted = ring(size, 2, bandwidth, latency)
        rows.append(
            {
                "bytes": size,
                "fitted": number in fitted,
                "measured_s": measured,
                "predicted_s": predicted,
                "predicted_over_measured": predicted / measured,
            }
        )
    return {
        "processes": 2,
        "n": repeats,
        "latency_s": latency,
        "bandwidth_bytes_per_s": bandwidth,
        "sizes": rows,
    }


def fit_ring(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency and bandwidth of a ring of two: bytes / bandwidth + 2 latency, with the least relative errors."""
    from scipy.optimize import nnls

    design = np.array([[size, 2.0] for size in sizes]) / np.array(seconds)[:, None]
    (inverse, latency), _ = nnls(design, np.ones(len(sizes)))
    return float(latency), 1 / float(inverse)


def _reduce(rank: int, folder: str, sizes: list[int], repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    medians = []
    for size in sizes:
        message, seconds = torch.zeros(size // 4), []
        for repeat in range(repeats + 2):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(medians))
    dist.destroy_process_group()


def table9() -> dict[str, Any]:
    """Per network of Table 9: operations by the plan, what its hours imply, and hours by one share of the peak.

    The share is the one that gives a ResNet-50 its 92 hours; it then predicts the other two.
    """
    network = Network(
        link=GPUS["v100"].link, between=12.5e9, per_node=8, latency=5e-6, latency_between=15e-6
    )
    found: dict[str, Any] = {"fooled": Fooled().once, "networks": {}}
    share = None
    for depth, (gpus, hours) in TABLE9.items():
        config = preset(f"imagenet-resnet{depth}", epsilon={"strategy": "lazy"})
        counts = Counts(config, "fp16")

        def planned(share: float, counts: Counts = counts, gpus: int = gpus) -> Any:
            assumed = Assumptions(share=share, bandwidth_share=1.0, launch=0.0)
            return make_plan(
                counts,
                Modelled(gpu=GPUS["v100"], assumed=assumed),
                network,
                gpus=gpus,
                batch_size=counts.config.optim.batch_size,
                fooled=Fooled(),
                capacity=GPUS["v100"].memory,
            )

        fitted = share is None
        if share is None:
            share = _solve(lambda share, hours_of=planned: hours_of(share).hours, hours)
        plan = planned(share)
        operations = sum(
            step.operations * step.epochs * plan.samples / plan.batch_size for step in plan.steps
        )
        rate = operations / (hours * 3600)
        found["networks"][f"resnet{depth}"] = {
            "gpus": gpus,
            "published_h": hours,
            "images_per_second_and_gpu": 110 * plan.samples / (hours * 3600 * gpus),
            "operations_per_gpu": operations,
            "operations_per_second_and_gpu": rate,
            "share_of_fp16_peak": rate / GPUS["v100"].fp16,
            "share_of_fp32_peak": rate / GPUS["v100"].fp32,
            "modelled_at_full_peak_h": planned(1.0).hours,
            "modelled_h": plan.hours,
            "modelled_over_published": plan.hours / hours,
            # Its hours gave the share: that they agree checks nothing.
            "fitted": fitted,
        }
    return {"share": share, **found}


def _solve(hours: Any, wanted: float) -> float:
    """The share of the peak at which `hours(share)` is `wanted`."""
    from scipy.optimize import brentq

    return float(brentq(lambda share: hours(share) - wanted, 1e-4, 1.0))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_check", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="timed steps of each")
    parser.add_argument("--repeats", type=int, default=50, metavar="N", help="of each message")
    parser.add_argument("--only", choices=("steps", "all-reduce", "table9"))
    parser.add_argument("--out", type=Path, default=Path("build/plan-check.json"), metavar="FILE")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.plan_check", *argv],
        "machine": machine.describe(),
    }
    if options.only in (None, "steps"):
        checks = {
            name: check_step(config, options.steps)
            for name, config in configurations(options.batch_size).items()
        }
        result["steps"] = checks
        keys = ("measured_s", "predicted_s", "fooled", "predicted_over_measured")
        rows = [[name, *(significant(c[key]) for key in keys)] for name, c in checks.items()]
        columns = ("step", "measured s", "predicted s", "fooled", "predicted / measured")
        tables.write(f"training steps, batch {options.batch_size}", columns, rows)
    if options.only in (None, "all-reduce"):
        found = check_all_reduce([4**k for k in range(3, 14)], options.repeats)
        result["all_reduce"] = found
        rows = [
            [str(row["bytes"]), "fitted" if row["fitted"] else "predicted"]
            + [significant(row[key], 3) for key in ("measured_s", "predicted_s")]
            + [f"{row['predicted_over_measured']:.2f}"]
            for row in found["sizes"]
        ]
        title = (
            f"all-reduce of 2 processes: {found['latency_s'] * 1e6:.0f} us, "
            f"{found['bandwidth_bytes_per_s'] / 1e9:.2f} GB/s"
        )
        columns = ("bytes", "", "measured s", "model s", "model / measured")
        tables.write(title, columns, rows)
    if options.only in (None, "table9"):
        found = table9()
        result["table9"] = found
        rows = [
            [name, str(n["gpus"]), f"{n['published_h']:g}", f"{n['images_per_second_and_gpu']:.2f}"]
            + [f"{n['operations_per_second_and_gpu'] / 1e12:.2f}"]
            + [f"{n[key]:.1%}" for key in ("share_of_fp16_peak", "share_of_fp32_peak")]
            + [f"{n['modelled_at_full_peak_h']:.1f}"]
            + [
                f"{n[key]:.{digits}f}" + (" (fitted)" if n["fitted"] else "")
                for key, digits in (("modelled_h", 1), ("modelled_over_published", 2))
            ]
            for name, n in found["networks"].items()
        ]
        title = f"Table 9 on V100s; modelled with {found['share']:.3f} of the peak arithmetic"
        columns = ("network", "GPUs", "published h", "images/s GPU", "TFLOP/s GPU")
        columns += ("of fp16 peak", "of fp32 peak", "h at full peak", "modelled h", "ratio")
        tables.write(title, columns, rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
