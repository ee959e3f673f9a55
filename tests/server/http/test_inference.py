"""The Open Inference Protocol, by Triton's own client against a real server, and what is refused."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from fewstep.conditions import guidance_weight, low_image
from fewstep.noise import random_labels
from fewstep.pixels import to_pixels
from server.http.dialects.inference import InferenceDialect, split
from server.http.routes import HEADER_LENGTH
from server.http.service import ImageService
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.conftest import Server, serving, write_engine
from tests.server.fakes import CLASSES, manifest, png
from tests.server.in_process import Site

GUIDED = replace(manifest("guided"), conditions=(guidance_weight(4.0),))
ENLARGING = replace(manifest("enlarging"), conditions=(low_image(1, 2),))
MODELS = {each.name: each for each in (manifest(), GUIDED, ENLARGING)}
SETTINGS = Settings({name: Path("/nowhere") for name in MODELS})
DIALECT = InferenceDialect(MODELS, SETTINGS, cast(ImageService, None))
KINDS = {"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "FP32": np.float32, "FP64": np.float64}


def tensor(name: str, values: Any, datatype: str = "INT64", binary: bool = True) -> triton.InferInput:
    array = np.array(values, KINDS[datatype])
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.fixture(scope="module")
def served(server: Server) -> Any:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60.0)
    yield client
    client.close()


def test_the_server_and_its_model_describe_themselves(served: Any):
    assert served.is_server_live() and served.is_server_ready() and served.is_model_ready("tiny")
    assert not served.is_model_ready("other")
    assert served.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = served.get_model_metadata("tiny")
    assert [each["name"] for each in described["inputs"]] == ["seed", "label", "steps"]
    assert described["outputs"][0] == {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}


@pytest.mark.parametrize("binary", [True, False])
def test_images_are_those_of_our_own_api(served: Any, client: httpx.Client, binary: bool):
    inputs = [
        tensor("seed", [7, 3, 2**62], binary=binary), tensor("label", [1, -1, 2], "INT32", binary),
        tensor("steps", [4, 1, 2], "UINT8", binary),
    ]  # fmt: skip
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "image")]
    result = served.infer("tiny", inputs, outputs=outputs, request_id="mine")
    fields = {"seeds": [7, 3, 2**62], "labels": [1, None, 2], "steps": [4, 1, 2]}
    native = client.post("/v1/generate", json=fields, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(result.as_numpy("image"), np.load(io.BytesIO(native.content)))
    assert result.as_numpy("label").tolist() == [1, random_labels([3], CLASSES)[0], 2]
    assert result.as_numpy("seed") is None and result.get_response()["id"] == "mine"


def test_all_outputs_come_as_binary_data_where_the_client_names_none(served: Any):
    result = served.infer("tiny", [tensor("seed", [1, 2]), tensor("label", [0])])
    assert result.as_numpy("image").shape == (2, 8, 8, 1) and result.as_numpy("image").dtype == np.uint8
    assert result.as_numpy("seed").tolist() == [1, 2] and result.as_numpy("label").tolist() == [0, 0]


def test_what_is_refused_is_an_error_of_the_client_in_our_words(served: Any):
    with pytest.raises(InferenceServerException, match="tiny has no class 3"):
        served.infer("tiny", [tensor("seed", [1]), tensor("label", [3])])
    with pytest.raises(InferenceServerException, match="an input is one of seed, label, steps"):
        served.infer("tiny", [tensor("image", [1])])


def test_a_model_or_version_that_is_not_served_is_an_error_of_the_client(served: Any):
    for ask in (lambda: served.infer("nope", [tensor("seed", [1])]), lambda: served.get_model_metadata("nope")):
        with pytest.raises(InferenceServerException, match='there is no model "nope" here; this server has tiny'):
            ask()
    with pytest.raises(InferenceServerException, match='tiny has no version "2"; it has version 1'):
        served.infer("tiny", [tensor("seed", [1])], model_version="2")
    with pytest.raises(InferenceServerException, match="there is nothing at"):
        served.get_model_repository_index()
    with pytest.raises(InferenceServerException, match='the output image cannot have "classification"'):
        served.infer("tiny", [tensor("seed", [1])], outputs=[triton.InferRequestedOutput("image", class_count=3)])


def test_the_version_that_the_metadata_lists_is_served(served: Any):
    (version,) = served.get_model_metadata("tiny")["versions"]
    assert served.is_model_ready("tiny", version) and not served.is_model_ready("tiny", "2")
    assert served.get_model_metadata("tiny", version) == served.get_model_metadata("tiny")
    images = [
        served.infer("tiny", [tensor("seed", [7])], model_version=each).as_numpy("image") for each in ("", version)
    ]
    np.testing.assert_array_equal(*images)


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model that takes a weight, and of one that enlarges images of 4x4."""
    folder = tmp_path_factory.mktemp("conditioned")
    write_engine(folder / "guided", "guided", conditions=(guidance_weight(4.0),))
    write_engine(folder / "enlarging", "enlarging", conditions=(low_image(1, 4),))
    flags = ("--engine", f"enlarging={folder / 'enlarging'}", "--mode", "exact")
    with serving(folder / "guided", *flags) as running:
        yield running


