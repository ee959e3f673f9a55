"""/openapi.json and /docs against the tables, the parser and a running server."""

import asyncio
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.load.fuzz import descending, measure, only_json
from benchmarks.load.fuzz_pictures import PREFIX
from server.http.dialects.native import NativeDialect, decode_edit
from server.http.dialects.native_schema import PICTURE as PICTURE_FORMAT
from server.http.dialects.native_schema import GenerateBody, schemas
from server.http.docs_page import curl, docs_page
from server.http.errors import STATUS
from server.http.openapi import TEXTS, answers, document_routes, openapi_body
from server.http.picture_files import PictureError, from_base64
from server.http.pictures import decode
from server.http.routes import EVERY_HEADERS, IMAGE_HEADERS, Route
from server.http.service import ImageService
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.conftest import Server, serving, write_engine
from tests.server.fakes import manifest, png

NAMED = replace(manifest("named"), class_names=("T-shirt/top", "Élan (1+1)", "<b>&amp;"))
MODELS = {"tiny": manifest(), "plain": manifest("plain", classes=0), "named": NAMED}
SETTINGS = Settings(dict.fromkeys(MODELS, Path("/nowhere")), max_images=5)


def dialect(settings: Settings = SETTINGS) -> NativeDialect:
    return NativeDialect(MODELS, settings, cast(ImageService, None))


def document_of(settings: Settings = SETTINGS) -> dict[str, Any]:
    async def answer(http: Request) -> Response:
        raise NotImplementedError

    probe = Route("/livez", "GET", answer, "The process answers.", answers("text/plain"), keyless=True, any_host=True)
    routes, described = [*dialect(settings).routes(), probe], schemas(MODELS, settings)
    return openapi_body([*routes, *document_routes(routes, described, settings)], described, settings)


DOCUMENT = document_of()
GENERATE = DOCUMENT["paths"]["/v1/generate"]["post"]


def test_the_document_is_valid_openapi():
    schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT))).validate()


def test_every_field_of_a_request_is_described():
    for name in MODELS:
        properties = DOCUMENT["components"]["schemas"][f"GenerateRequest.{name}"]["properties"]
        assert set(properties) == set(GenerateBody.model_fields)
        assert all(each["description"] for each in properties.values())


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


def test_the_tables_of_headers_and_statuses_are_described():
    assert set(TEXTS) == set(STATUS.values())
    assert set(GENERATE["responses"]["200"]["headers"]) == {*IMAGE_HEADERS, "X-Request-Id", "traceparent"}
    assert set(DOCUMENT["components"]["headers"]) == set(EVERY_HEADERS)
    assert "Retry-After" in DOCUMENT["components"]["responses"]["429"]["headers"]


def test_a_route_describes_the_refusals_that_it_can_answer():
    def refused(path: str, method: str, document: dict[str, Any] = DOCUMENT) -> set[int]:
        return {int(status) for status in document["paths"][path][method]["responses"]} - {200}

    assert refused("/v1/generate", "post") == set(STATUS.values()) - {401, 410}
    assert refused("/v1/models", "get") == {400, 405, 421, 431, 500}
    assert refused("/livez", "get") == {400, 405, 431, 500}
    guarded = document_of(replace(SETTINGS, api_keys=("k" * 32,), allowed_hosts=("*",)))
    assert refused("/v1/models", "get", guarded) == {400, 401, 405, 431, 500}


body = GENERATE["requestBody"]["content"]["application/json"]["schema"]
PICTURE = png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def is_picture(text: str) -> bool:
    """Whether a string is of the document's format PICTURE."""
    try:
        return decode(from_base64(text, 8), 8, 1).shape == (8, 8, 1)
    except PictureError:
        return False


