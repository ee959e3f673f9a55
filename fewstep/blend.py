"""Noise between two seeds, on the circle through both: its variance is 1 all the way.

    n(mix) = cos(a) n(seed) + sin(a) n(other),    a = mix * pi / 2

The noise of two seeds is independent, so the sum of squares of the weights, 1, is the variance. Where all noise of an
image is mixed so, its initial noise and that of each re-noising, mix 0 is the image of one seed, 1 that of the other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.noise import STREAM_NOISE, normals


class Blend(NamedTuple):
    """The other seed, and how far the noise is on the way to it."""

    seed: int  # in [0, 2^63)
    mix: float  # in [0, 1]


def weights(mix: float) -> tuple[float, float]:
    """The weights of the seed's noise and of the other seed's noise; exact at both ends."""
    if mix in (0, 1):
        return 1.0 - mix, float(mix)
    return math.cos(mix * math.pi / 2), math.sin(mix * math.pi / 2)


def evenly(images: int) -> tuple[float, ...]:
    """Mixes of some images on the way from one seed to the other, both ends included; of one image, half way."""
    return tuple(i / (images - 1) for i in range(images)) if images > 1 else (0.5,)


def blend(
    noise: NDArray[np.float32], blends: Sequence[Blend | None], steps: NDArray[np.int64], stream: int = STREAM_NOISE
) -> None:
    """Mix unit normals [B, *shape] of step indices [B] with those of the other seeds, in place; None leaves a row."""
    rows = [row for row, each in enumerate(blends) if each is not None]
    if not rows:
        return
    chosen = [each for each in blends if each is not None]
    others = normals(np.array([each.seed for each in chosen], np.uint64), steps[rows], noise.shape[1:], stream)
    own, other = np.array([weights(each.mix) for each in chosen], np.float32).T.reshape(2, -1, *[1] * (noise.ndim - 1))
    noise[rows] = own * noise[rows] + other * others
