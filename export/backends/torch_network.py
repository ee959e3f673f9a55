"""PyTorch: the checkpoint itself. Eager on a CPU; on a GPU one CUDA graph per bucket, over one set of buffers.

`torch` runs the layers as they are, `torch-compile` after torch.compile, which takes minutes at the first start.
The buffers are shared: bucket b reads the first b rows, and every graph draws its memory from one pool.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from export.adapter_factors import stacked_adapters
from export.backends.host import host_network
from export.backends.opened import Opened, Source, library, not_installed
from export.grouped import grouped_network
from export.half import DTYPES, network_in
from export.manifest import BACKEND_TORCH_COMPILE, Manifest
from fewstep.adapters import told
from fewstep.card import WEIGHTS_FILE, CheckpointError
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.network import UNet

WARM_UP_CALLS = 3  # before a capture: libraries allocate workspaces and choose algorithms in their first calls


def open_network(source: Source, backend: str, threads: int, buckets: tuple[int, ...]) -> Opened:
    """On the GPU when PyTorch finds one, else on the CPU; the facts say which.

    Raises CheckpointError when the engine does not lie in its checkpoint's folder, or memory is too small.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    folder = source.folder.resolve().parent
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"backend {backend} runs the checkpoint itself, and {folder} holds no {WEIGHTS_FILE}. "
            "Put the engine's folder inside the checkpoint's, or choose another --backend"
        )
    if threads and device.type == "cpu":
        torch.set_num_threads(threads)
    manifest = source.manifest
    try:
        module, layers = _module(folder, manifest, device, backend, buckets)
        if manifest.adapted:
            module = _with_adapters(module, source, device)
        network = TorchNetwork(module, manifest, buckets, device)
        network.capture()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"the GPU has too little free memory for batches of {buckets[-1]} with {manifest.name}; choose a smaller "
            "--capacity, or export with --dtype bfloat16"
        ) from error
    facts = {
        "library": library("torch"),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": manifest.dtype,
        "layers": layers,
        "cuda_graphs": str(len(network.graphs)),
        "buckets": ",".join(map(str, buckets)),
    }
    if manifest.adapted:
        facts["adapters"] = str(len(manifest.adapters))
    if device.type == "cpu":
        facts["threads"] = str(torch.get_num_threads())
    return Opened(host_network(network), facts, device.type, network)  # pyright: ignore[reportArgumentType]


class TorchNetwork:
    """A DeviceNetwork of a torch module. Before `capture`, and always on a CPU, every run is eager."""

    def __init__(
        self,
        module: Callable[..., Tensor],
        manifest: Manifest,
        buckets: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.module = module
        self.device = device
        self.dtype = DTYPES[manifest.dtype]
        self.buckets = buckets
        self.capacity = buckets[-1]
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.x = torch.zeros((self.capacity, *manifest.input_shape), dtype=self.dtype, device=device)
        self.x = self.x.contiguous(memory_format=self.memory_format)
        self.c_noise = torch.zeros(self.capacity, device=device)
        self.onehot = torch.zeros((self.capacity, manifest.columns), dtype=self.dtype, device=device)
        self.conditions = {
            each.name: torch.full((self.capacity, *each.shape), each.fill, device=device)
            for each in manifest.conditions
        }
        self.adapter = torch.zeros(self.capacity, dtype=torch.int64, device=device) if manifest.adapted else None
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.outputs: dict[int, Tensor] = {}

    def run(self, bucket: int) -> Tensor:
        if bucket not in self.graphs:
            return self._eager(bucket)
        self.graphs[bucket].replay()
        return self.outputs[bucket]

    def capture(self) -> None:
        """One CUDA graph per bucket, the largest first so that the smaller ones fit into its memory. CPU: nothing."""
        if self.device.type != "cuda":
            return
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))  # which fills the buffers and loads the weights
        for bucket in reversed(self.buckets):
            with _exact(), torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    self._eager(bucket)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with _exact(), torch.cuda.graph(graph, pool=pool, stream=stream):
                self.outputs[bucket] = self._eager(bucket)
            self.graphs[bucket] = graph

    @torch.inference_mode()
    def _eager(self, bucket: int) -> Tensor:
        buffers = [self.x, self.c_noise, self.onehot, *self.conditions.values()]
        if self.adapter is not None:
            buffers.append(self.adapter)
        output = self.module(*(buffer[:bucket] for buffer in buffers))
        return output.contiguous(memory_format=self.memory_format)


def _exact() -> AbstractContextManager[None]:
    """Float32 means float32: TensorFloat-32 would round the factors of every product to 11 bits. For one `with`."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _module(
    folder: Path, manifest: Manifest, device: torch.device, backend: str, buckets: tuple[int, ...]
) -> tuple[Callable[..., Tensor], str]:
    """F(x, c_noise, onehot, *conditions), and what its layers are."""
    denoiser, card = load_denoiser(folder)
    network = cast(NetworkModule, told(cast(NetworkModule, denoiser.network), card, manifest.told))
    if backend == BACKEND_TORCH_COMPILE:  # which fuses by itself
        from torch._dynamo import config

        # Every bucket is a compilation. Beyond its limit, and where it cannot follow, torch.compile would run layers
        # as they are without an error; the whole graph or none is what `fullgraph` means.
        config.recompile_limit += len(buckets)
        return torch.compile(network_in(network, manifest.dtype).to(device), dynamic=False, fullgraph=True), "compiled"
    if device.type == "cpu" or not isinstance(network, UNet):  # on a CPU, torch's own layers are the faster ones
        return network_in(network, manifest.dtype).to(device), "torch"
    try:
        from export.fused import fused_network
    except ImportError as error:
        raise not_installed(backend, "On a GPU it needs Triton: pip install 'triton>=3.6'") from error
    return fused_network(network, manifest.dtype).to(device), "torch, with fused group norms"


def _with_adapters(module: Callable[..., Tensor], source: Source, device: torch.device) -> Callable[..., Tensor]:
    """F(x, c_noise, onehot, adapter) with the adapters of the engine. Changes `module`."""
    grouped = grouped_network(cast(torch.nn.Module, module))
    stacked = stacked_adapters(source.folder, source.manifest, source.adapters).inputs.values()
    factors = [torch.from_numpy(values).to(device) for values in stacked]
    return lambda *rows: grouped(*rows, *factors)
