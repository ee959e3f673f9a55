"""Linear layers that read the same vector, as one: the same function, fewer kernels.

Every block projects the noise embedding with a layer of its own, a few microseconds each for a handful of products.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def stack_projections(model: onnx.ModelProto) -> None:
    """Turn all Gemm nodes of one input, each followed by an Unsqueeze to [B, C, 1, 1] alone, into one and a split."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pairs: dict[str, list[tuple[onnx.NodeProto, onnx.NodeProto]]] = {}
    for node in graph.node:
        follow = readers.get(node.output[0], [])
        alone = len(follow) == 1 and follow[0].op_type == "Unsqueeze"
        if node.op_type == "Gemm" and alone and all(name in weights for name in node.input[1:]):
            pairs.setdefault(node.input[0], []).append((node, follow[0]))
    for vector, found in pairs.items():
        if len(found) > 1:
            _stack(graph, weights, vector, found)


def _stack(
    graph: onnx.GraphProto,
    weights: dict[str, onnx.TensorProto],
    vector: str,
    pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]],
) -> None:
    name = f"{vector}_projected"
    matrices = [numpy_helper.to_array(weights[gemm.input[1]]) for gemm, _ in pairs]
    sizes = [len(matrix) for matrix in matrices]
    biases = [
        # The exporter drops a bias of zeros.
        numpy_helper.to_array(weights[gemm.input[2]]) if len(gemm.input) > 2 else np.zeros(size, np.float32)
        for (gemm, _), size in zip(pairs, sizes, strict=True)
    ]
    constants = {
        "weight": np.concatenate(matrices),
        "bias": np.concatenate(biases),
        "shape": np.array([-1, sum(sizes), 1, 1]),
        "sizes": np.array(sizes),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{key}") for key, value in constants.items())
    stacked = [
        helper.make_node("Gemm", [vector, f"{name}_weight", f"{name}_bias"], [name], transB=1),
        helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_maps"]),
        helper.make_node("Split", [f"{name}_maps", f"{name}_sizes"], [last.output[0] for _, last in pairs], axis=1),
    ]
    gone = {node.output[0] for pair in pairs for node in pair}
    nodes = []
    for node in graph.node:
        if node.output[0] == pairs[0][0].output[0]:
            nodes.extend(stacked)
        if node.output[0] not in gone:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    unread = {name for gemm, _ in pairs for name in gemm.input[1:]} - {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.initializer[:]
    graph.initializer.extend(kept)
