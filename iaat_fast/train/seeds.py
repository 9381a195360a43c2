"""Seeds as pure functions of the run's seed and the step, so that a resumed run draws the same."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a seed is for; different streams of one step are independent."""

    AUGMENT = 0
    ATTACK = 1
    START = 2
    MIXUP = 3
    MODEL = 4


def step_seed(seed: int, step: int, stream: Stream, rank: int | None = None) -> int:
    """The seed, in [0, 2**63), of one stream at one step of the run with `seed`, of one rank if given."""
    words = [seed, step, stream] if rank is None else [seed, step, stream, rank]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def stream_seed(seed: int, stream: Stream) -> int:
    """The seed of a further stream of the step whose own seed is `seed`."""
    return step_seed(seed, 0, stream)
