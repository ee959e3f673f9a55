"""A folder of images; each subfolder is a class."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainer.data.format import DataError, ImageSet
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
    class and labels are -1. Transparent parts become white. Files that do not look like images and hidden ones are
    skipped; one that looks like an image and is not is refused by name. Raises DataError.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    for entry in path.iterdir():
        _check_name(entry)
    loose = _images(path.iterdir())
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if folders and loose:
        raise DataError(f"{loose[0]} lies beside class folders; put every image into a class folder, or none")
    groups = {folder.name: _images(folder.rglob("*")) for folder in folders}
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
    return ImageSet(name or path.resolve().name, images, labels[chosen], tuple(groups), licence, "image folder")


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


def _read_bytes(name: str) -> bytes:
    return Path(name).read_bytes()
