"""Selects images of a source: a fixed hold-out, no duplicates, an even subset."""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet
from trainer.settings import HALVES, Half, Split

HELD_OUT_ONE_IN = 10


class Item(NamedTuple):
    label: int
    concept: str  # drawings of one concept are nearly equal, so they are all train or all test
    pixels: NDArray[np.uint8]  # [H, W, C]


def in_split(concept: str, split: Split) -> bool:
    """Whether a concept is in a split, for sources without one: a fixed tenth of the concepts is held out."""
    held_out = zlib.crc32(concept.encode()) % HELD_OUT_ONE_IN == 0
    return held_out == (split == "test")


def half_of(concept: str) -> Half:
    """The half that all drawings of a concept belong to, for sources that halve themselves."""
    return HALVES[zlib.crc32(f"half {concept}".encode()) % len(HALVES)]


def select(
    items: Iterable[Item], split: Split, half: Half | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images [N, H, W, C] and labels [N] of one split, or of the concepts of one half of it.

    Of identical images in any splits the first is used. Raises DataError when there are none.
    """
    seen: set[bytes] = set()
    kept: list[Item] = []
    for item in items:
        content = item.pixels.tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(item)
    kept = [item for item in kept if in_split(item.concept, split) and half in (None, half_of(item.concept))]
    if not kept:
        raise DataError(f"the source holds no images for the {split} split" + (f", half {half}" if half else ""))
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


def halved(images: ImageSet, half: Half) -> ImageSet:
    """Half of a set, the same images for ever. Networks are trained on `a`, the panel's own extractor on `b`.

    Of every class (and of the images without one) half `a` has the images whose SHA-256 of the pixels is smaller, and
    the odd one; so both halves have the classes' shares, and the order of the set does not matter. Raises DataError
    for a set that is too small to be halved.
    """
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images.images])
    chosen: list[NDArray[np.int64]] = []
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        ordered = members[np.argsort(digests[members], kind="stable")]
        first = -(-len(ordered) // 2)
        chosen.append(ordered[:first] if half == "a" else ordered[first:])
    rows = np.sort(np.concatenate(chosen)) if chosen else np.array([], np.int64)
    if not len(rows):
        raise DataError(f"{images.name} has {len(images.images)} images, too few for a half {half}")
    return replace(
        images, name=f"{images.name}-{half}", images=images.images[rows], labels=images.labels[rows],
        source=f"{images.source}, half {half}",
    )  # fmt: skip
