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
