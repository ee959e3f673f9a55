"""Reads all kinds of pictures a user can name: a folder, a zip of one, EDM's zip, a data set, an index, IDX files."""

import json
import zipfile
from pathlib import Path

from trainer.data.format import ZIP_ERRORS, DataError, ImageSet, read_image_set
from trainer.data.shards import is_index, read_index, refuse_tars
from trainer.data.sources.edm_zip import INDEX, read_edm_zip
from trainer.data.sources.folder import read_folder
from trainer.data.sources.idx import read_idx
from trainer.data.sources.zipped_folder import read_zip

IDX_IMAGES, IDX_LABELS = "images-idx3", "labels-idx1"
KINDS = (
    "a folder of pictures, a zip of one, EDM's dataset zip, a data set or an index of shards of `trainer data`, or an "
    "IDX file of images"
)
DEFAULT_SIDE = 32


def read_given(path: Path, side: int | None) -> ImageSet:
    """Images of `side` x `side` pixels (None: 32 for pictures, the stored size for data sets, indices and IDX files).

    Raises DataError when the path does not exist, is of no such kind, or is a data set of another size.
    """
    refuse_tars(path)
    if path.is_dir():
        if idx := sorted(path.glob(f"*{IDX_IMAGES}*")):
            train = [file for file in idx if file.name.startswith("train")]
            return _check_size(_idx((train or idx)[0]), side, path)
        return read_folder(path, resolution=side or DEFAULT_SIDE)
    if not path.exists():
        raise DataError(f"{path} does not exist; name {KINDS}")
    if is_index(path):
        return _check_size(read_index(path), side, path)
    if zipfile.is_zipfile(path):
        return _zip(path, side)
    if IDX_IMAGES in path.name:
        return _check_size(_idx(path), side, path)
    raise DataError(f"{path} is none of what can be read: {KINDS}")


def _check_size(images: ImageSet, side: int | None, path: Path) -> ImageSet:
    own = images.images.shape[1]
    if side and side != own:
        raise DataError(f"{path} holds images of {own}x{own}; leave --size {side} out")
    return images


def _idx(images: Path) -> ImageSet:
    labels = images.with_name(images.name.replace(IDX_IMAGES, IDX_LABELS))
    if not labels.is_file():
        raise DataError(f"{images} has no labels beside it: {labels} does not exist")
    return read_idx(images, labels, pad=True, name=images.parent.name or images.stem)


def _zip(path: Path, side: int | None) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            named = INDEX in archive.namelist()
            index = json.loads(archive.read(INDEX)) if named else None
    except (*ZIP_ERRORS, ValueError) as error:
        raise DataError(f"{path}: its {INDEX} cannot be read ({error})") from error
    if isinstance(index, dict) and "format" in index:
        return _check_size(read_image_set(path), side, path)
    if named:
        return read_edm_zip(path, resolution=side or DEFAULT_SIDE)
    return read_zip(path, resolution=side or DEFAULT_SIDE)
