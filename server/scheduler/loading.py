"""From an engine directory to a warm slot table, inside the worker: how many slots, which batch sizes, how fast."""

import gc
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from export.manifest import (
    BACKEND_OPENVINO,
    BACKEND_OPENVINO_F32,
    AdapterFiles,
    Manifest,
    adapter_numbers,
    read_manifest,
)
from fewstep import cores
from fewstep.card import CheckpointError
from fewstep.pixels import encode
from fewstep.schedule import SIGMA_MAX
from server.scheduler.calibration import (
    EXACT_SLOTS,
    MAX_KNEE,
    MIN_SLOTS,
    SharedTimes,
    call_time,
    choose_buckets,
    doubling,
    measure,
    slots,
)
from server.scheduler.model import Model, ModelInfo
from server.scheduler.row_independence import check_rows_independent
from server.scheduler.slots import Image, ImageKey, Slots, SlotTable, Tick, buckets_for

if TYPE_CHECKING:
    from export.engine import Engine

logger = logging.getLogger(__name__)


Mode = Literal["fast", "exact"]
OPENVINO = (BACKEND_OPENVINO, BACKEND_OPENVINO_F32)
# What may differ between the manifest that was announced and the one that is loaded: none of it changes an image.
DESCRIPTIVE = {"name", "parity", "bounds", "facts", "versions", "proofs"}


