"""One run per folder, by a file lock that the operating system releases whenever the process ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fewstep.card import CheckpointError
from fewstep.outputs import check_writable
from trainer.run.distributed import from_first, rank

LOCK_FILE = ".lock"


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """While open, no other process can claim the folder, which is made if missing and removed again if left empty.

    Of torchrun's processes the first one claims it for all. Raises CheckpointError in all of them when another run has
    claimed it or nothing can be written there.
    """
    lock, refusal = None, ""
    if rank() == 0:
        try:
            lock = _lock(folder)
        except (CheckpointError, OSError) as error:
            refusal = str(error)
    if refusal := from_first(refusal):
        raise CheckpointError(refusal)
    try:
        yield
    finally:
        if lock:
            _release(lock, folder)


def _lock(folder: Path) -> TextIO:
    check_writable(folder)
    path = folder / LOCK_FILE
    while True:
        file = _opened(folder, path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise CheckpointError(
                f"another run{f' (process {holder})' if holder else ''} is working in {folder}; "
                "wait until it ends, or choose another --out"
            ) from None
        if path.exists() and os.path.sameopenfile(file.fileno(), (current := path.open()).fileno()):
            current.close()
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return file
        file.close()  # its last owner removed the file between our two calls


def _opened(folder: Path, path: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; name another place") from error


def _release(lock: TextIO, folder: Path) -> None:
    (folder / LOCK_FILE).unlink(missing_ok=True)
    lock.close()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