VALID = jsonschema_rs.validator_for(
    {**body, "components": DOCUMENT["components"]}, formats={PICTURE_FORMAT: is_picture}, validate_formats=True
)
near_values: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(0, 9)
    | st.none()
    | st.sampled_from(["4", True, 4.5, [4], [1, 8.0], [4, 9], [2, None], [], {}]),
    "sigmas": st.sampled_from([None, [80], [80, 1.5], [80.5], [1e-9], [], [1, 1], [True], "1", [*range(10, 2, -1)]]),
    "seeds": st.sampled_from([None, [], [7], [7, 7], [2**63 - 1, 0.0], [2**63], [-1], [None], 7, [1, 2, 3, 4, 5, 6]]),
    "seed_to": st.sampled_from([None, 7, 2**63 - 1, 2**63, -1, 1.5, [7]]),
    "mix": st.sampled_from([None, 0, 0.5, 1.0, 1.01, -0.1, True, "1", [], [0.5], [0, 1], [0, None], [2]]),
    "labels": st.sampled_from([None, [], [0], [" bag", None], [None], [3], ["boot"], "Bag", [True], [2, 1.0, 0]]),
    "stream": st.sampled_from([True, False, None, "true", 1]),
    "previews": st.sampled_from([None, 0, 7, 1.0, 8, -1, 0.5, True, "1"]),
    "n": st.integers(0, 6) | st.none() | st.sampled_from(["2", 2.0, 1e30, -0.0]),
    "seed": st.integers(2**63 - 6, 2**63) | st.sampled_from([0, 1, -1, None, "7", 1.5, 1e18, 1e30]),
    "label": st.integers(-1, 3)
    | st.sampled_from(
        [None, "Bag", " coat\n", "bAg", "Boot", "Bag Coat", "ÉLAN (1+1)", "e\u0301lan (1+1)", "elan (1+1)"]
    )
    | st.sampled_from(["t-SHIRT/top", "T-shirt", "<B>&amp;", "", False, 1.0, 1.5]),
    "format": st.sampled_from(["png", "webp", "npy", "gif", None]),
    "model": st.sampled_from(["tiny", "plain", "named", "other", None, 3]),
    "timeout_s": st.sampled_from([0.001, 1, 60, 60.5, 0, None, "1", True]),
    "image": st.sampled_from([PICTURE, PREFIX + PICTURE, PICTURE[:-8], PICTURE + "A" * 200_001, "", None, 3]),
    "mask": st.sampled_from([PICTURE, "iVBORw0KGgo=", None, 0]),
    "strength": st.sampled_from([1, 0.5, 1e-9, 1.0, 0, -0.5, 1.01, None, "1", True]),
    "extra": st.just(1),
}


def accepts(body: bytes) -> None:
    """Raises Refusal unless the server would make the images."""
    asked = dialect().read(body)
    if asked.fields.image is not None:
        decode_edit(asked.fields.image, asked.fields.mask, asked.manifest)


@given(st.fixed_dictionaries({}, optional=near_values))
@example({"seed": 2**63 - 1, "n": 2})
@example({"seed": 2**63 - 2, "n": 2})
@example({"seed": 2**63 - 5, "n": 5})
@example({"seed": 2**63 - 4, "n": 5})
@example({"seed": 2**63 - 1, "n": None})
@example({"seed": 2**63 - 1, "n": 2, "seed_to": 3})
@example({"seed": 2**63 - 1, "n": 2, "seed_to": None})
@example({"model": "named", "label": "e\u0301LAN (1+1) "})
@example({"model": "named", "label": "T-SHIRT/top"})
@example({"previews": 3, "stream": True})
@example({"previews": 3, "stream": None})
@example({"previews": 3})
def test_the_document_calls_valid_exactly_what_the_server_takes(wanted: dict[str, Any]):
    try:
        accepts(json.dumps(wanted).encode())
        taken = True
    except Refusal:
        taken = False
    assert VALID.is_valid(wanted) == taken


