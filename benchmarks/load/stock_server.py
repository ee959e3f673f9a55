"""A peer: LitServe's own dynamic batching, one batch being whole trajectories, on the same engine.

    python benchmarks/load/stock_server.py --engine models/fashion/engine --port 8001 --batching padded

What a careful user of LitServe would write: the batch is gathered by LitServe's BatchedLoop, `predict` runs the
sampler, the answer is a PNG. benchmarks/load/trajectories.py explains --batching; with `equal`, four times as many
requests are gathered to fill the batches.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import litserve
from fastapi import HTTPException, Response

from benchmarks.load.trajectories import Trajectories, gathered, parser, wanted
from fewstep.pixels import Pixels, encode
from server.scheduler.slots import Image


class TrajectoryAPI(litserve.LitAPI):
    """POST /v1/generate with steps, seed and label; one image per request."""

    trajectories: Trajectories  # in the worker, after setup

    def __init__(self, args: argparse.Namespace) -> None:
        size = gathered(args.batching, args.capacity)
        super().__init__(api_path="/v1/generate", max_batch_size=size, batch_timeout=args.batch_timeout_s)
        self.args = args

    def setup(self, device: str) -> None:
        self.trajectories = Trajectories.load(self.args)

    def decode_request(self, request: Mapping[str, Any], **kwargs: Any) -> Image:
        try:
            return wanted(self.trajectories.engine.manifest, request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: Sequence[Image]) -> list[Image]:
        """A batch stays a list: rows of one array may have different step counts."""
        return list(inputs)

    def predict(self, x: Sequence[Image], **kwargs: Any) -> list[Pixels]:
        return self.trajectories.make(x)

    def unbatch(self, output: Sequence[Pixels]) -> list[Pixels]:
        return list(output)

    def encode_response(self, output: Pixels, **kwargs: Any) -> Response:
        return Response(encode(output, "png"), media_type="image/png")


def main() -> None:
    args = parser(__doc__).parse_args()
    server = litserve.LitServer(TrajectoryAPI(args), accelerator="cpu", devices=1, timeout=False)
    server.run(host="127.0.0.1", port=args.port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
