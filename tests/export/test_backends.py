"""Every backend that runs here: the same images as the default one within its bound, and row by row the same bytes."""

import builtins
import dataclasses
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

import export.build
from export.backends.host import host_network
from export.backends.onnxruntime_cuda import BoundNetwork, require_provider
from export.backends.static_buffers import StaticBuffers
from export.backends.torch_network import WARM_UP_CALLS, TorchNetwork
from export.build import export_checkpoint, installed, verify_engine
from export.device_network import DeviceNetwork
from export.engine import load_engine
from export.manifest import BACKENDS, read_manifest, write_manifest
from export.verify import BOUNDS_OF, Gap
from fewstep.card import CheckpointError
from tests.export.conftest import NCVSD, assert_rows_independent, example_rows

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
# The largest difference of F from the default backend's, as a share of F's largest value.
TOLERANCE = {"openvino-f32": 2e-5, "openvino": 0.04, "torch": 2e-5}
RUNNING = [
    pytest.param("onnxruntime-cpu"),
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("openvino-f32", marks=needs_openvino),
    pytest.param("torch"),
]


def open_here(folder, backend, buckets=None):
    try:
        return load_engine(folder, backend=backend, threads=1, buckets=buckets)
    except CheckpointError as error:
        if "no bfloat16 arithmetic" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("backend", RUNNING[1:])
@pytest.mark.parametrize("kind", ["patch", "unconditional", NCVSD, "adm"])
def test_equals_the_default_backend(checkpoint, kind, backend):
    folder = checkpoint(kind) / "engine"
    default, engine = load_engine(folder, threads=1), open_here(folder, backend, (1, 4))
    for batch in (1, 4, 6):
        rows = example_rows(default, batch)
        expected = default.network(*rows)
        gap = np.abs(engine.network(*rows) - expected).max()
        assert gap < TOLERANCE[backend] * np.abs(expected).max()


@pytest.mark.parametrize("backend", RUNNING)
def test_facts_say_what_runs(checkpoint, backend):
    engine = open_here(checkpoint("patch") / "engine", backend)
    assert engine.backend == engine.facts["backend"] == backend
    assert engine.facts["precision"] == ("bfloat16" if backend == "openvino" else "float32")
    assert engine.facts["device"] == engine.device
    assert any(character.isdigit() for character in engine.facts["library"]), "no version"
    assert all(isinstance(value, str) for value in engine.facts.values())


@pytest.mark.parametrize("backend", RUNNING)
@pytest.mark.parametrize("kind", ["patch", "adm", NCVSD])
def test_a_row_depends_on_no_other_row(checkpoint, kind, backend):
    """At one batch size, position and neighbours change no bit: what exact mode rests on, for every backend."""
    assert_rows_independent(open_here(checkpoint(kind) / "engine", backend, (8,)), 8)


def test_buckets_of_the_torch_engine_share_their_buffers(checkpoint):
    engine = load_engine(checkpoint(NCVSD) / "engine", backend="torch", threads=1, buckets=(2, 1, 4))
    network = engine.on_device
    assert network is not None and network.buckets == (1, 2, 4) and network.capacity == 4
    assert network.x.shape == (4, 2, 8, 8) and network.onehot.shape == (4, 10) and network.c_noise.shape == (4,)
    assert (network.x.dtype, network.c_noise.dtype, network.onehot.dtype) == (torch.float32,) * 3
    rows = example_rows(engine, 4)
    for buffer, part in zip((network.x, network.c_noise, network.onehot), rows, strict=True):
        buffer.copy_(torch.from_numpy(part))
    for bucket in network.buckets:
        output = network.run(bucket)
        assert output.shape == (bucket, 1, 8, 8) and output.is_contiguous()
        np.testing.assert_allclose(output.numpy(), engine.network(*rows)[:bucket], atol=1e-5)


