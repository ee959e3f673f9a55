"""The data set of EDM and StyleGAN: PNG files, and dataset.json with {"labels": [[file name, class], ...]}, in a zip or
in a folder."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import ZIP_ERRORS, DataError, ImageSet
from trainer.data.sources.archive import MAX_FILE_BYTES
from trainer.data.sources.pictures import SUFFIXES, read_pictures
from trainer.data.sources.selection import spread

INDEX = "dataset.json"
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
    files, labels = list_edm_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            chosen = spread(len(files), limit)

            def read(picture: str) -> bytes:
                member = picture.removeprefix(f"{path}: ")
                if archive.getinfo(member).file_size > MAX_FILE_BYTES:
                    raise DataError(f"{picture} is larger than {MAX_FILE_BYTES} bytes")
                return archive.read(member)

            pictures = [f"{path}: {files[index]}" for index in chosen]
            images = read_pictures(pictures, read, resolution=resolution, gray=gray)
    except ZIP_ERRORS as error:
        raise DataError(f"{path} is not a readable zip ({error})") from error
    names = class_names_of(labels, class_names, path)
    return ImageSet(name or path.stem, images, labels[chosen], names, licence, "EDM dataset zip")


def list_edm_zip(path: Path) -> tuple[list[str], NDArray[np.int32]]:
    """The names of the images, in order, and their labels [N]; -1 where there are none. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(name for name in archive.namelist() if _is_picture(PurePosixPath(name)))
            if not files:
                raise DataError(f"{path} holds no images")
            return files, _labels(archive.read(INDEX) if INDEX in archive.namelist() else None, path, files)
    except ZIP_ERRORS as error:
        raise DataError(f"{path} is not a readable zip ({error})") from error


def read_edm_folder(
    path: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    resolution: int | None = None,
    gray: bool | None = None,
    limit: int | None = None,
) -> ImageSet:
    """The same, unpacked: pictures under `path`, in the order of their names, with the labels of its dataset.json."""
    everything = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    seen = [file for file in everything if not any(part.startswith(".") for part in file.split("/"))]
    files = [file for file in seen if _is_picture(PurePosixPath(file))]
    if not files:
        raise DataError(f"{path} holds no images")
    labels = _labels((path / INDEX).read_bytes(), path, files)
    chosen = spread(len(files), limit)
    pictures = [str(path / files[index]) for index in chosen]
    images = read_pictures(pictures, lambda file: Path(file).read_bytes(), resolution=resolution, gray=gray)
    unread = tuple(file for file in seen if file != INDEX and file not in set(files))
    title = name or path.resolve().name
    return ImageSet(title, images, labels[chosen], class_names_of(labels, (), path), licence, "EDM data set", unread)


def class_names_of(labels: NDArray[np.int32], class_names: Sequence[str], path: Path) -> tuple[str, ...]:
    """The names given, or "0", "1", ... Raises DataError when fewer are given than there are classes."""
    classes = int(labels.max()) + 1
    if class_names and len(class_names) < classes:
        raise DataError(f"{path} has {classes} classes but {len(class_names)} class names were given")
    return tuple(class_names) or tuple(str(index) for index in range(classes))


def _is_picture(name: PurePosixPath) -> bool:
    return name.suffix.lower() in SUFFIXES and not name.name.startswith(".")


def _labels(content: bytes | None, path: Path, files: Sequence[str]) -> NDArray[np.int32]:
    """One label per file out of dataset.json, -1 for all when there is none."""
    if content is None:
        return np.full(len(files), -1, dtype=np.int32)
    try:
        index: Any = json.loads(content)
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
        raise DataError(f"{path}: dataset.json labels {absent[0]}, which is not in the data set: it is incomplete")
    labels = [by_file[file] for file in files]
    for file, label in zip(files, labels, strict=True):
        # bool is an int to Python, and StyleGAN also allows vectors: neither is a class index.
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise DataError(f"{path}: the label of {file} is {label!r}, not a class index")
    return np.array(labels, dtype=np.int32)
