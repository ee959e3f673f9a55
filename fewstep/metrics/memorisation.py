"""Does a generator copy its training images? Nearest training images of its output, beside those of held-out images.

Generated images of a model that has learnt the distribution are as far from the training images as unseen real images
are; those of a model that copies are nearer. No distance between distributions shows this: a copy of the training set
has distance zero.
"""

from dataclasses import dataclass

import numpy as np

from fewstep.metrics.nearest import Nearest

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75)
THRESHOLD = 0.01  # the quantile of the held-out distances below which an image counts as close


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, in whatever space they were taken."""

    images: int
    quantiles: dict[float, float]  # of the generated images
    held_out_images: int
    held_out_quantiles: dict[float, float]
    share_close: float  # generated images closer than the held-out 1 % quantile: 0.01 where nothing is memorised


def memorisation(generated: Nearest, held_out: Nearest) -> Memorisation:
    """Compare the nearest training images of generated and of real held-out images."""
    threshold = np.quantile(held_out.distance, THRESHOLD)
    return Memorisation(
        images=len(generated.distance),
        quantiles=_quantiles(generated),
        held_out_images=len(held_out.distance),
        held_out_quantiles=_quantiles(held_out),
        share_close=float((generated.distance < threshold).mean()),
    )


def closest_pairs(found: Nearest, count: int = 16) -> list[tuple[int, int]]:
    """(generated image, its nearest training image) of the `count` smallest distances, closest first."""
    order = np.argsort(found.distance, kind="stable")[:count]
    return [(int(i), int(found.row[i])) for i in order]


def _quantiles(found: Nearest) -> dict[float, float]:
    return {q: float(np.quantile(found.distance, q)) for q in QUANTILES}
