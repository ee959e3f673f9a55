"""The dataset zip of EDM and StyleGAN: PNG files, and dataset.json with {"labels": [[file name, class], ...]}."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.archive import MAX_FILE_BYTES
from trainer.data.sources.pictures import SUFFIXES, read_pictures
from trainer.data.sources.selection import spread

MAX_CLASSES = 65_536  # a larger index is a damaged label, not a class


def read_edm_zip(
    path: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    resolution: int | None = None,
    gray: bool | None = None,
    limit: int | None = None,
    class_names: Sequence[str] = (),
) -> ImageSet:
    """Images in the order of their names. Labels may be null or absent: then every label is -1.

    gray: None is as the first image. class_names: the format has none; without them classes are "0", "1", ...
    Raises DataError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(name for name in archive.namelist() if _is_picture(PurePosixPath(name)))
            if not files:
                raise DataError(f"{path} holds no images")
            labels = _labels(archive, path, files)
            chosen = spread(len(files), limit)

            def read(picture: str) -> bytes:
                member = picture.removeprefix(f"{path}: ")
                if archive.getinfo(member).file_size > MAX_FILE_BYTES:
                    raise DataError(f"{picture} is larger than {MAX_FILE_BYTES} bytes")
                return archive.read(member)

            pictures = [f"{path}: {files[index]}" for index in chosen]
            images = read_pictures(pictures, read, resolution=resolution, gray=gray)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise DataError(f"{path} is not a readable zip ({error})") from error
    classes = int(labels.max()) + 1
    if class_names and len(class_names) < classes:
        raise DataError(f"{path} has {classes} classes but {len(class_names)} class names were given")
    names = tuple(class_names) or tuple(str(index) for index in range(classes))
    return ImageSet(name or path.stem, images, labels[chosen], names, licence, "EDM dataset zip")


def _is_picture(name: PurePosixPath) -> bool:
    return name.suffix.lower() in SUFFIXES and not name.name.startswith(".")


def _labels(archive: zipfile.ZipFile, path: Path, files: Sequence[str]) -> NDArray[np.int32]:
    """One label per file, -1 for all when the zip has none."""
    if "dataset.json" not in archive.namelist():
        return np.full(len(files), -1, dtype=np.int32)
    try:
        index: Any = json.loads(archive.read("dataset.json"))
        pairs = index.get("labels")
        if pairs is None:
            return np.full(len(files), -1, dtype=np.int32)
        by_file = dict(pairs)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: dataset.json is not {{"labels": [[file, class], ...]}} ({error})') from error
    missing = [file for file in files if file not in by_file]
    if missing:
        raise DataError(f"{path}: {missing[0]} has no label, and {len(missing) - 1} others have none either")
    if len(by_file) > len(files):
        absent = sorted(set(by_file) - set(files), key=str)
        raise DataError(f"{path}: dataset.json labels {absent[0]}, which is not in the zip: it is incomplete")
    labels = [by_file[file] for file in files]
    for file, label in zip(files, labels, strict=True):
        # bool is an int to Python, and StyleGAN also allows vectors: neither is a class index.
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise DataError(f"{path}: the label of {file} is {label!r}, not a class index")
    return np.array(labels, dtype=np.int32)
