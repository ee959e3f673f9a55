"""The Open Inference Protocol, by Triton's own client against a real server, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from fewstep.noise import random_labels
from server.http.dialects.inference import InferenceDialect, split
from server.http.service import ImageService
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.conftest import Server
from tests.server.fakes import CLASSES, manifest

DIALECT = InferenceDialect({"tiny": manifest()}, Settings({"tiny": Path("/nowhere")}), cast(ImageService, None))


def tensor(name: str, values: Any, datatype: str = "INT64", binary: bool = True) -> triton.InferInput:
    array = np.array(values, {"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8}[datatype])
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


def test_an_error_is_a_text(client: httpx.Client):
    answer = client.get("/v2/models/tiny/infer")
    assert (answer.status_code, list(answer.json())) == (405, ["error"]) and "POST" in answer.json()["error"]
    assert client.post("/v2/models/tiny/infer", content=b"{").json()["error"].startswith("the body is not valid JSON")


def seeds(values: Any = (1,), **fields: Any) -> dict[str, Any]:
    return {"name": "seed", "datatype": "INT64", "shape": [len(values)], "data": list(values), **fields}


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
        ({"inputs": [seeds(parameters={"binary_data_size": 8})]}, "a multiple of 8 up to 0, not 8"),
        ({"inputs": [seeds([1, 2]), labels(3)]}, "labels has 3 entries, but seeds has 2"),
        ({"inputs": 3}, "inputs must be a list with an object for each entry"),
        ({"inputs": [seeds()], "outputs": [{"name": "latent"}]}, "an output is one of image, seed, label"),
        ({"inputs": [seeds()], "parameters": {"sequence_id": 1}}, "this server knows binary_data_output, timeout"),
        ({"inputs": [seeds()], "parameters": {"timeout": "1"}}, "a whole number of microseconds"),
        ({"inputs": [seeds()], "parameters": {"timeout": 0}}, "from 0.001 to 60, not 0"),
    ],
)
def test_what_is_wrong_is_named_in_a_sentence(body: Any, words: str):
    with pytest.raises(Refusal, match=words):
        DIALECT.read("tiny", json.dumps(body).encode(), None)


def test_binary_data_is_read_behind_the_json_and_nothing_is_left():
    text = json.dumps({"inputs": [seeds(data=None, parameters={"binary_data_size": 8})]}).encode()
    wanted = DIALECT.read("tiny", text + np.array([5], "<i8").tobytes(), str(len(text)))
    assert wanted.order.request.seeds == (5,) and wanted.order.timeout_s == 60.0
    with pytest.raises(Refusal, match="name 8 bytes of binary data, and the body has 9"):
        DIALECT.read("tiny", text + bytes(9), str(len(text)))
    for length in ("x", "-1", "4", "9" * 40):
        with pytest.raises(Refusal, match="Inference-Header-Content-Length must be"):
            split(b"{}", length)


def test_a_timeout_is_in_microseconds():
    body = {"inputs": [seeds()], "parameters": {"timeout": 2_500_000}}
    assert DIALECT.read("tiny", json.dumps(body).encode(), None).order.timeout_s == 2.5
