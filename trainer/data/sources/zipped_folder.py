"""A zip of a folder of images, read where it is: nothing is unpacked to disk."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from trainer.data.format import ZIP_ERRORS, DataError, ImageSet
from trainer.data.sources.archive import MAX_FILE_BYTES
from trainer.data.sources.edm_zip import INDEX
from trainer.data.sources.folder import is_hidden, is_picture, list_by_class, nothing_to_read
from trainer.data.sources.pictures import read_pictures


def read_zip(path: Path, *, resolution: int) -> ImageSet:
    """The images of a zip, the same as `trainer.data.sources.folder.read_folder` has of the folder.

    Folders around all pictures are no classes, but for the one that holds the pictures themselves where another one is
    around it: photos/cats/1.png is of the class cats. Raises DataError, which names every picture that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                file: member for member in archive.infolist()
                if not member.is_dir() and (file := _member_path(member.filename)).parts
                and not any(map(is_hidden, file.parts))
            }  # fmt: skip
            files = [file for file in sorted(members) if is_picture(file)]
            unread = tuple(str(file) for file in sorted(members) if not is_picture(file))
            if not files:
                raise nothing_to_read(path, unread)
            for file in members:
                if file.name == INDEX and all(picture.is_relative_to(file.parent) for picture in files):
                    raise DataError(f"{path}: {file} has to lie at the top; zip the content of its folder")
            around = _folders_around(files)
            inside = [PurePosixPath(*file.parts[around:]) for file in files]
            classes = sorted({file.parts[0] for file in inside if len(file.parts) > 1})
            listed = list_by_class(inside, classes, path)
            places = {f"{path}: {file}": members[file] for file in files}
            before = PurePosixPath(*files[0].parts[:around])
            names = [f"{path}: {before / file}" for file in listed.files]
            images = read_pictures(names, _member_reader(archive, places), resolution=resolution, gray=False)
    except ZIP_ERRORS as error:
        raise DataError(f"{path} is not a readable zip ({error})") from error
    return ImageSet(path.stem, images, listed.labels, listed.classes, "not stated", "image folder", unread)


def _member_path(name: str) -> PurePosixPath:
    """The path of a member; some programs on Windows write backslashes. Nothing leads out of the zip."""
    return PurePosixPath(*(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")))


def _folders_around(files: Sequence[PurePosixPath]) -> int:
    """How many folders are around all files, without the innermost of several if files lie directly in it."""
    around = 0
    while min(len(file.parts) for file in files) > around + 1 and len({file.parts[around] for file in files}) == 1:
        around += 1
    direct = any(len(file.parts) == around + 1 for file in files)
    return around - 1 if direct and around > 1 else around


def _member_reader(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> Callable[[str], bytes]:
    """Reads a member by the name that messages give it. Raises DataError."""

    def read(name: str) -> bytes:
        if members[name].file_size > MAX_FILE_BYTES:
            raise DataError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
        try:
            return archive.read(members[name])
        except ZIP_ERRORS as error:
            raise DataError(f"{name} cannot be unpacked ({error}); zip it again") from error

    return read
