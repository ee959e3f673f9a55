"""`GET /openapi.json`: what this server accepts and answers, written by hand because the routes are.

The body of a request is described once per model, since its classes and step counts decide what is valid.
"""

from collections.abc import Mapping
from typing import Any

from export.manifest import Manifest
from fewstep import __version__
from fewstep.pixels import FORMATS, MEDIA_TYPES
from server.http.dialects.edits import REPAINT_STRENGTH, REPAINTED_FROM, VARY_STRENGTH
from server.http.dialects.native import MIN_TIMEOUT_S, SEED_LIMIT
from server.http.pictures import max_base64
from server.settings.settings import Settings

JSON = "application/json"
Schema = dict[str, Any]
REFUSALS = {
    "400": "A field is wrong; `param` names it.",
    "401": "An API key is missing or wrong.",
    "403": "The page of another site asked.",
    "404": "There is no such model.",
    "408": "The body did not arrive within the server's timeout_s.",
    "413": "The body is too large.",
    "421": "The Host header names another server.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "The network call failed or gave no image.",
    "503": "Not ready, stopping, or the worker was lost.",
    "504": "Not ready within `timeout_s`.",
}
HOST_REFUSALS = ("421",)
KEY_REFUSALS = ("401", "421")


def openapi_body(models: Mapping[str, Manifest], settings: Settings) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    requests = {
        f"GenerateRequest.{name}": _request(name, model, settings, default=name == next(iter(models)))
        for name, model in models.items()
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fewstep",
            "version": __version__,
            "description": "Images in one to eight network calls. Image i of a request is the image of seed + i.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/generate": {"post": _generate(list(requests))},
            "/v1/models": {"get": _get("models", "The models that are served; the first is the default.", "Models")},
            "/openapi.json": {"get": _get("openapi", "This document.", None)},
            "/metrics": {"get": _plain("metrics", "Prometheus metrics.", "text/plain", KEY_REFUSALS)},
            "/livez": {"get": _plain("livez", "The process answers.", "text/plain", ())},
            "/readyz": {"get": _plain("readyz", "A request would be served.", "text/plain", ("503",))},
            "/": {"get": _plain("page", "A page to play with.", "text/html", HOST_REFUSALS)},
        },
        "components": {"schemas": {**requests, **_answers()}, "responses": _refusals()},
    }
    if settings.api_keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
        keyless = ["/livez", "/readyz", "/", *(["/metrics"] if settings.metrics_public else [])]
        for path in keyless:
            document["paths"][path]["get"]["security"] = []
    return document


def _request(name: str, model: Manifest, settings: Settings, default: bool) -> Schema:
    properties: Schema = {
        "model": {"enum": [name, None] if default else [name], "description": "Which model makes the images."},
        "steps": {
            "enum": [*sorted(model.levels), None],
            "description": "Network calls per image; with image, the last of them are made.",
        },
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": settings.max_images, "description": "Images."},
        "seed": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": SEED_LIMIT - 1,
            "description": "The same seed gives the same image; absent, it is drawn and returned.",
        },
        "label": _label(model),
        "format": {"enum": list(FORMATS)},
        "timeout_s": {
            "type": ["number", "null"],
            "minimum": MIN_TIMEOUT_S,
            "maximum": settings.timeout_s,
            "description": "Seconds in which the answer is wanted; later it is 504.",
        },
        "image": _png(model, "The picture that every image of the request begins at."),
        "strength": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "Share of the steps' calls that are made, the last ones, rounded up: how much is to change. "
            f"Absent: {VARY_STRENGTH:g}, with a mask {REPAINT_STRENGTH:g}.",
        },
        "mask": _png(model, f"Gray: from {REPAINTED_FROM} on a pixel is made again, below it comes back as it was."),
    }
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "anyOf": [  # strength and mask need an image
            {"properties": {"image": {"type": "string"}}, "required": ["image"]},
            {"properties": {"strength": {"type": "null"}, "mask": {"type": "null"}}},
        ],
    }
    return schema if default else {**schema, "required": ["model"]}


def _png(model: Manifest, description: str) -> Schema:
    encoded: Schema = {
        "type": "string",
        "format": png_format(model),
        "contentEncoding": "base64",
        "contentMediaType": "image/png",
        "maxLength": max_base64(model.resolution),
    }
    return {
        "anyOf": [encoded, {"type": "null"}],
        "description": f"{description} A PNG of {model.resolution}x{model.resolution} pixels, nowhere transparent, "
        "as base64; a data: prefix may stand before it.",
    }


