"""The step scheduler under LitServe's own, unpatched LitServer: an example of the hooks.

python -m server.hosts.litserve_stock --engine models/fashion/engine --port 8000
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from litserve import LitServer

from export.manifest import read_manifest
from fewstep.ranges import whole
from server.hosts.litserve import DialectSpec, StepAPI, StockService, refused
from server.http.dialects.native import NativeDialect
from server.http.gate import KeyRing
from server.scheduler.calibration import SharedTimes
from server.scheduler.loading import LoadOptions, load_model
from server.scheduler.model import Model
from server.scheduler.policy import fifo
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings


def load(name: str, folder: Path) -> dict[str, Model]:
    """In LitServe's worker process."""
    return {name: load_model(name, folder, LoadOptions(), SharedTimes())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="engine to serve")
    parser.add_argument("--port", type=whole(1, 65535), required=True, help="to listen on")
    args = parser.parse_args()
    name = read_manifest(args.engine).name
    models = {name: replace(read_manifest(args.engine), name=name)}
    service = StockService()
    dialect = NativeDialect(models, Settings(engines={name: args.engine}), service)
    service.spec = spec = DialectSpec(dialect.routes())
    api = StepAPI(partial(load, name, args.engine), fifo, KeyRing(()), service.check_ready, spec)
    server = LitServer(api, accelerator="cpu", timeout=False)
    server.app.add_exception_handler(Refusal, refused)
    server.run(host="127.0.0.1", port=args.port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
