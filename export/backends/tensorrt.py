"""TensorRT and TensorRT-RTX on a GPU: runs the plan that `fewstep export plan` built, one CUDA graph per bucket."""

from typing import Any

import torch
from torch import Tensor

from export.backends.host import host_network
from export.backends.opened import Opened, Source, library
from export.backends.plan import MODULES, find_plan, plan_key, read_plan
from export.backends.static_buffers import StaticBuffers
from export.backends.tensorrt_plan import compute_capability, import_module
from fewstep.card import CheckpointError


def open_network(source: Source, backend: str, buckets: tuple[int, ...]) -> Opened:
    """Raises CheckpointError without the library, without a GPU, and without a plan for this GPU and these buckets."""
    trt = import_module(backend)
    if not torch.cuda.is_available():
        raise CheckpointError(
            f"backend {backend} runs on an NVIDIA GPU with a driver, and PyTorch finds none here. Plans can be built "
            "without one by tensorrt-rtx only, and run by neither. Choose --backend onnxruntime-cpu or openvino"
        )
    manifest = source.manifest
    device = torch.device("cuda")
    key = find_plan(source.folder, plan_key(manifest, backend, trt.__version__, buckets, compute_capability()))
    plan = read_plan(source.folder, key)
    network = PlanNetwork(trt, plan, key.buckets, StaticBuffers(manifest, buckets, device))
    network.capture()
    facts = {
        "library": f"{MODULES[backend]} {trt.__version__}, {library('torch')}",
        "processor": torch.cuda.get_device_name(device),
        "precision": manifest.dtype,
        "plan": key.path(source.folder).name,
        "activations": f"{network.activations.numel() / 2**20:.1f} MiB for all buckets together",
        "cuda_graphs": str(len(network.graphs)),
        "buckets": ",".join(map(str, buckets)),
    }
    return Opened(host_network(network), facts, "cuda", network)


class PlanNetwork:
    """A DeviceNetwork of a plan. profiles: the batch size of each of its optimisation profiles, in their order.

    Each bucket has an execution context of its own, because a CUDA graph holds what its context was set to. Their
    activations lie in one block: calls follow one another on a stream, and none needs what another has left there.
    """

    def __init__(self, trt: Any, plan: bytes, profiles: tuple[int, ...], buffers: StaticBuffers) -> None:
        self.profiles = profiles
        self.buffers = buffers
        self.device, self.dtype = buffers.device, buffers.dtype
        self.capacity, self.buckets = buffers.capacity, buffers.buckets
        self.x, self.c_noise, self.onehot = buffers.x, buffers.c_noise, buffers.onehot
        self.adapter = None  # export.manifest.WITH_ADAPTERS has this backend not
        self.conditions: dict[str, Tensor] = {}  # nor has WITH_CONDITIONS
        self.output = buffers.output
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise CheckpointError(
                f"{trt.__name__} {trt.__version__} cannot load the plan on this GPU, though it was built for it. Its "
                f"log above says why; build it again with: fewstep export plan"
            )
        self.config = runtime_config(trt, self.engine)
        self.activations = self._activations()
        self.contexts: dict[int, Any] = {}

    def run(self, bucket: int) -> Tensor:
        if bucket in self.graphs:
            self.graphs[bucket].replay()
        else:
            self._enqueue(bucket)
        return self.output[:bucket]

    def capture(self) -> None:
        """One CUDA graph per bucket, each after a normal call in which TensorRT sets itself up."""
        stream = torch.cuda.Stream(self.device)
        for bucket in reversed(self.buckets):
            with torch.cuda.stream(stream):
                self._enqueue(bucket)
            stream.synchronize()
            self._require_capturable(bucket, stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._enqueue(bucket)
            self.graphs[bucket] = graph

    def _enqueue(self, bucket: int) -> None:
        """A call on the current stream."""
        context = self.contexts.get(bucket) or self._context(bucket)
        if not context.execute_async_v3(self._stream()):
            raise RuntimeError(f"TensorRT refused a call of {bucket} rows")

    def _context(self, bucket: int) -> Any:
        """An execution context with the profile of the bucket and the addresses of the static buffers."""
        context = self.engine.create_execution_context(self.config)
        if context is None:
            raise _too_little_memory(bucket)
        context.set_optimization_profile_async(self.profiles.index(bucket), self._stream())
        for name, buffer in self.buffers.inputs().items():
            context.set_input_shape(name, (bucket, *buffer.shape[1:]))
            context.set_tensor_address(name, buffer.data_ptr())
        context.set_tensor_address("output", self.output.data_ptr())
        context.set_device_memory(self.activations.data_ptr(), self.activations.numel())
        self.contexts[bucket] = context
        return context

    def _activations(self) -> Tensor:
        """The block of memory that every context computes in, as large as the largest profile of the plan needs."""
        try:
            return torch.empty(max(self.engine.device_memory_size_v2, 1), dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise _too_little_memory(self.profiles[-1]) from error

    def _require_capturable(self, bucket: int, stream: torch.cuda.Stream) -> None:
        """Raise CheckpointError when TensorRT-RTX says that a CUDA graph cannot hold the call."""
        context = self.contexts[bucket]
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream.cuda_stream):
            raise CheckpointError(
                f"a CUDA graph cannot hold the plan's call of {bucket} rows. Build the plan again with: "
                f"fewstep export plan, or choose --backend torch or onnxruntime-cuda"
            )

    def _stream(self) -> int:
        """Handle of the current stream; on a CPU, where a stand-in is tested, there is none."""
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0


def runtime_config(trt: Any, engine: Any) -> Any:
    """How contexts of a plan run: in memory of ours, and with the same kernels from the first call to the last.

    TensorRT-RTX compiles kernels for a shape when it meets it. By default that happens behind the calls, which begin
    with other kernels, so that the bytes of an image would depend on when it was made: here the first call waits.
    """
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        strategy = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    if hasattr(trt, "CudaGraphStrategy"):  # the graphs are ours
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    return config


def _too_little_memory(bucket: int) -> CheckpointError:
    return CheckpointError(
        f"the GPU has too little free memory for batches of {bucket}; build a plan with smaller --buckets"
    )
