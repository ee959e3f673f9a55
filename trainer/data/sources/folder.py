"""A folder of images; each subfolder is a class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet, printable
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
    and named (`ImageSet.unread`). Links are followed. Raises DataError, which names every picture that cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    if (path / INDEX).is_file():
        return read_edm_folder(
            path, name=name, licence=licence, resolution=resolution, gray=gray or None, limit=limit
        )  # fmt: skip
    for entry in path.iterdir():
        _check_name(entry)
    visible = [PurePosixPath(file.relative_to(path)) for file in sorted(_visible_files(path))]
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    unread = tuple(str(file) for file in visible if not is_picture(file))
    if len(unread) == len(visible):
        raise nothing_to_read(path, unread)
    listed = list_by_class([file for file in visible if is_picture(file)], classes, path)
    chosen = spread(len(listed.files), limit)
    pictures = [str(path / listed.files[index]) for index in chosen]
    images = read_pictures(pictures, _read_bytes, resolution=resolution, gray=gray)
    title = name or path.resolve().name
    return ImageSet(title, images, listed.labels[chosen], listed.classes, licence, "image folder", unread)


def nothing_to_read(path: Path, unread: Sequence[str]) -> DataError:
    """unread: the files of other kinds that are there instead."""
    usual = "such as .jpg, .png, .webp or .gif"
    if not unread:
        return DataError(f"{path} holds no images: no file of a kind that is read, {usual}")
    names = f"{', '.join(map(printable, unread[:3]))}{' and so on' * (len(unread) > 3)}"
    return DataError(f"{path} holds no images of a kind that is read, {usual}; its files are {names}")


class Listed(NamedTuple):
    files: list[PurePosixPath]  # class by class
    labels: NDArray[np.int32]  # [N], -1 where there are no classes
    classes: tuple[str, ...]


def list_by_class(pictures: Sequence[PurePosixPath], classes: Sequence[str], place: Path) -> Listed:
    """Pictures by their paths below `place`, sorted, of which the first parts are classes. Raises DataError where it
    is not clear which class a picture is of, or a class has none."""
    loose = [file for file in pictures if len(file.parts) == 1]
    if classes and loose:
        raise DataError(f"{place / loose[0]} lies beside class folders; put every image into a class folder, or none")
    groups: dict[str, list[PurePosixPath]] = {name: [] for name in classes}
    for file in pictures if classes else ():
        groups[file.parts[0]].append(file)
    for name, files in groups.items():
        if not files:
            raise DataError(f"the class folder {place / name} holds no images; remove it or fill it")
    files = [file for group in groups.values() for file in group] or loose
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()]).astype(np.int32)
    return Listed(files, labels if groups else np.full(len(files), -1, np.int32), tuple(groups))


def _visible_files(folder: Path, around: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below a folder and below folders it links to, without hidden ones and what lies in them.

    around: the folders that this one lies in. Raises DataError for a folder that cannot be read.
    """
    if (real := folder.resolve()) in around:
        return  # a link to a folder that it lies in
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read ({error.strerror})") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _visible_files(Path(entry), around | {real})
        elif entry.is_file() or not Path(entry).exists():  # no pipe or socket; a link to nothing is refused by name
            yield Path(entry)


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def is_picture(file: PurePosixPath) -> bool:
    return file.suffix.lower() in SUFFIXES


def _check_name(entry: Path) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {os.fsencode(entry)!r} is not UTF-8; rename it") from None


def _read_bytes(name: str) -> bytes:
    return Path(name).read_bytes()
