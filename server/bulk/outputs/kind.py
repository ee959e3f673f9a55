"""What every kind of output is to a bulk run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.pixels import Pixels
from server.bulk.order import Order

Chunks = Iterable[tuple[int, Pixels]]  # number of a chunk and its images, uint8 [B, H, W, C], in their order


@dataclass(frozen=True)
class Kind:
    """How an order becomes files.

    write(out, order, file, chunks): write file number `file` of the output from its chunks; a second call replaces what
    an interrupted one has left. finish(out, order): what describes a folder as a whole; None where a single file is the
    whole. recipe(out): of a complete output; None where it is none of ours.
    """

    suffix: str  # of the file that --out names; empty: a folder
    says: str
    write: Callable[[Path, Order, int, Chunks], None]
    recipe: Callable[[Path], dict[str, Any] | None]
    finish: Callable[[Path, Order], None] | None = None
    most: int | None = None  # images that it holds
    needs: str = ""  # a module that an extra brings
    # Of a folder: the names of the files that a call of `write` with this file and these chunks makes.
    names: Callable[[Order, int, range], Iterable[str]] | None = None
    each_chunk: bool = False  # a file of the output is a chunk; else all chunks, or `Order.per_file` images

    @property
    def is_folder(self) -> bool:
        return self.finish is not None
