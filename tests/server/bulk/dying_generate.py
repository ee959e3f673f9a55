"""`fewstep generate` in a process that kills itself (SIGKILL) before its COUNTth change of what is on the disk.

    python tests/server/bulk/dying_generate.py COUNT --seeds ... --out ...

A change: a file is put in its place, a mark is set, a chunk that is no longer needed is removed, an image is written.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fewstep.__main__ import main

CHANGES = ("replace", "touch", "unlink", "write_bytes")


def die_at(count: int) -> None:
    """Counts over all threads: `next` of a counter is one step of the interpreter."""
    counter = itertools.count(1)
    for name in CHANGES:
        before = getattr(Path, name)

        def change(self: Path, *arguments: Any, before: Any = before, **named: Any) -> Any:
            if next(counter) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(self, *arguments, **named)

        setattr(Path, name, change)


if __name__ == "__main__":
    die_at(int(sys.argv[1]))
    sys.exit(main(["generate", *sys.argv[2:]]))
