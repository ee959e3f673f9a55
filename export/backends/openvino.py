"""OpenVINO on the CPU, in bfloat16 (`openvino`) or float32 (`openvino-f32`), from the same ONNX file.

Every bucket is a model of static shape: the CPU plugin runs those about twice as fast as a dynamic batch.
"""

import functools
import io
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.backends import kept_models
from export.backends.buckets import padded, through_buckets
from export.backends.opened import Floats, Opened, Source, not_installed, require_float32
from export.manifest import BACKEND_OPENVINO
from fewstep import cores
from fewstep.card import CheckpointError

logger = logging.getLogger(__name__)

FORM = 1  # of what `_made` makes of a network: another number, and kept models are compiled again
PRECISIONS = {"bf16": "bfloat16", "f32": "float32"}


def open_network(
    source: Source,
    backend: str,
    threads: int,
    buckets: tuple[int, ...],
    compiled: Path | None = None,
    background: bool = False,
) -> Opened:
    """threads, compiled, background: as for load_engine. A bucket's model is compiled, or read, at its first call.

    Raises CheckpointError when OpenVINO is absent, cannot read the file, or the CPU has no bfloat16.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise not_installed(backend, "Install it with: pip install 'openvino>=2025.0'") from error
    require_float32(source, backend)
    core = _core()
    precision = "bf16" if backend == BACKEND_OPENVINO else "f32"
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise CheckpointError(
            "this CPU has no bfloat16 arithmetic (AMX or AVX-512 BF16), which backend openvino computes in. "
            "Choose --backend openvino-f32 or onnxruntime-cpu"
        )
    models = _Compiled(core, source, precision, threads, compiled)
    models.model(buckets[0])  # what OpenVINO cannot read, it says now and not at the first request
    facts = {
        "library": f"openvino {ov.__version__.split('-')[0]}",
        "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        "precision": PRECISIONS[precision],
        "threads": str(threads) if threads else "one per physical core",
        "streams": str(models.streams),
        "buckets": ",".join(map(str, buckets)),
    }
    return Opened(through_buckets(InBackground(models) if background else models, buckets), facts)


@functools.cache
def _core() -> Any:
    """The process's only Core, kept to its end.

    The first use of a Core's CPU plugin gives its thread a stack of the plugin's own for signal handlers, because AMX
    state outgrows the usual one, and the end of a Core frees that stack. After the ends of two Cores in the order of
    their beginnings, or of one in another thread, the next signal is handled on freed memory: a segmentation fault.
    """
    import openvino as ov

    return ov.Core()


class _Compiled:
    """The models of the buckets, each compiled, or read from `kept`, when it is first asked for."""

    def __init__(self, core: Any, source: Source, precision: str, threads: int, kept: Path | None) -> None:
        self.core = core
        self.source = source
        self.precision = precision
        self.threads = threads
        self.kept = kept
        self.streams = min(2, threads or cores.count())
        self.models: dict[int, _Streams] = {}

    def model(self, bucket: int) -> "_Streams":
        if bucket not in self.models:
            # Two halves side by side need no threads that wait for each other in every layer. One row cannot be
            # halved, and halves of one row each are slower than one call.
            streams = self.streams if bucket % 2 == 0 and bucket >= 4 else 1
            self.models[bucket] = self._compile(bucket // streams, streams)
        return self.models[bucket]

    def __call__(self, *arguments: Any) -> Floats:
        *arrays, bucket = arguments
        return self.model(bucket)(*arrays)

    def _compile(self, rows: int, streams: int) -> "_Streams":
        settings = self._settings(streams)
        identity = self._identity(rows, settings)
        parts = kept_models.read(self.kept, identity) if self.kept else None
        try:
            found = self._imported(parts, settings) if parts else None
            if found is None:
                found = self._made(rows, settings)
                if self.kept:
                    kept_models.write(self.kept, identity, [model.export_model().getvalue() for model in found])
            return _Streams(found[0], found[1] if len(found) > 1 else None, rows, streams, self.source.manifest.inputs)
        except RuntimeError as error:
            raise CheckpointError(
                f"OpenVINO cannot run {self.source.path}: {error}. Choose --backend onnxruntime-cpu"
            ) from error

    def _settings(self, streams: int) -> dict[str, Any]:
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,  # left alone, the CPU plugin chooses bfloat16 by itself
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        if self.threads:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        if cores.quota() is not None:
            # Threads are pinned to the first cores of the process's mask. With a quota the mask is the whole machine,
            # and every container would take the same few.
            settings["ENABLE_CPU_PINNING"] = False
        return settings

    def _identity(self, rows: int, settings: dict[str, Any]) -> kept_models.Identity:
        """What a compiled model depends on; the threads and their pinning are given anew when it is read."""
        import openvino as ov

        return {
            "library": f"openvino {ov.__version__}",
            "processor": str(self.core.get_property("CPU", "FULL_DEVICE_NAME")),
            "capabilities": " ".join(self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "network": self.source.manifest.network_sha256,
            "rows": rows,
            "form": FORM,
            **{name: str(value) for name, value in settings.items()},
        }

    def _made(self, rows: int, settings: dict[str, Any]) -> list[Any]:
        """The compiled model and, where the network has them, that of its `detached_waves`."""
        model = self.core.read_model(self.source.content)
        model.reshape({port: [rows, *list(port.partial_shape)[1:]] for port in model.inputs})
        numbers = [condition.name for condition in self.source.manifest.conditions if not condition.shape]
        waves = detached_waves(model, ["c_noise", *numbers]) if self.precision == "bf16" else None
        front = [] if waves is None else [self.core.compile_model(waves, "CPU", self._exact(settings))]
        return [self.core.compile_model(model, "CPU", settings), *front]

    def _imported(self, parts: Sequence[bytes], settings: dict[str, Any]) -> list[Any] | None:
        """The same from what was kept; None where OpenVINO does not take it, which is logged."""
        every = [settings, self._exact(settings)]
        try:
            return [
                self.core.import_model(io.BytesIO(part), "CPU", own) for part, own in zip(parts, every, strict=False)
            ]
        except RuntimeError as error:
            logger.warning("OpenVINO does not take a compiled model that was kept, and it is compiled again: %s", error)
            return None

    @staticmethod
    def _exact(settings: dict[str, Any]) -> dict[str, Any]:
        """Of `detached_waves`."""
        return {**settings, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


class InBackground:
    """The same, but a call does not wait for its bucket's model where a larger bucket's is ready.

    Its rows are padded meanwhile, and a thread prepares the model.
    """

    def __init__(self, models: _Compiled) -> None:
        self.models = models
        self.cores = os.sched_getaffinity(0)  # where OpenVINO may pin threads is asked of the thread that loads a model
        self.asked: set[int] = set()
        self.turn = threading.Lock()  # one model at a time

    def __call__(self, *arguments: Any) -> Floats:
        *arrays, bucket = arguments
        used = self._ready(bucket)
        if used == bucket:
            return self.models(*arrays, bucket)
        return self.models(*(padded(each, used) for each in arrays), used)[:bucket]

    def _ready(self, bucket: int) -> int:
        ready = list(self.models.models)
        larger = min((each for each in ready if each > bucket), default=None)
        if bucket in ready or larger is None:
            return bucket
        if bucket not in self.asked:
            self.asked.add(bucket)
            threading.Thread(target=self._prepare, args=(bucket,), name=f"batches of {bucket}", daemon=True).start()
        return larger

    def _prepare(self, bucket: int) -> None:
        os.sched_setaffinity(0, self.cores)
        try:
            with self.turn:
                self.models.model(bucket)
        except CheckpointError as error:
            logger.warning("batches of %d stay padded: %s", bucket, error)


def detached_waves(model: Any, inputs: Sequence[str] = ("c_noise",)) -> Any:
    """A model of the sines and cosines alone, which become inputs of `model`; None where it has none. inputs: of those
    that sines are taken of, by name.

    A Fourier embedding takes the sine of up to some hundred radians, and a bfloat16 holds those to the nearest whole
    one: F was off by 6 % with it, and by 0.8 %, as other networks are, without.
    """
    import openvino
    from openvino import opset13

    ov: Any = openvino  # its annotations fit no type checker
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in ("Sin", "Cos")]
    if not nodes:
        return None
    numbers = [port.get_node() for port in model.inputs if port.names & set(inputs)]
    waves = ov.Model([node.output(0) for node in nodes], numbers, "waves").clone()
    for node in nodes:
        wave = opset13.parameter(node.output(0).get_partial_shape(), np.float32)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(wave.output(0))
        model.add_parameters([wave])
    model.validate_nodes_and_infer_types()
    return waves


class _Streams:
    """One compiled model and a request per stream; each request takes its share of the rows."""

    def __init__(self, compiled: Any, front: Any, rows: int, streams: int, inputs: Sequence[str]) -> None:
        self.rows = rows
        self.inputs = inputs
        self.front = front  # of `detached_waves`
        # By position: where the network hands an input on unchanged, the port has that tensor's name too.
        names = [next((name for name in inputs if name in port.names), None) for port in compiled.inputs]
        self.positions = {port: name for port, name in enumerate(names) if name is not None}
        self.wave_positions = [port for port, name in enumerate(names) if name is None]
        ports = () if front is None else front.inputs
        self.front_names = [next(name for name in inputs if name in port.names) for port in ports]
        self.requests = [compiled.create_infer_request() for _ in range(streams)]
        self.lock = threading.Lock()  # a request holds the inputs of one call

    def __call__(self, *rows: Floats) -> Floats:
        arrays = dict(zip(self.inputs, rows, strict=True))
        with self.lock:
            for index, request in enumerate(self.requests):
                part = slice(index * self.rows, (index + 1) * self.rows)
                feed = {port: arrays[name][part] for port, name in self.positions.items()}
                if self.front is not None:
                    waves = self.front([arrays[name][part] for name in self.front_names]).to_tuple()
                    feed |= dict(zip(self.wave_positions, waves, strict=True))
                request.start_async(feed, share_inputs=True)
            outputs = []
            for request in self.requests:
                request.wait()
                outputs.append(request.get_output_tensor().data)
            return np.concatenate(outputs)  # a copy: the request overwrites its own memory at its next call
