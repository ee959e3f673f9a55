"""The pictures that a bulk run enlarges, one for each image: of a folder or a zip, in the order of their names."""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from export.manifest import Manifest
from fewstep.conditions import LOW, Condition, find
from fewstep.pixels import Pixels, from_pixels
from server.bulk.seeds import Seeds, parse_seeds
from server.scheduler.request import Given

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what has another suffix is no picture, such as an index beside them
MAX_FILE_BYTES = 2**26  # that are read of a picture: a member of a zip may unpack to any size
# What zipfile raises for members that are damaged, encrypted or compressed in other ways than it knows.
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
# (file, side, channels) -> uint8 [side, side, channels]. Raises ValueError: the end of a sentence that begins with the
# file's name. A function of a module, because it is sent to processes.
Decode = Callable[[bytes, int, int], Pixels]


class InputsError(ValueError):
    """Why pictures cannot be enlarged: a sentence."""


@dataclass(frozen=True)
class Inputs:
    """Pictures by their number."""

    path: Path
    names: tuple[str, ...]  # ascending
    low: Condition  # what each of them becomes
    decode: Decode
    sha256: str = ""  # of the names and pixels

    def given(self, first: int, count: int) -> Given:
        """Pictures number first to first + count - 1. Raises InputsError."""
        return Given.of(LOW, from_pixels(np.stack([*self._pixels(self.names[first : first + count])])))

    def checked(self) -> "Inputs":
        """With the hash. Raises InputsError where one of them cannot be read."""
        digest = hashlib.sha256()
        for name, pixels in zip(self.names, self._pixels(self.names), strict=True):
            digest.update(name.encode() + b"\0" + pixels.tobytes())
        return replace(self, sha256=digest.hexdigest())  # a new one: no open archive is sent to processes

    def _pixels(self, names: tuple[str, ...]) -> Iterator[Pixels]:
        """uint8 [H, W, C] each."""
        channels, side, _ = self.low.shape
        for name in names:
            try:
                with self._archive.open(name) if self._archive else (self.path / name).open("rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)  # `decode` refuses fewer
            except UNREADABLE as error:
                raise InputsError(f"{name} of --inputs {self.path} cannot be read: {_reason(error)}") from error
            try:
                pixels = self.decode(content, side, channels)
            except ValueError as error:
                raise InputsError(f"{name} of --inputs {self.path} {error}") from error
            yield pixels

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        return None if self.path.is_dir() else zipfile.ZipFile(self.path)


def seeds_and_inputs(
    seeds: str | None, path: Path | None, manifest: Manifest, decode: Decode
) -> tuple[Seeds, Inputs | None]:
    """What a run makes images of. seeds: a list; None: 0 up, one for each picture. path: of the pictures that the model
    enlarges; None: it makes images of noise alone. Raises SeedsError or InputsError."""
    low = find(manifest.conditions, LOW)
    if path is None:
        if low is not None:
            size = f"{low.shape[2]}x{low.shape[1]}"
            raise InputsError(f"{manifest.name} enlarges images of {size}; --inputs names a folder or a zip of them")
        return parse_seeds(seeds or ""), None
    if low is None:
        raise InputsError(f"{manifest.name} enlarges no images; leave --inputs out")
    inputs = read_inputs(path, low, decode)
    count = len(inputs.names)
    chosen = parse_seeds(f"0-{count - 1}" if seeds is None else seeds)
    if chosen.count != count:
        raise InputsError(
            f"--seeds lists {chosen.count:,} and --inputs {path} has {count:,} pictures; each picture needs one seed, "
            "and without --seeds they are 0 up"
        )
    return chosen, inputs


def read_inputs(path: Path, low: Condition, decode: Decode) -> Inputs:
    """The pictures of a folder, or of a zip with its folders. All are decoded once, so that no work is lost to one that
    cannot be. Raises InputsError."""
    try:
        found = [each.name for each in path.iterdir()] if path.is_dir() else zipfile.ZipFile(path).namelist()
    except FileNotFoundError:
        raise InputsError(f"--inputs {path} is not there; name a folder or a zip of pictures") from None
    except OSError as error:
        raise InputsError(f"--inputs {path} cannot be read: {_reason(error)}") from error
    except UNREADABLE as error:
        raise InputsError(f"--inputs {path} is neither a folder nor a zip: {error}") from error
    names = tuple(sorted(name for name in found if _is_picture(name)))
    if not names:
        raise InputsError(f"--inputs {path} holds no file that ends in {', '.join(SUFFIXES)}")
    for name, other in pairwise(names):
        if name == other:  # an archive may
            raise InputsError(f"--inputs {path} holds {name} twice")
    if wrong := [name for name in names if not _is_text(name)]:
        raise InputsError(f"--inputs {path} holds a file whose name is not UTF-8: {wrong[0]!r}")
    return Inputs(path, names, low, decode).checked()


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error


def _is_picture(name: str) -> bool:
    """By its name; those that begin with a dot are files of an operating system."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