def test_a_graph_is_captured_per_bucket_after_a_warm_up_without_tensorfloat(checkpoint, monkeypatch):
    """CUDA's part is a stand-in."""
    calls, waits, pools = [], [], []
    manifest = read_manifest(checkpoint("patch") / "engine")

    def module(x, c_noise, onehot):
        calls.append((len(x), torch.backends.cudnn.allow_tf32))
        return x[:, :1].clone()

    def graph(graph, pool, stream):
        pools.append(pool)
        return nullcontext()

    stream = SimpleNamespace(wait_stream=waits.append, synchronize=lambda: None)
    replaced = {
        "Stream": lambda device: stream, "current_stream": lambda device: "current", "graph": graph,
        "stream": lambda stream: nullcontext(), "graph_pool_handle": lambda: "pool", "CUDAGraph": SimpleNamespace,
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    network = TorchNetwork(module, manifest, (1, 2, 4), torch.device("cpu"))
    network.device = torch.device("cuda")
    before = torch.backends.cudnn.allow_tf32
    network.capture()
    assert calls == [(bucket, False) for bucket in (4, 2, 1) for _ in range(WARM_UP_CALLS + 1)]
    assert (waits, pools, torch.backends.cudnn.allow_tf32) == (["current"], ["pool"] * 3, before)
    assert set(network.graphs) == {1, 2, 4} == set(network.outputs)


def test_a_compiled_network_is_compiled_whole_for_every_bucket(checkpoint, monkeypatch):
    """Compilation itself takes minutes: what is asked of it is looked at."""
    from torch._dynamo import config

    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, **options: asked.update(options) or module)
    limit = config.recompile_limit
    monkeypatch.setattr(config, "recompile_limit", limit)  # and put back
    engine = load_engine(checkpoint("patch") / "engine", backend="torch-compile", threads=1, buckets=range(1, 13))
    assert engine.facts["layers"] == "compiled"
    assert asked == {"dynamic": False, "fullgraph": True}
    assert config.recompile_limit == limit + 12


def test_a_network_of_static_buffers_takes_one_call_at_a_time():
    """A second thread calls while the first is in the middle of its own."""
    others: list[threading.Thread] = []
    buffers = {name: torch.zeros(1, 1) for name in ("x", "c_noise", "onehot")}

    def run(bucket: int) -> torch.Tensor:
        if not others:
            others.append(threading.Thread(target=lambda: call(2.0)))
            others[0].start()
            others[0].join(timeout=0.1)
        return buffers["x"]

    network = host_network(cast(DeviceNetwork, SimpleNamespace(run=run, buckets=(1,), conditions={}, **buffers)))

    def call(value: float) -> float:
        rows = np.full((1, 1), value, np.float32)
        return float(network(rows, rows, rows)[0, 0])

    assert call(1.0) == 1.0
    others[0].join()
    assert call(3.0) == 3.0


def test_the_default_backend_has_no_device_buffers(checkpoint):
    engine = load_engine(checkpoint("patch") / "engine", threads=1)
    assert (engine.device, engine.on_device) == ("cpu", None)


def test_bound_buffers_run_without_copies(checkpoint):
    """The IO binding of the CUDA backend, on the CPU provider."""
    import onnxruntime as ort

    engine = load_engine(checkpoint(NCVSD) / "engine", threads=1)
    session = ort.InferenceSession(checkpoint(NCVSD) / "engine" / "network.onnx", providers=["CPUExecutionProvider"])
    network = BoundNetwork(session, StaticBuffers(engine.manifest, (1, 4), torch.device("cpu")), None)
    rows = example_rows(engine, 4)
    for buffer, part in zip((network.x, network.c_noise, network.onehot), rows, strict=True):
        buffer.copy_(torch.from_numpy(part))
    for bucket in (1, 4):
        output = network.run(bucket)
        assert output.data_ptr() == network.output.data_ptr()
        expected = engine.network(*(part[:bucket] for part in rows))
        np.testing.assert_allclose(output.numpy(), expected, atol=1e-5)


def test_a_session_that_fell_back_to_the_cpu_is_refused():
    require_provider(["CUDAExecutionProvider", "CPUExecutionProvider"], "1.31.1")
    with pytest.raises(CheckpointError, match=r"would run on CPUExecutionProvider.*--backend torch"):
        require_provider(["CPUExecutionProvider"], "1.31.1")


