"""What each rank of test_distributed.py runs: `python -m tests.attacks.model.unequal_ranks FOLDER`, as under torchrun.

Each rank attacks every model in another number of steps, and saves FOLDER/<rank>.pt: per model, the images and whether
the wrapper is as it was, or the error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from iaat_fast.attacks import PGD


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4))


def wrapped() -> DistributedDataParallel:
    model = DistributedDataParallel(net())
    trained(model)
    return model


def trained(model: nn.Module) -> None:
    """A step of training, before whose next forward a wrapper rebuilds its buckets with all ranks."""
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    model(images).sum().backward()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(wrapped())
    model.compile(backend="eager")
    return model


def in_a_function() -> Callable[[Tensor], Any]:
    model = wrapped()
    return lambda x: model(x)


WHOLE: dict[str, tuple[Callable[[], Any], str]] = {
    "inside": (lambda: nn.Sequential(nn.Identity(), wrapped()), "exact"),
    "inside, by the fast engine": (lambda: nn.Sequential(nn.Identity(), wrapped()), "fast"),
    "compiled": (lambda: compiled(wrapped()), "exact"),
    "inside, compiled": (lambda: compiled(nn.Sequential(nn.Identity(), wrapped())), "exact"),
    "compiled in place": (compiled_in_place, "exact"),
    "its method": (lambda: wrapped().forward, "exact"),
    "in a function": (in_a_function, "exact"),
}


def sharded_inside() -> nn.Module:
    model = net()
    fully_shard(model[2])
    return model


class Sharded(FullyShardedDataParallel):
    """Made without the accelerator that it needs."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.inner = module

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


SHARDED: dict[str, Callable[[], Any]] = {
    "fully_shard": lambda: fully_shard(net()),
    "fully_shard inside": sharded_inside,
    "fully_shard, compiled": lambda: compiled(fully_shard(net())),
    "fully_shard in a function": lambda: sharded_inside().forward,
    "FullyShardedDataParallel": lambda: nn.Sequential(Sharded(net())),
}


def images(rank: int) -> tuple[Tensor, Tensor]:
    return torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(rank)), torch.arange(4)


def attack(model: Any, rank: int, engine: str = "exact") -> Any:
    x, y = images(rank)
    return PGD(model, 0.1, 0.03, steps=1 + 2 * rank, seed=0, engine=engine)(x, y)


def main(folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, found = distributed.get_rank(), {}
    for name, (make, engine) in WHOLE.items():
        model = make()
        x_adv = attack(model, rank, engine)
        wrappers = [m for m in getattr(model, "modules", list)() if "reducer" in m.__dict__]
        found[name] = x_adv, not any("forward" in wrapper.__dict__ for wrapper in wrappers)
        distributed.barrier()
    for name, make in SHARDED.items():
        try:
            found[name] = attack(make(), rank)
        except ValueError as error:
            found[name] = str(error)
        distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # without waiting for gloo's threads
