"""Splits and data sets hold what they say, or refuse it; the order of an epoch, and batches gathered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iaat_fast.data import ImageData, Split, epoch_order, fetch, load

IMAGES = torch.zeros(5, 8, 8, 1, dtype=torch.uint8)
LABELS = torch.arange(5)


def test_first_takes_at_most_all_samples() -> None:
    split = Split(IMAGES, LABELS)
    assert len(split) == 5
    assert split.first(2).labels.tolist() == [0, 1]
    assert len(split.first(9)) == 5
    with pytest.raises(ValueError, match="n: 0, expected at least 1"):
        split.first(0)


def test_to_moves_images_and_labels_of_both_splits() -> None:
    data = ImageData("own", Split(IMAGES, LABELS), Split(IMAGES, LABELS), 5).to("meta")
    devices = {
        tensor.device.type
        for split in (data.train, data.test)
        for tensor in (split.images, split.labels)
    }
    assert devices == {"meta"}
    assert (data.name, data.num_classes) == ("own", 5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "images: torch.float32 .*, expected uint8"),
        (IMAGES[..., 0], LABELS, r"images: .*\[5, 8, 8\]"),
        (IMAGES.reshape(5, 1, 8, 8), LABELS, r"images: \[5, 1, 8, 8\] looks like \[N, C, H, W\]"),
        (torch.zeros(5, 3, 32, 32, dtype=torch.uint8), LABELS, r"\[5, 3, 32, 32\] looks like"),
        (IMAGES, LABELS.int(), r"labels: torch.int32 .*, expected int64 \[5\]"),
        (IMAGES, LABELS[:4], r"labels: .* \[4\]"),
        (IMAGES, LABELS.to("meta"), "labels: on meta, expected on the images' device, cpu"),
    ],
)
def test_a_split_refuses_other_dtypes_shapes_and_devices(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize("shape", [(5, 3, 32, 3), (5, 1, 1, 1), (5, 8, 8, 12)])
def test_other_channels_last_are_no_channels_first(shape: tuple[int, ...]) -> None:
    assert Split(torch.zeros(shape, dtype=torch.uint8), LABELS).channels == shape[3]


def test_a_data_set_refuses_splits_and_labels_that_do_not_belong_together() -> None:
    split = Split(IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"^test: images \[4, 8, 1\], expected \[8, 8, 1\]"):
        ImageData("own", split, Split(IMAGES[:, :4], LABELS), 5)
    with pytest.raises(ValueError, match=r"^train: labels 0 \.\. 4, expected 0 \.\. 3"):
        ImageData("own", split, split.first(3), 4)
    with pytest.raises(ValueError, match=r"^test: labels -1 \.\. 3"):
        ImageData("own", split, Split(IMAGES, LABELS - 1), 5)


def random_split(n: int = 40, height: int = 32, width: int = 32, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(7)
    shape = (n, height, width, channels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (n,), generator=generator))


def test_epoch_order_is_a_permutation_of_all_samples() -> None:
    order = epoch_order(1437, seed=0, epoch=3)
    assert order.dtype == torch.int64
    assert order.device.type == "cpu"
    assert torch.equal(order.sort().values, torch.arange(1437))


def test_epoch_order_is_a_pure_function_of_its_arguments() -> None:
    before = torch.get_rng_state()
    first = epoch_order(500, seed=1, epoch=2)
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(first, epoch_order(500, seed=1, epoch=2))
    assert torch.equal(before, torch.get_rng_state())


def test_every_seed_and_epoch_has_its_own_order() -> None:
    orders = {
        tuple(epoch_order(100, seed=seed, epoch=epoch).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


@pytest.mark.parametrize("bad", [{"n": -1}, {"seed": -1}, {"epoch": -1}])
def test_epoch_order_refuses_negative_arguments(bad: dict[str, int]) -> None:
    arguments = {"n": 10, "seed": 0, "epoch": 0} | bad
    name = next(iter(bad))
    with pytest.raises(ValueError, match=rf"^{name}: .*-1"):
        epoch_order(arguments["n"], seed=arguments["seed"], epoch=arguments["epoch"])


def test_fetch_gathers_exact_pixels_in_the_order_of_the_index() -> None:
    split = random_split()
    index = torch.tensor([5, 0, 39, 5])
    x, y = fetch(split, index)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.equal(x, split.images[index].permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(y, split.labels[index])


def test_fetch_leaves_the_data_alone() -> None:
    split = random_split()
    images = split.images.clone()
    x, y = fetch(split, torch.arange(40))
    x.zero_()
    y.zero_()
    assert torch.equal(split.images, images)
    assert split.labels.any()


def test_fetch_of_no_samples_is_an_empty_batch() -> None:
    x, y = fetch(random_split(), torch.empty(0, dtype=torch.int64))
    assert x.shape == (0, 3, 32, 32)
    assert y.shape == (0,)


@pytest.mark.parametrize("bad", [[-1, 0], [0, 40]])
def test_fetch_refuses_numbers_outside_the_split(bad: list[int]) -> None:
    with pytest.raises(IndexError, match=r"index: -?\d+ \.\. -?\d+, expected numbers in 0 \.\. 39"):
        fetch(random_split(), torch.tensor(bad))


def test_fetch_refuses_an_index_that_is_no_vector_of_int64() -> None:
    with pytest.raises(TypeError, match=r"index: torch\.int32, expected int64"):
        fetch(random_split(), torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"index: \[2, 1\], expected shape \[B\]"):
        fetch(random_split(), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.gpu
def test_the_gpu_gathers_the_same_batch() -> None:
    split, index = random_split(), torch.arange(40)
    x, y = fetch(split, index)
    x_gpu, y_gpu = fetch(split.to("cuda"), index)
    assert x_gpu.device.type == "cuda"
    assert torch.equal(x, x_gpu.cpu())
    assert torch.equal(y, y_gpu.cpu())


def test_counts_of_numpy_are_counts() -> None:
    assert len(Split(IMAGES, LABELS).first(np.int64(2))) == 2
    assert len(load("digits", limit=np.int64(3)).train) == 3
    order = epoch_order(np.int64(5), seed=np.int64(1), epoch=np.int64(2))
    assert torch.equal(order, epoch_order(5, seed=1, epoch=2))
