"""How much detail images have at every scale: the radial power spectrum, beside that of real images. Numpy."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [N, H, W, C], square


def radial_power(pixels: Pixels, block: int = 1000) -> NDArray[np.float64]:
    """Mean squared Fourier coefficient at radius 0, 1, .., side / 2 (cycles per image): [side // 2 + 1].

    pixels: uint8 [N, H, W, C], N from 1 up. A coefficient belongs to the nearest whole radius; the corners of the
    plane beyond side / 2 are left out. The mean is over images, channels and directions.
    """
    side = pixels.shape[1]
    frequency = np.fft.fftfreq(side, 1 / side)
    radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(np.int64)
    total = np.zeros((side, side))
    for first in range(0, len(pixels), block):
        part = pixels[first : first + block].astype(np.float64)
        total += np.square(np.abs(np.fft.fft2(part, axes=(1, 2), norm="ortho"))).mean(axis=3).sum(axis=0)
    sums = np.bincount(radius.ravel(), (total / len(pixels)).ravel())
    return (sums / np.bincount(radius.ravel()))[: side // 2 + 1]


def power_ratios(generated: Pixels, real: Pixels) -> NDArray[np.float64]:
    """Power of generated over real images at radius 1 .. side / 2 - 1: [side // 2 - 1]. 1 everywhere is perfect.

    Radius 0 is the mean brightness, and the last one holds the highest frequencies of single directions: both are left
    out. Raises ValueError where real images have no power at all.
    """
    ours, theirs = (radial_power(images)[1:-1] for images in (generated, real))
    if (theirs == 0).any():
        raise ValueError("the real images have no power at some radius: they are all of one colour")
    return ours / theirs


def spectrum_deviation(generated: Pixels, real: Pixels) -> float:
    """The largest |ratio - 1| over the radii of `power_ratios`: 0.05 says that no scale is off by more than 5 %."""
    return float(np.abs(power_ratios(generated, real) - 1).max())
