"""The protocol's white-box suite (PGD-10 x 5, -100 x 5, -1000 x 2) by this project and by torchattacks.

    IAAT_FAST_DATA=... python -m benchmarks.suite --model resnet4b --images 1000 --out build/suite

torchattacks is used the way its users do: each attack by itself, every restart on every image. All contenders start
from the same points, in float32. They take turns batch by batch, whoever has done the smaller share of its work next,
so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.attacks import images, networks, peers, tables
from iaat_fast import ops
from iaat_fast.attacks import PGD
from iaat_fast.data import Split, fetch
from iaat_fast.evaluate import Mark, Trajectories
from iaat_fast.evaluate.subject import load_subject, run_source
from iaat_fast.run_folder import RunFolder

EPS, ALPHA, SEED = 8 / 255, 2 / 255, 0
PEER, LAST, ANY = "torchattacks", "iaat_fast", "iaat_fast, any iterate"
BATCHES = (16, 32, 64, 128, 256)
COLUMNS = ("contender", "s", "× torchattacks", "batch", "passes", "robust", "other verdicts")

Verdicts = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """What all measure: a network, its images, attacks as (steps, restarts), radius and step size."""

    model: nn.Module
    split: Split
    attacks: tuple[tuple[int, int], ...]
    eps: float
    alpha: float

    @property
    def passes(self) -> int:
        """Gradients of images when every attack runs by itself."""
        return len(self.split) * sum(steps * restarts for steps, restarts in self.attacks)


@dataclasses.dataclass
class Outcome:
    """One contender in one round: its share done so far, and in the end gradient passes and verdicts."""

    share: float = 0.0
    passes: int = 0
    verdicts: Verdicts = dataclasses.field(default_factory=dict)


Contender = Callable[[Task, int, Outcome], Iterator[None]]


def by_torchattacks(task: Task, batch: int, outcome: Outcome) -> Iterator[None]:
    """Every attack, restart and batch; a turn is a batch's restart."""
    import torchattacks

    samples = torch.arange(len(task.split), device=task.split.labels.device)
    for steps, restarts in task.attacks:
        standing = torch.ones(len(samples), dtype=torch.bool)
        attack = torchattacks.PGD(task.model, eps=task.eps, alpha=task.alpha, steps=steps)
        for restart in range(restarts):
            for index in samples.split(batch):
                x, y = fetch(task.split, index)
                with given_noise(x, task.eps, index, restart):
                    x_adv = attack(x, y)
                with torch.no_grad():
                    standing[index.cpu()] &= (task.model(x_adv).argmax(1) == y).cpu()
                outcome.passes += steps * len(index)
                outcome.share = outcome.passes / task.passes
                yield
        outcome.verdicts[f"{steps}x{restarts}"] = standing


def by_trajectories(any_iterate: bool) -> Contender:
    """This project's evaluation; a turn is a stretch of at most 50 steps."""

    def run(task: Task, batch: int, outcome: Outcome) -> Iterator[None]:
        marks = [Mark(name=f"{s}x{r}", steps=s, restarts=r) for s, r in task.attacks]
        shared = Trajectories(
            task.model,
            task.split,
            marks,
            eps=task.eps,
            alpha=task.alpha,
            batch_size=batch,
            seed=SEED,
            any_iterate=any_iterate,
        )
        while not shared.finished:
            shared.advance()
            outcome.passes = shared.passes
            outcome.share = shared.passes / (shared.passes + shared.remaining())
            yield
        for number, mark in enumerate(marks):
            outcome.verdicts[mark.name] = shared.standing(number)

    return run


CONTENDERS: dict[str, Contender] = {
    PEER: by_torchattacks,
    LAST: by_trajectories(False),
    ANY: by_trajectories(True),
}


@contextlib.contextmanager
def given_noise(x: Tensor, eps: float, index: Tensor, restart: int) -> Iterator[None]:
    """Within it, what torchattacks draws by `uniform_` is this project's noise of these samples."""
    infinity = float("inf")
    noise = ops.random_start_linf(
        torch.zeros_like(x), eps, SEED, index, -infinity, infinity, restart=restart
    )
    drawn = torch.Tensor.uniform_
    torch.Tensor.uniform_ = lambda empty, low, high: empty.copy_(noise)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.uniform_ = drawn  # type: ignore[method-assign]


def differing_bits(task: Task, samples: int = 64) -> int:
    """Pixels of a PGD-10 from the same starts in which torchattacks and this project differ; 64 images, a power of
    two, over which torchattacks averages the loss without a rounding."""
    import torchattacks

    index = torch.arange(min(samples, len(task.split)), device=task.split.labels.device)
    x, y = fetch(task.split, index)
    with given_noise(x, task.eps, index, 0):
        theirs = torchattacks.PGD(task.model, eps=task.eps, alpha=task.alpha, steps=10)(x, y)
    ours = PGD(task.model, task.eps, task.alpha, 10, seed=SEED)(x, y, index=index)
    return int((ours != theirs).sum())


def best_batch(task: Task, name: str) -> int:
    """The batch size at which the contender's own PGD-3 takes the least time per image, of `BATCHES`."""
    import torchattacks

    seconds = {}
    for size in BATCHES:
        if size > len(task.split):
            continue
        index = torch.arange(size, device=task.split.labels.device)
        x, y = fetch(task.split, index)
        attack: Callable[[Tensor, Tensor], Tensor] = PGD(task.model, task.eps, task.alpha, 3)
        if name == PEER:
            attack = torchattacks.PGD(task.model, eps=task.eps, alpha=task.alpha, steps=3)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            attack(x, y)
            times.append(time.perf_counter() - started)
        seconds[size] = min(times[1:]) / size
    return min(seconds, key=lambda size: seconds[size]) if seconds else len(task.split)