def natively(server: Server, **body: Any) -> np.ndarray:
    """What /v1/generate answers, uint8 [n, H, W, C]."""
    with server.client() as client:
        answer = client.post("/v1/generate", json=body, headers={"Accept": "application/x-npy"})
        return np.load(io.BytesIO(answer.content))


@pytest.mark.parametrize("binary", [True, False])
def test_conditions_are_inputs_and_give_the_images_of_our_own_api(conditioned: Server, binary: bool):
    client = triton.InferenceServerClient(conditioned.url.removeprefix("http://"), network_timeout=60.0)
    seed = tensor("seed", [7, 3], binary=binary)

    def infer(model: str, name: str, values: Any, datatype: str) -> Any:
        return client.infer(model, [seed, tensor(name, values, datatype, binary)]).as_numpy("image")

    assert [client.get_model_metadata(name)["inputs"][3:] for name in ("guided", "enlarging")] == [
        [{"name": "guidance", "datatype": "FP32", "shape": [-1]}],
        [{"name": "upscale", "datatype": "UINT8", "shape": [-1, 4, 4, 1]}],
    ]
    each, one = infer("guided", "guidance", [1.5, 4], "FP32"), infer("guided", "guidance", [2.5], "FP64")
    np.testing.assert_array_equal(each, natively(conditioned, seeds=[7, 3], guidance=[1.5, 4]))
    np.testing.assert_array_equal(one, natively(conditioned, seeds=[7, 3], guidance=2.5))
    assert (each != one).any(axis=(1, 2, 3)).all()
    small = np.random.default_rng(3).integers(0, 256, (2, 4, 4, 1), np.uint8)
    each, one = (infer("enlarging", "upscale", pixels, "UINT8") for pixels in (small, small[:1]))
    ours = {"model": "enlarging", "upscale": png(small[0])}
    np.testing.assert_array_equal(one, natively(conditioned, seeds=[7, 3], **ours))
    np.testing.assert_array_equal(each[0], one[0])
    assert (each[1] != one[1]).any()
    client.close()


@pytest.mark.parametrize(
    ("path", "key", "method", "status"),
    [
        ("/v2/models", "", "GET", 401),
        ("/v2/models/nope/infer", "k" * 16, "POST", 404),
        ("/v2/models/", "k" * 16, "GET", 404),
        ("/v2/", "k" * 16, "POST", 405),
        ("/v2/models/tiny/versions/1/infer", "k" * 16, "GET", 405),
    ],
)
def test_every_error_below_the_protocols_path_is_a_text(path: str, key: str, method: str, status: int):
    refused = Site(api_keys=("k" * 16,)).get(path, {"x-api-key": key}, method)
    assert (refused.status_code, list(refused.json())) == (status, ["error"])
    assert isinstance(refused.json()["error"], str)