@pytest.mark.parametrize(
    ("backend", "module", "says"),
    [
        ("openvino", "openvino", "pip install 'openvino"),
        ("tensorrt", "tensorrt", "pip install tensorrt-cu13"),
        ("tensorrt-rtx", "tensorrt_rtx", "pip install tensorrt-rtx"),
    ],
)
def test_a_backend_that_is_not_installed_says_how_to_install_it(checkpoint, monkeypatch, backend, module, says):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == module:
            raise ImportError(f"No module named {module!r}")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match=f"backend {backend} is not installed.*{says}.*another --backend"):
        load_engine(checkpoint("patch") / "engine", backend=backend)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt-rtx"])
def test_without_a_gpu_a_gpu_backend_is_refused_in_words(checkpoint, backend):
    with pytest.raises(CheckpointError, match=r"not installed|PyTorch finds none here"):
        load_engine(checkpoint("patch") / "engine", backend=backend)


def test_unknown_backends_and_lone_engines_are_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=f"no backend 'abacus'; this version runs {', '.join(BACKENDS)}"):
        load_engine(checkpoint("patch") / "engine", backend="abacus")
    lone = tmp_path / "lone"
    lone.mkdir()
    for file in (checkpoint("patch") / "engine").iterdir():
        (lone / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"runs the checkpoint itself.*holds no model\.safetensors"):
        load_engine(lone, backend="torch")


def test_proofs_of_other_backends_are_recorded_beside_the_default_ones(model):
    engine = model / "engine"
    before = read_manifest(engine)
    assert before.proofs == {}
    assert before.facts["backend"] == "onnxruntime-cpu" and before.facts["threads"] == "1"
    proof = verify_engine(engine, model, "torch", threads=1, record=True)
    after = read_manifest(engine)
    assert after == dataclasses.replace(before, proofs=after.proofs)
    assert set(after.proofs) == {"torch"}
    assert {
        steps: Gap(**(gap | {"seeds": tuple(gap["seeds"])})) for steps, gap in after.proofs["torch"]["parity"].items()
    } == (proof.parity)
    assert after.proofs["torch"]["facts"]["library"].startswith("torch ")
    with pytest.raises(CheckpointError, match="differ from eager"):
        verify_engine(engine, model, "torch", bounds={"mean": -1.0, "max": -1.0}, threads=1, record=True)
    assert read_manifest(engine) == after
    write_manifest(engine, dataclasses.replace(after, facts={}, parity={}))
    verify_engine(engine, model, threads=1, record=True)
    assert read_manifest(engine) == after, "the default backend's proof has its own place"


def test_versions_are_of_what_is_installed():
    """Where onnxruntime-gpu has taken its place, there is no package onnxruntime."""
    assert installed(("numpy", "no-such-package")) == {"numpy": np.__version__}


def test_a_backend_that_needs_a_plan_is_no_backend_to_export_for(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"export plan .*/engine --backend tensorrt.* verify .* --record"):
        export_checkpoint(model, tmp_path / "engine", backends=["torch", "tensorrt"])
    assert not (tmp_path / "engine").exists()


def test_an_engine_in_half_precision_is_proved_by_a_backend_that_computes_in_it(model, monkeypatch):
    out = model / "engine"
    content = (out / "network.onnx").read_bytes()  # neither backend gets as far as reading it
    monkeypatch.setattr(export.build, "network_to_onnx", lambda network, weights_dtype, dtype, adapters: content)
    with pytest.raises(CheckpointError, match="computes in bfloat16, and backend onnxruntime-cpu reads float32"):
        export_checkpoint(model, out, dtype="bfloat16", threads=1)
    manifest = export_checkpoint(model, out, backends=["torch"], dtype="bfloat16", buckets=(1, 8), threads=1)
    assert (manifest.dtype, manifest.weights_dtype, manifest.backend) == ("bfloat16", "bfloat16", "torch")
    assert manifest.buckets == (1, 8) and manifest.bounds == BOUNDS_OF["bfloat16"]
    assert all(0 < gap["mean"] < 2 for gap in manifest.parity.values())
    engine = load_engine(out, threads=1)
    assert engine.facts["precision"] == "bfloat16" and engine.on_device is not None
    assert engine.on_device.x.dtype == engine.on_device.onehot.dtype == torch.bfloat16
    assert engine.on_device.c_noise.dtype == torch.float32 and engine.on_device.buckets == (1, 8)
    with pytest.raises(CheckpointError, match="reads float32 engines only"):
        load_engine(out, backend="openvino" if find_spec("openvino") else "onnxruntime-cpu")
