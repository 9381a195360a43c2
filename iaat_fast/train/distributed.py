"""The processes (ranks) of a run started by torchrun: joining them, each one's shard of a batch, their exchanges.

A run without torchrun has one rank, for which all of this does nothing and costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iaat_fast.validate import one_line

T = TypeVar("T")


class LostRank(RuntimeError):
    """Another rank of the run has ended, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of the run.

    `rank` counts from 0 over all machines, `local` on this machine; `count` is the number of ranks.
    `restarts` counts how often torchrun has restarted the run. `store` is torch's key-value store
    of the group, None for one rank.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    restarts: int = 0
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def shard(self, index: Tensor) -> Tensor:
        """This rank's shard of a global batch; shards are of equal size, or the first ones of one more."""
        return index if self.count == 1 else index.tensor_split(self.count)[self.rank]

    def start(self, size: int) -> int:
        """Where in a global batch of `size` this rank's shard starts."""
        return self.rank * (size // self.count) + min(self.rank, size % self.count)

    def describe(self, batch_size: int, size: int) -> str:
        """Text: how `size` images in global batches of `batch_size` are divided among the ranks."""
        whole, last = batch_size, size % batch_size or batch_size
        text = f"{self.count} ranks: of a batch of {whole} {self._parts(whole)}"
        return text + (f"; of the last, of {last}, {self._parts(last)}" if last != whole else "")

    def _parts(self, size: int) -> str:
        small, more = divmod(size, self.count)
        if not more:
            return f"each takes {small} images"
        first = "the first takes" if more == 1 else f"the first {more} take"
        return f"{first} {small + 1} images, the others {small}"

    def device(self, name: str) -> str:
        """The device called `name` for this rank: one GPU each, in the order of LOCAL_RANK.

        Raises:
            ValueError: the name is of one GPU ("cuda:1"), which the ranks of a machine would share.
        """
        if self.count == 1 or name == "cpu":
            return name
        if name == "auto":
            return f"cuda:{self.local}" if torch.cuda.is_available() else "cpu"
        if name == "cuda":
            return f"cuda:{self.local}"
        raise ValueError(
            f"device: {name!r}, expected auto, cpu or cuda with {self.count} ranks, each of which takes the GPU of "
            "its LOCAL_RANK"
        )

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        if self.count == 1:
            return value
        values = [value]
        with _lost_ranks():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_max(self, value: int) -> int:
        """The largest of the ranks' values; exchanged between CPUs, so that the host does not wait for a GPU."""
        if self.count == 1:
            return value
        highest = torch.tensor([value])
        self.reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def sum(self, value: int) -> int:
        """The sum of the ranks' values."""
        if self.count == 1:
            return value
        total = torch.tensor([value])
        self.reduce(total)
        return int(total)

    def reduce(self, values: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        """Replace `values`, in place, by their sum (or what `how` says) over the ranks."""
        if self.count > 1:
            with _lost_ranks():
                dist.all_reduce(values, how)

    def copy_from_first(self, tensors: list[Tensor]) -> None:
        """Replace the tensors, in place, by those of the first rank, in one message per dtype."""
        if self.count == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            group = [tensor for tensor in tensors if tensor.dtype is dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            with _lost_ranks():
                dist.broadcast(flat, src=0)
            parts = flat.split([tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def run_on_all(self, work: Callable[[], T]) -> T:
        """`work()`, which either succeeds on every rank or raises the same error on all of them.

        Raises:
            ValueError or OSError: that of the first rank on which `work` failed; the message names the rank.
        """
        if self.count == 1:
            return work()
        value, error = None, None
        try:
            value = work()
        except (ValueError, OSError) as raised:
            error = raised
        errors = self.gather(error)
        for rank, found in enumerate(errors):
            if found is None:
                continue
            if rank == 0 or all(str(other) == str(found) for other in errors):
                raise found
            kind = OSError if isinstance(found, OSError) else ValueError
            raise kind(f"rank {rank}: {' '.join(str(found).split())}") from error
        return value  # type: ignore[return-value]

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Call `work` on the first rank only; every rank returns its result.

        Raises:
            ValueError or OSError: that of `work`, on every rank.
        """
        found = self.run_on_all(lambda: work() if self.first else None)
        return self.broadcast(found)  # type: ignore[return-value]

    def print_once(self, say: Callable[[], object]) -> None:
        """Call `say` on the first rank to get here; the others wait until it has returned."""
        try:
            if self.store is not None and self.store.add("iaat_fast/speakers", 1) > 1:
                self.store.wait(["iaat_fast/said"], timedelta(seconds=10))
                return
        except RuntimeError:  # The process that kept the store has ended.
            pass
        say()
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.set("iaat_fast/said", "")


SINGLE = Ranks()
"""The only rank of a run without torchrun."""


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error means that another rank has ended; that of a backward is torch's own RuntimeError."""
    return isinstance(error, (LostRank, dist.DistError)) or "gloo" in str(error)


@contextlib.contextmanager
def _lost_ranks() -> Iterator[None]:
    """Turn the error of a collective operation into LostRank if another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostRank(f"lost another rank: {one_line(error)}") from error


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of every process it starts."""

# Between two exchanges a rank at most loads the data or takes a step.
_TIMEOUT = timedelta(minutes=10)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the process group of torchrun's processes, until the block ends.

    If torch.distributed is initialised already, by an outer block or by the caller, its group is used
    and left as it is.

    Raises:
        ValueError: the variables of torchrun are set in part, or are not numbers that fit.
        OSError: the port is in use, or the other ranks cannot be reached.
    """
    if dist.is_initialized():
        yield _found()
        return
    ranks = from_environment()
    if ranks.count == 1:
        yield ranks
        return
    ranks = _initialise(ranks)
    _current.append(ranks)
    try:
        yield ranks
    except BaseException:
        # NCCL would wait here for its peers, which themselves wait for this rank.
        if not torch.cuda.is_available():
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        _current.clear()


_current: list[Ranks] = []  # of the outer `joined`, if there is one


def _found() -> Ranks:
    """The ranks of the process group that is initialised already."""
    if _current:
        return _current[0]
    rank, count = dist.get_rank(), dist.get_world_size()
    return Ranks(rank=rank, count=count, local=int(os.environ.get("LOCAL_RANK", rank)))


def from_environment() -> Ranks:
    """This process's rank, from the environment variables of torchrun; `SINGLE` if there are none.

    Raises:
        ValueError: see `joined`.
    """
    # MASTER_ADDR and MASTER_PORT alone mean nothing: a cluster may set them in every shell.
    if not any(name in os.environ for name in VARIABLES[:3]):
        return SINGLE
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        given = [name for name in VARIABLES if name not in missing]
        raise ValueError(
            f"environment: {', '.join(given)} set without {', '.join(missing)}; torchrun sets all of them, "
            "unset all to train in one process"
        )
    count = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0, count)
    _number("MASTER_PORT", 1, 65536)
    return Ranks(
        rank=rank,
        count=count,
        local=_number("LOCAL_RANK", 0, count),
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _number(name: str, low: int, below: int | None = None) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < low or (below is not None and int(text) >= below):
        bound = "" if below is None else f" and below {below}"
        raise ValueError(
            f"{name}: {text!r} in the environment, expected a number from {low}{bound}"
        )
    return int(text)


def _initialise(ranks: Ranks) -> Ranks:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        # torchrun's store outlives its workers: a prefix hides what those before a restart have left there.
        store = dist.PrefixStore(f"iaat_fast/{ranks.restarts}", store)
        # Exchanges of CPU values use gloo even if there are GPUs: NCCL would make the host wait for the GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=_TIMEOUT,
        )
    except RuntimeError as error:  # among them torch's DistError
        text = one_line(error)
        if "EADDRINUSE" in text or "address already in use" in text:
            raise OSError(
                f"MASTER_PORT {os.environ['MASTER_PORT']} is in use on {os.environ['MASTER_ADDR']}: choose another one "
                "(torchrun --master-port)"
            ) from error
        raise OSError(
            f"rank {ranks.rank} does not reach the others at {address}: {text}"
        ) from error
    return replace(ranks, store=store)
