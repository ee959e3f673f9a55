"""/openapi.json against the routes, the parser and a running server."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema_rs
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.fuzz import HURRIED, PATIENT, Tally, measure, patient
from server.http.app import GenerateSpec
from server.http.dialects.native import FIELDS, parse_request
from server.http.errors import ApiError
from server.http.openapi import REFUSALS, openapi_body
from server.http.pictures import PREFIX, PngError, decode
from server.processes.admission import Admission
from server.processes.pool import EngineClient
from server.settings.settings import Settings
from tests.server.conftest import Server, serving, write_engine
from tests.server.fakes import manifest, png

MODELS = {"tiny": manifest(), "plain": manifest("plain", classes=0)}
SETTINGS = Settings(dict.fromkeys(MODELS, Path("/nowhere")), max_images=5)
DOCUMENT = openapi_body(MODELS, SETTINGS)


def test_the_document_is_valid_openapi():
    schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT))).validate()


def test_the_document_and_the_app_have_the_same_routes():
    client = EngineClient(MODELS, 1, Admission(4), lambda: None)
    routes = GenerateSpec(MODELS, SETTINGS, client).routes
    served = {(path, method) for path, (_, methods) in routes.items() for method in methods if method != "HEAD"}
    assert served == {(path, verb.upper()) for path, verbs in DOCUMENT["paths"].items() for verb in verbs}


def test_every_field_of_a_request_is_described():
    for name in MODELS:
        assert set(DOCUMENT["components"]["schemas"][f"GenerateRequest.{name}"]["properties"]) == set(FIELDS)


def test_every_reference_leads_somewhere():
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for entry in value:
                yield from references(entry)

    for reference in references(DOCUMENT):
        _, components, kind, name = reference.split("/")
        assert name in DOCUMENT[components][kind], reference
    assert set(REFUSALS) < set(DOCUMENT["paths"]["/v1/generate"]["post"]["responses"])


body = DOCUMENT["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
PICTURE = png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def is_png(text: str) -> bool:
    """Whether a string is of the document's format png-8x8."""
    try:
        return decode(text, 8, 1).shape == (8, 8, 1)
    except PngError:
        return False


VALID = jsonschema_rs.validator_for(
    {**body, "components": DOCUMENT["components"]}, formats={"png-8x8": is_png}, validate_formats=True
)
near_values: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(0, 9) | st.none() | st.sampled_from(["4", True, 4.5]),
    "n": st.integers(0, 6) | st.none() | st.just("2"),
    "seed": st.sampled_from([0, 1, 2**63 - 1, 2**63, -1, None, "7", 1.5]),
    "label": st.integers(-1, 3) | st.sampled_from([None, "Bag", "Coat", "Boot", False]),
    "format": st.sampled_from(["png", "webp", "npy", "gif", None]),
    "model": st.sampled_from(["tiny", "plain", "other", None, 3]),
    "timeout_s": st.sampled_from([0.001, 1, 60, 60.5, 0, None, "1", True]),
    "image": st.sampled_from([PICTURE, PREFIX + PICTURE, PICTURE[:-8], PICTURE + "A" * 20_000, "", None, 3]),
    "mask": st.sampled_from([PICTURE, "iVBORw0KGgo=", None, 0]),
    "strength": st.sampled_from([1, 0.5, 1e-9, 1.0, 0, -0.5, 1.01, None, "1", True]),
    "extra": st.just(1),
}


@given(st.fixed_dictionaries({}, optional=near_values))
def test_the_document_calls_valid_exactly_what_the_server_takes(wanted: dict[str, Any]):
    try:
        parse_request(json.dumps(wanted).encode(), MODELS, SETTINGS.max_images, SETTINGS.timeout_s).decoded(MODELS)
        taken = True
    except ApiError:
        taken = False
    assert VALID.is_valid(wanted) == taken


