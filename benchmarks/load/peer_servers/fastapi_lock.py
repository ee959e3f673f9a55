"""A peer: FastAPI with a lock around the engine, the simplest server. One image at a time.

python benchmarks/load/peer_servers/fastapi_lock.py --engine models/fashion/engine --port 8001

The handler is a plain function, so FastAPI runs it in its threads, and the event loop stays free; an image alone is a
batch of one row, and is encoded outside the lock.
"""

from fewstep import extras

extras.name_missing()

import threading
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, HTTPException, Response

from benchmarks.load.trajectories import Trajectories, parser, wanted
from fewstep.pixels import encode


def application(trajectories: Trajectories) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/v1/generate")
    def generate(request: Annotated[dict[str, Any], Body()]) -> Response:
        try:
            image = wanted(trajectories.engine.manifest, request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        with lock:
            (pixels,) = trajectories.make([image])
        return Response(encode(pixels, "png"), media_type="image/png")

    return app


def main() -> None:
    args = parser(__doc__).parse_args()
    args.capacity = 1
    uvicorn.run(application(Trajectories.load(args)), host="127.0.0.1", port=args.port, log_level="error")


if __name__ == "__main__":
    main()
