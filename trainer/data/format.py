"""The one dataset format: an uncompressed zip of images.npy, labels.npy and dataset.json.

images.npy  uint8 [N, H, W, C], square, C = 1 or 3
labels.npy  int32 [N], -1 where there is no class
dataset.json  {"format", "name", "class_names", "licence", "source", "sha256"}; sha256 covers pixels and labels

Members are stored, not compressed, so the pixels can be memory-mapped out of the zip.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep import card

FORMAT = 1


class DataError(ValueError):
    """Images that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class ImageSet:
    name: str
    images: NDArray[np.uint8]  # [N, H, W, C]
    labels: NDArray[np.int32]  # [N]
    class_names: tuple[str, ...]
    licence: str
    source: str  # where the images came from, for the card

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"{self.name}: images must be uint8 [N, H, W, C]")
        n, height, width, channels = self.images.shape
        if height != width or channels not in (1, 3):
            raise DataError(f"{self.name}: images must be square, gray or RGB, not {height}x{width}x{channels}")
        if self.labels.shape != (n,):
            raise DataError(f"{self.name}: {len(self.labels)} labels for {n} images")
        if n and self.labels.max() >= len(self.class_names):
            raise DataError(f"{self.name}: label {self.labels.max()} but only {len(self.class_names)} class names")

    def sha256(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int32).data)
        return digest.hexdigest()

    def provenance(self) -> card.Dataset:
        return card.Dataset(self.name, self.sha256(), self.licence, len(self.images))


def sigma_data(images: NDArray[np.uint8]) -> float:
    """Standard deviation of the pixels in [-1, 1] units, over all images, positions and channels."""
    counts = np.bincount(images.reshape(-1), minlength=256) / images.size
    values = np.arange(256) / 127.5 - 1
    return float(np.sqrt(counts @ values**2 - (counts @ values) ** 2))


def write_image_set(path: Path, images: ImageSet) -> None:
    """Write the zip beside its place, then rename it there."""
    meta = {
        "format": FORMAT,
        "name": images.name,
        "class_names": images.class_names,
        "licence": images.licence,
        "source": images.source,
        "sha256": images.sha256(),
    }
    date = (1980, 1, 1, 0, 0, 0)  # a fixed one: the same images give the same file
    labels = images.labels.astype(np.int32)
    with card.replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("images.npy", images.images), ("labels.npy", labels)):
            with archive.open(zipfile.ZipInfo(name, date), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
        archive.writestr(zipfile.ZipInfo("dataset.json", date), json.dumps(meta, indent=2))


def read_image_set(path: Path, *, verify: bool = False) -> ImageSet:
    """Open a dataset zip with its pixels memory-mapped. verify: recompute the content hash (reads every pixel)."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; `python -m trainer data --help` lists how to make a dataset")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("dataset.json"))
            if meta.get("format") != FORMAT:
                raise DataError(f"{path} has dataset format {meta.get('format')}; this version reads {FORMAT}")
            labels = np.load(io.BytesIO(archive.read("labels.npy")), allow_pickle=False)
            images = _map_member(path, archive.getinfo("images.npy"))
        result = ImageSet(meta["name"], images, labels, tuple(meta["class_names"]), meta["licence"], meta["source"])
    except DataError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a fewstep dataset zip ({error})") from error
    if verify and result.sha256() != meta["sha256"]:
        raise DataError(f"{path} is damaged: its pixels do not match the hash it carries")
    return result


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