@pytest.mark.parametrize("schema", range(len(MODELS)))
def test_what_is_generated_from_the_document_is_taken(schema: int):
    """schemathesis draws from the branches of seed and n, and from the patterns of class names."""
    document = only_json(json.loads(json.dumps(DOCUMENT)))
    content = document["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]
    content["schema"] = content["schema"]["anyOf"][schema]
    schemathesis.openapi.format(PICTURE_FORMAT, st.just(PICTURE))
    operation = schemathesis.openapi.from_dict(document)["/v1/generate"]["POST"]

    @settings(
        max_examples=60,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=operation.as_strategy())
    def run(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            accepts(json.dumps(descending(case.body)).encode())

    run()


def test_keys_are_described_where_they_are_needed():
    document = document_of(replace(SETTINGS, api_keys=("k" * 32,)))
    schemathesis.openapi.from_dict(document).validate()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"} and document["security"]
    keyless = {path for path, verbs in document["paths"].items() if verbs.get("get", {}).get("security") == []}
    assert keyless == {"/livez"}
    generate, livez = document["paths"]["/v1/generate"]["post"], document["paths"]["/livez"]["get"]
    assert "$FEWSTEP_KEY" in curl(document, "http://a", "/v1/generate", "post", generate)
    assert "$FEWSTEP_KEY" not in curl(document, "http://a", "/livez", "get", livez)


def test_the_page_of_the_document_shows_everything_and_loads_nothing():
    page = docs_page(DOCUMENT, 'http://"><script>')
    html = HTMLParser()
    tags: list[str] = []
    html.handle_starttag = lambda tag, attrs: tags.append(tag) or assert_local(attrs)
    html.feed(page)
    assert not {"script", "link", "img", "iframe", "form"} & set(tags)
    for text in [
        *GenerateBody.model_fields,
        *IMAGE_HEADERS,
        *EVERY_HEADERS,
        *map(str, set(TEXTS) - {401, 410}),
        *DOCUMENT["paths"],
    ]:
        assert f"<code>{text}</code>" in page or f" {text}</code>" in page, text
    assert "&lt;b&gt;&amp;amp;" in page and "<b>" not in page


def assert_local(attributes: list[tuple[str, str | None]]) -> None:
    assert not {"src", "href", "onload", "style"} & {name for name, _ in attributes}, attributes


def test_the_routes_of_the_document_describe_themselves_too():
    own = {route.path: route for route in document_routes(dialect().routes(), schemas(MODELS, SETTINGS), SETTINGS)}

    def get(path: str, host: str) -> Response:
        scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "query_string": b"", "root_path": ""}
        headers = {"headers": [(b"host", host.encode())], "server": ("127.0.0.1", 8000)}
        return asyncio.run(cast(Any, own[path].answer(Request({**scope, **headers}))))

    paths = json.loads(bytes(get("/openapi.json", "a").body))["paths"]
    assert (
        set(paths)
        == {"/v1/generate", "/v1/models", *(f"/v1/models/{name}" for name in MODELS), *own}
        == {*DOCUMENT["paths"]} - {"/livez"}
    )
    page = get("/docs", "images.example:8000")
    assert b"curl http://images.example:8000/v1/generate " in bytes(page.body)
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src")
    assert "script" not in page.headers["content-security-policy"]
    assert b"evil" not in bytes(get("/docs", "evil;rm -rf").body)


def test_the_command_of_the_page_is_one_that_the_server_takes():
    command = shlex.split(curl(DOCUMENT, "http://127.0.0.1:8000", "/v1/generate", "post", GENERATE))
    assert command[:2] == ["curl", "http://127.0.0.1:8000/v1/generate"]
    asked = dialect().read(command[command.index("-d") + 1].encode())
    assert (asked.request.seeds, asked.request.model) == ((7,), "tiny")


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
    patient_row, hurried_row, apis_row = measure(pair.url, cases=200, number=1)
    for row, cases in ((patient_row, 200), (hurried_row, 20), (apis_row, 80)):
        assert row["passed"] and row["cases"] >= cases, row["examples"]
        assert {"200", "400"} <= set(row["by_status"])
    assert "405" in patient_row["by_status"] and not any(status >= "500" for status in patient_row["by_status"])
