"""Adapters of an engine, served: each is a model of its own, rows of several share a network call, and an image has the
bytes of its model and seed whatever shares it. That of a chain ends in the backbone's call, and has log weights."""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from msgspec import structs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save

from export.engine import load_engine
from export.manifest import AdapterEntry, read_manifest, served_models, write_manifest
from fewstep.ancestral import sample_weighted, student_chain
from fewstep.client import Client
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from server.__main__ import main
from server.http.metrics import LABELLED, labels_of
from server.remake import remake
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.refusal import Refusal
from server.scheduler.slots import Image, ImageKey, SlotTable
from server.scheduler.validate import choose_model, image_request
from tests.server.conftest import DEADLINE_S, Server, serving, write_engine
from tests.server.fakes import LEVELS, SHAPE, SIGMA_DATA
from tests.server.scheduler.test_device_slots import Device, device_table
from tests.server.test_faults import metric, post, workers

Until = Callable[[Callable[[], bool]], None]
LAYER, RANK = "table", 2
ADAPTERS = {"red": {1: (1.0,), 2: (2.0, 0.4)}, "blue": {1: (3.0,)}}  # with levels of their own
CHAIN = "red"


def takes_adapters(content: bytes, classes: int, channels: int) -> bytes:
    """The tiny network with adapters by row: its table of classes becomes table + up @ down."""
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    shift = next(node for node in graph.node if node.output[0] == "shift")
    shift.output[0] = "shift_alone"
    nodes = [
        helper.make_node("Gather", ["table.down", "adapter"], ["down_rows"]),
        helper.make_node("Gather", ["table.up", "adapter"], ["up_rows"]),
        helper.make_node("Squeeze", ["down_rows", "two"], ["down"]),
        helper.make_node("Unsqueeze", ["onehot", "two"], ["column"]),
        helper.make_node("MatMul", ["down", "column"], ["low"]),
        helper.make_node("MatMul", ["up_rows", "low"], ["high"]),
        helper.make_node("Squeeze", ["high", "two"], ["added"]),
        helper.make_node("Add", ["shift_alone", "added"], ["shift"]),
    ]
    place = list(graph.node).index(shift) + 1
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*rest[:place], *nodes, *rest[place:]])
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    for name, kind, dims in (
        ("adapter", TensorProto.INT64, ["B"]),
        ("table.down", TensorProto.FLOAT, ["N", "R", 1, classes]),
        ("table.up", TensorProto.FLOAT, ["N", channels, "R"]),
    ):
        graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    return model.SerializeToString()


def write_adapters(folder: Path) -> None:
    """An engine directory whose network takes adapters, with two of them."""
    manifest = write_engine(folder)
    content = takes_adapters((folder / manifest.network).read_bytes(), manifest.classes, manifest.channels)
    (folder / manifest.network).write_bytes(content)
    random, entries = np.random.default_rng(1), []
    (folder / "adapters").mkdir()
    for name, levels in ADAPTERS.items():
        down = random.standard_normal((RANK, 1, manifest.classes), dtype=np.float32)
        up = random.standard_normal((manifest.channels, RANK), dtype=np.float32)
        stored = save({f"{LAYER}.down": down, f"{LAYER}.up": up})
        entry = AdapterEntry(
            name=name, sha256=hashlib.sha256(stored).hexdigest(), levels=levels, classes=manifest.classes,
            class_names=(f"{name} bag", f"{name} boot", f"{name} coat"), parity={}, bounds={},
            last_map="backbone" if name == CHAIN else "adapter",
        )  # fmt: skip
        (folder / entry.file).write_bytes(stored)
        entries.append(entry)
    shapes = {LAYER: (manifest.channels, manifest.classes, 1)}
    digest = hashlib.sha256(content).hexdigest()
    write_manifest(folder, replace(manifest, network_sha256=digest, adapted=shapes, adapters=tuple(entries)))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "engine"
    write_adapters(folder)
    return folder


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[Server]:
    with serving(engine, "--mode", "exact", "--capacity", "8") as running:
        yield running


