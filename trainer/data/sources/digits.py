"""Recipe `digits`: 1,797 handwritten digits of 8x8 pixels that scikit-learn carries. For tests and first runs."""

import numpy as np

from trainer.data.format import ImageSet
from trainer.data.sources.selection import in_split
from trainer.settings import Split

LICENCE = "CC BY 4.0 (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI)"


def read_digits(split: Split = "train") -> ImageSet:
    """Gray [N, 8, 8, 1]; their 17 levels 0..16 are spread over 0..255."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    chosen = np.array([in_split(str(index), split) for index in range(len(pixels))])
    names = tuple(str(digit) for digit in range(10))
    return ImageSet(
        "digits", pixels[chosen], labels[chosen].astype(np.int32), names, LICENCE, "scikit-learn load_digits"
    )
