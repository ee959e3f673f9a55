"""TensorRT plans: found by what they were built for, refused when stale; the build half runs for real without a GPU."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import onnx
import pytest
import torch

from export.__main__ import main
from export.backends.plan import PLANS_FOLDER, PlanKey, find_plan, plan_key, read_plan, write_plan
from export.backends.static_buffers import StaticBuffers
from export.backends.tensorrt import PlanNetwork
from export.backends.tensorrt_plan import import_module, parsed
from export.build import export_checkpoint
from export.engine import read_source
from export.manifest import read_manifest
from export.plans import make_plan
from export.to_onnx import network_to_onnx
from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule, load_denoiser
from tests.export.conftest import POSTERIOR

KEY = PlanKey("tensorrt", "11.4.0", "a" * 64, "float16", (1, 8), "9.0")
CHANGES = {
    "backend": "tensorrt-rtx", "library": "11.5.0", "network_sha256": "b" * 64, "dtype": "float32",
    "buckets": (1, 4), "gpu": "8.0",
}  # fmt: skip


def test_every_field_of_the_key_names_another_plan(tmp_path):
    paths = {dataclasses.replace(KEY, **{name: value}).path(tmp_path) for name, value in CHANGES.items()}
    assert set(CHANGES) == {field.name for field in dataclasses.fields(PlanKey)}
    assert len(paths | {KEY.path(tmp_path)}) == len(CHANGES) + 1


def test_a_plan_comes_back_whole_or_not_at_all(tmp_path):
    path = write_plan(tmp_path, KEY, b"plan")
    assert read_plan(tmp_path, KEY) == b"plan"
    path.write_bytes(b"pla")
    with pytest.raises(CheckpointError, match=r"truncated.*python -m export plan"):
        read_plan(tmp_path, KEY)


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"backend"}))
def test_a_stale_plan_is_refused_with_the_reason_and_the_remedy(tmp_path, name):
    write_plan(tmp_path, KEY, b"plan")
    wanted = dataclasses.replace(KEY, **{name: CHANGES[name]})
    buckets = ",".join(map(str, wanted.buckets))
    with pytest.raises(CheckpointError, match=f"stale: it was built for {name} .* instead of .*--buckets {buckets}"):
        read_plan(tmp_path, wanted)


def test_a_plan_serves_any_of_its_buckets(tmp_path):
    for buckets in ((1, 2, 4, 8), (1, 2, 8), (1, 8), (2,)):
        write_plan(tmp_path, dataclasses.replace(KEY, buckets=buckets), b"plan")
    of = lambda *buckets: find_plan(tmp_path, dataclasses.replace(KEY, buckets=buckets)).buckets  # noqa: E731
    assert [of(1), of(2), of(2, 8), of(1, 4)] == [(1, 8), (2,), (1, 2, 8), (1, 2, 4, 8)]
    assert of(1, 16) == (1, 16), "which is not there, as read_plan says"
    other = dataclasses.replace(KEY, gpu="8.0", buckets=(1,))
    assert find_plan(tmp_path, other) == other


def test_without_a_plan_the_command_that_builds_it_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no plan for backend tensorrt.*plan .* --backend tensorrt --bucket"
    ):
        read_plan(tmp_path, KEY)


def test_the_gpu_does_not_matter_to_a_plan_that_fits_any(checkpoint):
    manifest = read_manifest(checkpoint("patch") / "engine")
    rtx = [plan_key(manifest, "tensorrt-rtx", "1.7", (1,), gpu) for gpu in ("8.0", "12.0")]
    full = [plan_key(manifest, "tensorrt", "11.4", (1,), gpu) for gpu in ("8.0", "9.0")]
    assert rtx[0] == rtx[1] and full[0] != full[1]


def test_an_engine_with_plans_may_be_replaced(model, monkeypatch):
    content = (model / "engine" / "network.onnx").read_bytes()
    monkeypatch.setattr("export.build.network_to_onnx", lambda network, weights_dtype, dtype: content)
    write_plan(model / "engine", KEY, b"plan")
    export_checkpoint(model, model / "engine", threads=1)
    assert not (model / "engine" / PLANS_FOLDER).exists(), "a plan of the old network was kept"


PROFILES = (1, 2, 3, 4)


class StandIn:
    """Records what an execution context is told, and doubles the rows as if they were the network."""

    def __init__(self, buffers: StaticBuffers) -> None:
        self.buffers, self.contexts, self.sizes, self.profiles = buffers, 0, [], []
        self.Logger = lambda _: None
        self.Logger.ERROR = 0  # pyright: ignore[reportFunctionMemberAccess]
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: self if plan else None)
        self.__name__, self.__version__ = "tensorrt", "11.4"

    def create_execution_context(self):
        self.contexts += 1
        shapes, addresses = {}, {}

        def execute(stream):
            assert shapes == {name: (size, *buffer.shape[1:]) for name, buffer in self.buffers.inputs().items()}
            inputs = {name: buffer.data_ptr() for name, buffer in self.buffers.inputs().items()}
            assert addresses == inputs | {"output": self.buffers.output.data_ptr()}
            self.buffers.output[:size] = 2 * self.buffers.x[:size, :1]
            self.sizes.append(size)
            return True

        size = 0

        def choose(profile, stream):
            nonlocal size
            self.profiles.append(profile)
            size = PROFILES[profile]

        return SimpleNamespace(
            set_optimization_profile_async=choose, set_input_shape=shapes.__setitem__,
            set_tensor_address=addresses.__setitem__, execute_async_v3=execute,
        )  # fmt: skip


def test_a_plan_runs_every_bucket_on_the_same_buffers_with_its_own_profile(checkpoint):
    manifest = read_manifest(checkpoint(POSTERIOR) / "engine")
    buffers = StaticBuffers(manifest, (1, 2, 4), torch.device("cpu"))
    stand_in = StandIn(buffers)
    network = PlanNetwork(stand_in, b"plan", PROFILES, buffers)
    network.x.copy_(torch.arange(network.x.numel()).reshape(network.x.shape))
    for bucket in (4, 1, 2, 4):
        assert torch.equal(network.run(bucket), 2 * network.x[:bucket, :1])
    assert stand_in.sizes == [4, 1, 2, 4]
    assert (stand_in.profiles, stand_in.contexts) == ([3, 0, 1], 3), "a context is made once per bucket"
    with pytest.raises(CheckpointError, match=r"cannot load the plan on this GPU.*python -m export plan"):
        PlanNetwork(stand_in, b"", PROFILES, buffers)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_or_the_library_says_so(model, monkeypatch, capsys):
    assert main(["plan", str(model / "engine"), "--backend", "tensorrt"]) == 2
    assert "backend tensorrt is not installed" in capsys.readouterr().err
    monkeypatch.setattr("export.plans.import_module", lambda backend: SimpleNamespace(__version__="11.4"))
    with pytest.raises(CheckpointError, match=r"tensorrt needs an NVIDIA GPU.*tensorrt-rtx is the one"):
        make_plan(model / "engine", "tensorrt")
    with pytest.raises(CheckpointError, match="tensorrt-rtx cannot be refitted"):
        make_plan(model / "engine", "tensorrt-rtx", refit_from=model / "engine")


def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", SimpleNamespace(__version__="10.13.3"))
    with pytest.raises(CheckpointError, match=r"10\.13\.3 is too old"):
        import_module("tensorrt")


@pytest.fixture(scope="module")
def trt():
    pytest.importorskip("tensorrt_rtx")
    return import_module("tensorrt-rtx")


@pytest.mark.tensorrt_rtx
class TestTensorRTRTX:
    """Parse and ahead-of-time build, for real."""

    def test_a_plan_is_built_and_found_again(self, trt, model, capsys):
        engine = model / "engine"
        assert main(["plan", str(engine), "--backend", "tensorrt-rtx", "--buckets", "1,4"]) == 0
        assert "MB; took" in capsys.readouterr().out
        key = plan_key(read_manifest(engine), "tensorrt-rtx", trt.__version__, (1, 4), "any")
        assert len(read_plan(engine, key)) > 10_000
        with pytest.raises(CheckpointError, match="stale: it was built for buckets 1,4 instead of 1,8"):
            read_plan(engine, dataclasses.replace(key, buckets=(1, 8)))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_is_read_with_its_types(self, trt, checkpoint, dtype):
        network = cast(NetworkModule, load_denoiser(checkpoint("patch"))[0].network)
        content = network_to_onnx(network, weights_dtype=dtype, dtype=dtype)
        source = dataclasses.replace(read_source(checkpoint("patch") / "engine"), content=content)
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        definition = parsed(source, trt, builder, logger)
        half = trt.DataType.HALF if dtype == "float16" else trt.DataType.BF16
        types = {definition.get_input(i).name: definition.get_input(i).dtype for i in range(definition.num_inputs)}
        assert types == {"x": half, "c_noise": trt.DataType.FLOAT, "onehot": half}
        norms = [
            definition.get_layer(index) for index in range(definition.num_layers)
            if definition.get_layer(index).type == trt.LayerType.NORMALIZATION
        ]  # fmt: skip
        assert norms and all(norm.get_input(0).dtype == trt.DataType.FLOAT for norm in norms), "no float32 island"

    def test_an_operator_it_does_not_know_is_named(self, trt, model):
        path = model / "engine" / "network.onnx"
        network = onnx.load(path)
        network.graph.node[-1].op_type = "Abracadabra"
        source = dataclasses.replace(read_source(model / "engine"), content=network.SerializeToString())
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        with pytest.raises(CheckpointError, match=r"tensorrt_rtx .* cannot read .*network\.onnx.*--backend torch"):
            parsed(source, trt, builder, logger)