def test_a_request_that_cannot_be_answered_is_refused_before_the_work(client: httpx.Client):
    made = client.get("/metrics").text
    texts = ('{"timeout": 1%s}' % ("0" * 400), '{"timeout": 1e999}')
    asked = [(f'{{"inputs": [{json.dumps(seeds())}], "parameters": {text}}}', {}) for text in texts]
    asked += [(f'{{"inputs": [{json.dumps(seeds())}], "id": "\\ud800"}}', {})]
    asked += [(f'{{"inputs": [{json.dumps(seeds())}]}}', {HEADER_LENGTH: "0" * 18 + "9" * 4400})]
    for body, headers in asked:
        answer = client.post("/v2/models/tiny/infer", content=body.encode(), headers=headers)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), body
    images = [[line for line in page.splitlines() if line.startswith("fewstep_images_total")] for page in (
        made, client.get("/metrics").text)]  # fmt: skip
    assert images[0] and images[0] == images[1]


def test_an_error_is_a_text(client: httpx.Client):
    answer = client.get("/v2/models/tiny/infer")
    assert (answer.status_code, list(answer.json())) == (405, ["error"]) and "POST" in answer.json()["error"]
    assert client.post("/v2/models/tiny/infer", content=b"{").json()["error"].startswith("the body is not valid JSON")


def seeds(values: Any = (1,), **fields: Any) -> dict[str, Any]:
    return {"name": "seed", "datatype": "INT64", "shape": [len(values)], "data": list(values), **fields}


def image(**parameters: Any) -> dict[str, Any]:
    return {"name": "image", "parameters": parameters}


def labels(count: int) -> dict[str, Any]:
    return {**seeds([0] * count), "name": "label"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "must have the tensor seed"),
        ({"inputs": [{}]}, "an input is one of seed, label, steps, each once, not null"),
        ({"inputs": [seeds(), seeds()]}, "each once"),
        ({"inputs": [seeds([])]}, "seed must have 1 to 64 values, one for each image, not 0"),
        ({"inputs": [seeds(range(65))]}, "not 65"),
        ({"inputs": [seeds(datatype="FP32")]}, "datatype of seed must be one of INT8"),
        ({"inputs": [seeds(datatype=None)]}, "datatype of seed must be one of INT8"),
        ({"inputs": [seeds(shape=[2])]}, r"its shape must be \[1\]"),
        ({"inputs": [seeds(shape=None)]}, "its shape must be"),
        ({"inputs": [seeds(data=3)]}, "a list of whole numbers"),
        ({"inputs": [seeds(data=None)]}, "a list of whole numbers"),
        ({"inputs": [seeds(data=[0.5])]}, "a list of whole numbers"),
        ({"inputs": [seeds([-1])]}, "seeds must be from 0"),
        ({"inputs": [seeds([300], datatype="UINT8")]}, "of its datatype"),
        ({"inputs": [seeds(parameters=[1])]}, "parameters must be an object"),
        ({"inputs": [seeds(shape=[True])]}, r"its shape must be \[1\], not \[true\]"),
        ({"inputs": [seeds(data=None, parameters={"binary_data_size": 8})]}, "a multiple of 8 up to 0, not 8"),
        ({"inputs": [seeds(data=None, parameters={"binary_data_size": 10**400})]}, "a multiple of 8 up to 0, not 10"),
        ({"inputs": [seeds(parameters={"binary_data_size": 0})]}, "seed has both data and binary_data_size"),
        ({"inputs": [seeds([10**400])]}, "of its datatype"),
        ({"inputs": [seeds([float("nan")])]}, "a list of whole numbers"),
        ({"inputs": [seeds(content="x")]}, 'the input seed cannot have "content"'),
        (
            {"inputs": [seeds(parameters={"shared_memory_region": "a"})]},
            'the input seed cannot have "shared_memory_reg',
        ),
        ({"inputs": [seeds([1, 2]), labels(3)]}, "labels has 3 entries, but seeds has 2"),
        ({"inputs": 3}, "inputs must be a list with an object for each entry"),
        ({"inputs": [seeds()], "outputs": [{"name": "latent"}]}, "an output is one of image, seed, label"),
        ({"inputs": [seeds()], "parameters": {"sequence_id": 1}}, "this server knows binary_data_output, timeout"),
        ({"inputs": [seeds()], "parameters": {"timeout": "1"}}, "a whole number of microseconds"),
        ({"inputs": [seeds()], "parameters": {"timeout": 0}}, "from 1000 to 60000000, not 0"),
        ({"inputs": [seeds()], "parameters": {"timeout": 10**400}}, "from 1000 to 60000000, not 10"),
        ({"inputs": [seeds()], "parameters": {"timeout": float("inf")}}, "a whole number of microseconds"),
        ({"inputs": [seeds()], "parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"inputs": [seeds()], "id": "\ud800"}, r"id must be Unicode text, without lone surrogates; not .\\ud800"),
        ({"inputs": [seeds()], "outputs": [image(classification=3)]}, 'the output image cannot have "classification"'),
        ({"inputs": [seeds()], "outputs": [image(shared_memory_region="a")]}, 'cannot have "shared_memory_region"'),
        ({"inputs": [seeds()], "outputs": [image(binary_data=1)]}, "binary_data of the output image must be true or"),
        ({"inputs": [seeds()], "outputs": [{"name": "image", "class_count": 3}]}, 'cannot have "class_count"'),
        ({"inputs": [seeds()], "outputs": [image(), image()]}, "image, seed, label, each once"),
    ],
)
def test_what_is_wrong_is_named_in_a_sentence(body: Any, words: str):
    with pytest.raises(Refusal, match=words):
        DIALECT.read("tiny", json.dumps(body).encode(), None)


