"""The embedded default: scikit-learn's 1,797 handwritten digits, 8x8, split 1,437 / 360."""

from __future__ import annotations

import numpy as np
import torch

from iaat_fast.data.splits import ImageData, Split


def load_digits() -> ImageData:
    """The UCI repository's optical digits (Alpaydin and Kaynak, 1998) as scikit-learn embeds them.

    The split is stratified by class and always the same.
    """
    from sklearn.datasets import load_digits as embedded_digits
    from sklearn.model_selection import train_test_split

    digits = embedded_digits()
    # Values are whole numbers 0..16; rounded to the nearest of 0..255, 16 becomes 255.
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(-1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0
    )
    return ImageData(
        "digits", Split(images[train], labels[train]), Split(images[test], labels[test]), 10
    )
