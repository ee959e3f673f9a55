"""TensorRT plans: found by what they were built for, refused when stale; the build half runs for real without a GPU."""

import dataclasses
from contextlib import contextmanager, nullcontext
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
from tests.export.conftest import NCVSD

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
    with pytest.raises(CheckpointError, match=r"truncated.*fewstep export plan"):
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
    monkeypatch.setattr("export.build.network_to_onnx", lambda network, weights_dtype, dtype, adapters: content)
    write_plan(model / "engine", KEY, b"plan")
    export_checkpoint(model, model / "engine", threads=1)
    assert not (model / "engine" / PLANS_FOLDER).exists(), "a plan of the old network was kept"


PROFILES = (1, 2, 3, 4)
ACTIVATIONS = 1000  # bytes, of the largest profile


class StandIn:
    """A TensorRT whose contexts record what they are told, and double the rows as if they were the network.

    rtx: it has the choices that only TensorRT-RTX has.
    """

    def __init__(self, buffers: StaticBuffers, *, rtx: bool = False) -> None:
        self.buffers, self.configs, self.contexts, self.blocks = buffers, [], [], set()
        self.sizes, self.profiles, self.capturable = [], [], True
        self.Logger = lambda _: None
        self.Logger.ERROR = 0  # pyright: ignore[reportFunctionMemberAccess]
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="later", EAGER="at once")
            self.CudaGraphStrategy = SimpleNamespace(DISABLED="none")
        self.engine = SimpleNamespace(
            create_runtime_config=self.config, create_execution_context=self.context, device_memory_size_v2=ACTIVATIONS
        )
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine if plan else None)
        self.__name__, self.__version__ = "tensorrt", "11.4"

    def config(self) -> SimpleNamespace:
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "memory", strategy)
        self.configs.append(config)
        return config

    def context(self, config: SimpleNamespace) -> SimpleNamespace:
        assert config is self.configs[-1]
        shapes, addresses, memory, size = {}, {}, [], 0

        def execute(stream) -> bool:
            assert shapes == {name: (size, *buffer.shape[1:]) for name, buffer in self.buffers.inputs().items()}
            inputs = {name: buffer.data_ptr() for name, buffer in self.buffers.inputs().items()}
            assert addresses == inputs | {"output": self.buffers.output.data_ptr()}
            self.blocks.update(memory)
            self.buffers.output[:size] = 2 * self.buffers.x[:size, :1]
            self.sizes.append(size)
            return True

        def choose(profile: int, stream) -> None:
            nonlocal size
            self.profiles.append(profile)
            size = PROFILES[profile]

        context = SimpleNamespace(
            set_optimization_profile_async=choose, set_input_shape=shapes.__setitem__,
            set_tensor_address=addresses.__setitem__, execute_async_v3=execute,
            set_device_memory=lambda address, size: memory.append((address, size)),
        )  # fmt: skip
        if hasattr(self, "CudaGraphStrategy"):
            context.is_stream_capturable = lambda stream: self.capturable
        self.contexts.append(context)
        return context


def ncvsd_buffers(checkpoint) -> StaticBuffers:
    return StaticBuffers(read_manifest(checkpoint(NCVSD) / "engine"), (1, 2, 4), torch.device("cpu"))


def test_a_plan_runs_every_bucket_on_the_same_buffers_with_its_own_profile(checkpoint):
    buffers = ncvsd_buffers(checkpoint)
    stand_in = StandIn(buffers)
    network = PlanNetwork(stand_in, b"plan", PROFILES, buffers)
    network.x.copy_(torch.arange(network.x.numel()).reshape(network.x.shape))
    for bucket in (4, 1, 2, 4):
        assert torch.equal(network.run(bucket), 2 * network.x[:bucket, :1])
    assert stand_in.sizes == [4, 1, 2, 4]
    assert (stand_in.profiles, len(stand_in.contexts)) == ([3, 0, 1], 3), "a context is made once per bucket"
    with pytest.raises(CheckpointError, match=r"cannot load the plan on this GPU.*fewstep export plan"):
        PlanNetwork(stand_in, b"", PROFILES, buffers)


