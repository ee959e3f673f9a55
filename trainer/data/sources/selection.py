"""Selects images of a source: a fixed hold-out, no duplicates, an even subset."""

import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_ONE_IN = 10


class Item(NamedTuple):
    label: int
    concept: str  # drawings of one concept are nearly equal, so they are all train or all test
    pixels: NDArray[np.uint8]  # [H, W, C]


def in_split(concept: str, split: Split) -> bool:
    """Whether a concept is in a split, for sources without one: a fixed tenth of the concepts is held out."""
    held_out = zlib.crc32(concept.encode()) % HELD_OUT_ONE_IN == 0
    return held_out == (split == "test")


def select(items: Iterable[Item], split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images [N, H, W, C] and labels [N] of one split. Of identical images in any splits the first is used."""
    seen: set[bytes] = set()
    kept: list[Item] = []
    for item in items:
        content = item.pixels.tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(item)
    kept = [item for item in kept if in_split(item.concept, split)]
    if not kept:
        raise DataError(f"the source holds no images for the {split} split")
    return np.stack([item.pixels for item in kept]), np.array([item.label for item in kept], dtype=np.int32)


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """Indices of `limit` of `count` images, evenly spaced, so that sources sorted by class keep all classes."""
    if limit is None or limit >= count:
        return np.arange(count)
    if limit < 1:
        raise DataError(f"--limit must be positive, not {limit}")
    return np.arange(limit) * count // limit


def limit_images(images: ImageSet, limit: int | None) -> ImageSet:
    """At most `limit` images, evenly spaced."""
    chosen = spread(len(images.images), limit)
    if len(chosen) == len(images.images):
        return images
    return replace(images, images=images.images[chosen], labels=images.labels[chosen])