def race(task: Task, batches: dict[str, int]) -> tuple[dict[str, float], dict[str, Outcome]]:
    """One round: seconds and outcome of every contender, who take turns."""
    outcomes = {name: Outcome() for name in CONTENDERS}
    turns = {name: run(task, batches[name], outcomes[name]) for name, run in CONTENDERS.items()}
    seconds = dict.fromkeys(turns, 0.0)
    while turns:
        name = min(turns, key=lambda name: outcomes[name].share)
        started = time.perf_counter()
        try:
            next(turns[name])
            if task.split.images.is_cuda:
                torch.cuda.synchronize()
        except StopIteration:
            del turns[name]
        seconds[name] += time.perf_counter() - started
    return seconds, outcomes


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--model", default="resnet4b", help="a checkpoint, or a run folder")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="the first N")
    parser.add_argument("--attacks", nargs="+", default=["10x5", "100x5", "1000x2"], metavar="SxR")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of all; else each its best")
    parser.add_argument("--rounds", type=int, default=1, metavar="K")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/suite"), metavar="DIR")
    options = parser.parse_args(argv)
    try:
        model, split, source = load(options.model, options.images, torch.device(options.device))
        attacks = tuple(attack_of(word) for word in options.attacks)
        if peers.versions()["torchattacks"] is None:
            raise ValueError("torchattacks is not installed: pip install 'iaat-fast[peers]'")
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks.suite: error: {error}", file=sys.stderr)
        return 2
    task = Task(model, split, attacks, EPS, ALPHA)
    batches = {name: options.batch_size or best_batch(task, name) for name in (PEER, LAST)}
    batches[ANY] = batches[LAST]
    bits = differing_bits(task)
    print(f"first 64 images, PGD-10: {bits} pixels differ from torchattacks; batches {batches}")
    rounds = [race(task, batches) for _ in range(options.rounds)]
    records = [record(name, batches[name], rounds) for name in CONTENDERS]
    tables.write(f"{options.model}, {len(split)} images", COLUMNS, map(row, records))
    result = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.suite", *argv],
        "machine": machine.describe(options.device),
        "peers": peers.versions(),
        "model": options.model,
        "images": source,
        "samples": len(split),
        "attacks": options.attacks,
        "eps": EPS,
        "alpha": ALPHA,
        "pixels_that_differ_in_pgd10": bits,
        "records": records,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "suite.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def record(
    name: str, batch: int, rounds: Sequence[tuple[dict[str, float], dict[str, Outcome]]]
) -> dict[str, object]:
    """A contender over all rounds; `times_faster` than torchattacks is the median of the rounds' ratios."""
    ratios = torch.tensor([seconds[PEER] / seconds[name] for seconds, _ in rounds])
    outcome, peer = rounds[-1][1][name], rounds[-1][1][PEER]
    return {
        "name": name,
        "batch": batch,
        "n": len(rounds),
        "seconds": [round(seconds[name], 3) for seconds, _ in rounds],
        "times_faster": float(ratios.quantile(0.5)),
        "passes": outcome.passes,
        "robust": {key: float(v.double().mean()) for key, v in outcome.verdicts.items()},
        "verdicts_that_differ": {
            key: int((v != peer.verdicts[key]).sum()) for key, v in outcome.verdicts.items()
        },
        "only_torchattacks_fools": {
            key: int((v & ~peer.verdicts[key]).sum()) for key, v in outcome.verdicts.items()
        },
    }


def row(found: dict[str, object]) -> list[str]:
    """The record under `COLUMNS`."""
    seconds, robust, other = found["seconds"], found["robust"], found["verdicts_that_differ"]
    assert isinstance(seconds, list)
    assert isinstance(robust, dict)
    assert isinstance(other, dict)
    return [
        str(found["name"]),
        f"{sorted(seconds)[len(seconds) // 2]:.4g}",
        f"{found['times_faster']:.2f}",
        str(found["batch"]),
        str(found["passes"]),
        ", ".join(f"{share:.1%}" for share in robust.values()),
        ", ".join(map(str, other.values())),
    ]


def load(name: str, n: int, device: torch.device) -> tuple[nn.Module, Split, str]:
    """A network, its first n images, and what they are in words."""
    if name in networks.CHECKPOINTS:
        x, y, source = images.load(n, 32)
        if y is None:
            raise ValueError("IAAT_FAST_DATA is not set")
        pixels = x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return networks.checkpoint(name).to(device), Split(pixels, y).to(device), source
    folder = RunFolder(name)
    subject = load_subject(run_source(folder, limit=n), device, folder=folder)
    return subject.model.eval(), subject.split, f"{subject.description['data']['name']} test"


def attack_of(word: str) -> tuple[int, int]:
    """`100x5` as (100, 5)."""
    steps, _, restarts = word.partition("x")
    if not (steps.isdigit() and restarts.isdigit() and int(steps) > 0 and int(restarts) > 0):
        raise ValueError(f"--attacks {word}: expected STEPSxRESTARTS such as 100x5")
    return int(steps), int(restarts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
