"""The baseline: LitServe's own dynamic batching, one batch being whole trajectories, on the same engine.

    python benchmarks/load/stock_server.py --engine models/fashion/engine --port 8001 --batching padded

What a careful user of LitServe would write: the batch is gathered by LitServe's BatchedLoop, `predict` runs the
sampler, the answer is a PNG. Three ways to run requests whose step counts differ:

    padded     every row is computed until the longest is done (the usual way)
    shrinking  rows that are done leave the batch, none joins
    equal      one batch per step count, one after the other; four times as many requests are gathered to fill them
"""

from fewstep import extras

extras.name_missing()

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import litserve
from fastapi import HTTPException, Response

from benchmarks.load.fixed_cost import Cost, FixedCostEngine
from export.manifest import read_manifest
from fewstep.noise import random_labels
from fewstep.pixels import Pixels, encode
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.loading import slot_table
from server.scheduler.slots import Image, ImageKey, Slots, buckets_for

if TYPE_CHECKING:
    from export.engine import Engine

Batching = Literal["padded", "shrinking", "equal"]
# A batch waits at most this long for more requests. A longer window costs a lone request its length and brings nothing
# under load, when the queue fills during a trajectory; 0, LitServe's default, keeps a core busy asking an empty queue.
BATCH_TIMEOUT_S = 0.005


class TrajectoryAPI(litserve.LitAPI):
    """POST /v1/generate with steps, seed and label; one image per request."""

    def __init__(
        self,
        engine: Path,
        batching: Batching,
        *,
        capacity: int,
        backend: str | None = None,
        threads: int = 0,
        cost: Cost | None = None,
        cores: Sequence[int] = (),
        **options: Any,
    ) -> None:
        gathered = 4 * capacity if batching == "equal" else capacity
        super().__init__(api_path="/v1/generate", max_batch_size=gathered, **options)
        self.capacity = capacity
        self.folder = engine
        self.batching: Batching = batching
        self.backend = backend
        self.threads = threads
        self.cost = cost
        self.cores = cores

    def setup(self, device: str) -> None:
        """In the worker, before the engine starts its threads."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.cost:
            self.engine = FixedCostEngine(read_manifest(self.folder), self.cost)
        else:
            from export.engine import load_engine

            sizes = (self.capacity,) if self.batching == "padded" else buckets_for(self.capacity, exact=False)
            self.engine = load_engine(self.folder, backend=self.backend, threads=self.threads, buckets=sizes)
        for size in (1, self.capacity):  # the first calls are slow
            self.predict([self.decode_request({"seed": seed}) for seed in range(size)])

    def decode_request(self, request: Mapping[str, Any], **kwargs: Any) -> Image:
        manifest = self.engine.manifest
        steps, seed = request.get("steps", 4), request.get("seed", 0)
        if steps not in manifest.levels or request.get("n", 1) != 1:
            raise HTTPException(400, f"steps is one of {sorted(manifest.levels)}, and n is 1")
        drawn = int(random_labels([seed], manifest.classes)[0]) if manifest.classes else -1
        return Image(ImageKey(0, 0), seed, request.get("label", drawn), manifest.levels[steps])

    def batch(self, inputs: Sequence[Image]) -> list[Image]:
        """A batch stays a list: rows of one array may have different step counts."""
        return list(inputs)

    def predict(self, x: Sequence[Image], **kwargs: Any) -> list[Pixels]:
        """Images in the order of the requests: uint8 [H, W, C] each."""
        images = [Image(ImageKey(index, 0), image.seed, image.label, image.sigmas) for index, image in enumerate(x)]
        pixels: dict[int, Pixels] = {}
        for group in groups(images, self.batching, self.capacity):
            table = self._table(len(group))
            table.admit(group)
            while table.requests():
                pixels |= {key.request: finished for key, finished in table.tick().finished}
        return [pixels[index] for index in range(len(images))]

    def _table(self, size: int) -> Slots:
        """Slots for one group. A single bucket is what pads: the network sees all rows until the last one is done."""
        buckets = range(1, size + 1) if self.batching == "shrinking" else (size,)
        return slot_table(cast("Engine", self.engine), tuple(buckets))

    def unbatch(self, output: Sequence[Pixels]) -> list[Pixels]:
        return list(output)

    def encode_response(self, output: Pixels, **kwargs: Any) -> Response:
        return Response(encode(output, "png"), media_type="image/png")


def groups(images: Sequence[Image], batching: Batching, capacity: int) -> list[list[Image]]:
    """What runs together: everything, or up to `capacity` images of one step count, the shortest first."""
    if batching != "equal":
        return [list(images)]
    counts = sorted({len(image.sigmas) for image in images})
    equal = [[image for image in images if len(image.sigmas) == count] for count in counts]
    return [group[first : first + capacity] for group in equal for first in range(0, len(group), capacity)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="engine to serve")
    parser.add_argument("--port", type=whole(1), required=True, help="to listen on")
    parser.add_argument(
        "--batching",
        choices=get_args(Batching),
        default="padded",
        help="how requests share a network call (default %(default)s)",
    )
    parser.add_argument("--capacity", type=whole(1), default=8, help="rows of a network call (default 8)")
    parser.add_argument(
        "--batch-timeout-s",
        type=number(POSITIVE),
        default=BATCH_TIMEOUT_S,
        help="how long a batch waits for more requests (default %(default)s)",
    )
    parser.add_argument("--backend", help="what runs the network (default: what the engine names)")
    parser.add_argument("--threads", type=whole(0), default=0, help="cores one network call may use; 0: all")
    parser.add_argument("--cost", type=Cost.parse, metavar="A,B[,FLOOR]", help="a fixed-cost network in milliseconds")
    parser.add_argument("--engine-cores", default="", metavar="0,1,...", help="cores of the process with the network")
    args = parser.parse_args()
    api = TrajectoryAPI(
        args.engine,
        cast(Batching, args.batching),
        capacity=args.capacity,
        backend=args.backend,
        threads=args.threads,
        cost=args.cost,
        cores=[int(core) for core in args.engine_cores.split(",") if core],
        batch_timeout=args.batch_timeout_s,
    )
    server = litserve.LitServer(api, accelerator="cpu", devices=1, timeout=False)
    server.run(host="127.0.0.1", port=args.port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
