"""A peer: BentoML's adaptive batching, one batch being whole trajectories, on the same engine.

python benchmarks/load/peer_servers/bentoml_adaptive.py --engine models/fashion/engine --port 8001 --batching shrinking

BentoML learns how long batches take and waits for more requests within max_latency_ms. A batchable method takes one
list: the body is {"requests": [{"steps": 4, "seed": 7}]}, and the answer a list of one PNG in base64. That is one hop
fewer than the service of two parts that BentoML's manual has for other bodies.
"""

from fewstep import extras

extras.name_missing()

import base64
import os
import shlex
import sys
from typing import Any

import bentoml  # pyright: ignore[reportMissingImports]

from benchmarks.load.trajectories import Trajectories, gathered, parser, wanted
from fewstep.pixels import encode

FLAGS = "PEER_FLAGS"  # BentoML imports this file again in a process of its own
MAX_LATENCY_MS = 60_000  # BentoML answers 503 for a request that it expects to be later; ours has the same bound
ARGS = parser(__doc__).parse_args(shlex.split(os.environ[FLAGS])) if FLAGS in os.environ else None


@bentoml.service(
    workers=1,
    traffic={"timeout": 60, "max_concurrency": 100_000},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # a line for each request would cost the peer its time
)
class Images:
    def __init__(self) -> None:
        assert ARGS is not None
        self.trajectories = Trajectories.load(ARGS)

    @bentoml.api(
        route="/v1/generate",
        batchable=True,
        max_batch_size=gathered(ARGS.batching, ARGS.capacity)
        if ARGS
        else 2,  # the process that starts the others makes nothing
        max_latency_ms=MAX_LATENCY_MS,
    )
    def generate(self, requests: list[dict[str, Any]]) -> list[str]:
        """BentoML runs it in a thread, one batch at a time."""
        manifest = self.trajectories.engine.manifest
        pixels = self.trajectories.make([wanted(manifest, request) for request in requests])
        return [base64.b64encode(encode(each, "png")).decode() for each in pixels]


def main() -> None:
    args = parser(__doc__).parse_args()
    os.environ[FLAGS] = shlex.join(sys.argv[1:])
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    service = "benchmarks.load.peer_servers.bentoml_adaptive:Images"
    command = [sys.executable, "-m", "bentoml", "serve", service, "--port", str(args.port), "--host", "127.0.0.1"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
