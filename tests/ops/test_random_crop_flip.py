"""`random_crop_flip`: crops of the reflect-padded image, flips, both drawn per sample; exact pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from iaat_fast import ops
from iaat_fast.data import _torchvision
from iaat_fast.ops import primitives, reference

# size, height, width, channels, padding. Rows shorter, as long and longer than a vector, shifts as far as they may go.
CASES = [
    (7, 1, 1, 1, 0),
    (7, 1, 1, 3, 0),
    (7, 5, 5, 2, 4),
    (9, 8, 8, 1, 4),
    (9, 5, 11, 3, 4),
    (9, 32, 32, 3, 4),
    (9, 32, 32, 1, 4),
    (9, 32, 32, 4, 4),
    (9, 28, 17, 3, 0),
    (9, 20, 40, 3, 19),
    (3, 40, 500, 3, 7),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case)))
flips = pytest.mark.parametrize("flip", [False, True])


def pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def samples(size: int, n: int = 50) -> Tensor:
    return torch.randint(size, (n,), generator=torch.Generator().manual_seed(n))


def draws(
    index: Tensor, seed: int, stream: int, padding: int, flip: bool
) -> list[tuple[int, int, bool]]:
    """(top, left, flipped) of each sample's crop of the padded image, in Python's own integers."""
    words = primitives.philox(
        torch.tensor(seed), torch.tensor(0), index, torch.tensor(stream), torch.tensor(2**32 - 1)
    )
    places = 2 * padding + 1
    return [
        (down * places // 2**32, right * places // 2**32, flip and side >= 2**31)
        for down, right, side, _ in torch.stack(words, 1).tolist()
    ]


def by_padding(
    images: Tensor, index: Tensor, seed: int, stream: int, padding: int, flip: bool
) -> Tensor:
    """torch's reflect padding, a slice, torch's flip."""
    height, width = images.shape[1:3]
    x = images[index].permute(0, 3, 1, 2).float()
    padded = F.pad(x, (padding,) * 4, mode="reflect")
    out = torch.empty_like(x)
    for i, (top, left, flipped) in enumerate(draws(index, seed, stream, padding, flip)):
        crop = padded[i, :, top : top + height, left : left + width]
        out[i] = crop.flip(2) if flipped else crop
    return out / 255


@cases
@flips
def test_images_are_crops_of_the_reflect_padded_image(
    isa: str, case: tuple[int, ...], flip: bool
) -> None:
    *shape, padding = case
    images, index = pixels(*shape), samples(shape[0])
    x = ops.random_crop_flip(images, index, 11, padding=padding, flip=flip, stream=3)
    assert x.dtype is torch.float32
    assert x.is_contiguous()
    assert torch.equal(x, by_padding(images, index, 11, 3, padding, flip))


@cases
@flips
def test_the_reference_crops_the_same(case: tuple[int, ...], flip: bool) -> None:
    *shape, padding = case
    images, index = pixels(*shape), samples(shape[0])
    x = reference.random_crop_flip(images, index, torch.tensor([11, 3]), padding, flip)
    assert x.is_contiguous()
    assert torch.equal(x, by_padding(images, index, 11, 3, padding, flip))


@cases
@flips
@pytest.mark.parametrize("seed", [[0], [-(2**40) + 3, 2], [2**63 - 1, 2**32 - 1]], ids=str)
def test_native_gives_the_bits_of_the_reference(
    isa: str, case: tuple[int, ...], flip: bool, seed: list[int]
) -> None:
    from iaat_fast.ops.native import cpu as native

    *shape, padding = case
    args = (pixels(*shape), samples(shape[0]), torch.tensor(seed), padding, flip)
    expected, actual = reference.random_crop_flip(*args), native.random_crop_flip(*args)
    assert actual.stride() == expected.stride()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    images, index = pixels(9, 32, 32, 3), samples(9, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = ops.random_crop_flip(images, index, 5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(x, by_padding(images, index, 5, 0, 4, True))


def test_torchvision_crops_the_same() -> None:
    _torchvision.datasets()  # first: it gets the import through where torchvision's compiled ops do not load
    from torchvision.transforms.v2 import functional

    images, index = pixels(9, 32, 32, 3), samples(9)
    x = ops.random_crop_flip(images, index, 4)
    for i, (top, left, flipped) in enumerate(draws(index, 4, 0, 4, True)):
        image = functional.pad(images[index[i]].permute(2, 0, 1), [4], padding_mode="reflect")
        image = functional.crop(image, top, left, 32, 32)
        image = functional.horizontal_flip(image) if flipped else image
        assert torch.equal(x[i], image.float() / 255)


def test_without_padding_and_flip_it_is_the_plain_gather(isa: str) -> None:
    images, index = pixels(9, 32, 32, 3), samples(9)
    x = ops.random_crop_flip(images, index, 0, padding=0, flip=False)
    assert torch.equal(x, images[index].permute(0, 3, 1, 2).float() / 255)


def test_every_byte_is_divided_by_255_and_rounded_once(isa: str) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = ops.random_crop_flip(images, torch.tensor([0]), 0, padding=0, flip=False)
    assert torch.equal(x.flatten(), (torch.arange(256).double() / 255).float())


@pytest.mark.parametrize("size", [0, 3])
def test_no_samples_are_an_empty_batch(isa: str, size: int) -> None:
    x = ops.random_crop_flip(pixels(size, 8, 9, 3), torch.empty(0, dtype=torch.int64), 0)
    assert x.shape == (0, 3, 8, 9)


def outcomes(index: Tensor, seed: int, stream: int = 0) -> Tensor:
    """(down, right, flip) of each sample, read off images whose channels hold the pixel's row and column."""
    row, column = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    image = torch.stack([row, column], -1).byte()
    images = image.expand(int(index.max()) + 1, -1, -1, -1).contiguous()
    x = (ops.random_crop_flip(images, index, seed, stream=stream) * 255).round().long()
    # The middle pixel stays in the image, and so does its neighbour, which lies on the other side after a flip.
    flipped = x[:, 1, 5, 6] < x[:, 1, 5, 5]
    return torch.stack([x[:, 0, 5, 5] - 5, x[:, 1, 5, 5] - 5, flipped.long()], 1)


