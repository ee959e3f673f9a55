"""ONNX Runtime on the CPU: the default. float32, any batch size, a second to load."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.adapter_factors import stacked_adapters
from export.backends.opened import Floats, Opened, Source, require_float32
from fewstep.card import CheckpointError

PROVIDER = "CPUExecutionProvider"


def open_network(source: Source, backend: str, threads: int) -> Opened:
    """threads: cores one call may use; 0 lets ONNX Runtime choose (one thread per physical core)."""
    require_float32(source, backend)
    session = open_session(source.content, source.path, threads)
    names = [value.name for value in session.get_inputs()]
    factors: dict[str, np.ndarray] = {}
    if source.manifest.adapted:
        factors = dict(stacked_adapters(source.folder, source.manifest, source.adapters).inputs)

    def network(*arrays: np.ndarray) -> Floats:
        feed = dict(zip(source.manifest.inputs, arrays, strict=True)) | factors
        return np.asarray(session.run(None, {name: feed[name] for name in names})[0])

    facts = {
        "library": f"onnxruntime {ort.__version__}",
        "provider": ", ".join(session.get_providers()),
        "precision": "float32",
        "threads": str(threads) if threads else "one per physical core",
    }
    if source.manifest.adapted:
        facts["adapters"] = str(len(source.manifest.adapters))
    return Opened(network, facts)


def open_session(content: bytes, path: Path, threads: int, *, spinning: bool = False) -> ort.InferenceSession:
    """A session over the bytes of an ONNX file; `path` is only named in errors.

    spinning: threads wait for work in a loop while a call runs, which is faster only where nobody else wants the cores.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # 1.4x over EXTENDED: NCHWc
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they come back as exceptions
    # A memory plan per batch size saves no time here, and costs 40 MB once batches of 32 have run.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # an idle server leaves the cores alone
    try:
        return ort.InferenceSession(content, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise CheckpointError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {error}. "
            f"Install a newer onnxruntime, or export the checkpoint again: fewstep export"
        ) from error