@dataclass(frozen=True)
class LoadOptions:
    """How to load engines; the defaults are those of `python -m server`."""

    backend: str | None = None  # None: the one each engine's manifest names
    mode: Mode = "fast"  # exact: a row's bytes are the same whatever the batch
    capacity: int = 0  # slots of a model; 0: EXACT_SLOTS in exact mode, else chosen from measured call times
    threads: int = 0  # cores one network call may use; 0: an equal share of machine or quota for each process
    processes: int = 1  # how many share the machine
    process: int = 0  # which of them this is
    stall_s: float = 0.0  # a network call that takes longer is refused; 0: no limit
    compiled: Path | None = None  # where OpenVINO's compiled models are kept; None: every start compiles
    deferred: bool = False  # where call times are known, OpenVINO takes over after the start (Model.prepare)

    @property
    def cores(self) -> int:
        """Threads for the backend; 0: as many as it likes."""
        if self.threads or (self.processes == 1 and cores.quota() is None):
            return self.threads
        return max(1, cores.count() // self.processes)


@contextmanager
def own_cores(options: LoadOptions, backend: str) -> Iterator[LoadOptions]:
    """Load an engine inside: where a backend pins its threads, this process's lie on cores of its own.

    OpenVINO pins them to the first cores of the mask of whoever loads it, so two workers of one thread used to take
    turns on one core while the others idled. Only the mask of this thread is narrowed, and only inside: what the
    process starts later runs anywhere. Yields the options with their threads counted on the whole machine.
    """
    if options.processes == 1 or backend not in OPENVINO or cores.quota() is not None:  # with a quota nothing is pinned
        yield options
        return
    every, fixed = os.sched_getaffinity(0), replace(options, threads=options.cores)
    os.sched_setaffinity(0, cores.share(cores.groups(cores.usable()), options.process, options.processes))
    try:
        yield fixed
    finally:
        os.sched_setaffinity(0, every)


def load_model(
    name: str,
    folder: Path,
    options: LoadOptions,
    times: SharedTimes,
    announced: Manifest | None = None,
    adapters: AdapterFiles | None = None,
) -> Model:
    """A warm model, ready for an engine loop.

    announced: the manifest that clients see. adapters: those that it names, read when it was; the folder may have
    others by now. Raises CheckpointError in a sentence, also when the folder holds another network.
    """
    with own_cores(options, options.backend or read_manifest(folder).backend) as fixed:
        return _load_model(name, folder, fixed, times, announced, adapters)


def _load_model(
    name: str,
    folder: Path,
    options: LoadOptions,
    times: SharedTimes,
    announced: Manifest | None,
    adapters: AdapterFiles | None,
) -> Model:
    # Only here: the engine's libraries belong to the worker, and the other processes import this module too.
    from export.engine import load_engine

    found = read_manifest(folder)
    if adapters:
        found = replace(found, adapters=adapters.entries)
    expected = announced or found
    check_announced(folder, expected, found)

    def load(buckets: Sequence[int], deferred: bool = False) -> "Engine":
        engine = load_engine(
            folder, backend=options.backend, threads=options.cores, buckets=buckets, adapters=adapters,
            compiled=options.compiled, background=options.mode == "fast", deferred=deferred,
        )  # fmt: skip
        check_announced(folder, expected, engine.manifest)  # it may have been replaced since it was read
        return engine

    lazy = (options.backend or found.backend) in OPENVINO
    engine, buckets, calls, warm = open_measured(name, load, options, times, lazy)
    capacity = buckets[-1]
    manifest = engine.manifest
    if options.mode == "exact":
        count = len(manifest.adapters) if manifest.adapted else None
        check_rows_independent(
            engine.network, manifest.input_shape, manifest.columns, capacity, count, manifest.conditions
        )
    table = slot_table(engine, buckets)
    tick_s = _warmed_up(table, options, calls, warm, takes_any_size(engine) or engine.deferred, lazy)
    if options.stall_s and tick_s >= options.stall_s:
        raise CheckpointError(
            f"a network call of {name} over {capacity} images takes {tick_s:.1f} s, and a worker that is silent for "
            f"{options.stall_s:g} s counts as hanging; raise --stall-s or lower --capacity"
        )
    logger.info(
        "%s: %d slots, batches of %s, %.2f ms a full call, measured %s",
        *(name, capacity, buckets, 1e3 * tick_s, {size: f"{1e3 * seconds:.2f} ms" for size, seconds in calls.items()}),
    )
    numbers = adapter_numbers(replace(manifest, name=name))
    facts = engine.facts if takes_any_size(engine) else {**engine.facts, "buckets": ",".join(map(str, table.buckets))}
    return Model(table, ModelInfo(tick_s, capacity, table.buckets, facts), numbers, engine.prepare)


def _warmed_up(
    table: Slots, options: LoadOptions, calls: Mapping[int, float], measured: bool, any_size: bool, lazy: bool
) -> float:
    """Seconds of a tick with all slots in use, after as few calls as make the next ones fast.

    measured: this engine was, which has called the smallest batch and, unless its time was up, one of half the slots at
    least. A backend of fixed shapes may prepare one at its first call; one that is lazy prepares the rest in the
    background. An engine of any size, as a deferred one is at first, needs a single call over one image where its times
    are known: a call over all slots would take most of what is left of a start.
    """
    known = 4 * max(calls) >= table.capacity  # near enough to say how long a call over all slots takes
    if any_size and known and not measured:
        warm_up(table, (), 1)
        return call_time(calls, table.capacity)
    measured = measured and known
    every = not any_size and not (lazy and options.mode == "fast")
    tick_s = warm_up(table, table.buckets if every else () if measured else (table.buckets[0], table.capacity))
    if measured and table.capacity not in calls:  # that was the first such call, which grows its memory
        tick_s = min(tick_s, call_time(calls, table.capacity))
    return tick_s


def check_announced(folder: Path, announced: Manifest, found: Manifest) -> None:
    """Raises CheckpointError when an engine would make other images than the server announced."""
    names = [field.name for field in fields(Manifest) if field.name not in DESCRIPTIVE]
    if changed := [name for name in names if getattr(announced, name) != getattr(found, name)]:
        raise CheckpointError(
            f"{folder} has changed since the server started: it announced checkpoint {announced.checkpoint}, and the "
            f"folder now holds checkpoint {found.checkpoint} ({', '.join(changed)} differ). Put the announced engine "
            "back, or restart the server to serve the new one"
        )


class Loader(Protocol):
    """Opens the engine for some batch sizes. deferred: as of export.engine.load_engine."""

    def __call__(self, buckets: Sequence[int], deferred: bool = False) -> "Engine": ...


def open_measured(
    name: str,
    load: "Loader",
    options: LoadOptions,
    times: SharedTimes,
    lazy: bool = False,
) -> "tuple[Engine, tuple[int, ...], Mapping[int, float], bool]":
    """The engine, the batch sizes to call it with, the measured times from which they were chosen; was it measured.

    load: the engine that is measured is not deferred, others are as the options say. lazy: sizes that are never called
    cost it nothing. The engine that is measured is the one to be served where its batch sizes fit, and gone before that
    one is opened where they do not: a GPU need not hold two.
    """
    exact = options.mode == "exact"
    capacity = options.capacity or (EXACT_SLOTS if exact else 0)
    open_end = doubling(MAX_KNEE)
    if lazy:
        open_end = tuple(sorted({*buckets_for(MIN_SLOTS, exact), *open_end}))
    prepared = buckets_for(capacity, exact) if capacity else open_end
    sizes = prepared if exact else doubling(prepared[-1])
    enough = inf if capacity else MIN_SLOTS // 2  # what the last doubling has brought, the next one would not
    probe: list[Engine] = []  # stays empty when another worker has measured

    def measured() -> Mapping[int, float]:
        probe.append(load(prepared))
        return measure_ticks(slot_table(probe[0], prepared), sizes, enough)

    calls = times.get(name, measured)
    capacity = capacity or slots(calls)
    buckets = choose_buckets(buckets_for(capacity, exact), calls)
    warm = bool(probe)
    if probe and takes_any_size(probe[0]):
        engine = probe.pop()
    elif (lazy or capacity == prepared[-1]) and set(buckets) <= set(prepared):
        engine = probe.pop() if probe else load(prepared, options.deferred)
    else:
        if probe:
            release(probe)
        engine, warm = load(buckets, options.deferred), False
    if takes_any_size(engine):
        buckets = choose_buckets(buckets_for(capacity, exact, any_size=True), calls)
    return engine, buckets, calls, warm


def takes_any_size(engine: "Engine") -> bool:
    """Whether the network runs batches of every size; a backend of fixed shapes names those that it has prepared."""
    return "buckets" not in engine.facts


def release(probe: "list[Engine]") -> None:
    """Give back the memory of an engine that nothing but this list refers to."""
    on_gpu = probe.pop().device == "cuda"
    gc.collect()
    if on_gpu:
        import torch

        torch.cuda.empty_cache()  # PyTorch keeps what was freed, and other libraries cannot have it


def slot_table(engine: "Engine", buckets: Sequence[int]) -> Slots:
    manifest = engine.manifest
    if engine.device == "cuda":
        try:
            from server.scheduler.device_slots import DeviceSlotTable
        except ImportError as error:
            from export.engine import not_installed

            remedy = "The step around its network needs Triton on a GPU: pip install 'triton>=3.6'"
            raise not_installed(engine.backend, remedy) from error
        assert engine.on_device is not None, "a GPU engine has buffers on the device"
        return DeviceSlotTable(
            engine.on_device, shape=manifest.image_shape, classes=manifest.columns, sigma_data=manifest.sigma_data,
            extra=manifest.extra, conditions=manifest.conditions,
        )  # fmt: skip
    return SlotTable(
        engine.network, manifest.image_shape, manifest.columns, manifest.sigma_data, buckets, manifest.extra,
        bool(manifest.adapted), manifest.conditions,
    )  # fmt: skip


def tick_of(table: Slots, images: int, adapter: int = 0) -> Tick:
    """Make some images in one step, all of one adapter. The table must be empty, and is empty again."""
    levels = (SIGMA_MAX,)
    table.admit([Image(ImageKey(0, i), seed=i, label=-1, sigmas=levels, adapter=adapter) for i in range(images)])
    return table.tick()


def measure_ticks(table: Slots, sizes: Sequence[int], enough: float = inf) -> dict[int, float]:
    """Seconds of a network call with the step around it, by batch size: a slot has to pay for both.

    enough: as of server.scheduler.calibration.measure.
    """
    return measure(lambda size: tick_of(table, size), sizes, enough=enough)


def warm_up(table: Slots, batches: Sequence[int], last: int = 0) -> float:
    """Tick once with each number of images, then with `last` images, or with all slots; returns the seconds of that."""
    elapsed_s, tick = 0.0, Tick()
    for batch in (*batches, last or table.capacity):  # where it is in batches, too: its first call grows the memory
        started_s = time.monotonic()
        tick = tick_of(table, batch)
        elapsed_s = time.monotonic() - started_s
        if tick.broken:
            raise CheckpointError("the network returns values that are not finite; export it again")
    encode(tick.finished[0][1], "png")  # Pillow loads its plugins at the first image
    return elapsed_s
