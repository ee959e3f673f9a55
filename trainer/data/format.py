"""The one dataset format: an uncompressed zip of images.npy, labels.npy and dataset.json.

images.npy  uint8 [N, H, W, C], square, C = 1 or 3
labels.npy  int32 [N], -1 where there is no class
dataset.json  {"format", "name", "class_names", "licence", "source", "sha256", "sigma_data"}; sha256 covers pixels and
              labels, sigma_data is the deviation of the pixels in [-1, 1]

Members are stored, not compressed, so the pixels can be memory-mapped out of the zip.
"""

import hashlib
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep import card

FORMAT = 1
_PIECE = 2**22  # pixels
# What zipfile raises on files that are damaged, encrypted, or compressed in a way that it lacks.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError)


class DataError(ValueError):
    """Images that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Stored:
    """Facts about the pixels in dataset.json."""

    sha256: str
    sigma_data: float | None  # None: written by a version that did not store it


@dataclass(frozen=True)
class ImageSet:
    name: str
    images: NDArray[np.uint8]  # [N, H, W, C]
    labels: NDArray[np.int32]  # [N]
    class_names: tuple[str, ...]
    licence: str
    source: str  # where the images came from, for the card
    unread: tuple[str, ...] = field(default=(), compare=False)  # files of the source that are not pictures; not stored
    # Facts stored in the file. They are trusted, because reading all pixels takes minutes. `replace` drops them.
    stored: Stored | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"{self.name}: images must be uint8 [N, H, W, C]")
        n, height, width, channels = self.images.shape
        if height != width or channels not in (1, 3):
            raise DataError(f"{self.name}: images must be square, gray or RGB, not {height}x{width}x{channels}")
        if self.labels.shape != (n,):
            raise DataError(f"{self.name}: {len(self.labels)} labels for {n} images")
        for name in self.class_names:
            if any(0xD800 <= ord(letter) < 0xE000 for letter in name):
                raise DataError(f"the class name {name!a} is not UTF-8; rename the folder, or give another name")
        if n and self.labels.max() >= len(self.class_names):
            raise DataError(f"{self.name}: label {self.labels.max()} but only {len(self.class_names)} class names")

    def sha256(self) -> str:
        """SHA-256 of pixels and labels, as stored or else computed."""
        return self.stored.sha256 if self.stored else self.measured_sha256()

    def sigma_data(self) -> float:
        """Standard deviation of the pixels in [-1, 1] units, as stored or else computed."""
        stored = self.stored.sigma_data if self.stored else None
        return sigma_data(self.images) if stored is None else stored

    def measured_sha256(self) -> str:
        """SHA-256 of pixels and labels, computed from every pixel."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int32).data)
        return digest.hexdigest()

    def provenance(self) -> card.Dataset:
        return card.Dataset(self.name, self.sha256(), self.licence, len(self.images), self.sigma_data())


def printable(name: str) -> str:
    """The name of a file, for people: bytes that are no UTF-8 are replaced, which could not be printed."""
    return os.fsencode(name).decode(errors="replace")


def sigma_data(images: NDArray[np.uint8]) -> float:
    """Standard deviation of the pixels in [-1, 1] units, over all images, positions and channels.

    Counted in pieces: `bincount` takes eight bytes a pixel.
    """
    return deviation(count_values(images))


def count_values(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each of the 256 values occurs. [256]."""
    pixels, counts = images.reshape(-1), np.zeros(256, dtype=np.int64)
    for start in range(0, pixels.size, _PIECE):
        counts += np.bincount(pixels[start : start + _PIECE], minlength=256)
    return counts


def deviation(counts: NDArray[np.int64]) -> float:
    """Standard deviation in [-1, 1] units of pixels that have the 256 values so often."""
    shares, values = counts / counts.sum(), np.arange(256) / 127.5 - 1
    return float(np.sqrt(shares @ values**2 - (shares @ values) ** 2))


def write_image_set(path: Path, images: ImageSet) -> None:
    """Write the zip to a temporary file and rename it."""
    meta = {
        "format": FORMAT,
        "name": images.name,
        "class_names": images.class_names,
        "licence": images.licence,
        "source": images.source,
        "sha256": images.measured_sha256(),
        "sigma_data": sigma_data(images.images),
    }
    labels = images.labels.astype(np.int32)
    write_archive(path, {"images.npy": images.images, "labels.npy": labels}, meta)


def write_archive(path: Path, arrays: Mapping[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """Write a zip of arrays, by the names of its members, and dataset.json to a temporary file and rename it."""
    date = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same images give the same file
    with card.replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(name, date), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
        archive.writestr(zipfile.ZipInfo("dataset.json", date), json.dumps(meta, indent=2))


def read_image_set(path: Path, *, verify: bool = False) -> ImageSet:
    """Open a dataset zip with its pixels memory-mapped. Its hash and deviation are trusted; verify: compute both again,
    which reads every pixel. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; `fewstep trainer data --help` lists how to make a dataset")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("dataset.json"))
            if meta.get("format") != FORMAT:
                raise DataError(f"{path} has dataset format {meta.get('format')}; this version reads {FORMAT}")
            labels = np.load(io.BytesIO(archive.read("labels.npy")), allow_pickle=False)
            images = _map_member(path, archive.getinfo("images.npy"))
        result = ImageSet(meta["name"], images, labels, tuple(meta["class_names"]), meta["licence"], meta["source"])
        object.__setattr__(result, "stored", read_stored(meta))
    except DataError:
        raise
    except (*ZIP_ERRORS, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a fewstep dataset zip ({error})") from error
    if verify and result.measured_sha256() != meta["sha256"]:
        raise DataError(f"{path} is damaged: its pixels do not match the hash it carries")
    if verify and abs(sigma_data(result.images) - result.sigma_data()) > 1e-9:
        raise DataError(f"{path} is damaged: its pixels do not have the deviation it carries")
    return result


def read_stored(meta: dict[str, Any]) -> Stored:
    """Raises ValueError for values that no data set has."""
    sha256, deviation = meta["sha256"], meta.get("sigma_data")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"its sha256 is {sha256!r}")
    if deviation is not None and (not isinstance(deviation, float) or not 0 <= deviation <= 1):
        raise ValueError(f"its sigma_data is {deviation!r}")
    return Stored(sha256, deviation)


def _map_member(path: Path, info: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """Memory-map a stored .npy member of a zip."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise DataError(f"{path}: {info.filename} is compressed; make the dataset again")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)  # local file header: name and extra lengths are its last two fields
        name_length, extra_length = (
            int.from_bytes(header[26:28], "little"),
            int.from_bytes(header[28:30], "little"),
        )
        file.seek(name_length + extra_length, io.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.uint8 or fortran:  # a memory map of any other type would be read as garbage
            raise DataError(f"{path}: {info.filename} is not uint8 in C order; make the dataset again")
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape)
