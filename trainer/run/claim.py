"""One run per folder: a lock that the operating system lets go of when the process ends, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.card import CheckpointError

LOCK_FILE = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While open, no other process can claim the folder, which is made if missing. Raises CheckpointError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another run is working in {folder}; wait until it ends, or choose another --out"
            ) from None
        yield
