"""ONNX Runtime on a GPU: the same ONNX file, inputs and outputs bound to static buffers, so that nothing is copied."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export.backends.host import host_network
from export.backends.opened import Opened, Source, library, not_installed
from export.backends.static_buffers import StaticBuffers
from fewstep.card import CheckpointError

PROVIDER = "CUDAExecutionProvider"
# ONNX's numbers of element types; numpy's, which ONNX Runtime takes too, have no bfloat16.
ELEMENTS = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}


def open_network(source: Source, backend: str, buckets: tuple[int, ...]) -> Opened:
    """Raises CheckpointError when this ONNX Runtime has no CUDA provider, or the provider does not load.

    torch is imported first on purpose: it brings the CUDA and cuDNN libraries that the provider links.
    """
    import onnxruntime as ort

    remedy = "Replace onnxruntime with: pip uninstall onnxruntime; pip install onnxruntime-gpu"
    if PROVIDER not in ort.get_available_providers():
        raise not_installed(backend, remedy)
    if not torch.cuda.is_available():
        raise CheckpointError(
            f"backend {backend} runs on an NVIDIA GPU with a driver, and PyTorch finds none here. "
            "Choose --backend onnxruntime-cpu or openvino"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    stream = torch.cuda.Stream(device)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    cuda = {"device_id": device.index, "use_tf32": "0", "user_compute_stream": str(stream.cuda_stream)}
    try:
        session = ort.InferenceSession(source.content, options, providers=[(PROVIDER, cuda)])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise CheckpointError(
            f"ONNX Runtime {ort.__version__} cannot load {source.path}: {error}. "
            "Choose --backend torch, or export again in another --dtype"
        ) from error
    require_provider(session.get_providers(), ort.__version__)
    network = BoundNetwork(session, StaticBuffers(source.manifest, buckets, device), stream)
    facts = {
        "library": f"onnxruntime {ort.__version__}, {library('torch')}",
        "provider": session.get_providers()[0],
        "processor": torch.cuda.get_device_name(device),
        "precision": source.manifest.dtype,
        "buckets": ",".join(map(str, buckets)),
    }
    return Opened(host_network(network), facts, "cuda", network)


def require_provider(providers: Sequence[str], version: str) -> None:
    """Raise CheckpointError when the session runs elsewhere: ONNX Runtime falls back to the CPU without an error."""
    if providers[0] != PROVIDER:
        raise CheckpointError(
            f"ONNX Runtime {version} did not load its CUDA provider and would run on {', '.join(providers)}: its CUDA "
            "or cuDNN libraries do not match those of this machine. Install matching ones, or choose --backend torch"
        )


class BoundNetwork:
    """A DeviceNetwork of a session, on the device of the buffers. stream: the session's own; None on a CPU."""

    def __init__(self, session: Any, buffers: StaticBuffers, stream: torch.cuda.Stream | None) -> None:
        self.session = session
        self.stream = stream
        self.device, self.dtype = buffers.device, buffers.dtype
        self.capacity, self.buckets = buffers.capacity, buffers.buckets
        self.x, self.c_noise, self.onehot = buffers.x, buffers.c_noise, buffers.onehot
        self.adapter = None  # export.manifest.WITH_ADAPTERS has this backend not
        self.conditions: dict[str, Tensor] = {}  # nor has WITH_CONDITIONS
        self.output = buffers.output
        self.bindings = {bucket: self._bound(bucket, buffers) for bucket in buffers.buckets}

    def run(self, bucket: int) -> Tensor:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self.session.run_with_iobinding(self.bindings[bucket])
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return self.output[:bucket]

    def _bound(self, bucket: int, buffers: StaticBuffers) -> Any:
        binding = self.session.io_binding()
        place = (self.device.type, self.device.index or 0)
        for name, buffer in buffers.inputs().items():
            shape = [bucket, *buffer.shape[1:]]
            binding.bind_input(name, *place, ELEMENTS[buffer.dtype], shape, buffer.data_ptr())
        shape = [bucket, *self.output.shape[1:]]
        binding.bind_output("output", *place, ELEMENTS[self.dtype], shape, self.output.data_ptr())
        return binding
