"""Makes an index of shards (trainer.data.shards): where each image is, its label, and facts about all pixels.

WebDataset: a folder of .tar files, or one, with KEY.png (or another picture) and KEY.cls, a class, for each image, as
`fewstep generate --format webdataset` writes them; other members are passed over. Or the zip of EDM and StyleGAN.
"""

import hashlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, count_values, deviation, write_archive
from trainer.data.shards import DEFLATED, FORMAT, MEMBERS, UNKNOWN, ShardedImages, decoding_threads
from trainer.data.sources.archive import MAX_FILE_BYTES
from trainer.data.sources.edm_zip import MAX_CLASSES, class_names_of, list_edm_zip
from trainer.data.sources.pictures import SUFFIXES, decode, flatten

CHUNK = 256  # images decoded at a time


class Listed(NamedTuple):
    files: tuple[Path, ...]
    members: NDArray[np.int64]  # [N, 5], as of the index; no CRC-32 yet
    labels: NDArray[np.int32]  # [N]
    source: str


def write_index(
    path: Path,
    out: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    resolution: int | None = None,
    gray: bool | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write the index of the shards in `path` to `out`. Every image is read once and decoded.

    resolution: None takes the size of the first image and refuses any other size; else images are cropped to their
    centre square and resized each time they are read. gray: None is as the first image. Raises DataError, which names
    the shard and the member.
    """
    listed = _list_zip(path) if path.is_file() and zipfile.is_zipfile(path) else _list_tars(path)
    side, gray = _first(listed, resolution, gray)
    shape = (len(listed.labels), side, side, 1 if gray else 3)
    names = class_names_of(listed.labels, class_names, path)
    images = ShardedImages(listed.files, listed.members, shape, decoding_threads(), exact=resolution is None)
    sha256, sigma_data, sums = _measure(images, listed.labels)
    members = np.concatenate([listed.members[:, :4], sums[:, None]], axis=1)
    meta = {
        "format": FORMAT, "name": name or path.resolve().stem, "class_names": names, "licence": licence,
        "source": listed.source, "sha256": sha256, "sigma_data": sigma_data, "shape": shape,
        "files": [[_relative(file, out), file.stat().st_size] for file in listed.files],
    }  # fmt: skip
    write_archive(out, {MEMBERS: members, "labels.npy": listed.labels}, meta)


def _relative(file: Path, out: Path) -> str:
    """The path of a shard as the index has it: relative where it is below the folder of the index."""
    folder, file = out.resolve().parent, file.resolve()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _first(listed: Listed, resolution: int | None, gray: bool | None) -> tuple[int, bool]:
    """The side of all images and whether they are gray, by the first one where it is not given."""
    probe = ShardedImages(listed.files, listed.members, (len(listed.labels), 1, 1, 1), 1)
    image = decode(probe.encoded(0, probe.stored([0])[0]), where := probe.where(0))
    if resolution is None and image.width != image.height:
        raise DataError(f"{where} is {image.width}x{image.height}; give --resolution N to crop and resize every image")
    flatten(image, where, gray=False)  # refuses pixels of unknown range
    return resolution or image.width, image.mode in ("1", "L", "LA", "I;16") if gray is None else gray


class Measures(NamedTuple):
    sha256: str  # this and the deviation as a dataset zip of the same images has them (trainer.data.format)
    sigma_data: float
    sums: NDArray[np.int64]  # [N], the CRC-32 of each image as it lies in its file


def _measure(images: ShardedImages, labels: NDArray[np.int32]) -> Measures:
    """All images, read once."""
    from tqdm import tqdm  # of [train]: `data --help` works without it

    digest, counts = hashlib.sha256(repr(images.shape).encode()), np.zeros(256, np.int64)
    sums = np.empty(len(images), np.int64)
    for start in tqdm(range(0, len(images), CHUNK), unit=f"{CHUNK} images", delay=1, disable=None):
        rows = np.arange(start, min(start + CHUNK, len(images)))
        stored = images.stored(rows, neighbours=True)
        sums[rows] = [zlib.crc32(content) for content in stored]
        pixels = images.decoded(rows, stored)
        digest.update(pixels.data)
        counts += count_values(pixels)
    digest.update(labels.data)
    return Measures(digest.hexdigest(), deviation(counts), sums)


def _list_zip(path: Path) -> Listed:
    """Images in the order of their names."""
    files, labels = list_edm_zip(path)
    members = np.zeros((len(files), 5), np.int64)
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for row, name in enumerate(files):
            info = archive.getinfo(name)
            if info.compress_type not in (zipfile.ZIP_STORED, DEFLATED) or info.flag_bits & 1:
                raise DataError(f"{path}: {name} is encrypted or compressed in a way that is not read; zip it again")
            _check_size(info.file_size, f"{path}: {name}")
            raw.seek(info.header_offset + 26)  # of the local header: the lengths of its name and its extra field
            lengths = raw.read(4)
            start = info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
            members[row] = 0, start, info.compress_size, info.compress_type, UNKNOWN
    return Listed((path,), members, labels, "EDM dataset zip")


def _list_tars(path: Path) -> Listed:
    """Images in the order of the names of the files, then as they lie in them."""
    files = tuple(sorted(path.glob("*.tar"))) if path.is_dir() else (path,)
    if not files or not path.exists():
        raise DataError(f"{path} holds no .tar files; name a folder of WebDataset shards, or EDM's dataset zip")
    rows: list[tuple[int, int, int, int, int]] = []
    labels: list[int] = []
    for number, file in enumerate(files):
        for offset, size, label in _list_tar(file):
            rows.append((number, offset, size, 0, UNKNOWN))
            labels.append(label)
    if not rows:
        raise DataError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    found = np.array(labels, np.int32)
    if found.min() < 0 <= found.max():
        raise DataError(f"{path}: {int((found < 0).sum())} of {len(found)} images have no .cls; all of them or none")
    return Listed(files, np.array(rows, np.int64), found, "WebDataset shards")


def _list_tar(path: Path) -> list[tuple[int, int, int]]:
    """Offset, bytes and label of each image; -1 without a .cls."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, suffix = _sample(member.name)
                where = f"{path}: {member.name}"
                if member.isreg() and suffix in SUFFIXES:
                    if key in images:
                        raise DataError(f"{where} is a second picture of {key}; one is expected")
                    _check_size(member.size, where)
                    images[key] = member.offset_data, member.size
                elif member.isreg() and suffix == ".cls":
                    labels[key] = _label(cast(Any, archive.extractfile(member)).read(32), where)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable, uncompressed tar ({error})") from error
    size = path.stat().st_size
    for key, (offset, length) in images.items():
        if offset + length > size:
            raise DataError(f"{path}: the file ends inside {key}; copy the file again")
    return [(*place, labels.get(key, -1)) for key, place in images.items()]


def _sample(name: str) -> tuple[str, str]:
    """WebDataset's key and extension of a member: the extension begins at the first dot of the file's name.

    Of `a/5.seg.png` the extension is ".seg.png", which is no picture of a sample.
    """
    path = PurePosixPath(name)
    base, dot, extension = path.name.partition(".")
    return (path.parent / base).as_posix() if base else "", (dot + extension).lower() if base else ""


def _label(content: bytes, where: str) -> int:
    text = content.decode(errors="replace").strip()
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) >= MAX_CLASSES:
        raise DataError(f"{where} says {text!r}, which is no class: a whole number from 0 to {MAX_CLASSES - 1}")
    return int(text)


def _check_size(size: int, where: str) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where} is larger than {MAX_FILE_BYTES} bytes")
