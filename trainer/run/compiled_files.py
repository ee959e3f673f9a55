"""Compiled kernels that a killed process left unfinished in PyTorch's cache: they would end every later run."""

import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ELF = b"\x7fELF\x02\x01"  # how a library of 64 bits, little-endian, begins
LINKED_S = 30.0  # an unfinished file that is younger may be another process's, in the middle of its work


@cache  # once in a process, before the first network is compiled
def clean_cache() -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    remove_unfinished(Path(cache_dir()))


def remove_unfinished(
    folder: Path, now: Callable[[], float] = time.time, wait: Callable[[float], None] = time.sleep
) -> None:
    """Remove unfinished shared libraries one level below `folder`, so that they are compiled again.

    The linker writes a library in place, and torch loads whatever it finds under that name: an ImportError, "file too
    short". A young file is waited for until it is finished or LINKED_S old. now: seconds since 1970, as files have it.
    """
    for library in _unfinished(folder):
        try:
            while not is_finished(library) and (age := now() - library.stat().st_mtime) < LINKED_S:
                wait(min(1.0, LINKED_S - age))
            if not is_finished(library):
                library.unlink()
        except FileNotFoundError:  # another process was quicker
            continue


def _unfinished(folder: Path) -> Iterator[Path]:
    return (library for library in sorted(folder.glob("*/*.so")) if not is_finished(library))


def is_finished(library: Path) -> bool:
    """Whether a shared library has all that its ELF header announces. Files of other kinds count as finished.

    The table of sections is at the end of what a linker writes: e_shoff, e_shentsize and e_shnum of the header (System
    V ABI, chapter 4) say where it ends.
    """
    size = library.stat().st_size
    with library.open("rb") as file:
        header = file.read(64)
    if not header.strip(b"\0"):  # empty, or room that has not been written yet
        return False
    if not ELF.startswith(header[: len(ELF)]):
        return True
    if len(header) < 64:
        return False
    (offset,) = struct.unpack_from("<Q", header, 0x28)
    entry, count = struct.unpack_from("<HH", header, 0x3A)
    return offset > 0 and offset + entry * count <= size
