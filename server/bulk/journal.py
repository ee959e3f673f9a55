"""What a bulk run has done so far: a folder beside its output, or inside it where that is a folder.

order.json         the recipe, and how many images a chunk has
chunk-000012.npy   uint8 [B, H, W, C], the images of a chunk; written whole or not at all
written-000003     the output's file (of a folder: the images of its chunk) number 3 is complete; its chunks are gone
lock               held by the process that works here

A chunk's seeds follow from its number. So every image is in exactly one chunk.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.card import replacing, write_atomically
from fewstep.pixels import Pixels
from server.bulk.order import differences

ORDER, LOCK = "order.json", "lock"
# The last files to go are those that say what the others are, and who may touch them. A name in dots is being written.
OURS = (r"\.?(chunk-\d{6,}\.npy|written-\d{6,})(\.part)?", r"\.?order\.json(\.part)?", "lock")
CLAIMS = 10  # attempts, each of which another run can defeat by ending in that moment


class BulkError(Exception):
    """Why a bulk run cannot begin or go on: a sentence."""


class Journal:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, recipe: dict[str, Any], chunk: int) -> int:
        """Note what is made, or read it where a run was interrupted. Returns the images of a chunk.

        Raises BulkError when another order was begun here.
        """
        path = self.folder / ORDER
        if not path.exists():
            write_atomically(path, json.dumps({"recipe": recipe, "chunk": chunk}, indent=2).encode())
            return chunk
        try:
            begun = json.loads(path.read_text("utf-8"))
            before, size = dict(begun["recipe"]), begun["chunk"]
            if type(size) is not int or size < 1 or size % recipe["capacity"]:
                raise ValueError(size)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BulkError(f"{path} is damaged; remove {self.folder} to begin anew") from error
        if changed := differences(before, recipe):
            raise BulkError(
                f"{self.folder} holds an unfinished run of other settings: {'; '.join(changed)}. Give those, name "
                "another --out, or remove that folder to begin anew"
            )
        return size

    def chunk_path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.npy"

    def has(self, number: int) -> bool:
        return self.chunk_path(number).exists()

    def keep(self, number: int, pixels: Pixels) -> None:
        """uint8 [B, H, W, C], contiguous: whole or not at all, also when the machine loses power."""
        with replacing(self.chunk_path(number)) as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(pixels))
            file.write(pixels.data)  # NumPy's own writing does not say why it fails

    def read(self, number: int, shape: tuple[int, ...]) -> Pixels:
        """uint8 of this shape, [B, H, W, C]. Raises BulkError for a file that holds anything else."""
        path = self.chunk_path(number)
        try:
            with path.open("rb") as file:
                pixels = np.lib.format.read_array(file, allow_pickle=False)
                damaged = pixels.shape != shape or pixels.dtype != np.uint8 or bool(file.read(1))
        except (ValueError, EOFError):
            damaged, pixels = True, np.zeros(shape, np.uint8)
        if damaged:
            raise BulkError(f"{path} is damaged; remove it, and the same command makes it again")
        return pixels

    def is_written(self, file: int) -> bool:
        return (self.folder / f"written-{file:06d}").exists()

    def written(self, file: int, chunks: range) -> None:
        """A file of the output is complete: its chunks are not needed any more."""
        (self.folder / f"written-{file:06d}").touch()
        for number in chunks:
            self.chunk_path(number).unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While open, no other process works here. Raises BulkError when one does."""
        for _ in range(CLAIMS):
            descriptor = self._claim()
            if descriptor is not None:
                break
        else:
            if not self.folder.is_dir():  # a file system that takes no folders, such as /proc
                raise BulkError(f"{self.folder} cannot be made; name another --out")
            raise self._at_work()
        try:
            yield
        finally:
            os.close(descriptor)

    def _claim(self) -> int | None:
        """The descriptor of the lock, held; None where a run that ended has just removed it. Raises BulkError."""
        path = self.folder / LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except FileExistsError:
            raise BulkError(f"{self.folder} is a file; a run keeps its work there. Name another --out") from None
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise self._at_work() from None
        os.close(descriptor)
        return None

    def _at_work(self) -> BulkError:
        return BulkError(f"another process is at work in {self.folder}; wait for it, or name another --out")

    def is_empty(self) -> bool:
        """Whether nothing has been made yet."""
        return not any(self.folder.glob("chunk-*.npy")) and not any(self.folder.glob("written-*"))

    def remove(self) -> None:
        """Remove the journal's files, and the folder unless it holds others."""
        with suppress(OSError):  # it is not there, or not empty
            paths = list(self.folder.iterdir())
            for pattern in OURS:
                for path in paths:
                    if re.fullmatch(pattern, path.name):
                        path.unlink(missing_ok=True)
            self.folder.rmdir()
