"""Joining the other processes that torchrun started, as its environment variables say."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from iaat_fast.train.ranks import ALONE, Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of every process it starts."""

# Nothing but the loading of the data and a step lies between two exchanges.
_TIMEOUT = timedelta(minutes=10)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, until the block ends.

    Where torch.distributed is initialised already, by an outer block or by the caller, its group is
    used and left as it is.

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
        # NCCL would wait here for the peers that this error keeps waiting.
        if not torch.cuda.is_available():
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        _current.clear()


_current: list[Ranks] = []  # of the outer `joined`, if there is one


def _found() -> Ranks:
    """The ranks of the group that is initialised."""
    if _current:
        return _current[0]
    rank, count = dist.get_rank(), dist.get_world_size()
    return Ranks(rank=rank, count=count, local=int(os.environ.get("LOCAL_RANK", rank)))


def from_environment() -> Ranks:
    """Who this process is by the variables of torchrun; the only rank where there are none.

    Raises:
        ValueError: see `joined`.
    """
    # MASTER_* alone says nothing: a cluster's shells may carry them.
    if not any(name in os.environ for name in VARIABLES[:3]):
        return ALONE
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
            f"{name} is {text!r} in the environment: expected a number from {low}{bound}"
        )
    return int(text)


def _initialise(ranks: Ranks) -> Ranks:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        # torchrun's store outlives its workers: what those before a restart left there is not for these.
        store = dist.PrefixStore(f"iaat_fast/{ranks.restarts}", store)
        # What the host decides goes over gloo on GPUs, too: NCCL would make it wait for the GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=_TIMEOUT,
        )
    except RuntimeError as error:  # among them torch's DistError
        text = " ".join(str(error).split())
        if "EADDRINUSE" in text or "address already in use" in text:
            raise OSError(
                f"MASTER_PORT {os.environ['MASTER_PORT']} is in use on {os.environ['MASTER_ADDR']}: choose another one "
                "(torchrun --master-port)"
            ) from error
        raise OSError(
            f"rank {ranks.rank} does not reach the others at {address}: {text}"
        ) from error
    return replace(ranks, store=store)
