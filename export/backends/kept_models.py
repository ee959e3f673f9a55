"""Models that a library has compiled, kept on disk for the next start: a file each, with its identity and a checksum.

OpenVINO could keep them itself (CACHE_DIR), but it writes its files in place and without a checksum: a damaged file, or
one that another process is still writing, would change images without a word.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".compiled"
MAX_BYTES = 2**30  # of all files in a folder; beyond, those that were not used for longest go
MAX_HEADER = 2**16

Identity = Mapping[str, str | int]  # all that a compiled model depends on


def read(folder: Path, identity: Identity) -> list[bytes] | None:
    """What was kept under this identity; None where nothing is, or nothing that can be used, which is logged."""
    path = _path(folder, identity)
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(MAX_HEADER))
            content = file.read()
        if header["format"] != FORMAT or header["identity"] != dict(identity):
            raise ValueError("it is of another format, network or machine")
        sizes = header["sizes"]
        if sum(sizes) != len(content) or hashlib.sha256(content).hexdigest() != header["sha256"]:
            raise ValueError("it is damaged")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("the compiled model in %s cannot be used (%s) and is compiled again", path, _why(error))
        return None
    with suppress(OSError):  # on a read-only file system
        os.utime(path)
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [content[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def write(folder: Path, identity: Identity, parts: Sequence[bytes]) -> None:
    """Keep a model, whole or not at all; where that fails, the log says so once for each folder."""
    path, content = _path(folder, identity), b"".join(parts)
    header = {
        "format": FORMAT, "identity": dict(identity), "sizes": [len(part) for part in parts],
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    staged = path.with_name(f".{path.name}.{os.getpid()}")  # several workers may compile the same model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            staged.write_bytes(json.dumps(header).encode() + b"\n" + content)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
        _make_room(folder)
    except OSError as error:
        if folder not in _told:
            logger.warning(
                "compiled models cannot be kept in %s: %s; the next start compiles again. XDG_CACHE_HOME names another "
                "folder", *(folder, _why(error)),
            )  # fmt: skip
        _told.add(folder)


_told: set[Path] = set()


def _path(folder: Path, identity: Identity) -> Path:
    name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:24]
    return folder / (name + SUFFIX)


def _make_room(folder: Path) -> None:
    """Remove the files that were used longest ago until the rest has MAX_BYTES at most."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # another process makes room, too
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


def _why(error: Exception) -> object:
    return (error.strerror or error) if isinstance(error, OSError) else error or type(error).__name__
