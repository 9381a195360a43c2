"""What an image file's pixels become, by their mode and depth, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from iaat_fast.data import UnreadableImage
from iaat_fast.data.decoding import read_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(folder: Path, image: Image.Image, ending: str, **how: object) -> Path:
    path = folder / f"image.{ending}"
    image.save(path, **how)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("low", [0, 255])
@pytest.mark.parametrize("ending", ["png", "tiff", "pgm", "jp2"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, ending: str, low: int) -> None:
    wide = RAMP.astype(np.uint16) * 256 + low
    path = saved(tmp_path, Image.fromarray(wide), ending)
    assert np.array_equal(pixels(path), np.stack([RAMP] * 3, -1))


def test_sixteen_bits_of_the_other_byte_order_are_the_same(tmp_path: Path) -> None:
    wide = RAMP.astype(np.uint16) * 256 + 7
    big = Image.frombytes("I;16B", (16, 16), wide.astype(">u2").tobytes())
    assert np.array_equal(pixels(saved(tmp_path, big, "tiff"))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "tiff")],
)
def test_modes_of_eight_bits_keep_black_and_white(tmp_path: Path, mode: str, ending: str) -> None:
    halves = np.zeros((4, 4), np.uint8)
    halves[2:] = 255
    image = Image.fromarray(halves).convert("RGB").convert(mode)
    assert np.array_equal(pixels(saved(tmp_path, image, ending)), np.stack([halves] * 3, -1))


def test_alpha_and_all_frames_after_the_first_are_ignored(tmp_path: Path) -> None:
    seen = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    other = Image.new("RGBA", (4, 4), (200, 200, 200, 255))
    path = saved(tmp_path, seen, "png", save_all=True, append_images=[other])
    assert (pixels(path) == (10, 20, 30)).all()


def unscaled(kind: str) -> tuple[Image.Image, dict[str, object]]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if kind == "F":
        return Image.fromarray(RAMP.astype(np.float32)), {}
    if kind == "I":
        return Image.fromarray(RAMP.astype(np.int32)), {}
    tags[262] = 0  # white is zero
    return Image.fromarray(RAMP.astype(np.uint16)), {"tiffinfo": tags}


@pytest.mark.parametrize("kind", ["F", "I", "I;16"])
def test_pixels_whose_white_nothing_says_are_refused(tmp_path: Path, kind: str) -> None:
    image, how = unscaled(kind)
    path = saved(tmp_path, image, "tiff", **how)
    message = rf"image\.tiff: TIFF with pixels of PIL's mode {kind}, expected 8 or 16 bits"
    with pytest.raises(UnreadableImage, match=message):
        read_rgb(path)
