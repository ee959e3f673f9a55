"""The data sets of the recipes, by name."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from trainer.data.format import ZIP_ERRORS, DataError, ImageSet, read_image_set, write_image_set
from trainer.data.shards import is_index, read_index, refuse_tars
from trainer.data.sources.digits import read_digits
from trainer.data.sources.earth import read_earth, read_earth_x4
from trainer.data.sources.emoji import read_emoji
from trainer.data.sources.emoji64 import read_emoji64
from trainer.data.sources.fashion import read_fashion
from trainer.data.sources.given import read_given
from trainer.data.sources.selection import halved
from trainer.data.sources.sprites import read_sprites
from trainer.settings import Half, Split

# recipe name -> reader(source or None, split); digits come with a package and have no source
READERS: dict[str, Callable[[Path | None, Split], ImageSet]] = {
    "digits": lambda _, split: read_digits(split),
    "fashion": read_fashion,
    "sprites": read_sprites,
    "emoji": read_emoji,
    "emoji64": read_emoji64,
    "earth": read_earth,
    "earth-x4": read_earth_x4,
}
# The halves of these are of places or concepts and not of pictures: neighbouring crops overlap, and the drawings of a
# concept are alike.
HALVED_BY_READER: dict[str, Callable[[Path | None, Split, Half | None], ImageSet]] = {
    "emoji64": read_emoji64,
    "earth": read_earth,
    "earth-x4": read_earth_x4,
}


def read_recipe(name: str, source: Path | None, split: Split = "train", half: Half | None = None) -> ImageSet:
    """The images of a recipe, or half of them, from `source` or from where its package is usually found.

    Raises DataError: what to install.
    """
    if half and name in HALVED_BY_READER:
        return HALVED_BY_READER[name](source, split, half)
    images = READERS[name](source, split)
    return halved(images, half) if half else images


def read_data(path: Path, side: int) -> ImageSet:
    """The images that --data names: a dataset zip, an index of shards, or a folder or zip of pictures, which are
    resized to side x side.

    Raises DataError.
    """
    refuse_tars(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a data set (fewstep trainer data ...) or a folder of pictures")
    if path.is_dir():
        return read_given(path, side)
    if is_index(path):
        return read_index(path)
    try:
        with zipfile.ZipFile(path) as archive:
            own = "images.npy" in archive.namelist()
    except ZIP_ERRORS as error:
        raise DataError(f"{path} is not a fewstep dataset zip ({error})") from error
    return read_image_set(path) if own else read_given(path, side)


def load_recipe_dataset(name: str, cache: Path, split: Split = "train") -> ImageSet:
    """The images of a recipe, memory-mapped from `cache`/NAME.zip, which is made first where it is missing.

    The test split has a zip of its own, NAME-test.zip. Raises DataError: unknown name, or what to install.
    """
    if name not in READERS:
        raise DataError(f"there is no data recipe {name!r}; the recipes are {', '.join(READERS)}")
    path = cache / (f"{name}.zip" if split == "train" else f"{name}-{split}.zip")
    if not path.exists():
        write_image_set(path, READERS[name](None, split))
    return read_image_set(path)
