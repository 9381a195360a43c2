"""The command line `python -m iaat_fast.plan`: from a preset and GPUs to a table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from iaat_fast import command_line, validate
from iaat_fast.attacks.options import resolve_precision
from iaat_fast.command_line import Help, UsageError, optional
from iaat_fast.entry import prog
from iaat_fast.environment import describe, resolve_device
from iaat_fast.methods import IAAT
from iaat_fast.plan.cost import Counts
from iaat_fast.plan.display import remarks, table
from iaat_fast.plan.estimate import Plan, make_plan
from iaat_fast.plan.hardware import (
    GPUS,
    Assumptions,
    Gpu,
    Modelled,
    Rates,
    find_gpu,
    measure,
    recorded,
)
from iaat_fast.plan.interconnect import Network
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import check_writable, write_json
from iaat_fast.train.config import Method, Protocol, TrainConfig
from iaat_fast.train.flags import FLAGS
from iaat_fast.train.hardware import strategy_for
from iaat_fast.train.methods.passes import Fooled
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import PRESETS, preset

PROG = prog("plan")
DESCRIPTION = f"""Estimate the cost of a training run: operations, step time, hours, memory, what limits it.

Presets: {", ".join(PRESETS)}. GPUs: {", ".join(GPUS)}.

Operations and bytes are counted on the network, and times modelled from a GPU's published peaks and \
assumed shares of them; recorded benchmarks of that GPU in --results replace them, and --measure \
times the passes on this machine's device. Every number says where it comes from.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C."""
EXAMPLES = (
    ("cifar10-resnet18", "hours and memory of IAAT on 8 H100s"),
    ("imagenet-resnet50 --gpus 8 16 32", "three numbers of GPUs next to each other"),
    ("digits --gpus 1 --measure", "with the passes timed on the device that is here"),
)
HELP = Help(PROG, DESCRIPTION, EXAMPLES)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A plan; flags that are not given are the preset's own settings."""

    preset: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[PRESET]")]] = "digits"
    """Preset to plan."""
    gpus: tuple[int, ...] = (8,)
    """GPUs of the run, one number or several to compare."""
    gpu: str = "h100"
    """Kind of GPU."""
    method: Method = IAAT
    """Training method."""
    protocol: Protocol = "paper"
    """paper or released."""
    batch_size: Annotated[int | None, optional("INT", "the preset's")] = None
    """Images per step, of all GPUs together."""
    batch_per_gpu: Annotated[int | None, optional("INT", "batch-size / gpus")] = None
    """Images per step and GPU, instead of batch-size."""
    epochs: Annotated[int | None, optional("INT", "the preset's")] = None
    """Epochs."""
    limit: Annotated[int | None, optional("INT", "all")] = None
    """Train on the first N images."""
    width: Annotated[int | None, optional("INT", "the network's own")] = None
    """Channels of the first stage, for slim versions."""
    strategy: Annotated[
        Literal["lazy", "batched", "sequential"] | None, optional("NAME", "the preset's")
    ] = None
    """How Algorithm 2's candidates are attacked: lazy, batched or sequential."""
    final: Annotated[Literal["exact", "reuse"] | None, optional("NAME", "the preset's")] = None
    """Images to train on, see python -m iaat_fast.train: exact or reuse."""
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16", "auto"] | None, optional("NAME", "the preset's")
    ] = None
    """Precision of the attack's gradients."""
    amp: Annotated[Literal["off", "bf16", "fp16"] | None, optional("NAME", "the preset's")] = None
    """Precision of the update of the weights."""
    fooled: Annotated[float | None, optional("SHARE", "that of --run, or 0.5")] = None
    """Assumed share of the samples that the attack at prev + gamma fools (lazy attacks them twice)."""
    fooled_twice: Annotated[float | None, optional("SHARE", "half of --fooled")] = None
    """Assumed share that the attack at prev fools as well (lazy with --final reuse attacks them again)."""
    run: Annotated[Path | None, optional("RUN", "none")] = None
    """Run folder of an iaat training, from whose metrics --fooled is estimated."""
    graph: bool = True
    """Assume that whole steps are captured in CUDA graphs where training captures them, as optim.graph is there."""
    share: float = Assumptions.share
    """Assumed share of the peak arithmetic that a matrix product reaches whose tiles occupy the whole GPU."""
    bandwidth_share: float = Assumptions.bandwidth_share
    """Assumed share of the peak memory bandwidth that operators reach."""
    launch: float = Assumptions.launch * 1e6
    """Assumed time of the smallest kernel on the GPU, in microseconds."""
    host: float = Assumptions.host * 1e6
    """Assumed time that the host takes to launch an operator outside of a graph, in microseconds."""
    per_node: int = 8
    """GPUs of a node."""
    between: float = 50.0
    """Assumed bandwidth between nodes, in GB/s per node and direction; 50 is one 400 Gbit/s adapter."""
    latency: float = 5.0
    """Assumed latency of a hop within a node, in microseconds."""
    latency_between: float = 15.0
    """Assumed latency of a hop between nodes, in microseconds."""
    overlap: bool = True
    """Assume that gradients are exchanged while the backward runs."""
    results: Annotated[Path | None, optional("DIR", "benchmarks/results, if there is one")] = None
    """Folder with records of `python -m benchmarks attacks`."""
    measure: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Time the passes on --device, instead of modelling them."""
    measure_batch: Annotated[int | None, optional("INT", "a GPU's, up to 32")] = None
    """Images of the timed passes."""
    device: str = "auto"
    """Device of --measure: auto (a GPU if there is one), cpu, cuda or cuda:N."""
    json: Annotated[Path | None, optional("FILE", "none")] = None
    """Write the plans to this file."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        plan(command_line.parse(_tyro, argv, HELP), Console())
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, FLAGS)
    return 0


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description="", args=list(argv))


