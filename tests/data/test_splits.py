"""Splits and data sets hold what they say, or refuse it."""

from __future__ import annotations

import pytest
import torch

from iaat_fast.data import ImageData, Split

IMAGES = torch.zeros(5, 8, 8, 1, dtype=torch.uint8)
LABELS = torch.arange(5)


def test_first_takes_at_most_all_samples() -> None:
    split = Split(IMAGES, LABELS)
    assert len(split) == 5
    assert split.first(2).labels.tolist() == [0, 1]
    assert len(split.first(9)) == 5
    with pytest.raises(ValueError, match="n: expected at least 1 sample, got 0"):
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
        (IMAGES.float(), LABELS, "images: expected uint8 .* got torch.float32"),
        (IMAGES[..., 0], LABELS, r"images: .*\[5, 8, 8\]"),
        (IMAGES.reshape(5, 1, 8, 8), LABELS, r"images: \[5, 1, 8, 8\] looks like \[N, C, H, W\]"),
        (torch.zeros(5, 3, 32, 32, dtype=torch.uint8), LABELS, r"\[5, 3, 32, 32\] looks like"),
        (IMAGES, LABELS.int(), r"labels: expected int64 \[5\], .* torch.int32"),
        (IMAGES, LABELS[:4], r"labels: .* \[4\]"),
        (IMAGES, LABELS.to("meta"), "labels: expected on the images' device cpu, got meta"),
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
