"""The model of triton_iterative.py, for Triton's Python backend: a network call for all requests, then back to Triton.

The step around the network is that of our slot table, so that the servers differ and not the arithmetic.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# The backend's Python does not read it by itself.
sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] - of the backend

from benchmarks.load.fixed_cost import Cost
from benchmarks.load.trajectories import Trajectories, wanted
from fewstep.pixels import encode
from server.scheduler.slots import Image, ImageKey


class TritonPythonModel:
    """What the backend calls; the names are its own."""

    def initialize(self, arguments: dict[str, str]) -> None:
        told = json.loads(json.loads(arguments["model_config"])["parameters"]["peer"]["string_value"])
        cost = Cost.parse(told["cost"]) if told["cost"] else None
        args = argparse.Namespace(
            engine=Path(told["engine"]), capacity=told["capacity"], backend=told["backend"], threads=told["threads"],
            cost=cost, engine_cores=told["cores"], batching="shrinking",
        )  # fmt: skip
        made = Trajectories.load(args)
        self.manifest, self.table = made.engine.manifest, made._table(args.capacity)
        self.started: set[int] = set()
        self.done: dict[int, bytes] = {}  # finished while their requests were not in the batch

    def execute(self, requests: list[Any]) -> list[Any]:
        """One network call for every image in flight; an answer, or None for a request that goes on."""
        numbers = [request.correlation_id() for request in requests]
        new = [(n, request) for n, request in zip(numbers, requests, strict=True) if n not in self.started]
        self.table.admit([self._image(number, request) for number, request in new])
        self.started |= {number for number, _ in new}
        if any(number not in self.done for number in numbers):
            finished = self.table.tick().finished
            self.done |= {key.request: encode(pixels, "png") for key, pixels in finished}
        return [self._answer(number, request) for number, request in zip(numbers, requests, strict=True)]

    def _image(self, number: int, request: Any) -> Image:
        seed, steps = (
            int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()) for name in ("SEED", "STEPS")
        )
        image = wanted(self.manifest, {"seed": seed, "steps": steps})
        return Image(ImageKey(number, 0), image.seed, image.label, image.sigmas)

    def _answer(self, number: int, request: Any) -> Any:
        if number not in self.done:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        self.started.remove(number)
        png = np.array([np.frombuffer(self.done.pop(number), np.uint8)])
        # Not Tensor(NAME, array): the backend was built for numpy 1 and takes numpy 2's arrays for empty.
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor.from_dlpack("PNG", png)])
