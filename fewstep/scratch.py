"""Temporary folders, removed when the work ends; those of a killed process by the next one that works there."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(parent: Path, prefix: str, mode: int = 0o700) -> Iterator[Path]:
    """A new folder in `parent`, whose name begins with `prefix`; removed at the end, unless it was moved away.

    What killed processes left there under this prefix is removed first: each owner holds a lock of its folder, which
    the system releases however the process ends.
    """
    for entry in parent.iterdir():
        if entry.name.startswith(prefix) and entry.is_dir() and not entry.is_symlink():
            _remove_abandoned(entry)
    folder, lock = _made(parent, prefix, mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(parent: Path, prefix: str, mode: int) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(4)}"
        folder.mkdir(mode=mode)
        with contextlib.suppress(FileNotFoundError):  # another process saw it before it was locked, and removed it
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder unless its owner runs, or another user owns it."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
