"""What an adapted layer adds, as ONNX operators in place of the single nodes that `export.grouped` leaves in a trace.

The operators are those of `export.grouped.GroupedConv` and `GroupedLinear`, in the same order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.grouped import LOW_RANK

DOMAIN, NODE = LOW_RANK.split("::")


def spell_out_adapters(model: onnx.ModelProto) -> None:
    """Replace every such node of the graph, and forget its domain."""
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    found: dict[str, int] = {}  # what a layer's adapter adds -> its channels
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    for node in graph.node:
        if (node.domain, node.op_type) != (DOMAIN, NODE):
            nodes.append(node)
            continue
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        found[node.output[0]] = shapes[node.input[3]][1].dim_value
        added = _Nodes(graph, node.output[0])
        _low_rank(added, list(node.input), attributes, found[node.output[0]])
        nodes += added.nodes
    del graph.node[:]
    graph.node.extend(_joined_to_residuals(nodes, graph, found))
    imports = [each for each in model.opset_import if each.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)


class _Nodes:
    """Nodes in a row whose results are named after the last one's."""

    def __init__(self, graph: onnx.GraphProto, output: str) -> None:
        self.graph = graph
        self.output = output
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, last: bool = False, **attributes: Any) -> str:
        name = self.output if last else f"{self.output}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"{self.output}.constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def reshaped(self, value: str, shape: list[int], last: bool = False) -> str:
        """0 in the shape keeps what there is."""
        return self.add("Reshape", value, self.constant(shape), last=last)


def _low_rank(nodes: _Nodes, inputs: list[str], attributes: Mapping[str, Any], channels: int) -> None:
    x, adapter, down, up = inputs
    down_rows = nodes.add("Gather", down, adapter)  # [B, r, taps, in]
    up_rows = nodes.add("Gather", up, adapter)  # [B, out, r]
    if "kernel" not in attributes:  # a linear layer
        column = nodes.add("Unsqueeze", x, nodes.constant([2]))
        low = nodes.add("MatMul", nodes.add("Squeeze", down_rows, nodes.constant([2])), column)
        nodes.add("Squeeze", nodes.add("MatMul", up_rows, low), nodes.constant([2]), last=True)
        return
    kernel, stride, padding = (attributes[name] for name in ("kernel", "stride", "padding"))
    side = attributes["side"] * (2 if attributes["enlarged"] else 1)
    flat = nodes.reshaped(down_rows, [0, -1, attributes["width"]])  # [B, r taps, in]
    products = nodes.add("MatMul", flat, nodes.reshaped(x, [0, 0, -1]))
    if attributes["enlarged"]:
        small = nodes.reshaped(products, [0, 0, attributes["side"], attributes["side"]])
        scales = nodes.constant([1, 1, 2, 2], np.float32)
        large = nodes.add(
            "Resize", small, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )  # fmt: skip
        products = nodes.reshaped(large, [0, 0, -1])
    if kernel > 1 or padding:
        side += 2 * padding - kernel + 1
        sizes = nodes.constant([side, side]), nodes.constant([kernel, kernel])
        products = nodes.add("Col2Im", products, *sizes, pads=[kernel - 1 - padding] * 4)
    else:
        products = nodes.reshaped(products, [0, 0, side, side])
    if stride > 1:
        ends, axes, steps = [side, side], [2, 3], [stride, stride]
        products = nodes.add("Slice", products, *map(nodes.constant, ([0, 0], ends, axes, steps)))
        side = -(-side // stride)
    if attributes["factor"] != 1:
        up_rows = nodes.add("Mul", up_rows, nodes.constant(attributes["factor"], np.float32))
    added = nodes.add("MatMul", up_rows, nodes.reshaped(products, [0, 0, -1]))
    if attributes["enlarged"]:
        nodes.reshaped(added, [0, 0, side, side], last=True)
        return
    # ONNX Runtime keeps maps in a layout of its own from convolution to convolution. What another operator has made
    # would end that, and the bytes of the backbone would change: a convolution with ones brings it into that layout.
    ones = nodes.constant(np.ones((channels, 1, 1, 1)), np.float32)
    nodes.add("Conv", nodes.reshaped(added, [0, 0, side, side]), ones, last=True, group=channels)


def _joined_to_residuals(
    nodes: list[onnx.NodeProto], graph: onnx.GraphProto, of_adapters: dict[str, int]
) -> list[onnx.NodeProto]:
    """(layer + added) + residual as layer + (residual + added), of maps of one shape.

    ONNX Runtime computes a convolution and the sum behind it in one pass, with the bias last. So the sum behind it
    stays the backbone's: where `added` is zero, the bytes are those of the backbone without adapters.
    """
    makers = {node.output[0]: node for node in nodes}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    types = {value.name: value.type for value in graph.value_info}
    broadcast = {
        value.name
        for value in graph.value_info
        if [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]] == [1, 1]
    }
    gone: set[str] = set()
    before: dict[str, list[onnx.NodeProto]] = {}  # output of a sum -> what is computed just before it
    for node in nodes:
        if node.op_type != "Add" or makers.get(node.input[0], node).op_type not in ("Conv", "ConvTranspose"):
            continue
        layer, added = node.input
        follow = readers.get(node.output[0], [])
        if added not in of_adapters or len(follow) != 1 or follow[0].op_type != "Add":
            continue
        if node.output[0] not in follow[0].input:  # both of a sum are such layers, and the other one was joined
            continue
        place = list(follow[0].input).index(node.output[0])
        other = follow[0].input[1 - place]
        if other in broadcast:
            continue
        name = f"{added}.with_residual"
        follow[0].input[place], follow[0].input[1 - place] = layer, name
        before.setdefault(follow[0].output[0], []).append(helper.make_node("Add", [other, added], [name]))
        gone.add(node.output[0])
        graph.value_info.append(onnx.ValueInfoProto(name=name, type=types[added]))  # it sums maps of known shapes
    return [each for node in nodes if node.output[0] not in gone for each in (*before.get(node.output[0], ()), node)]
