"""A network that runs in ONNX Runtime at once, and in OpenVINO as soon as that has been prepared beside it.

To import OpenVINO and to read its compiled models takes longer than the whole start of a server with ONNX Runtime.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.backends import onnxruntime_cpu, openvino
from export.backends.opened import Floats, HostNetwork, Opened, Source, library
from export.manifest import BACKEND_OPENVINO, BACKEND_ORT_CPU
from fewstep.card import CheckpointError

logger = logging.getLogger(__name__)


def open_network(
    source: Source, backend: str, threads: int, buckets: tuple[int, ...], compiled: Path | None = None
) -> Opened:
    """As of export.backends.openvino, with `background`. What OpenVINO cannot run stays with ONNX Runtime."""
    first = onnxruntime_cpu.open_network(source, BACKEND_ORT_CPU, threads)
    open_later = lambda: openvino.open_network(source, backend, threads, buckets, compiled, background=True)  # noqa: E731
    network = Deferred(first.network, open_later, source, (buckets[0], buckets[-1]))
    facts = {
        "library": library("openvino"),
        "precision": openvino.PRECISIONS["bf16" if backend == BACKEND_OPENVINO else "f32"],
        "threads": first.facts["threads"],
        "buckets": ",".join(map(str, buckets)),
        "until_prepared": f"{first.facts['library']}, {first.facts['precision']}",
    }
    return Opened(network, facts, prepare=network.prepare)


class Deferred:
    """A HostNetwork: of the first backend until `prepare` has ended, then of the other."""

    def __init__(
        self, first: HostNetwork, open_later: Callable[[], Opened], source: Source, batches: tuple[int, ...]
    ) -> None:
        """batches: sizes for which the other one is warmed up before it takes over."""
        self.network = first
        self.open_later = open_later
        self.source = source
        self.batches = batches
        self.cores = os.sched_getaffinity(0)  # OpenVINO pins threads to those of the thread that loads a model

    def __call__(self, *arrays: np.ndarray) -> Floats:
        return self.network(*arrays)

    def prepare(self) -> None:
        """Load the other backend, warm it up and let it take over. Call once, from a thread that does nothing else."""
        os.sched_setaffinity(0, self.cores)
        began_s, manifest = time.monotonic(), self.source.manifest
        shapes = [manifest.input_shape, (), (manifest.columns,), *(each.shape for each in manifest.conditions)]
        try:
            later = self.open_later().network
            for batch in self.batches:
                later(*(np.zeros((batch, *shape), np.float32) for shape in shapes))
        except (CheckpointError, RuntimeError) as error:
            logger.warning("%s stays with ONNX Runtime: %s", manifest.name, error)
            return
        self.network = later  # the first one's memory goes with it, once its last call has ended
        logger.info("%s runs with OpenVINO, prepared in %.1f s", manifest.name, time.monotonic() - began_s)
