"""The paper's white-box suite (PGD-10 x 5, -100 x 5, -1000 x 2) by this project and by torchattacks.

torchattacks is used as its users do: each attack by itself, every restart on every image. All providers start from the
same points, in float32. They take turns batch by batch; next is the provider that has done the smallest share of its
work, so that a drift of the machine's speed affects all equally.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.attacks.providers import versions
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.targets import CHECKPOINTS, SMALL, as_split, load_trained
from iaat_fast import ops
from iaat_fast.attacks import PGD
from iaat_fast.data import Split, fetch
from iaat_fast.evaluate import AttackBudget, SharedPGD
from iaat_fast.evaluate.eval_target import load_target, run_source
from iaat_fast.run_folder import RunFolder

EPS, ALPHA, SEED = 8 / 255, 2 / 255, 0
PEER, LAST, ANY = "torchattacks", "iaat_fast", "iaat_fast, any iterate"
BATCHES = (16, 32, 64, 128, 256)

Verdicts = dict[str, Tensor]


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="a checkpoint (resnet4b), or a run folder")
    add("--images", type=positive, metavar="N", help="the first N (1000)")
    add("--attacks", nargs="+", type=attack_of, metavar="SxR", help="10x5 100x5 1000x2")
    add("--batch-size", type=positive, metavar="N", help="of all; else each its best")
    add("--rounds", type=positive, default=1, metavar="K")
    registry.add_device(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options,
        model=(SMALL, CHECKPOINTS[0]),
        images=(16, 1000),
        attacks=([(2, 2)], [(10, 5), (100, 5), (1000, 2)]),
        batch_size=(8, None),
    )


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    if versions()["torchattacks"] is None:
        raise ValueError("torchattacks is not installed: pip install 'iaat-fast[peers]'")
    model, split, source = load(options.model, options.images, torch.device(options.device))
    task = Task(model, split, tuple(options.attacks), EPS, ALPHA)
    batches = {name: options.batch_size or best_batch(task, name) for name in (PEER, LAST)}
    batches[ANY] = batches[LAST]
    record.facts |= {"peers": versions(), "images": source, "eps": EPS, "alpha": ALPHA}
    record.facts["pixels_that_differ_in_pgd10"] = bits = differing_bits(task)
    say(f"first 64 images, PGD-10: {bits} pixels differ from torchattacks; batches {batches}")
    rounds = [race(task, batches) for _ in range(options.rounds)]
    attacks = ", ".join(f"PGD-{steps} x {restarts}" for steps, restarts in task.attacks)
    case = f"{options.model}, {len(split)} images, {attacks}"
    for name in PROVIDERS:
        yield row_of(case, name, batches[name], rounds)


@dataclasses.dataclass(frozen=True)
class Task:
    """What all providers measure: a network, its images, attacks as (steps, restarts), radius and step size."""

    model: nn.Module
    split: Split
    attacks: tuple[tuple[int, int], ...]
    eps: float
    alpha: float

    @property
    def passes(self) -> int:
        """Gradients of single images if every attack runs by itself."""
        return len(self.split) * sum(steps * restarts for steps, restarts in self.attacks)


@dataclasses.dataclass
class Outcome:
    """The state of a provider in a round: the share of its work done, gradient passes and, at the end, verdicts."""

    share: float = 0.0
    passes: int = 0
    verdicts: Verdicts = dataclasses.field(default_factory=dict)


Provider = Callable[[Task, int, Outcome], Iterator[None]]


def by_torchattacks(task: Task, batch: int, outcome: Outcome) -> Iterator[None]:
    """Runs every attack, restart and batch; a turn is one restart of one batch."""
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


def by_shared_pgd(any_iterate: bool) -> Provider:
    """This project's evaluation; a turn is one call of `SharedPGD.advance`, at most 50 steps."""

    def run(task: Task, batch: int, outcome: Outcome) -> Iterator[None]:
        marks = [AttackBudget(name=f"{s}x{r}", steps=s, restarts=r) for s, r in task.attacks]
        shared = SharedPGD(
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


PROVIDERS: dict[str, Provider] = {
    PEER: by_torchattacks,
    LAST: by_shared_pgd(False),
    ANY: by_shared_pgd(True),
}


@contextlib.contextmanager
def given_noise(x: Tensor, eps: float, index: Tensor, restart: int) -> Iterator[None]:
    """Inside this context torchattacks, which draws by `uniform_`, gets this project's noise of these samples."""
    infinity = float("inf")
    noise = ops.random_start_linf(
        torch.zeros_like(x), eps, SEED, index, -infinity, infinity, restart=restart
    )
    with mock.patch.object(Tensor, "uniform_", lambda empty, low, high: empty.copy_(noise)):
        yield


def differing_bits(task: Task, samples: int = 64) -> int:
    """The number of pixels in which torchattacks and this project differ after PGD-10 from the same starts; of 64
    images, a power of two, so that torchattacks' mean of the loss does not round."""
    import torchattacks

    index = torch.arange(min(samples, len(task.split)), device=task.split.labels.device)
    x, y = fetch(task.split, index)
    with given_noise(x, task.eps, index, 0):
        theirs = torchattacks.PGD(task.model, eps=task.eps, alpha=task.alpha, steps=10)(x, y)
    ours = PGD(task.model, task.eps, task.alpha, 10, seed=SEED)(x, y, index=index)
    return int((ours != theirs).sum())


def best_batch(task: Task, name: str) -> int:
    """The batch size, of `BATCHES`, at which the provider's own PGD-3 takes the least time per image."""
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
    """One round, in which providers take turns: seconds and outcome of each."""
    outcomes = {name: Outcome() for name in PROVIDERS}
    turns = {name: run(task, batches[name], outcomes[name]) for name, run in PROVIDERS.items()}
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


def row_of(
    case: str,
    name: str,
    batch: int,
    rounds: Sequence[tuple[dict[str, float], dict[str, Outcome]]],
) -> Row:
    """A provider over all rounds; `over_torchattacks` is the median of the rounds' ratios."""
    ratios = torch.tensor([seconds[PEER] / seconds[name] for seconds, _ in rounds])
    outcome, peer = rounds[-1][1][name], rounds[-1][1][PEER]
    row = Row(case=case, provider=name).sampled(seconds[name] for seconds, _ in rounds)
    row.figures = {
        "batch": batch,
        "over_torchattacks": float(ratios.quantile(0.5)),
        "passes": outcome.passes,
        "robust": {key: float(v.double().mean()) for key, v in outcome.verdicts.items()},
        "verdicts_that_differ": {
            key: int((v != peer.verdicts[key]).sum()) for key, v in outcome.verdicts.items()
        },
        "only_torchattacks_fools": {
            key: int((v & ~peer.verdicts[key]).sum()) for key, v in outcome.verdicts.items()
        },
    }
    return row


def load(name: str, n: int, device: torch.device) -> tuple[nn.Module, Split, str]:
    """A network, its first n images, and a description of the images."""
    if name in (*CHECKPOINTS, SMALL):
        net, x, y, source = load_trained(name, n, device)
        return net, as_split(x, y), source
    folder = RunFolder(name)
    subject = load_target(run_source(folder, limit=n), device, folder=folder)
    assert isinstance(subject.split, Split)
    return subject.model.eval(), subject.split, f"{subject.description['data']['name']} test"


def attack_of(word: str) -> tuple[int, int]:
    """`100x5` as (100, 5)."""
    steps, _, restarts = word.partition("x")
    if not (steps.isdigit() and restarts.isdigit() and int(steps) > 0 and int(restarts) > 0):
        raise argparse.ArgumentTypeError(f"{word}, expected STEPSxRESTARTS such as 100x5")
    return int(steps), int(restarts)
