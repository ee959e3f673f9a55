"""A folder of images; each subfolder is a class."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.edm_zip import INDEX, read_edm_folder
from trainer.data.sources.pictures import SUFFIXES, read_pictures
from trainer.data.sources.selection import spread


def read_folder(
    path: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    resolution: int | None = None,
    gray: bool = False,
    limit: int | None = None,
) -> ImageSet:
    """Images under `path` in the order of their names, cropped to the centre square and resized.

    Subfolders are classes, in the order of their names, and may be nested inside; without subfolders there is no
    class and labels are -1. A folder with a dataset.json is EDM's data set, and its labels are taken from there.
    Transparent parts become white. Hidden files and folders are passed over; files that are no pictures are counted
    and named (`ImageSet.unread`). Raises DataError, which names every picture that cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    if (path / INDEX).is_file():
        return read_edm_folder(
            path, name=name, licence=licence, resolution=resolution, gray=gray or None, limit=limit
        )  # fmt: skip
    for entry in path.iterdir():
        _check_name(entry)
    loose = _images(path.iterdir())
    folders = sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )
    if folders and loose:
        raise DataError(f"{loose[0]} lies beside class folders; put every image into a class folder, or none")
    groups = {folder.name: _images(_visible(folder)) for folder in folders}
    for class_name, files in groups.items():
        if not files:
            raise DataError(f"the class folder {path / class_name} holds no images; remove it or fill it")
    files = [file for group in groups.values() for file in group] or loose
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()]).astype(np.int32)
    if not groups:
        labels = np.full(len(files), -1, dtype=np.int32)
    chosen = spread(len(files), limit)
    images = read_pictures([str(files[index]) for index in chosen], _read_bytes, resolution=resolution, gray=gray)
    return ImageSet(
        name or path.resolve().name, images, labels[chosen], tuple(groups), licence, "image folder", _unread(path)
    )


def _check_name(entry: Path) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {os.fsencode(entry)!r} is not UTF-8; rename it") from None


def _images(entries: Iterable[Path]) -> list[Path]:
    return sorted(
        entry for entry in entries
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )  # fmt: skip


def _visible(folder: Path) -> list[Path]:
    """All files and folders below it, without hidden ones and what lies in them."""
    found = (entry for entry in folder.rglob("*"))
    return [
        entry for entry in found
        if not any(part.startswith(".") or part == "__MACOSX" for part in entry.relative_to(folder).parts)
    ]  # fmt: skip


def _unread(path: Path) -> tuple[str, ...]:
    others = [entry for entry in _visible(path) if entry.is_file() and entry.suffix.lower() not in SUFFIXES]
    return tuple(sorted(entry.relative_to(path).as_posix() for entry in others))


def _read_bytes(name: str) -> bytes:
    return Path(name).read_bytes()
