"""An engine directory -> a TensorRT plan in it (`fewstep export plan`)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from export.backends.plan import ANY_GPU, plan_key, read_plan
from export.backends.tensorrt_plan import build_plan, compute_capability, import_module, refit_plan
from export.engine import check_conditions, prepared_buckets, read_source
from export.manifest import BACKEND_TENSORRT
from fewstep.card import CheckpointError


def make_plan(folder: Path, backend: str, buckets: Sequence[int] | None = None, refit_from: Path | None = None) -> Path:
    """Build the plan of an engine, or refit the one in `refit_from`; returns its path.

    buckets: as for load_engine, and the same must be given there. refit_from: an engine directory with a plan of the
    same architecture, library, buckets and GPU: its weights are replaced in seconds, where a build takes minutes.
    Raises CheckpointError with a sentence when TensorRT, the GPU or the plan is missing.
    """
    source = read_source(folder)
    check_conditions(source.manifest, backend)
    if refit_from and backend != BACKEND_TENSORRT:
        raise CheckpointError(f"plans of {backend} cannot be refitted; leave --refit-from away, a build takes seconds")
    trt = import_module(backend)
    if backend == BACKEND_TENSORRT and not torch.cuda.is_available():
        raise CheckpointError(
            f"backend {backend} needs an NVIDIA GPU for this, and PyTorch finds none here; "
            "tensorrt-rtx is the one that builds without one"
        )
    prepared = prepared_buckets(source.manifest, buckets)
    gpu = compute_capability() if torch.cuda.is_available() else ANY_GPU
    if refit_from is None:
        return build_plan(source, backend, prepared, trt, gpu)
    key = plan_key(source.manifest, backend, trt.__version__, prepared, gpu)
    other = plan_key(read_source(refit_from).manifest, backend, trt.__version__, prepared, gpu)
    return refit_plan(source, key, trt, read_plan(refit_from, other))
