"""A peer: Ray Serve's `@serve.batch`, one batch being whole trajectories, on the same engine.

python benchmarks/load/peer_servers/ray_batch.py --engine models/fashion/engine --port 8001 --batching shrinking

Ray's proxy takes the request, one replica has the engine. The batch is made in a thread, so that the replica goes on
gathering the next one.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import os
import signal
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray import serve  # pyright: ignore[reportMissingImports]
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.load.trajectories import Trajectories, gathered, parser, wanted
from fewstep.pixels import encode
from server.scheduler.slots import Image

WAITING = 100_000  # requests that the proxy may hand to the replica


@serve.deployment(num_replicas=1, max_ongoing_requests=WAITING, ray_actor_options={"num_cpus": 0})
class Images:
    def __init__(self, args: argparse.Namespace) -> None:
        self.trajectories = Trajectories.load(args)
        batch: Any = self.make  # its methods and its argument come from the decorator
        batch.set_max_batch_size(gathered(args.batching, args.capacity))
        batch.set_batch_wait_timeout_s(args.batch_timeout_s)
        self.batched = batch

    @serve.batch
    async def make(self, images: list[Image]) -> list[bytes]:
        return await asyncio.to_thread(self._make, images)

    def _make(self, images: list[Image]) -> list[bytes]:
        return [encode(pixels, "png") for pixels in self.trajectories.make(images)]

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return Response("ok")
        body: dict[str, Any] = await request.json()
        try:
            image = wanted(self.trajectories.engine.manifest, body)
        except ValueError as error:
            return Response(str(error), 400)
        return Response(await self.batched(image), media_type="image/png")


def main() -> None:
    args = parser(__doc__).parse_args()
    args.engine = args.engine.resolve()  # a replica has another working directory
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=2)  # and not a cluster that runs here
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    deployment: Any = Images
    serve.run(deployment.bind(args), route_prefix="/")
    signal.pause()


if __name__ == "__main__":
    main()
