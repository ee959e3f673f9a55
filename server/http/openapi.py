"""`GET /openapi.json` and `GET /docs`: an OpenAPI 3.1 document made of the route table, the header table and the status
table. A dialect gives the schemas of its bodies, and with each route its operation and the refusals that it raises.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from fewstep import __version__
from server.http.docs_page import DOCS_HEADERS, docs_page
from server.http.errors import STATUS, error_type
from server.http.gate import ANY, AUTHORITY
from server.http.routes import EVERY_HEADERS, Header, Route, error_texts
from server.scheduler.refusal import Kind
from server.settings.settings import Settings

JSON = "application/json"
Schema = dict[str, Any]
EVENT_SCHEMA: Schema = {  # of each event of a stream
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": JSON}},
}
EVERY_ROUTE: Sequence[Kind] = ("malformed", "method", "head_too_large", "failed")
TEXTS: Mapping[int, str] = {
    400: "The request cannot be read, or a field is wrong; `param` names it.",
    401: "An API key is missing or wrong.",
    403: "The page of another site asked, or the url of an image is not one of this server's.",
    404: "There is no such model.",
    405: "The path answers other methods; Allow names them.",
    406: "Accept allows none of the media types that can be made.",
    408: "The body did not arrive in time.",
    410: "The image of a url is not kept any more.",
    413: "The body is too large.",
    415: "The body has an encoding that is not read, such as gzip.",
    421: "The Host header names another server.",
    429: "The queue is full; Retry-After says when to come back.",
    431: "The headers are too large.",
    500: "The server made a mistake, or the network failed.",
    503: "Loading, stopping, or the worker was lost; the same request may succeed later.",
    504: "The images were not ready in time.",
}


def openapi_body(routes: Sequence[Route], schemas: Mapping[str, Any], settings: Settings) -> Schema:
    """The document. schemas: of the bodies that the routes' operations refer to."""
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "fewstep",
            "version": __version__,
            "description": "Images in one to eight network calls. Image i of a request is the image of seed + i.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {route.path: {route.method.lower(): _operation(route, settings)} for route in routes},
        "components": {
            "schemas": {**schemas, "Error": _error()},
            "responses": {str(status): _refusal(status) for status in TEXTS},
            "headers": headers(EVERY_HEADERS),
        },
    }
    if settings.api_keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
    return document


def document_routes(routes: Sequence[Route], schemas: Mapping[str, Any], settings: Settings) -> list[Route]:
    """/openapi.json and /docs, which describe `routes` and themselves."""

    @cache
    def document() -> Schema:
        return openapi_body([*routes, *own], schemas, settings)

    async def openapi(http: Request) -> Response:
        return Response(json.dumps(document()), media_type=JSON)

    async def docs(http: Request) -> Response:
        return Response(
            docs_page(document(), address_of(http)), media_type="text/html; charset=utf-8", headers=DOCS_HEADERS
        )

    own = [
        Route(
            "/openapi.json", "GET", openapi, "What this server accepts and answers.", answers(JSON, {"type": "object"})
        ),
        Route("/docs", "GET", docs, "The same for people.", answers("text/html")),
    ]
    return own


def address_of(http: Request) -> str:
    """The server's address as its client wrote it, such as http://127.0.0.1:8000."""
    host = http.headers.get("host", "")
    return f"{http.url.scheme}://{host if AUTHORITY.fullmatch(host) else '127.0.0.1'}"


def answers(media_type: str, schema: Schema | None = None, description: str = "OK") -> Schema:
    """The operation of a route without a body that answers one media type. schema: a string if absent."""
    content = {media_type: {"schema": schema or {"type": "string"}}}
    return {"responses": {"200": {"description": description, "content": content}}}


def headers(table: Mapping[str, Header]) -> Schema:
    """OpenAPI's header objects."""
    return {
        name: {"required": header.always, "schema": {"type": header.kind}, "description": header.description}
        for name, header in table.items()
    }


def described(model: type[BaseModel]) -> Schema:
    """The fields of a dialect's model, as its own bounds describe them."""
    schema = model.model_json_schema()
    properties = {
        name: {key: value for key, value in each.items() if key != "title" and (key, value) != ("default", None)}
        for name, each in schema["properties"].items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def reference(kind: str, name: str) -> Schema:
    """To a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def record(properties: Schema) -> Schema:
    """An object that has all of these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def refused_statuses(route: Route, settings: Settings) -> list[int]:
    """The statuses of the refusals that a route can answer."""
    kinds: set[Kind] = {*EVERY_ROUTE, *route.refusals}
    if not route.any_host:
        if ANY not in settings.hosts:
            kinds.add("misdirected")
        if route.method == "POST":
            kinds.add("forbidden")
    if settings.api_keys and not route.keyless:
        kinds.add("unauthorized")
    return sorted({STATUS[kind] for kind in kinds})


def _operation(route: Route, settings: Settings) -> Schema:
    last = route.path.rpartition("/")[2].removesuffix(".json")
    operation = {"operationId": last or "page", "summary": route.summary, **route.operation}
    given = operation.get("responses", {"200": {"description": "OK"}})
    responses = {
        status: {**answer, "headers": {**answer.get("headers", {}), **_every_header()}}
        for status, answer in given.items()
    }
    for status in refused_statuses(route, settings):
        text = record({"error": {"type": "string"}})
        own = {"description": TEXTS[status], "content": {JSON: {"schema": text}}}
        responses[str(status)] = own if error_texts(route.path) else reference("responses", str(status))
    operation["responses"] = responses
    if settings.api_keys and route.keyless:
        operation["security"] = []
    return operation


def _every_header() -> Schema:
    return {name: reference("headers", name) for name, header in EVERY_HEADERS.items() if header.always}


def _refusal(status: int) -> Schema:
    names = [name for name, header in EVERY_HEADERS.items() if header.always or status in (429, 503)]
    return {
        "description": TEXTS[status],
        "headers": {name: reference("headers", name) for name in names},
        "content": {JSON: {"schema": reference("schemas", "Error")}},
    }


def _error() -> Schema:
    text: Schema = {"type": "string"}
    kinds = {"enum": sorted({error_type(status) for status in TEXTS})}
    return record(
        {"error": record({"message": text, "type": kinds, "param": {"type": ["string", "null"]}, "code": text})}
    )
