"""The 19 corruptions, and AlexNet's errors under the 15 main ones, by which mCE is normalised."""

from __future__ import annotations

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error on ImageNet-C, the mean of the five severities (Hendrycks and Dietterich 2019)."""

MAIN: tuple[str, ...] = tuple(ALEXNET_ERRORS)
"""The 15 of which ImageNet-C's mCE is made."""

ALL: tuple[str, ...] = (*MAIN, "speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 19 of CIFAR-10-C and CIFAR-100-C."""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