def png_format(model: Manifest) -> str:
    """The format of a string that is a PNG this model begins at."""
    return f"png-{model.resolution}x{model.resolution}"


def _label(model: Manifest) -> Schema:
    if not model.classes:
        return {"type": "null", "description": "This model has no classes."}
    choices: list[Schema] = [{"type": "integer", "minimum": 0, "maximum": model.classes - 1}, {"type": "null"}]
    if model.class_names:
        choices.append({"enum": list(model.class_names)})
    return {"anyOf": choices, "description": "Class index or name, in any case; absent, each image draws its own."}


def _generate(requests: list[str]) -> Schema:
    one = {"schema": {"type": "string", "format": "binary"}}
    return {
        "operationId": "generate",
        "summary": "Make images. One comes as it is unless JSON is accepted; several come as JSON.",
        "requestBody": {
            "required": False,
            "content": {JSON: {"schema": {"anyOf": [_reference("schemas", name) for name in requests]}}},
        },
        "responses": {
            "200": {
                "description": "The images.",
                "headers": _headers(),
                "content": {
                    **{media_type: one for media_type in MEDIA_TYPES.values()},
                    JSON: {"schema": _reference("schemas", "Images")},
                },
            },
            **{status: _reference("responses", status) for status in REFUSALS},
        },
    }


def _headers() -> Schema:
    described = {
        "X-Seed": ("integer", "Seed of the first image."),
        "X-Steps": ("integer", "The step count whose levels were used."),
        "X-Calls": ("integer", "Network calls per image: as many, or fewer with an image to begin at."),
        "X-Mode": ("string", "fast or exact."),
        "X-Model": ("string", "The model that made the images."),
        "X-Noise-Version": ("integer", "Version of the map from seeds to noise."),
        "Server-Timing": ("string", "Milliseconds in the queue, the engine and the encoder."),
    }
    return {
        name: {"required": True, "schema": {"type": kind}, "description": text}
        for name, (kind, text) in described.items()
    }


def _get(operation: str, summary: str, answer: str | None) -> Schema:
    schema = _reference("schemas", answer) if answer else {"type": "object"}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {JSON: {"schema": schema}}},
            **{status: _reference("responses", status) for status in KEY_REFUSALS},
        },
    }


def _plain(operation: str, summary: str, media_type: str, refusals: tuple[str, ...]) -> Schema:
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {media_type: {"schema": {"type": "string"}}}},
            **{status: _reference("responses", status) for status in refusals},
        },
    }


def _answers() -> Schema:
    text: Schema = {"type": "string"}
    maybe: Schema = {"type": ["string", "null"]}
    whole: Schema = {"type": "integer", "minimum": 0}
    milliseconds: Schema = {"type": "number", "minimum": 0}
    timings = {name: milliseconds for name in ("queue", "engine", "encode")}
    image = {"b64": text, "seed": whole, "label": {"type": ["integer", "null"]}, "class_name": maybe}
    images = {
        "created": whole,
        "model": text,
        "steps": whole,
        "calls": whole,
        "strength": {"type": ["number", "null"]},
        "noise_version": whole,
        "mode": {"enum": ["fast", "exact"]},
        "media_type": {"enum": list(MEDIA_TYPES.values())},
        "timings_ms": _object(timings),
        "data": {"type": "array", "minItems": 1, "items": _object(image)},
    }
    kinds = {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]}
    error = {"message": text, "type": kinds, "param": maybe, "code": text}
    model = {"id": text, "object": {"const": "model"}, "steps": {"type": "array", "items": whole}, "classes": whole}
    model["edits"] = {"type": "boolean"}
    models = {
        "object": {"const": "list"},
        "data": {"type": "array", "minItems": 1, "items": {**_object(model), "additionalProperties": True}},
    }
    return {"Images": _object(images), "Error": _object({"error": _object(error)}), "Models": _object(models)}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _refusals() -> Schema:
    content = {JSON: {"schema": _reference("schemas", "Error")}}
    return {status: {"description": text, "content": content} for status, text in REFUSALS.items()}


def _reference(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}
