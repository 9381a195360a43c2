"""The order of an epoch, and batches gathered and augmented."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from iaat_fast.data import Split, epoch_order, fetch


def random_split(n: int = 40, height: int = 32, width: int = 32, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(7)
    shape = (n, height, width, channels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (n,), generator=generator))


def all_crops(image: torch.Tensor) -> torch.Tensor:
    """[162, C, H, W]: torch's own reflect padding by 4, cropped everywhere, plain and flipped."""
    height, width, _ = image.shape
    x = image.permute(2, 0, 1).float() / 255
    padded = F.pad(x[None], (4, 4, 4, 4), mode="reflect")[0]
    crops = [
        padded[:, top : top + height, left : left + width] for top in range(9) for left in range(9)
    ]
    return torch.stack([side for crop in crops for side in (crop, crop.flip(2))])


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


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (8, 8, 1), (5, 11, 3)])
def test_augmented_images_are_crops_of_the_reflect_padded_image(
    height: int, width: int, channels: int
) -> None:
    split = random_split(40, height, width, channels)
    x, y = fetch(split, torch.arange(40), augment=True)
    assert torch.equal(y, split.labels)
    for image, augmented in zip(split.images, x, strict=True):
        assert (augmented == all_crops(image)).flatten(1).all(1).any()


def test_augmentation_draws_every_offset_and_flip_equally_often() -> None:
    split = random_split(1)
    draws = 4000
    generator = torch.Generator().manual_seed(1)
    x, _ = fetch(split, torch.zeros(draws, dtype=torch.int64), augment=True, generator=generator)
    crops = all_crops(split.images[0])[:, 0].flatten(1)
    drawn = torch.tensor([(crop == crops).all(1).nonzero().item() for crop in x[:, 0].flatten(1)])
    for outcome, sides in ((drawn // 18, 9), (drawn // 2 % 9, 9), (drawn % 2, 2)):
        counts = outcome.bincount(minlength=sides)
        five_sigma = 5 * (draws * (sides - 1)) ** 0.5 / sides
        assert ((counts - draws / sides).abs() < five_sigma).all()


def test_fetch_is_a_pure_function_of_index_and_generator_state() -> None:
    split, index = random_split(), torch.arange(40)
    x, _ = fetch(split, index, augment=True, generator=torch.Generator().manual_seed(3))
    torch.rand(5)
    again, _ = fetch(split, index, augment=True, generator=torch.Generator().manual_seed(3))
    other, _ = fetch(split, index, augment=True, generator=torch.Generator().manual_seed(4))
    assert torch.equal(x, again)
    assert not torch.equal(x, other)


def test_fetch_without_augmentation_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    fetch(random_split(), torch.arange(4), generator=generator)
    assert torch.equal(before, generator.get_state())


def test_fetch_leaves_the_data_alone() -> None:
    split = random_split()
    images = split.images.clone()
    x, y = fetch(split, torch.arange(40), augment=True)
    x.zero_()
    y.zero_()
    assert torch.equal(split.images, images)
    assert split.labels.any()


@pytest.mark.parametrize("augment", [False, True])
def test_fetch_of_no_samples_is_an_empty_batch(augment: bool) -> None:
    x, y = fetch(random_split(), torch.empty(0, dtype=torch.int64), augment=augment)
    assert x.shape == (0, 3, 32, 32)
    assert y.shape == (0,)


@pytest.mark.parametrize("bad", [[-1, 0], [0, 40]])
def test_fetch_refuses_numbers_outside_the_split(bad: list[int]) -> None:
    with pytest.raises(IndexError, match=r"index: expected numbers in 0 \.\. 39, got -?\d+ \.\."):
        fetch(random_split(), torch.tensor(bad))


def test_fetch_refuses_an_index_that_is_no_vector_of_int64() -> None:
    with pytest.raises(TypeError, match=r"index: expected int64, got torch\.int32"):
        fetch(random_split(), torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"index: expected shape \[B\], got \[2, 1\]"):
        fetch(random_split(), torch.zeros(2, 1, dtype=torch.int64))


def test_augmentation_refuses_images_too_small_to_reflect() -> None:
    with pytest.raises(ValueError, match=r"augment: images of 4 x 8 .* at least 5 x 5"):
        fetch(random_split(3, 4, 8), torch.arange(3), augment=True)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_batch_on_the_gpu() -> None:
    split, index = random_split(), torch.arange(40)
    x, y = fetch(split, index, augment=True, generator=torch.Generator().manual_seed(3))
    x_gpu, y_gpu = fetch(
        split.to("cuda"), index, augment=True, generator=torch.Generator().manual_seed(3)
    )
    assert x_gpu.device.type == "cuda"
    assert torch.equal(x, x_gpu.cpu())
    assert torch.equal(y, y_gpu.cpu())