def expected(engine: Path, model: str, seed: int, label: int, steps: int) -> NDArray[np.uint8]:
    """What the sampler makes of one image, without any server: uint8 [H, W, C]."""
    loaded = load_engine(engine, threads=1)
    names = [entry.name for entry in loaded.manifest.adapters]
    adapter = 1 + names.index(model.partition(":")[2]) if ":" in model else 0
    levels = ADAPTERS[names[adapter - 1]] if adapter else LEVELS
    denoiser, last = loaded.adapted_denoiser(adapter), np.float32(levels[steps][-1])
    ends = loaded.denoiser if model == f"tiny:{CHAIN}" else denoiser
    sample = sample_dpdm(
        lambda x, sigma: (ends if sigma[0] == last else denoiser)(x, sigma, np.array([label])),
        noise_for([seed], SHAPE),
        levels[steps],
    )
    return to_pixels(sample.images)[0]


def expected_log_weight(engine: Path, seed: int, label: int) -> float:
    """Of an image of the chain in two calls, by the sampler of `fewstep.ancestral`."""
    loaded, labels = load_engine(engine, threads=1), np.array([label])
    prior, posterior = loaded.denoiser, loaded.adapted_denoiser(1 + [*ADAPTERS].index(CHAIN))
    made = sample_weighted(
        lambda x, sigma: prior(x, sigma, labels), lambda x, sigma: posterior(x, sigma, labels),
        noise_for([seed], SHAPE), student_chain(ADAPTERS[CHAIN][2]), lambda images: np.zeros(len(images)),
    )  # fmt: skip
    return float(made.log_weight[0])


MODELS = ("tiny", "tiny:red", "tiny:blue")


def test_each_adapter_is_a_model_with_levels_and_classes_of_its_own(server: Server):
    with server.client() as client:
        listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        assert tuple(listed) == MODELS
        assert listed["tiny:red"]["steps"] == [1, 2] and listed["tiny:blue"]["class_names"][0] == "blue bag"
        assert client.get("/v1/models/tiny:red").json() == listed["tiny:red"]
        assert listed["tiny:red"]["capacity"] == listed["tiny"]["capacity"] == 8
        refused = client.post("/v1/generate", json={"model": "tiny:rad"})
        assert refused.status_code == 404
        assert refused.json()["error"]["message"] == (
            'there is no model "tiny:rad" here; this server has tiny, tiny:red, tiny:blue; the nearest is tiny:red'
        )
        steps = client.post("/v1/generate", json={"model": "tiny:blue", "steps": 2})
        assert steps.status_code == 422 or steps.status_code == 400
        assert "tiny:blue has no levels for 2 steps; it serves 1" in steps.json()["error"]["message"]


def test_every_dialect_gives_the_image_of_the_adapter(server: Server, engine: Path):
    image = expected(engine, "tiny:red", 5, 1, 2)
    assert (image != expected(engine, "tiny", 5, 1, 2)).any()
    with server.client() as client:
        asked = {"model": "tiny:red", "seed": 5, "steps": 2, "label": "red boot"}
        native = client.post("/v1/generate", json=asked, headers={"Accept": "application/x-npy"})
        assert native.headers["x-model"] == "tiny:red"
        assert np.array_equal(np.load(io.BytesIO(native.content)).reshape(image.shape), image)
        png = client.post("/v1/generate", json=asked, headers={"Accept": "image/png"}).content
        openai = client.post("/v1/images/generations", json={**asked, "prompt": "", "response_format": "b64_json"})
        assert openai.status_code == 200 and openai.json()["model"] == "tiny:red"
        assert openai.json()["data"][0]["revised_prompt"] == "red boot" and png.startswith(b"\x89PNG")
        inputs = [
            {"name": name, "datatype": "INT64", "shape": [1], "data": [value]}
            for name, value in (("seed", 5), ("label", 1), ("steps", 2))
        ]
        inferred = client.post("/v2/models/tiny:red/infer", json={"inputs": inputs})
        assert inferred.status_code == 200, inferred.text
        data = next(each for each in inferred.json()["outputs"] if each["name"] == "image")["data"]
        assert np.array_equal(np.array(data, np.uint8).reshape(image.shape), image)
        assert client.get("/v2/models/tiny%3Ablue/ready").status_code == 200
        assert client.get("/v2/models/tiny:green").status_code == 404
        page = client.get("/metrics").text
        assert 'fewstep_requests_total{model="tiny:red",outcome="ok"} 4.0' in page
        assert 'fewstep_slots{model="tiny",worker="0"} 8.0' in page and 'fewstep_slots{model="tiny:red"' not in page


