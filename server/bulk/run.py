"""A bulk run: make what is missing, write files as they become complete, and leave nothing but the output."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from zipfile import BadZipFile

from fewstep.card import CheckpointError
from fewstep.outputs import check_writable
from server.bulk.journal import BulkError, Journal
from server.bulk.make import Maker
from server.bulk.order import Order, differences
from server.bulk.outputs.by_name import KINDS
from server.bulk.outputs.kind import Chunks, Kind
from server.scheduler.loading import LoadOptions
from server.scheduler.refusal import Refusal

# What a file that is none of ours, or damaged, makes its reader raise.
UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError, NotImplementedError, BadZipFile,
    zlib.error,
)  # fmt: skip
Progress = Callable[[int], None]  # called with how many images are made, from earlier runs on; first when loaded


def journal_folder(out: Path, kind: Kind) -> Path:
    """Where a run keeps what it has done. Within a folder: that may be all that can be written to."""
    return out / ".generate" if kind.is_folder else out.with_name(f"{out.name}.part")


def run(order: Order, engine: Path, out: Path, options: LoadOptions, progress: Progress) -> int:
    """Make the output of an order. Returns how many images this call made; 0 where the output was complete.

    options: of the engine; with more than one process, so many make the images. Raises BulkError, InputsError,
    Refusal, CheckpointError or OSError; the same call then goes on from there.
    """
    kind = KINDS[order.output]
    journal = Journal(journal_folder(out, kind))
    if is_complete(order, out):
        journal.remove()  # a run that was killed at its very end has left it
        return 0
    if kind.most is not None and order.seeds.count > kind.most:
        raise BulkError(f"{order.output} holds at most {kind.most:,} images, not {order.seeds.count:,}; see --format")
    with journal.claimed():
        if is_complete(order, out):  # by a run that ended while this one began
            journal.remove()
            return 0
        order = replace(order, chunk=journal.begin(order.recipe(), order.chunk))
        try:
            made = _Writer(order, out, kind, journal).run(Maker(engine, order, journal, options), progress)
        except (Refusal, CheckpointError):
            if journal.is_empty():  # the engine cannot be used: other options begin anew
                journal.remove()
                if kind.is_folder:
                    with suppress(OSError):  # it is not empty
                        out.rmdir()
            raise
    journal.remove()
    return made


def is_complete(order: Order, out: Path) -> bool:
    """Whether the output is there already. Raises BulkError when something else is, or nothing can be written, and
    ModuleNotFoundError where a package is missing."""
    kind = KINDS[order.output]
    if kind.needs:
        import_module(kind.needs)
    try:
        check_writable(out if kind.is_folder else out.parent)
    except CheckpointError as error:
        raise BulkError(str(error)) from error
    if not out.exists():
        return False
    if kind.is_folder != out.is_dir():
        what = ("a file", "a folder") if kind.is_folder else ("a folder", "a file")
        raise BulkError(f"--out {out} is {what[0]}, and --format {order.output} writes {what[1]}; name another place")
    try:
        recipe = kind.recipe(out)
    except UNREADABLE as error:
        raise BulkError(
            f"--out {out} exists and cannot be read: it is damaged or of something else. It is left as it is; name "
            "another place"
        ) from error
    if not isinstance(recipe, dict):
        if kind.is_folder and (journal_folder(out, kind).exists() or not any(out.iterdir())):
            return False
        raise BulkError(f"--out {out} exists and is none of this command's; it is left as it is. Name another place")
    if changed := differences(recipe, order.recipe()):
        raise BulkError(f"--out {out} is complete, of other settings: {'; '.join(changed)}. Name another place")
    if lacks := sorted(set(names(order, kind)) - {entry.name for entry in out.iterdir()} if kind.is_folder else ()):
        raise BulkError(
            f"--out {out} was complete, and lacks {len(lacks):,} of its files now, such as {lacks[0]}; what is left "
            "stays as it is. Name another place"
        )
    return True


def file_chunks(order: Order, kind: Kind) -> list[range]:
    """The chunks of each file of the output; of a folder of images, each chunk alone."""
    each = 1 if kind.each_chunk else max(1, order.per_file // order.chunk) if order.per_file else order.chunks
    return [range(first, min(first + each, order.chunks)) for first in range(0, order.chunks, each)]


def names(order: Order, kind: Kind) -> Iterator[str]:
    """Every file of an output that is a folder, but the one that describes it."""
    assert kind.names is not None, "a single file names itself"
    for number, chunks in enumerate(file_chunks(order, kind)):
        yield from kind.names(order, number, chunks)


class _Writer:
    """Turns the chunks of a journal into the files of the output, on a thread of its own."""

    def __init__(self, order: Order, out: Path, kind: Kind, journal: Journal) -> None:
        self.order, self.out, self.kind, self.journal = order, out, kind, journal
        files = enumerate(file_chunks(order, kind))
        self.files = {number: chunks for number, chunks in files if not journal.is_written(number)}
        self.missing = {n: {chunk for chunk in chunks if not journal.has(chunk)} for n, chunks in self.files.items()}

    def run(self, maker: Maker, progress: Progress) -> int:
        """Returns how many images were made."""
        chunks = [chunk for number in self.files for chunk in sorted(self.missing[number])]
        files = {chunk: number for number in self.files for chunk in self.missing[number]}
        count, chunk_size = self.order.seeds.count, self.order.chunk
        before = count - sum(min(chunk_size, count - chunk * chunk_size) for chunk in chunks)
        made, workers = 0, min(maker.options.processes, len(chunks))
        with ThreadPoolExecutor(1, "write") as pool:
            writing = [pool.submit(self._write, number) for number in self.files if not self.missing[number]]
            # Without chunks to make, no process starts and no engine is loaded.
            for images, chunk in maker.make(chunks) if workers == 1 else maker.make_in(workers, chunks):
                made += images
                if chunk is not None:
                    self.missing[files[chunk]].discard(chunk)
                    if not self.missing[files[chunk]]:
                        writing.append(pool.submit(self._write, files[chunk]))
                writing = list(_unfinished(writing))
                progress(before + made)
            for future in writing:
                future.result()
        if self.kind.finish:
            self.kind.finish(self.out, self.order)
        return made

    def _write(self, number: int) -> None:
        chunks = self.files[number]
        self.kind.write(self.out, self.order, number, self._read(chunks))
        self.journal.written(number, chunks)

    def _read(self, chunks: range) -> Chunks:
        channels, height, width = self.order.manifest.image_shape
        for chunk in chunks:
            count = min(self.order.chunk, self.order.seeds.count - chunk * self.order.chunk)
            yield chunk, self.journal.read(chunk, (count, height, width, channels))


def _unfinished(writing: list[Future[None]]) -> Iterator[Future[None]]:
    """Raises what a finished one has raised."""
    for future in writing:
        if future.done():
            future.result()
        else:
            yield future
