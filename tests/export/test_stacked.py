"""Projections of one vector stacked into one: the same outputs, one product."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.stacked import stack_projections
from export.to_onnx import network_to_onnx
from fewstep.network import UNet
from tests.export.conftest import CONFIGS, TINY

SIZES = {"a": 3, "b": 5, "c": 2}


def model(*, shared: bool = True, alone: bool = True) -> onnx.ModelProto:
    """y_i = unsqueeze(W_i v + b_i), b without a bias. shared: of one vector; alone: nobody else reads the products."""
    random = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    for index, (name, size) in enumerate(SIZES.items()):
        vector = "v" if shared else f"v{index}"
        weights += [
            numpy_helper.from_array(random.standard_normal((size, 4), np.float32), f"w_{name}"),
            numpy_helper.from_array(random.standard_normal(size, np.float32), f"b_{name}"),
        ]
        bias = [f"b_{name}"] if name != "b" else []
        nodes.append(helper.make_node("Gemm", [vector, f"w_{name}", *bias], [f"p_{name}"], transB=1))
        nodes.append(helper.make_node("Unsqueeze", [f"p_{name}", "axes"], [f"y_{name}"]))
        outputs.append(helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["batch", size, 1, 1]))
        if not alone:
            nodes.append(helper.make_node("Relu", [f"p_{name}"], [f"z_{name}"]))
            outputs.append(helper.make_tensor_value_info(f"z_{name}", TensorProto.FLOAT, ["batch", size]))
    weights.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    inputs = ["v"] if shared else ["v0", "v1", "v2"]
    graph = helper.make_graph(
        nodes, "projections",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in inputs], outputs, weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(made: onnx.ModelProto, batch: int) -> list[np.ndarray]:
    onnx.checker.check_model(made)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feed = {value.name: random.standard_normal((batch, 4), np.float32) for value in made.graph.input}
    return session.run(None, feed)  # pyright: ignore[reportReturnType]


def operators(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_outputs_stay_and_one_product_is_left(batch: int):
    before, made = run(model(), batch), model()
    stack_projections(made)
    assert operators(made) == ["Gemm", "Reshape", "Split"]
    assert not {f"w_{name}" for name in SIZES} & {tensor.name for tensor in made.graph.initializer}
    for was, now in zip(before, run(made, batch), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [{"shared": False}, {"alone": False}])
def test_what_is_not_of_this_form_stays(kind: dict[str, bool]):
    made = model(**kind)
    stack_projections(made)
    assert operators(made) == operators(model(**kind))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_projects_its_embedding_once(checkpoint: Callable[[str], Path], kind: str):
    made = onnx.load(checkpoint(kind) / "engine" / "network.onnx")
    blocks = [node for node in made.graph.node if node.op_type == "Gemm"]
    assert len(blocks) <= 4  # label, two layers of the embedding, all blocks


def test_a_fresh_network_whose_biases_are_zero_is_written():
    assert network_to_onnx(UNet(replace(TINY, mult=(1,))), weights_dtype="float32")