def test_images_of_a_chain_come_with_their_log_weights(server: Server, engine: Path):
    """In a header, in JSON, and in the client; the same for an image alone and among others."""
    asked = {"model": "tiny:red", "steps": 2, "seeds": [5, 6, 7], "labels": [1, 0, 2], "log_weight": True}
    truth = [expected_log_weight(engine, seed, label) for seed, label in ((5, 1), (6, 0), (7, 2))]
    assert len({round(each) for each in truth}) == 3
    with server.client() as client:
        several = client.post("/v1/generate", json=asked)
        listed = [each["log_weight"] for each in several.json()["data"]]
        assert listed == pytest.approx(truth, abs=1e-4)
        alone = {**asked, "seeds": [6], "labels": [0]}
        one = client.post("/v1/generate", json=alone, headers={"Accept": "application/x-npy"})
        image = np.load(io.BytesIO(one.content)).reshape(SHAPE[1], SHAPE[2], SHAPE[0])
        assert np.array_equal(image, expected(engine, "tiny:red", 6, 0, 2))
        assert one.headers["x-log-weight"] == f"{listed[1]:.9g}"
        for accept in ("application/x-npy", "application/zip", "image/png"):
            whole = client.post("/v1/generate", json=asked, headers={"Accept": accept})
            assert [float(each) for each in whole.headers["x-log-weight"].split(",")] == pytest.approx(listed)
        events = client.post("/v1/generate", json={**asked, "stream": True}).text
        assert f'"log_weight":{listed[2]}' in events.rsplit("event: ", 1)[1]
        silent = client.post("/v1/generate", json={**asked, "log_weight": False})
        assert "x-log-weight" not in silent.headers and "log_weight" not in silent.json()["data"][0]
        models = {entry["id"]: entry["log_weights"] for entry in client.get("/v1/models").json()["data"]}
        assert models == {"tiny": False, "tiny:red": True, "tiny:blue": False}
    with Client(server.url) as typed:
        images = typed.generate(model="tiny:red", steps=2, seeds=[5, 6], labels=[1, 0], log_weight=True).images
        assert [each.log_weight for each in images] == listed[:2]
        assert typed.generate(model="tiny:red", seed=5).images[0].log_weight is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "tiny"}, "tiny has no log weights: only the adapter of a posterior's own chain has"),
        ({"model": "tiny:blue"}, "tiny:blue has no log weights"),
        ({"model": "tiny:red", "seed_to": 4, "n": 2}, "give seed_to or log_weight, not both"),
        ({"model": "tiny:red", "image": "iVBORw0KGgo="}, "give image or log_weight, not both"),
    ],
)
def test_a_log_weight_that_means_nothing_is_refused(server: Server, fields: dict, said: str):
    with server.client() as client:
        refused = client.post("/v1/generate", json={**fields, "log_weight": True})
    assert refused.status_code == 400 and said in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "log_weight"


