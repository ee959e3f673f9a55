"""Numbers that several forked processes see: one row per process, which it alone writes. Nothing is on disk."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class SharedTable:
    """rows x columns of float64, zero at first. Create it before the fork.

    A process that dies leaves its row as it was. A cell is written and read whole.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.columns = columns
        self.cells = memoryview(mmap.mmap(-1, max(1, rows * columns) * 8)).cast("d")
        # A lock that the system lets go of when its holder dies.
        self.lock = os.memfd_create("fewstep-lock") if rows > 1 else None

    def row(self, number: int) -> "memoryview[float]":
        """The cells of one process, for it to write."""
        return self.cells[number * self.columns : (number + 1) * self.columns]

    def total(self, column: int) -> float:
        """The sum of a column over all processes."""
        return sum(self.cells[column :: self.columns])

    def locked(self) -> AbstractContextManager[None]:
        """No other process is in here at the same time. Free where there is one row."""
        return nullcontext() if self.lock is None else _locked(self.lock)


@contextmanager
def _locked(file: int) -> Iterator[None]:
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