def test_the_contexts_of_all_buckets_compute_in_one_block_of_memory(checkpoint):
    buffers = ncvsd_buffers(checkpoint)
    stand_in = StandIn(buffers)
    network = PlanNetwork(stand_in, b"plan", PROFILES, buffers)
    for bucket in network.buckets:
        network.run(bucket)
    assert vars(stand_in.configs[0])["memory"] == "ours", "TensorRT would allocate a block for each"
    assert stand_in.blocks == {(network.activations.data_ptr(), ACTIVATIONS)}
    stand_in.engine.create_execution_context = lambda config: None
    with pytest.raises(CheckpointError, match=r"too little free memory for batches of 2; .*smaller --buckets"):
        PlanNetwork(stand_in, b"plan", PROFILES, buffers).run(2)


def test_kernels_of_tensorrt_rtx_are_compiled_before_the_first_image_and_stay(checkpoint):
    buffers = ncvsd_buffers(checkpoint)
    rtx, full = StandIn(buffers, rtx=True), StandIn(buffers)
    for stand_in in (rtx, full):
        PlanNetwork(stand_in, b"plan", PROFILES, buffers)
    chosen = {name: value for name, value in vars(rtx.configs[0]).items() if isinstance(value, str)}
    assert chosen == {
        "memory": "ours", "dynamic_shapes_kernel_specialization_strategy": "at once", "cuda_graph_strategy": "none",
    }  # fmt: skip
    assert [value for value in vars(full.configs[0]).values() if isinstance(value, str)] == ["ours"]


def test_a_graph_is_captured_per_bucket_after_a_call_and_only_where_one_can_hold_it(checkpoint, monkeypatch):
    """CUDA's part is a stand-in."""
    events: list[object] = []

    @contextmanager
    def graph(graph, stream):
        events.append("begin")
        yield
        events.append("end")

    stream = SimpleNamespace(synchronize=lambda: events.append("wait"), cuda_stream=7)
    replaced = {
        "Stream": lambda device: stream, "graph": graph, "stream": lambda stream: nullcontext(),
        "CUDAGraph": SimpleNamespace,
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    buffers = ncvsd_buffers(checkpoint)
    stand_in = StandIn(buffers, rtx=True)
    stand_in.sizes = events  # calls, among what else happens
    network = PlanNetwork(stand_in, b"plan", PROFILES, buffers)
    network.capture()
    assert events == [event for bucket in (4, 2, 1) for event in (bucket, "wait", "begin", bucket, "end")]
    assert set(network.graphs) == {1, 2, 4}
    stand_in.capturable = False
    with pytest.raises(CheckpointError, match=r"graph cannot hold the plan's call of 4 rows.*fewstep export plan"):
        PlanNetwork(stand_in, b"plan", PROFILES, buffers).capture()


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

    def test_it_has_what_the_stand_in_has(self, trt, checkpoint):
        """The half that needs a GPU is tested against a stand-in: every name it answers to is one of the library's."""
        buffers = ncvsd_buffers(checkpoint)
        stand_in = StandIn(buffers, rtx=True)
        context = vars(stand_in.context(stand_in.config()))
        names = {
            trt.IExecutionContext: set(context),
            trt.ICudaEngine: set(vars(stand_in.engine)),
            trt.IRuntimeConfig: {
                "set_execution_context_allocation_strategy", "dynamic_shapes_kernel_specialization_strategy",
                "cuda_graph_strategy",
            },
            trt.ExecutionContextAllocationStrategy: {"USER_MANAGED"},
            trt.DynamicShapesKernelSpecializationStrategy: {"EAGER"},
            trt.CudaGraphStrategy: {"DISABLED"},
            trt.BuilderFlag: {"REQUIRE_USER_ALLOCATION"},
        }  # fmt: skip
        assert {kind: wanted - set(dir(kind)) for kind, wanted in names.items()} == {kind: set() for kind in names}

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
