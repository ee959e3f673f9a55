"""ONNX -> TensorRT plan, with TensorRT 11 or TensorRT-RTX: one code, the module is a parameter.

Strongly typed: every layer computes in the type that the ONNX file gives it, and no builder flag changes that. Each
bucket is an optimisation profile of its own, because one wide profile is tuned for one batch size only.
"""

from pathlib import Path
from typing import Any

import torch

from export.backends.opened import Source, not_installed
from export.backends.plan import ANY_GPU, MODULES, PlanKey, plan_key, write_plan
from export.manifest import BACKEND_TENSORRT_RTX
from fewstep.card import CheckpointError, write_atomically

NEWEST_WEAKLY_TYPED = 10  # from the major version after it, every network is strongly typed


def import_module(backend: str) -> Any:
    """The TensorRT of a backend. Raises CheckpointError when it is absent, or too old."""
    try:
        if backend == BACKEND_TENSORRT_RTX:
            import tensorrt_rtx as module  # pyright: ignore[reportMissingImports]
        else:
            import tensorrt as module  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # the bindings install without the libraries, which then are not found
        package = "tensorrt-rtx" if backend == BACKEND_TENSORRT_RTX else "tensorrt-cu13"
        raise not_installed(backend, f"Install it with: pip install {package}") from error
    trt: Any = module
    if backend != BACKEND_TENSORRT_RTX and int(trt.__version__.split(".")[0]) <= NEWEST_WEAKLY_TYPED:
        raise CheckpointError(
            f"TensorRT {trt.__version__} is too old for strongly typed networks as they are exported here. "
            "Install 11 or newer: pip install 'tensorrt-cu13>=11'"
        )
    return trt


def compute_capability() -> str:
    """Of the current GPU, such as "9.0": part of what a plan is made for."""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def build_plan(source: Source, backend: str, buckets: tuple[int, ...], trt: Any, gpu: str) -> Path:
    """Build the plan and write it into the engine directory; returns its path.

    trt: the module, as `import_module` gives it. gpu: compute capability of the present GPU. Takes seconds with
    TensorRT-RTX, which needs no GPU for it, and minutes with TensorRT, which times its kernels on the GPU.
    Raises CheckpointError when TensorRT cannot read the network or build the plan.
    """
    key = plan_key(source.manifest, backend, trt.__version__, buckets, gpu)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = parsed(source, trt, builder, logger)
    config = builder.create_builder_config()
    if key.gpu != ANY_GPU:  # TensorRT-RTX cannot build refittable plans without a GPU
        config.set_flag(trt.BuilderFlag.REFIT)  # a later checkpoint of this architecture swaps its weights in
    if hasattr(
        trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"
    ):  # else TensorRT-RTX may allocate, and no graph may hold that
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    for bucket in buckets:
        config.add_optimization_profile(_profile(builder, network, bucket))
    cache = _timing_cache(config, key, source.folder)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CheckpointError(
            f"{MODULES[backend]} {trt.__version__} could not build a plan for batches of {buckets[-1]}. Its log above "
            "says why; if memory is short, give fewer or smaller --buckets"
        )
    path = write_plan(source.folder, key, bytes(plan))
    if cache is not None:
        write_atomically(key.timing_cache(source.folder), bytes(cache.serialize()))
    return path


def refit_plan(source: Source, key: PlanKey, trt: Any, plan: bytes) -> Path:
    """Write the plan of `key` as a copy of `plan`, of the same architecture, with the weights of `source`.

    Needs a GPU. Raises CheckpointError when the weights do not fit.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    refitter = trt.Refitter(engine, logger) if engine else None
    fits = refitter is not None and trt.OnnxParserRefitter(refitter, logger).refit_from_bytes(source.content)
    if refitter is None or not fits or not refitter.refit_cuda_engine():
        raise CheckpointError(
            f"the plan cannot take the weights of {source.path}: it was built for another architecture. "
            "Leave --refit-from away, and a plan is built"
        )
    return write_plan(source.folder, key, bytes(engine.serialize()))


def parsed(source: Source, trt: Any, builder: Any, logger: Any) -> Any:
    """The network definition. Raises CheckpointError that names the first operator TensorRT does not take."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.content):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise CheckpointError(
            f"{trt.__name__} {trt.__version__} cannot read {source.path}: {reason}. Choose --backend torch or "
            "onnxruntime-cuda, or replace that operator in the network"
        )
    return network


def _profile(builder: Any, network: Any, bucket: int) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = (bucket, *tuple(tensor.shape)[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _timing_cache(config: Any, key: PlanKey, folder: Path) -> Any:
    """Kernel times measured by an earlier build; None where nothing is measured at build time."""
    if key.gpu == ANY_GPU:
        return None
    path = key.timing_cache(folder)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
