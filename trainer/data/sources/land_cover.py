"""What a square piece of a map of the Earth shows: one of six classes, from water, height and colour.

A place is the upper left corner of a square of `side` pixels. Its class is the first one that holds:

ocean                 more than 97 % of the pixels are water
coast                 more than 15 % are water
snow and ice          more than 20 % of the land is snow: bright (all colours above 100 of 255) and gray (they differ by
                      less than 28)
highlands             the land's mean height is above 60 of 255
forest and grassland  at least half of the land is not bare; bare is a pixel with red above 72 of 255 and a vegetation
                      index (2G - R - B) / (R + G + B) below 0.15
desert                the rest
"""

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("ocean", "coast", "desert", "forest and grassland", "highlands", "snow and ice")
OCEAN, COAST, DESERT, GREEN, HIGHLANDS, SNOW = range(len(CLASS_NAMES))
OCEAN_WATER, COAST_WATER, SNOW_SHARE, BARE_SHARE = 0.97, 0.15, 0.2, 0.5
MEAN_HEIGHT = 60
SNOW_DARKEST, SNOW_SPREAD = 100, 28
BARE_RED, BARE_INDEX = 72, 0.15


def classes_of_places(
    colours: NDArray[np.uint8], water: NDArray[np.bool_], height: NDArray[np.uint8], side: int
) -> NDArray[np.int8]:
    """int8 [H - side + 1, W - side + 1], the class of every place.

    colours: uint8 [H, W, 3]. water: bool [H, W]. height: uint8 [H, W].
    """
    land = ~water
    of_land = np.maximum(window_sums(land, side), 1)
    share_of_water = window_sums(water, side) / side**2
    snow = window_sums(land & is_snow(colours), side) / of_land
    bare = window_sums(land & is_bare(colours), side) / of_land
    mean_height = window_sums(np.where(land, height, 0), side) / of_land
    # np.select takes the first condition that holds.
    conditions = [
        share_of_water > OCEAN_WATER, share_of_water > COAST_WATER, snow > SNOW_SHARE, mean_height > MEAN_HEIGHT,
        bare <= BARE_SHARE,
    ]  # fmt: skip
    return np.select(conditions, [OCEAN, COAST, SNOW, HIGHLANDS, GREEN], DESERT).astype(np.int8)


def is_snow(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[..., 3] -> [...]"""
    darkest, brightest = colours.min(-1), colours.max(-1)
    return (darkest > SNOW_DARKEST) & (brightest - darkest < SNOW_SPREAD)


def is_bare(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[..., 3] -> [...]: bright enough to be seen as brown, yellow or red, and not green."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return (red > BARE_RED) & (2 * green - red - blue < BARE_INDEX * (red + green + blue))


def window_sums(values: NDArray, side: int) -> NDArray[np.int64]:
    """[H, W] -> [H - side + 1, W - side + 1]: the sum over the square whose upper left corner is here."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.int64)
    np.cumsum(values, axis=0, dtype=np.int64, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
