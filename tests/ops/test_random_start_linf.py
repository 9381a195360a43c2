"""`random_start_linf`: Philox noise, uniform, independent, and the property of a sample rather than of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from iaat_fast import ops
from iaat_fast.ops import primitives

# kat_vectors of Random123 (Salmon et al.), philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def noise(*args: object, **kwargs: object) -> Tensor:
    """The noise itself, in (-1, 1): a ball of radius 1 round 0 in a box that holds it."""
    return ops.random_start_linf(*args, lo=-1.0, hi=1.0, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_reference_generator_gives_the_published_words(
    counter: str, key: str, answer: str
) -> None:
    low, high = words(key)
    state = [torch.tensor(word) for word in words(counter)]
    drawn = primitives.philox(torch.tensor(signed(high << 32 | low)), *state)
    assert [int(word) for word in drawn] == words(answer)


def test_the_backend_maps_the_published_words_to_noise() -> None:
    """Counter and key 0: the words' top 24 bits k as (2k + 1 - 2**24) / 2**24."""
    expected = [(2 * (word >> 8) + 1 - 2**24) / 2**24 for word in words(KNOWN_ANSWERS[0][2])]
    assert noise(torch.zeros(1, 4), 1.0, 0)[0].tolist() == expected


def test_the_backend_puts_each_number_into_its_place_of_counter_and_key() -> None:
    (_, sample, candidate, restart), (low, high) = (
        words(KNOWN_ANSWERS[2][0]),
        words(KNOWN_ANSWERS[2][1]),
    )
    block = 5
    drawn = primitives.philox(
        torch.tensor(signed(high << 32 | low)),
        *(torch.tensor(n) for n in (block, sample, candidate, restart)),
    )
    expected = [(2 * (int(word) >> 8) + 1 - 2**24) / 2**24 for word in drawn]
    start = noise(
        torch.zeros(1, 24),
        1.0,
        signed(high << 32 | low),
        torch.tensor([sample]),
        restart=restart,
        candidate=candidate,
    )
    assert start[0, 4 * block :].tolist() == expected


def test_the_noise_follows_the_sample_through_any_split_and_order() -> None:
    x = torch.rand(20, 3, 7, 7, generator=torch.manual_seed(0))
    index = torch.arange(20) + 100
    whole = ops.random_start_linf(x, 0.1, 5, index)
    order = torch.randperm(20, generator=torch.manual_seed(1))
    assert torch.equal(ops.random_start_linf(x[order], 0.1, 5, index[order]), whole[order])
    parts = [
        ops.random_start_linf(a, 0.1, 5, i)
        for a, i in zip(x.split([1, 7, 12]), index.split([1, 7, 12]), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_channels_last_images_get_the_same_noise() -> None:
    x = torch.rand(3, 5, 6, 7)
    start = ops.random_start_linf(x.contiguous(memory_format=torch.channels_last), 0.1, 5)
    assert start.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(start, ops.random_start_linf(x, 0.1, 5))


def test_k_candidates_are_k_calls() -> None:
    x = torch.rand(4, 50)
    eps = torch.linspace(0.01, 0.2, 12)
    whole = ops.random_start_linf(x, eps, 3, restart=2)
    for k in range(3):
        part = ops.random_start_linf(x, eps[4 * k : 4 * k + 4], 3, candidate=k, restart=2)
        assert torch.equal(whole[4 * k : 4 * k + 4], part)


@pytest.mark.parametrize("seed", [0, 1, -7, 2**63 - 1, -(2**63)])
def test_a_seed_tensor_is_a_seed(seed: int) -> None:
    x = torch.rand(2, 9)
    expected = ops.random_start_linf(x, 0.1, seed, restart=3, candidate=4)
    assert torch.equal(ops.random_start_linf(x, 0.1, torch.tensor([seed, 3, 4])), expected)
    strided = torch.tensor([seed, 0, 3, 0, 4, 0])[::2]
    assert torch.equal(ops.random_start_linf(x, 0.1, strided), expected)
    assert torch.equal(
        ops.random_start_linf(x, 0.1, torch.tensor([seed])), ops.random_start_linf(x, 0.1, seed)
    )


def test_the_noise_is_uniform() -> None:
    drawn = noise(torch.zeros(50, 2000), 1.0, 11).flatten().double()
    assert stats.kstest(drawn.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(float(drawn.mean())) < 4 * math.sqrt(1 / 3 / len(drawn))


@pytest.mark.parametrize("other", ["seed", "sample", "candidate", "restart", "place"])
def test_the_streams_are_independent(other: str) -> None:
    """The correlation of 10**5 draws with those of a neighbouring stream stays below four standard deviations."""
    x = torch.zeros(1, 100_000)
    first = noise(x, 1.0, 1, torch.tensor([0]))[0]
    second = {
        "seed": lambda: noise(x, 1.0, 2, torch.tensor([0]))[0],
        "sample": lambda: noise(x, 1.0, 1, torch.tensor([1]))[0],
        "candidate": lambda: noise(x, 1.0, 1, torch.tensor([0]), candidate=1)[0],
        "restart": lambda: noise(x, 1.0, 1, torch.tensor([0]), restart=1)[0],
        "place": lambda: first.roll(1),
    }[other]()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_start_is_in_the_ball_and_in_the_box(dtype: torch.dtype) -> None:
    x = torch.rand(5, 400, generator=torch.manual_seed(0)).to(dtype)
    eps = torch.tensor([0.0, 1e-3, 0.1, 0.5, 3.0])
    start = ops.random_start_linf(x, eps, 1, lo=0.1, hi=0.8)
    assert ((start >= 0.1 - 1e-3) & (start <= 0.8 + 1e-3)).all()
    inside = x.clamp(0.1, 0.8)
    rounding = torch.finfo(dtype).eps
    assert ((start - inside).abs().double() <= eps.view(-1, 1).double() + rounding).all()
    assert torch.equal(start[0], inside[0])


def test_the_start_is_a_constant_to_autograd() -> None:
    assert not ops.random_start_linf(torch.rand(2, 3, requires_grad=True), 0.1, 0).requires_grad


def test_default_numbers_are_the_places_in_the_batch() -> None:
    x = torch.rand(4, 9)
    assert torch.equal(
        ops.random_start_linf(x, 0.1, 0), ops.random_start_linf(x, 0.1, 0, torch.arange(4))
    )


def test_a_seed_that_comes_back_draws_the_same_in_every_mode() -> None:
    x, eps = torch.full((3, 1, 2, 2), 0.5), torch.full((3,), 0.1)
    seed = 0x5EED_0001  # of this test alone: its first call makes what later ones reuse
    with torch.inference_mode():
        first = ops.random_start_linf(x, eps, seed).clone()
    again = ops.random_start_linf(x.requires_grad_(), eps, seed)
    traced = torch.compile(ops.random_start_linf, backend="eager", fullgraph=True)
    given = ops.random_start_linf(x, eps, torch.tensor([seed, 0, 0]))
    assert not torch.equal(first, ops.random_start_linf(x, eps, seed, restart=1))
    for other in (again, traced(x, eps, seed), given):
        assert torch.equal(first, other)