def numbered(drawn: Tensor) -> Tensor:
    return (drawn[:, 0] + 4) * 18 + (drawn[:, 1] + 4) * 2 + drawn[:, 2]


def test_every_offset_and_flip_is_drawn_equally_often() -> None:
    counts = numbered(outcomes(torch.arange(16200), 1)).bincount(minlength=162)
    assert len(counts) == 162
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("other", ["seed", "stream", "sample"])
def test_the_draws_of_two_streams_are_independent(other: str) -> None:
    """They agree in all three as often as chance has it: 1 in 162, 16200 draws within five standard deviations."""
    index = torch.arange(16200)
    first = numbered(outcomes(index, 1))
    second = {
        "seed": lambda: numbered(outcomes(index, 2)),
        "stream": lambda: numbered(outcomes(index, 1, stream=1)),
        "sample": lambda: first.roll(1),
    }[other]()
    assert abs(int((first == second).sum()) - 100) < 50


def test_the_draws_share_no_words_with_the_attacks_noise() -> None:
    """Where the noise of the same seed and samples moves the first pixel up, the crop does not move with it."""
    index = torch.arange(16200)
    noise = ops.random_start_linf(torch.zeros(16200, 4), 1.0, 1, index, lo=-1.0, hi=1.0)
    drawn = outcomes(index, 1)
    for word in range(3):
        places = (9, 9, 2)[word]
        from_noise = ((noise[:, word] + 1) / 2 * places).long() - (4 if word < 2 else 0)
        agree = int((from_noise == drawn[:, word]).sum())
        sigma = (16200 * (places - 1)) ** 0.5 / places
        assert abs(agree - 16200 / places) < 5 * sigma


def test_the_draw_follows_the_sample_through_any_split_and_order() -> None:
    images, index = pixels(60, 8, 8, 3), torch.arange(20) + 30
    whole = ops.random_crop_flip(images, index, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ops.random_crop_flip(images, index[order], 5), whole[order])
    parts = [ops.random_crop_flip(images, part, 5) for part in index.split([1, 7, 12])]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("seed", [0, 1, -7, 2**63 - 1, -(2**63)])
def test_a_seed_tensor_is_a_seed(seed: int) -> None:
    images, index = pixels(9, 8, 8, 1), samples(9)
    expected = ops.random_crop_flip(images, index, seed, stream=3)
    assert torch.equal(ops.random_crop_flip(images, index, torch.tensor([seed, 3])), expected)
    strided = torch.tensor([seed, 0, 3, 0])[::2]
    assert torch.equal(ops.random_crop_flip(images, index, strided), expected)
    assert torch.equal(
        ops.random_crop_flip(images, index, torch.tensor([seed])),
        ops.random_crop_flip(images, index, seed),
    )


def test_torch_draws_nothing_and_the_images_stay() -> None:
    images = pixels(9, 8, 8, 3)
    before, state = images.clone(), torch.get_rng_state()
    ops.random_crop_flip(images, samples(9), 0).zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
