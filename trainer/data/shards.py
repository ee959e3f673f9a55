"""Images that stay in their shards, encoded, and are read while training: WebDataset tars, or EDM's zip.

An index says where they are (`fewstep trainer data shards`; trainer.data.sources.shards makes it). It is a zip of

members.npy   int64 [N, 5], ordered by file: the number of the file, first byte, bytes, how they are compressed (0: not,
              8: deflate), and the CRC-32 of the bytes as they lie in the file
labels.npy    int32 [N], -1 where there is no class
dataset.json  as of a dataset zip (trainer.data.format), and {"files": [[path, bytes], ...], "shape": [N, H, W, C]};
              paths are absolute or relative to the index
"""

import io
import json
import os
import shlex
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet, read_stored
from trainer.data.sources.pictures import SUFFIXES, centre_square, decode, flatten, to_array

Made = TypeVar("Made")
FORMAT = 2  # 2: with CRC-32
MEMBERS = "members.npy"
PART = 64  # consecutive images that are brought from the disk together
REMEMBERED = 2**14  # parts that were brought and are not brought again
DEFLATED = zipfile.ZIP_DEFLATED
MAX_THREADS = 8
UNKNOWN = -1  # for a CRC-32: the index is being made
CHECKED = 4  # images of each file whose bytes are checked when an index is opened; every other one when it is read