def plan(command: Command, console: Console) -> dict[str, Any]:
    """Plan, print the table and write the JSON, whose content is returned."""
    gpu = find_gpu(command.gpu)
    config = _config(command)
    sizes = _batch_sizes(command, config)
    fooled, fooled_source = _fooled(command)
    network = _network(command, gpu)
    if command.json is not None:
        check_writable("--json", command.json)
    on_cpu = _on_cpu(command)
    counts = Counts(config, _precision(command, config, gpu))
    rates = _rates(command, config, gpu, sizes[0] // command.gpus[0])
    plans = [
        make_plan(
            counts,
            rates,
            network,
            gpus=gpus,
            batch_size=size,
            fooled=fooled if on_cpu else fooled.padded(size // gpus),
            capacity=gpu.memory,
            overlap=command.overlap,
        )
        for gpus, size in zip(command.gpus, sizes, strict=True)
    ]
    what = "passes timed here, the rest of" if command.measure else "all of"
    title = f"{config.preset}, {config.method}; {what} {gpu.name}"
    notes = [*_notes(command, plans[0], fooled, fooled_source), *remarks(plans, config)]
    if not on_cpu and any(not step.is_counted for step in plans[0].steps):
        notes.append(
            "samples attacked again are filled up to batches of few sizes, for which steps are captured: "
            f"{fooled.padded(sizes[0] // command.gpus[0]).once:.3g} of the batch for {fooled.once:.3g}"
        )
    found = {
        "config": config.to_dict(),
        "gpu": vars(gpu) | {"source": "published"},
        "notes": notes,
        "plans": [each.to_dict() for each in plans],
        "environment": describe(resolve_device(command.device if command.measure else "cpu")),
    }
    # Written before the table is printed, which may end in a closed pipe.
    if command.json is not None:
        write_json(command.json, found)
    console.print(table(plans, title))
    for line in notes:
        console.print(line, highlight=False, markup=False)
    if command.json is not None:
        console.print(f"written to {command.json}", highlight=False, soft_wrap=True, markup=False)
    return found


def _config(command: Command) -> TrainConfig:
    """The preset with the changes of the arguments, checked in the same way as for a training."""
    flags: dict[str, dict[str, Any]] = {
        "data": {"limit": command.limit},
        "model": {"width": command.width},
        "attack": {"precision": command.precision},
        "epsilon": {"strategy": command.strategy, "final": command.final},
        "optim": {
            "epochs": command.epochs,
            "batch_size": command.batch_size,
            "amp": command.amp,
            "graph": command.graph,
        },
    }
    parts: dict[str, dict[str, Any]] = {
        part: {name: value for name, value in fields.items() if value is not None}
        for part, fields in flags.items()
    }
    config = preset(command.preset, method=command.method, protocol=command.protocol, **parts)
    if config.epsilon.strategy != "auto":
        return config
    strategy = strategy_for(config.attack.bn, "cpu" if _on_cpu(command) else "cuda")
    return override(config, {"epsilon": {"strategy": strategy}})


def _on_cpu(command: Command) -> bool:
    """Whether the plan is for this machine's CPU."""
    return command.measure and resolve_device(command.device).type == "cpu"


def _batch_sizes(command: Command, config: TrainConfig) -> list[int]:
    """The global batch of each plan."""
    if not command.gpus or min(command.gpus) < 1:
        given = " ".join(map(str, command.gpus)) or "nothing"
        raise ValueError(f"--gpus: {given}, expected numbers of at least 1")
    per_gpu = command.batch_per_gpu
    if per_gpu is not None:
        if command.batch_size is not None:
            raise UsageError("--batch-size and --batch-per-gpu: expected one of them")
        validate.integer("--batch-per-gpu", per_gpu, 1)
        return [per_gpu * gpus for gpus in command.gpus]
    size = config.optim.batch_size
    for gpus in command.gpus:
        if size % gpus:
            raise ValueError(
                f"--gpus: {gpus} do not divide the batch of {size} images; change one of them, or give --batch-per-gpu"
            )
    return [size] * len(command.gpus)


def _fooled(command: Command) -> tuple[Fooled, str]:
    """The shares of fooled samples, and where they come from."""
    once, source = command.fooled, "given, --fooled"
    if once is None and command.run is not None:
        once, source = _fooled_in(command.run)
    elif once is None:
        once, source = Fooled.once, "assumed"
    twice = once / 2 if command.fooled_twice is None else command.fooled_twice
    return Fooled(once=once, twice=twice), source


def _fooled_in(run: Path) -> tuple[float, str]:
    """The share of fooled samples, estimated from a run, and its source: the misclassified training images of its last
    epoch. The attack at prev + gamma, a larger radius, fools about as many or more.
    """
    rows = RunFolder(run).metrics()
    found = [row.get("train_robust_accuracy") for row in rows]
    robust = [accuracy for accuracy in found if accuracy is not None]
    if not robust:
        raise ValueError(f"--run: {run} has no epoch with a robust accuracy in metrics.jsonl")
    return 1 - robust[-1], f"modelled, 1 - robust training accuracy of the last epoch of {run}"


def _network(command: Command, gpu: Gpu) -> Network:
    validate.integer("--per-node", command.per_node, 1)
    validate.number("--between", command.between, above=True)
    validate.number("--latency", command.latency)
    validate.number("--latency-between", command.latency_between)
    return Network(
        link=gpu.link,
        between=command.between * 1e9,
        per_node=command.per_node,
        latency=command.latency * 1e-6,
        latency_between=command.latency_between * 1e-6,
    )


def _precision(command: Command, config: TrainConfig, gpu: Gpu) -> str:
    """The attack's precision, with "auto" resolved for the GPU, or for the device that is timed."""
    precision = config.attack.precision
    if command.measure:
        return resolve_precision(precision, resolve_device(command.device))
    if precision != "auto":
        return precision
    return "fp16" if gpu.bf16 is None else "bf16"


def _rates(command: Command, config: TrainConfig, gpu: Gpu, batch: int) -> Rates:
    if command.measure:
        images = min(batch, 32) if command.measure_batch is None else command.measure_batch
        validate.integer("--measure-batch", images, 1)
        return measure(config, resolve_device(command.device), batch=images)
    assumed = Assumptions(
        share=command.share,
        bandwidth_share=command.bandwidth_share,
        launch=command.launch * 1e-6,
        host=command.host * 1e-6,
    )
    model = Modelled(gpu=gpu, assumed=assumed)
    folder = command.results or Path("benchmarks/results")
    if command.results is not None and not folder.is_dir():
        raise FileNotFoundError(f"--results {folder}: there is no such folder")
    if config.model.width is not None:
        return model
    return recorded(folder, model, command.gpu.lower(), config.model.name)


def _notes(command: Command, first: Plan, fooled: Fooled, fooled_source: str) -> list[str]:
    """Notes: the sources and assumptions of the numbers."""
    notes = [f"{kind} passes: {source}" for kind, source in first.sources.items()]
    if not command.measure:
        notes.append(
            f"assumed, as given: {command.share:g} of the peak arithmetic (--share), {command.bandwidth_share:g} "
            f"of the peak bandwidth (--bandwidth-share), {command.launch:g} us for the smallest kernel (--launch), "
            f"{command.host:g} us of the host for an operator outside of a graph (--host)"
        )
    if any(step.phase == "adaptive" for step in first.steps):
        notes.append(
            f"samples fooled at prev + gamma: {fooled.once:.3g} ({fooled_source}); at prev as well: {fooled.twice:.3g}"
        )
    if max(command.gpus) > 1:
        hidden = "hidden behind the backward as far as it goes" if command.overlap else "not hidden"
        notes.append(
            f"assumed, as given: nodes of {command.per_node} (--per-node), {command.between:g} GB/s between them "
            f"(--between), hops of {command.latency:g} and {command.latency_between:g} us; gradients are {hidden}"
        )
    notes.append("not in the hours: evaluations, checkpoints, a loader that lags")
    return notes
