"""Batching whole requests, as the peers of our server do it: one batch is whole trajectories, on the same engine.

Three ways to run requests whose step counts differ:

    padded     every row is computed until the longest is done (the usual way)
    shrinking  rows that are done leave the batch, none joins
    equal      one batch per step count, one after the other
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from benchmarks.load.fixed_cost import Cost, FixedCostEngine, sleep_precisely
from export.manifest import Manifest, read_manifest
from fewstep.noise import random_labels
from fewstep.pixels import Pixels
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.loading import slot_table
from server.scheduler.slots import Image, ImageKey, Slots, buckets_for

if TYPE_CHECKING:
    from export.engine import Engine

Batching = Literal["padded", "shrinking", "equal"]
# A batch waits at most this long for more requests. A longer window costs a lone request its length and brings nothing
# under load, when the queue fills during a trajectory; 0, LitServe's default, keeps a core busy asking an empty queue.
BATCH_TIMEOUT_S = 0.005


class Trajectories:
    """An engine that makes a batch of images from their first call to their last. One batch at a time."""

    def __init__(self, engine: "Engine | FixedCostEngine", batching: Batching, capacity: int) -> None:
        """capacity: most rows of a network call."""
        self.engine = engine
        self.batching: Batching = batching
        self.capacity = capacity
        self.tables: dict[int, Slots] = {}  # by size of a batch, each empty between two batches

    @classmethod
    def load(cls, args: argparse.Namespace) -> "Trajectories":
        """In the process with the network, before the engine starts its threads. args: of `parser`; warmed up."""
        if args.engine_cores:
            os.sched_setaffinity(0, args.engine_cores)
        if args.cost:
            sleep_precisely()
            engine = FixedCostEngine(read_manifest(args.engine), args.cost)
        else:
            from export.engine import load_engine

            padded = args.batching == "padded"
            sizes = (args.capacity,) if padded else buckets_for(args.capacity, exact=False)
            engine = load_engine(args.engine, backend=args.backend, threads=args.threads, buckets=sizes)
        made = cls(engine, args.batching, args.capacity)
        made.warm_up()
        return made

    def warm_up(self) -> None:
        """The first calls are slow."""
        for size in (1, self.capacity):
            self.make([wanted(self.engine.manifest, {"seed": seed}) for seed in range(size)])

    def make(self, requests: Sequence[Image]) -> list[Pixels]:
        """Images in the order of the requests: uint8 [H, W, C] each."""
        images = [Image(ImageKey(index, 0), each.seed, each.label, each.sigmas) for index, each in enumerate(requests)]
        pixels: dict[int, Pixels] = {}
        for group in groups(images, self.batching, self.capacity):
            table = self._table(len(group))
            table.admit(group)
            while table.requests():
                pixels |= {key.request: finished for key, finished in table.tick().finished}
        return [pixels[index] for index in range(len(images))]

    def _table(self, size: int) -> Slots:
        """Slots for one group. A single bucket is what pads: the network sees all rows until the last one is done."""
        if size not in self.tables:
            buckets = range(1, size + 1) if self.batching == "shrinking" else (size,)
            self.tables[size] = slot_table(cast("Engine", self.engine), tuple(buckets))
        return self.tables[size]


def wanted(manifest: Manifest, request: Mapping[str, Any]) -> Image:
    """What the body of a request asks for: steps, seed, label. Raises ValueError for what no peer makes."""
    steps, seed = request.get("steps", 4), request.get("seed", 0)
    if steps not in manifest.levels or request.get("n", 1) != 1:
        raise ValueError(f"steps is one of {sorted(manifest.levels)}, and n is 1")
    drawn = int(random_labels([seed], manifest.classes)[0]) if manifest.classes else -1
    return Image(ImageKey(0, 0), seed, request.get("label", drawn), manifest.levels[steps])


def groups(images: Sequence[Image], batching: Batching, capacity: int) -> list[list[Image]]:
    """What runs together: everything, or up to `capacity` images of one step count, the shortest first."""
    if batching != "equal":
        return [list(images)]
    counts = sorted({len(image.sigmas) for image in images})
    equal = [[image for image in images if len(image.sigmas) == count] for count in counts]
    return [group[first : first + capacity] for group in equal for first in range(0, len(group), capacity)]


def gathered(batching: Batching, capacity: int) -> int:
    """Requests that a framework gathers at most: batches of equal step counts need more of them to be full."""
    return 4 * capacity if batching == "equal" else capacity


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of every peer."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--engine", type=Path, required=True, metavar="DIR", help="engine to serve")
    flags.add_argument("--port", type=whole(1, 65535), required=True, help="to listen on")
    flags.add_argument(
        "--batching",
        choices=get_args(Batching),
        default="padded",
        help="how requests share a network call (default %(default)s)",
    )
    flags.add_argument("--capacity", type=whole(1), default=8, help="rows of a network call (default 8)")
    flags.add_argument(
        "--batch-timeout-s",
        type=number(POSITIVE),
        default=BATCH_TIMEOUT_S,
        help="how long a batch waits for more requests (default %(default)s)",
    )
    flags.add_argument("--backend", help="what runs the network (default: what the engine names)")
    flags.add_argument("--threads", type=whole(0), default=0, help="cores one network call may use; 0: all")
    flags.add_argument("--cost", type=Cost.parse, metavar="A,B[,FLOOR]", help="a fixed-cost network in milliseconds")
    flags.add_argument(
        "--engine-cores", type=_cores, default=(), metavar="0,1,...", help="cores of the process with the network"
    )
    return flags


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(",") if core)
