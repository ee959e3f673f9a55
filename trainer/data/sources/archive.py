"""Files of an unpacked folder or of a tar archive, by name. Nothing is written to disk."""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.data.format import DataError

USUAL_FOLDERS = (Path(), Path("runs", "data"))  # where packages are looked for
MAX_FILE_BYTES = 64 * 2**20  # a single picture or index beyond this is a mistake or an attack


def find_source(given: Path | None, patterns: Sequence[str], advice: str) -> Path:
    """The source the user named, or the first file in the current folder or runs/data that fits a pattern.

    Raises DataError with `advice` when there is neither.
    """
    if given is not None:
        if not given.exists():
            raise DataError(f"{given} does not exist. {advice}")
        return given
    if found := first_match(USUAL_FOLDERS, patterns):
        return found
    raise DataError(advice)


def first_match(folders: Sequence[Path], patterns: Sequence[str]) -> Path | None:
    """The first file or folder in these folders that fits a pattern."""
    return next((found for folder in folders for pattern in patterns for found in sorted(folder.glob(pattern))), None)


def read_files(source: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Content of every wanted file, sorted by name.

    Names are posix paths that start with the folder's own name, or the names in the archive. Hidden files (macOS
    leaves some in archives) are skipped. Raises DataError when `source` is neither a folder nor a tar archive.
    """
    files = _read_folder(source, wanted) if source.is_dir() else _read_tar(source, wanted)
    return dict(sorted(files.items()))


def _read_folder(source: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    root = source.resolve()
    files = {}
    for path in root.rglob("*"):
        name = path.relative_to(root.parent).as_posix()
        if not path.name.startswith(".") and wanted(name) and path.is_file():
            _check_size(name, path.stat().st_size)
            files[name] = path.read_bytes()
    return files


def _read_tar(source: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                hidden = member.name.rpartition("/")[2].startswith(".")
                if hidden or not wanted(member.name) or not member.isfile():
                    continue
                _check_size(member.name, member.size)
                content = archive.extractfile(member)
                assert content is not None, "regular members have content"
                files[member.name] = content.read()
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{source} is not a readable tar archive ({error}); fetch it again") from error
    return files


def _check_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{name} has {size} bytes; more than {MAX_FILE_BYTES} is refused")