def weights(values: Any, datatype: str = "FP32", **fields: Any) -> dict[str, Any]:
    return {"name": "guidance", "datatype": datatype, "shape": [len(values)], "data": list(values), **fields}


def small(data: Any, shape: Any = (1, 2, 2, 1), datatype: str = "UINT8") -> dict[str, Any]:
    return {"name": "upscale", "datatype": datatype, "shape": list(shape), "data": data}


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ("tiny", weights([2.0]), "tiny takes no guidance weight; leave guidance out"),
        ("tiny", small([0] * 4), "tiny enlarges no images; leave upscale out"),
        ("guided", weights([4.5]), "guidance must be from 1 to 4, not 4.5"),
        ("guided", weights([1, 0.5]), "guidance must be from 1 to 4, not 0.5"),
        ("guided", weights([1, 2, 3]), "guidance has 3 entries, but seeds has 2"),
        ("guided", weights([]), "guidance has 0 entries"),
        ("guided", weights([2], "INT64"), "the datatype of guidance must be one of FP32, FP64, not"),
        ("guided", weights([10**400]), "guidance must be a list of numbers of its datatype"),
        ("guided", weights([float("nan")]), "guidance must be a list of numbers of its datatype"),
        ("guided", weights([True]), "guidance must be a list of numbers of its datatype"),
        ("guided", weights([2.0], shape=[1, 2]), r"guidance has 1 values, and its shape must be \[1\]"),
        ("enlarging", None, "enlarging enlarges images of 2x2: send the picture to enlarge as upscale"),
        ("enlarging", small([0] * 12, (3, 2, 2, 1)), "upscale has 3 pictures, but seed has 2; give one for each"),
        ("enlarging", small([], (0, 2, 2, 1)), "upscale has 0 pictures"),
        ("enlarging", small([0] * 4, (1, 4, 1, 1)), r"upscale must have the shape \[n, 2, 2, 1\] and as many values"),
        ("enlarging", small([0] * 3), r"not \[1, 2, 2, 1\] and 3"),
        ("enlarging", small([0, 0, 0, 256]), "upscale must be a list of whole numbers of its datatype"),
        ("enlarging", small([0, 0, 0, 0.5]), "upscale must be a list of whole numbers of its datatype"),
        ("enlarging", small([[[[0]], [[0]]], [0, 0]]), "upscale must be a list of whole numbers"),
        ("enlarging", small([0] * 4, datatype="FP32"), "the datatype of upscale must be one of UINT8, not"),
    ],
)
def test_conditions_that_do_not_fit_the_model_are_refused_as_in_our_own_api(model: str, given: Any, words: str):
    body = {"inputs": [seeds([1, 2]), *([given] if given else [])]}
    with pytest.raises(Refusal, match=words):
        DIALECT.read(model, json.dumps(body).encode(), None)


