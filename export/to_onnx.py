"""The network F of a checkpoint as an ONNX file: opset 20, any batch size, float16 or float32 weights.

    x [batch, C + extra, H, W]  c_noise [batch]  onehot [batch, classes]  ->  output [batch, C, H, W]

All are float32; a network that computes in half precision has x, onehot and output in it, and the others in float32.
An unconditional network has no `onehot` input. An NCVSD student has extra channels, for its latent. Behind `onehot`
stand the conditions of the network, NAME [batch, *shape] each (`fewstep.conditions`). A network for adapters takes
`adapter` [batch] int64 as well, and for every layer LAYER.down [adapters, rank, taps, in] and LAYER.up [adapters, out,
rank] (`export.grouped`).
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.fusible import fusible
from export.grouped import adapted_layers, grouped_network
from export.grouped_onnx import spell_out_adapters
from export.half import DTYPES, network_in
from export.residuals import residuals_folded
from export.stacked import stack_projections
from export.upsampling import enlarged_last
from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet
from fewstep.unet_config import UNetConfig

OPSET = 20  # the newest that ONNX Runtime, OpenVINO and both TensorRTs run without taking operators apart
MAX_BYTES = 2**31 - 2**20  # protobuf's limit for one file, with room for the graph

# Smaller tensors stay float32: a Cast node each would cost more than it saves.
_MIN_ELEMENTS = 1024
_HALF_SUFFIX = "_float16"


def network_to_onnx(
    network: NetworkModule, *, weights_dtype: str, dtype: str = "float32", adapters: bool = False
) -> bytes:
    """The ONNX file of `network`, as bytes; the same network gives the same bytes.

    weights_dtype: "float32", or "float16" to store as such what float16 holds exactly.
    dtype: what the network computes in, "float32", "float16" or "bfloat16" (`export.half`). adapters: with inputs for
    adapters by row, in float32 only.
    Raises CheckpointError when the network does not fit one file, or has an operator that ONNX has not.
    """
    if adapters and dtype != "float32":
        raise CheckpointError(f"an engine with adapters computes in float32, not {dtype}; leave --dtype out")
    size = sum(tensor.numel() * 4 for tensor in network.parameters())
    if size > MAX_BYTES:
        raise CheckpointError(f"the network has {size / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB")
    model = _traced(network, dtype, adapters)
    strip_traces(model)
    spell_out_adapters(model)
    if dtype == "float32":
        stack_projections(model)
    if weights_dtype == "float16" and dtype == "float32":
        _store_as_float16(model)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


class _Unconditional(nn.Module):
    """F without the onehot input, which a network without classes never reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, *others: Tensor) -> Tensor:
        return self.network(x, c_noise, x.new_zeros(x.shape[0], 0), *others)


def _traced(network: NetworkModule, dtype: str, adapters: bool) -> onnx.ModelProto:
    config = network.config
    batch = 2  # torch.export would turn an example batch of 1 into a constant
    side = config.resolution
    extra = config.extra if isinstance(config, UNetConfig) else 0
    half = DTYPES[dtype]
    arguments = [torch.zeros(batch, config.channels + extra, side, side, dtype=half), torch.zeros(batch)]
    names = ["x", "c_noise"]
    # Measured on CPUs only. Half precision is for GPUs, where products are cheap.
    traced = network
    if dtype == "float32":
        traced = enlarged_last(residuals_folded(network) if isinstance(network, UNet) else network)
    module = network_in(fusible(traced), dtype)
    if adapters:
        module = grouped_network(module)
    if config.classes:
        arguments.append(torch.zeros(batch, config.classes, dtype=half))
        names.append("onehot")
    else:
        module = _Unconditional(module)
    fixed = len(names)
    for condition in config.conditions:
        arguments.append(torch.full((batch, *condition.shape), condition.fill))
        names.append(condition.name)
    rows = torch.export.Dim("batch", min=1)
    shapes: list[Any] = [{0: rows} for _ in names]
    if config.conditions:  # one variadic parameter
        shapes = [*shapes[:fixed], tuple(shapes[fixed:])]
    if adapters:
        count, rank = 3, 2  # anything above 1, which torch.export would turn into a constant
        arguments.append(torch.zeros(batch, dtype=torch.int64))
        shapes.append({0: rows})
        names.append("adapter")
        dims = {"adapters": torch.export.Dim("adapters", min=1), "rank": torch.export.Dim("rank", min=1)}
        factors: list[Any] = []
        for layer, (out, width, taps) in adapted_layers(network).items():
            arguments += [torch.zeros(count, rank, taps, width), torch.zeros(count, out, rank)]
            names += [f"{layer}.down", f"{layer}.up"]
            factors += [{0: dims["adapters"], 1: dims["rank"]}, {0: dims["adapters"], 2: dims["rank"]}]
        # What follows `adapter`, or c_noise of an unconditional network, is one variadic parameter.
        first = len(shapes) if config.classes else 2
        shapes = [*shapes[:first], tuple([*shapes[first:], *factors])]
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), tuple(arguments), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=names, output_names=["output"], dynamic_shapes=tuple(shapes),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise CheckpointError(
            f"the network cannot be written as ONNX of opset {OPSET} ({reason}). Replace that operator in the network, "
            "or serve the checkpoint itself with --backend torch"
        ) from error
    assert program is not None  # only the old exporter, which writes a file itself, returns nothing
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mute the exporter's remarks (torchvision is absent, an axis is renamed); errors still come out."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*axis name", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the stack traces, with file paths of this machine, that the exporter notes for every node."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _store_as_float16(model: onnx.ModelProto) -> None:
    """Store each large weight as float16 and a Cast to float32, provided that float16 holds it exactly.

    ONNX Runtime folds the casts when it loads the file: they cost nothing afterwards and change no result.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _MIN_ELEMENTS:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue  # not one of the checkpoint's float16 tensors: a constant the exporter computed
        stored = tensor.name + _HALF_SUFFIX
        casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
