"""The ONNX file: every kind of network, any batch size, float16 weights, nothing about the machine that wrote it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn.utils.parametrize import is_parametrized

from export.engine import load_engine
from export.residuals import residuals_folded
from fewstep.checkpoint import load_denoiser
from fewstep.network import Conv, UNet
from tests.export.conftest import NCVSD

KINDS = ("patch", "unconditional", "ncsnpp", "adm")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_eager_at_every_batch_size(checkpoint, kind):
    folder = checkpoint(kind)
    engine = load_engine(folder / "engine", threads=1)
    network = load_denoiser(folder)[0].network
    random = np.random.default_rng(0)
    for batch in (1, 2, 7):
        x = random.standard_normal((batch, *engine.manifest.input_shape), dtype=np.float32)
        c_noise = random.uniform(-1.5, 1.1, batch).astype(np.float32)
        onehot = np.eye(max(engine.manifest.classes, batch), dtype=np.float32)[:batch, : engine.manifest.classes]
        with torch.no_grad():
            expected = network(*(torch.from_numpy(array) for array in (x, c_noise, onehot))).numpy()
        assert np.abs(expected).mean() > 0.05, "a network that returns zeros proves nothing"
        np.testing.assert_allclose(engine.network(x, c_noise, onehot), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_parity_is_recorded(checkpoint, kind):
    manifest = load_engine(checkpoint(kind) / "engine").manifest
    expected = {"solver"} if manifest.role == "teacher" else {"1", "2", "4", "8"}
    assert set(manifest.parity) == expected
    for gap in manifest.parity.values():
        assert 0 <= gap["mean"] <= gap["max"] < 0.1
        assert gap["images"] == len(gap["seeds"]) == 16
        assert 0 <= gap["differing"] <= 1


def test_only_an_ncvsd_student_takes_more_channels_than_it_returns(checkpoint):
    channels = {}
    for kind in KINDS:
        graph = onnx.load(checkpoint(kind) / "engine" / "network.onnx").graph
        sides = (graph.input[0], graph.output[0])
        channels[kind] = tuple(value.type.tensor_type.shape.dim[1].dim_value for value in sides)
    assert channels == dict.fromkeys(KINDS, (1, 1)) | {"unconditional": (3, 3), NCVSD: (2, 1)}


def test_inputs_and_opset(checkpoint):
    conditional = onnx.load(checkpoint("patch") / "engine" / "network.onnx")
    unconditional = onnx.load(checkpoint("unconditional") / "engine" / "network.onnx")
    assert [value.name for value in conditional.graph.input] == ["x", "c_noise", "onehot"]
    assert [value.name for value in unconditional.graph.input] == ["x", "c_noise"]
    assert conditional.opset_import[0].version == 20


def test_scale_and_shift_have_an_epsilon_that_every_torch_takes(checkpoint):
    """Some releases refuse to trace a batch norm of epsilon zero; in float32 this one adds nothing to one."""
    model = onnx.load(checkpoint("patch") / "engine" / "network.onnx")
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    epsilons = {attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"}
    assert norms and all(epsilon > 0 and np.float32(1) + np.float32(epsilon) == 1 for epsilon in epsilons)


def test_float16_weights_are_stored_as_such_and_exactly(checkpoint):
    """But for kernels of upsampling convolutions, which are sums of stored weights (`export.upsampling`), and small
    ones with a residual factor (`export.residuals`), a product that the exporter computes itself."""
    folder = checkpoint("patch")
    manifest = load_engine(folder / "engine").manifest
    assert manifest.weights_dtype == "float16"
    assert manifest.dtype == "float32"
    graph = onnx.load(folder / "engine" / "network.onnx").graph
    stored = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    halves = {array.tobytes() for array in stored if array.dtype == np.float16}
    singles = {array.tobytes() for array in stored if array.dtype == np.float32 and array.size >= 1024}
    network = load_denoiser(folder)[0].network
    assert isinstance(network, UNet)
    exact, products, sums = 0, 0, 0
    for module in residuals_folded(network).modules():
        if not isinstance(module, Conv) or module.conv is None or module.conv.weight.numel() < 1024:
            continue
        weight = module.conv.weight.detach().numpy()
        if module.resample == "up" and weight.shape[-1] == 3:
            sums += 1
        elif is_parametrized(module.conv) and not np.array_equal(weight, weight.astype(np.float16)):
            assert weight.tobytes() in singles
            products += 1
        else:
            assert weight.astype(np.float16).tobytes() in halves
            exact += 1
    assert exact and products and sums
    assert len(singles) == products + sums


def test_float32_weights_stay(checkpoint):
    folder = checkpoint("adm")
    assert load_engine(folder / "engine").manifest.weights_dtype == "float32"
    graph = onnx.load(folder / "engine" / "network.onnx").graph
    assert all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


def test_the_file_says_nothing_about_the_machine(checkpoint):
    content = (checkpoint("patch") / "engine" / "network.onnx").read_bytes()
    assert b".py" not in content