@pytest.mark.parametrize("data", [[0, 51, 102, 255], [[[[0], [51]], [[102], [255]]]]], ids=["flat", "nested"])
def test_pixels_are_flat_or_nested_as_their_shape(data: Any):
    wanted = DIALECT.read("enlarging", json.dumps({"inputs": [seeds([1, 2]), small(data)]}).encode(), None)
    assert wanted.order.decode is not None and not wanted.order.request.conditions, "decoded once there is room"
    (given,) = wanted.order.decode().conditions
    np.testing.assert_array_equal(to_pixels(given.row(1)[None])[0, ..., 0], [[0, 51], [102, 255]])


def test_a_weight_that_is_binary_and_no_number_is_refused():
    head = {**weights([0]), "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [seeds(), {name: head[name] for name in head if name != "data"}]}).encode()
    with pytest.raises(Refusal, match="guidance must be from 1 to 4, not NaN"):
        DIALECT.read("guided", text + np.array([np.nan], "<f4").tobytes(), str(len(text)))


def test_binary_data_is_read_behind_the_json_and_nothing_is_left():
    text = json.dumps({"inputs": [seeds(data=None, parameters={"binary_data_size": 8})]}).encode()
    wanted = DIALECT.read("tiny", text + np.array([5], "<i8").tobytes(), str(len(text)))
    assert wanted.order.request.seeds == (5,) and wanted.order.timeout_s == 60.0
    with pytest.raises(Refusal, match="name 8 bytes of binary data, and the body has 9"):
        DIALECT.read("tiny", text + bytes(9), str(len(text)))
    for length in ("", "x", "-1", "4", "9" * 40, "9" * 5000, "0" * 18 + "9" * 4400, "0" * 18 + "9999", "\xb2"):
        with pytest.raises(Refusal, match="Inference-Header-Content-Length must be"):
            split(b"{}", length)


@pytest.mark.parametrize(
    ("parameter", "header", "expected"),
    [
        (None, None, "interactive"), (None, "batch", "batch"), ("batch", None, "batch"),
        ("interactive", "batch", "interactive"), (0, None, "interactive"), (1, "batch", "interactive"),
        (2, None, "batch"), (2**64 - 1, None, "batch"),
    ],
)  # fmt: skip
def test_the_priority_is_one_of_our_words_or_tritons_number(parameter: Any, header: str | None, expected: str):
    body = {"inputs": [seeds()], "parameters": {"priority": parameter}}
    assert DIALECT.read("tiny", json.dumps(body).encode(), None, header).order.request.priority == expected


@pytest.mark.parametrize("parameter", [-1, 2**64, 1.5, True, [], "low", ""])
def test_another_priority_is_refused(parameter: Any):
    with pytest.raises(Refusal, match="priority must be interactive"):
        DIALECT.read("tiny", json.dumps({"inputs": [seeds()], "parameters": {"priority": parameter}}).encode(), None)


def test_a_timeout_is_in_microseconds():
    body = {"inputs": [seeds()], "parameters": {"timeout": 2_500_000}}
    assert DIALECT.read("tiny", json.dumps(body).encode(), None).order.timeout_s == 2.5