def test_check_makes_an_image_of_each_adapter_and_lists_it(engine: Path, capsys):
    assert main(["--engine", str(engine), "--check", "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": it runs")]
    assert [line.split(": ")[0] for line in lines] == ["# tiny", "# tiny:red", "# tiny:blue"]
    assert "steps 1, 2," in lines[1] and "3 classes" in lines[1]


def test_an_image_of_an_adapter_is_remade_from_its_png(server: Server, engine: Path, tmp_path: Path):
    with server.client() as client:
        asked = {"model": "tiny:blue", "seed": 3, "steps": 1}
        png = client.post("/v1/generate", json=asked, headers={"Accept": "image/png"}).content
    (tmp_path / "image.png").write_bytes(png)
    said = remake(tmp_path / "image.png", tmp_path / "again.png", engine)
    assert (tmp_path / "again.png").read_bytes() == png, said


def test_rows_of_several_models_share_a_call_and_keep_their_bytes(engine: Path):
    """Exact mode, one loop: twelve images of three models at once, and each of them alone."""
    with LocalService.open({"tiny": engine}, LoadOptions(mode="exact", capacity=12, threads=1)) as service:
        asked = [
            image_request(service.manifests[model], steps=1, seed=seed, label=label, format="pixels")
            for seed, label in ((1, 0), (2, 1), (3, 2), (4, 0))
            for model in MODELS
        ]
        streams = [service.submit(request) for request in asked]
        together = [stream.result().images[0] for stream in streams]
        alone = [service.submit(request).result().images[0] for request in asked]
        for request, image, lonely in zip(asked, together, alone, strict=True):
            assert np.array_equal(image, lonely)
            assert np.array_equal(image, expected(engine, request.model, request.seeds[0], request.labels[0], steps=1))
        with pytest.raises(Refusal, match="there is no model"):
            service.submit(structs.replace(asked[0], model="tiny:green"))


def test_a_row_keeps_its_adapter_while_others_end(engine: Path):
    """On both slot tables: images of one, two and more steps leave gaps that the rest moves into."""
    loaded = load_engine(engine, threads=1)
    images = [
        Image(ImageKey(number, 0), number, number % 3, LEVELS[1 + number % 4], adapter=number % 3)
        for number in range(8)
    ]

    def device_network(*rows: np.ndarray) -> np.ndarray:
        return loaded.network(*rows)

    tables = [
        SlotTable(loaded.network, SHAPE, 3, SIGMA_DATA, (8,), adapters=True),
        device_table(Device(device_network, (8,), adapters=True)),
    ]
    for table in tables:
        table.admit(images)
        first = table.tick()
        assert (first.active, first.batch) == (8, 8)  # one call for all of them
        made = {key.request: pixels for key, pixels in first.finished}
        while table.requests():
            made |= {key.request: pixels for key, pixels in table.tick().finished}
        for image in images:
            denoiser = loaded.adapted_denoiser(image.adapter)
            labels = np.array([image.label])
            sample = sample_dpdm(
                lambda x, sigma, denoiser=denoiser, labels=labels: denoiser(x, sigma, labels),
                noise_for([image.seed], SHAPE),
                image.sigmas,
            )
            distance = np.abs(made[image.key.request].astype(int) - to_pixels(sample.images)[0])
            assert distance.max() <= 1  # the device's normals differ in the last bit


def test_a_worker_that_starts_later_serves_the_adapters_of_the_start(tmp_path: Path, until: Until):
    """Whatever was added, replaced or removed in the folder since: the same models, and the same bytes."""
    folder = tmp_path / "engine"
    write_adapters(folder)
    with serving(folder, "--mode", "exact", "--restart-limit", "9") as server:

        def images() -> list[bytes]:
            answers = [post(server, model=model, seed=3, steps=1, label=1) for model in MODELS]
            assert [answer.status_code for answer in answers] == [200] * len(MODELS)
            return [answer.content for answer in answers]

        before = images()
        manifest = read_manifest(folder)
        red, blue = manifest.adapters
        content = (folder / red.file).read_bytes()
        other = replace(blue, sha256=hashlib.sha256(content).hexdigest())
        for entries in ((red, blue, replace(red, name="green")), (red, other), (blue,), ()):
            for entry in entries:
                if entry.name != "blue" or entry is other:
                    (folder / entry.file).write_bytes(content)
            write_manifest(folder, replace(manifest, adapters=entries))
            if not entries:
                shutil.rmtree(folder / "adapters")
            restarts = metric(server, "fewstep_worker_restarts_total")
            workers(server)[0].kill()
            until(lambda restarts=restarts: metric(server, "fewstep_worker_restarts_total") > restarts)
            until(lambda: httpx.get(f"{server.url}/readyz", timeout=DEADLINE_S).status_code == 200)
            assert images() == before
        assert server.stop() == 0


def test_an_adapter_whose_file_is_damaged_is_named_before_anything_listens(tmp_path: Path, capsys):
    folder = tmp_path / "engine"
    write_adapters(folder)
    path = folder / "adapters" / "blue.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for flag in ("--port=0", "--check"):
        assert main(["--engine", str(folder), flag]) == 2
        assert f"{path} is not the file its manifest describes" in capsys.readouterr().err


def test_a_backbone_without_levels_serves_its_adapters_alone(engine: Path):
    manifest = replace(read_manifest(engine), levels={}, role="teacher")
    served = served_models(manifest)
    assert list(served) == ["tiny:red", "tiny:blue"]
    assert choose_model(None, served).levels == ADAPTERS["red"]


def test_metrics_give_so_many_adapters_labels_of_their_own_and_the_rest_one():
    names = ["a", *(f"a:{number}" for number in range(LABELLED + 5)), "b", "b:x"]
    labels = labels_of(names)
    assert len(set(labels.values())) == LABELLED + 4
    assert labels["a:0"] == "a:0" and labels[f"a:{LABELLED}"] == labels[f"a:{LABELLED + 4}"] == "a:*"
    assert labels["b:x"] == "b:x"