@pytest.mark.parametrize("public", [True, False])
def test_keys_are_described_where_they_are_needed(public: bool):
    settings = Settings(SETTINGS.engines, api_keys=("k" * 32,), metrics_public=public)
    document = openapi_body(MODELS, settings)
    schemathesis.openapi.from_dict(document).validate()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"} and document["security"]
    keyless = {path for path, verbs in document["paths"].items() if verbs.get("get", {}).get("security") == []}
    assert keyless == {"/livez", "/readyz", "/"} | ({"/metrics"} if public else set())


@pytest.fixture(scope="module")
def pair(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two models."""
    other = tmp_path_factory.mktemp("models") / "other"
    write_engine(other, "other")
    with serving(engine_dir, "--engine", f"second={other}", "--max-images", "3") as server:
        yield server


def test_two_models_are_served_by_name_and_the_first_by_default(pair: Server):
    with pair.client() as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert listed == ["tiny", "second"]
        for body, name in (({}, "tiny"), ({"model": "tiny"}, "tiny"), ({"model": "second"}, "second")):
            answer = client.post("/v1/generate", json={"n": 2, **body})
            assert (answer.json()["model"], answer.headers["x-model"]) == (name, name)
        missing = client.post("/v1/generate", json={"model": "third"})
        assert missing.status_code == 404 and "tiny, second" in missing.json()["error"]["message"]


def test_a_running_server_keeps_what_its_document_promises(pair: Server):
    patient_row, hurried_row = measure(pair.url, cases=120, number=1)
    for row, cases in ((patient_row, 120), (hurried_row, 12)):
        assert row["passed"] and row["cases"] >= cases, row["examples"]
        assert {"200", "400"} <= set(row["by_status"])
    assert "405" in patient_row["by_status"] and not any(status >= "500" for status in patient_row["by_status"])


@pytest.mark.parametrize(
    ("given", "sent"),
    [(0.001, 10.0), (9.9, 10.0), (10, 10), (60, 60), (None, None), (0.0001, 0.0001), ("1", "1"), (True, True)],
)
def test_a_patient_body_keeps_all_but_a_short_valid_time_limit(given: Any, sent: Any):
    assert patient({"timeout_s": given, "n": 9}) == {"timeout_s": sent, "n": 9}
    assert patient({"n": 9}) == {"n": 9} and patient([given]) == [given]


@pytest.mark.parametrize(
    ("phase", "answer", "body", "counts"),
    [
        (HURRIED, (504, "timeout"), {"timeout_s": 0.001}, (1, 0)),
        (HURRIED, (504, "timeout"), {"timeout_s": 10}, (0, 1)),
        (HURRIED, (504, "timeout"), {}, (0, 1)),
        (HURRIED, (504, "proxy"), {"timeout_s": 0.001}, (0, 1)),
        (HURRIED, (503, "timeout"), {"timeout_s": 0.001}, (0, 1)),
        (PATIENT, (504, "timeout"), {"timeout_s": 0.001}, (0, 1)),
        (PATIENT, (500, "internal_error"), {}, (0, 1)),
    ],
)
def test_only_a_short_deadline_that_was_asked_for_excuses_an_answer_of_5xx(
    phase: str, answer: tuple[int, str], body: dict[str, Any], counts: tuple[int, int]
):
    """Case and answer are stand-ins: a server at rest cannot be made to miss a deadline, or to fail, at will."""
    response = requests.Response()
    response.status_code = answer[0]
    response._content = json.dumps({"error": {"code": answer[1]}}).encode()
    case = SimpleNamespace(
        method="POST", path="/v1/generate", body=dict(body), call=lambda **_: response,
        validate_response=lambda *_, **__: None, as_curl_command=lambda: "curl",
    )  # fmt: skip
    tally = Tally(phase)
    tally.add(cast(schemathesis.Case, case), requests.Session(), "positive")
    assert (tally.deadlines_missed, len(tally.server_errors)) == counts
    assert tally.clean == (counts[1] == 0)