@dataclass(frozen=True, eq=False)
class ShardedImages:
    """uint8 [N, H, W, C] like an array, but every access reads and decodes: `images[rows]` for an array of rows.

    `images.with_neighbours(rows)` are the same pixels, for a reader that soon wants the images around these.
    """

    files: tuple[Path, ...]
    members: NDArray[np.int64]  # [N, 5]
    shape: tuple[int, int, int, int]
    threads: int  # that decode
    exact: bool = False  # refuse images of another size, which are otherwise cropped and resized
    _brought: OrderedDict[int, None] = field(default_factory=OrderedDict)
    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Rows as an array, a list or a slice -> [n, H, W, C]; one row -> [H, W, C]. Raises DataError, which names the
        shard and the member, also where a member has other bytes than when the index was made."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        return self._read(index, neighbours=False) if index.ndim else self[index[None]][0]

    def with_neighbours(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """[n] -> [n, H, W, C], as `images[rows]`. The system is asked for the parts around them, too: training wants
        these soon (trainer.data.loader). A sample from everywhere would read all of the shards that way."""
        return self._read(np.asarray(rows), neighbours=True)

    def _read(self, index: NDArray[np.int64], neighbours: bool) -> NDArray[np.uint8]:
        return self.decoded(index, self.stored(index, neighbours))

    def decoded(self, index: NDArray[np.int64], stored: Sequence[bytes]) -> NDArray[np.uint8]:
        """The images [n, H, W, C] of these rows [n], of what `stored` returned for them."""
        result = np.empty((len(index), *self.shape[1:]), np.uint8)
        for place, pixels in enumerate(self._run(self._pixels, index.tolist(), stored)):
            result[place] = pixels
        return result

    def check_files(self) -> None:
        """Raise DataError where one of some images of each file has other bytes than when the index was made."""
        starts = np.searchsorted(self.members[:, 0], np.arange(len(self.files) + 1))
        spread = (
            np.linspace(start, end - 1, CHECKED, dtype=np.int64) for start, end in pairwise(starts) if end > start
        )
        for _ in self._run(self._check_rows, spread):
            pass

    def _check_rows(self, index: NDArray[np.int64]) -> None:
        for row, stored in zip(index.tolist(), self.stored(index), strict=True):
            self._check(row, stored)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them in memory."""
        return self[:].astype(dtype or np.uint8, copy=False)

    def where(self, row: int) -> str:
        """The shard and the member of an image, as messages name them."""
        return f"{self.files[self.members[row, 0]]}: {self._name(row)}"

    @property
    def disk_bytes(self) -> int:
        """Of all shards."""
        return sum(file.stat().st_size for file in self.files)

    def _run(self, function: Callable[..., Made], *values: Iterable[Any]) -> Iterable[Made]:
        """`map`, by several threads where there are any."""
        return map(function, *values) if self.threads == 1 else self._pool.map(function, *values)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "decoding")

    def stored(self, rows: Sequence[int] | NDArray[np.int64], neighbours: bool = False) -> list[bytes]:
        """What lies in the files, read file by file. neighbours: as of `with_neighbours`."""
        index = np.asarray(rows)
        contents = [b""] * len(index)
        for number in np.unique(self.members[index, 0]):
            with self.files[number].open("rb", buffering=0) as file:
                for place in np.flatnonzero(self.members[index, 0] == number):
                    if neighbours:
                        self._bring(file.fileno(), int(index[place]))
                    contents[place] = self._stored(file.fileno(), int(index[place]))
        return contents

    def _bring(self, file: int, row: int) -> None:
        """Ask the system for the images around this one."""
        part = row // PART
        if part in self._brought or not hasattr(os, "posix_fadvise"):
            return
        self._brought[part] = None
        if len(self._brought) > REMEMBERED:
            self._brought.popitem(last=False)
        members = self.members[part * PART : (part + 1) * PART]
        own = members[members[:, 0] == self.members[row, 0]]
        first, last = own[:, 1].min(), (own[:, 1] + own[:, 2]).max()
        os.posix_fadvise(file, int(first), int(last - first), os.POSIX_FADV_WILLNEED)

    def _stored(self, file: int, row: int) -> bytes:
        _, offset, size, *_ = self.members[row].tolist()
        stored = os.pread(file, size, offset)
        if len(stored) != size:
            raise DataError(f"{self.where(row)}: the file ends inside it; copy the file again")
        return stored

    def _check(self, row: int, stored: bytes) -> None:
        if self.members[row, 4] not in (UNKNOWN, zlib.crc32(stored)):
            raise DataError(
                f"{self.where(row)} has changed since the index was made; make the index again, or copy the file again "
                "if it is damaged"
            )

    def encoded(self, row: int, stored: bytes) -> bytes:
        """The encoded image, of what `stored` returned for it."""
        self._check(row, stored)
        try:
            return zlib.decompress(stored, -zlib.MAX_WBITS) if self.members[row, 3] == DEFLATED else stored
        except zlib.error as error:
            raise DataError(f"{self.where(row)} is damaged ({error}); copy the file again") from error

    def _pixels(self, row: int, stored: bytes) -> NDArray[np.uint8]:
        content = self.encoded(row, stored)
        try:
            return self._decoded(content, "")
        except DataError:  # the name of a member is searched for only where it has to be said
            return self._decoded(content, self.where(row))

    def _decoded(self, content: bytes, where: str) -> NDArray[np.uint8]:
        _, side, _, channels = self.shape
        image = decode(content, where)
        if self.exact and image.size != (side, side):
            raise DataError(
                f"{where} is {image.width}x{image.height}, not {side}x{side}; "
                "give --resolution N to crop and resize every image"
            )
        return to_array(centre_square(flatten(image, where, gray=channels == 1), side))

    def _name(self, row: int) -> str:
        path, offset = self.files[self.members[row, 0]], self.members[row, 1]
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    before = [info for info in archive.infolist() if info.header_offset < offset]
                return max(before, key=lambda info: info.header_offset).filename
            with tarfile.open(path, "r:") as archive:
                return next(member.name for member in archive if member.offset_data == offset)
        except (OSError, tarfile.TarError, zipfile.BadZipFile, ValueError, StopIteration):
            return f"image {row}"  # the list of its members is damaged, too


def decoding_threads() -> int:
    """Threads that decode in one of the processes of this machine: its share of the cores, from 1 to 8."""
    return min(max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), MAX_THREADS)


def is_index(path: Path) -> bool:
    """Whether a file is an index of shards."""
    try:
        with zipfile.ZipFile(path) as archive:
            return MEMBERS in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def refuse_tars(path: Path) -> None:
    """Raise DataError for a tar, or a folder of tars: they need an index first. With pictures beside the tars, or in
    folders beside them, it is a folder of pictures."""
    if path.is_dir():
        beside = (file for pattern in ("*", "*/*") for file in path.glob(pattern))
        tars = any(path.glob("*.tar")) and not any(file.suffix.lower() in SUFFIXES for file in beside)
    else:
        tars = path.suffix == ".tar" and path.is_file()
    if tars:
        words = shlex.join([str(path), "--out", f"{path.resolve().name.removesuffix('.tar')}.zip"])
        kind = "a folder of shards" if path.is_dir() else "a shard"
        raise DataError(
            f"{path} is {kind}; make an index of it first, and name that: fewstep trainer data shards {words}"
        )


def read_index(path: Path) -> ImageSet:
    """The images of an index. They are not read now; its hash and deviation are trusted.

    Raises DataError for an index that cannot be read, and for a shard that is missing or has changed: the size of each
    is compared, and the bytes of some of its images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("dataset.json"))
            if meta.get("format") != FORMAT:
                raise DataError(
                    f"{path} has index format {meta.get('format')}; this version reads {FORMAT}; make it again"
                )
            members, labels = (
                np.load(io.BytesIO(archive.read(name)), allow_pickle=False) for name in (MEMBERS, "labels.npy")
            )
        files = check_files(path, meta["files"])
        images = ShardedImages(files, members, cast(Any, tuple(meta["shape"])), decoding_threads())
        if members.shape != (len(images), 5) or members.dtype != np.int64:
            raise ValueError(f"{MEMBERS} is {members.dtype} {members.shape}")
        found = ImageSet(
            meta["name"], cast(Any, images), labels, tuple(meta["class_names"]), meta["licence"], meta["source"]
        )
        object.__setattr__(found, "stored", read_stored(meta))
        images.check_files()
    except DataError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError) as error:
        raise DataError(f"{path} is not an index of shards ({error}); make it again") from error
    return found


def check_files(index: Path, listed: Sequence[tuple[str, int]]) -> tuple[Path, ...]:
    """The shards. Raises DataError for one that is missing or has another size than the index says."""
    files = []
    for name, size in listed:
        path = index.parent / name
        if not path.is_file():
            raise DataError(f"{path} is missing, which {index} lists; every machine needs the shards at the same place")
        if path.stat().st_size != size:
            raise DataError(f"{path} has changed since {index} was made; make the index again")
        files.append(path)
    return tuple(files)
