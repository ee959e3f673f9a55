"""`POST /v1/generate`: from a body's bytes to a checked request, or an ApiError that says what to change."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any, cast

from export.manifest import Manifest
from fewstep.editing import calls_for
from fewstep.noise import random_labels
from fewstep.pixels import FORMATS, Format
from fewstep.schedule import MAX_STEPS
from server.http.dialects.edits import Edit, EditFields, body_bytes, decode_edit, edit_fields
from server.http.errors import ApiError, invalid, shown

FIELDS = ("steps", "n", "seed", "label", "format", "model", "timeout_s", "image", "strength", "mask")
DEFAULT_STEPS = 4
MIN_TIMEOUT_S = 0.001
SEED_LIMIT = 2**63
MIN_BODY_LIMIT = 65_536  # of a server that was not told another
# A drawn seed is short enough to be written down, and JavaScript reads it exactly (it does so only below 2^53).
DRAWN_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class GenerateRequest:
    """Image i is the image of seed + i with labels[i]."""

    steps: int
    images: int
    seed: int
    labels: tuple[int, ...]  # one per image; -1: the model has no classes
    format: Format
    model: str  # a name this server serves it under
    timeout_s: float  # seconds after its acceptance in which the client wants the answer
    edit: Edit | None = None  # what all images begin at; None: noise alone

    @property
    def calls(self) -> int:
        """Network calls per image; an edit makes the last ones of its step count only."""
        return self.edit.calls(self.steps) if self.edit else self.steps


def body_limit(max_body_bytes: int, models: Mapping[str, Manifest]) -> int:
    """The largest body in bytes: as told, or for 0 what an edit of the largest model needs, and never below 64 KiB."""
    return max_body_bytes or max(MIN_BODY_LIMIT, *map(body_bytes, models.values()))


async def read_body(chunks: AsyncIterator[bytes], headers: Mapping[str, str], limit: int, limit_s: float) -> bytes:
    """The whole body. Raises ApiError 413 beyond `limit` bytes, whatever Content-Length says, and 408 after limit_s."""
    try:
        async with asyncio.timeout(limit_s):
            return await _read(chunks, headers, limit)
    except TimeoutError as error:
        message = f"the body was not complete after {limit_s:g} s; send it in one piece"
        slow = {"Connection": "close"}
        raise ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="body_timeout", headers=slow) from error


async def _read(chunks: AsyncIterator[bytes], headers: Mapping[str, str], limit: int) -> bytes:
    too_large = ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {limit} bytes, which is enough for every field",
        code="body_too_large",
        headers={"Connection": "close"},  # the rest of the body is not worth reading
    )
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose fields are checked and whose pictures are not decoded, so that it can be refused for nothing."""

    request: GenerateRequest  # without its edit
    picture: EditFields | None

    @property
    def calls(self) -> int:
        """Network calls per image."""
        steps = self.request.steps
        return calls_for(self.picture.strength, steps) if self.picture else steps

    def decoded(self, models: Mapping[str, Manifest]) -> GenerateRequest:
        """The whole request. Raises ApiError 400 for a picture that cannot be read."""
        if self.picture is None:
            return self.request
        return replace(self.request, edit=decode_edit(self.picture, models[self.request.model]))


def parse_request(body: bytes, models: Mapping[str, Manifest], max_images: int, max_timeout_s: float) -> ParsedRequest:
    """Check a body against the model it is for. An empty body means all defaults. Raises ApiError.

    models: what is served, by name; the first is the default. max_timeout_s: the default, and the most a client gets.
    """
    data = _json_object(body)
    for name in data:
        if name not in FIELDS:
            message = f"{shown(name)} is not a field of this request; the fields are {', '.join(FIELDS)}"
            raise invalid(message, code="unknown_field", param=name)
    name = _model(data.get("model"), models)
    model = models[name]
    seed = _integer(data, "seed", 0, SEED_LIMIT - 1, default=None)
    images = _integer(data, "n", 1, max_images, default=1)
    steps = _steps(data, model)
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEED_LIMIT)
    assert images is not None
    labels = _labels(data.get("label"), model, seed, images)
    timeout_s = _timeout(data, max_timeout_s)
    request = GenerateRequest(steps, images, seed, labels, _format(data), name, timeout_s)
    return ParsedRequest(request, edit_fields(data, model))


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        data = json.loads(body, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {_fault(error)}", code="malformed_json") from error
    if not isinstance(data, dict):
        raise invalid('the body must be a JSON object such as {"steps": 4}', code="malformed_json")
    return data


def _fault(error: Exception) -> str:
    """What is wrong with a body, in our words or those of the json module, which quotes nothing of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it has too many digits"


def _number(text: str) -> int | float:
    """JSON has one kind of number: 4.0 is 4, and exactly so for a seed that is no float."""
    value = float(text)
    if not value.is_integer() or abs(value) >= SEED_LIMIT:
        return value
    try:
        exact = Decimal(text)
        return int(exact) if exact == exact.to_integral_value() else value
    except InvalidOperation:  # an exponent of twenty digits
        return value


def _integer(data: dict[str, Any], name: str, low: int, high: int, default: int | None) -> int | None:
    value = data.get(name)
    if value is None:
        return default
    if type(value) is not int:  # bool is an int to Python, not to a reader of JSON
        raise invalid(f"{name} must be a whole number, not {shown(value)}", code="wrong_type", param=name)
    if not low <= value <= high:
        message = f"{name} must be from {low} to {high}, not {shown(value)}"
        raise invalid(message, code="out_of_range", param=name)
    return value


def _steps(data: dict[str, Any], model: Manifest) -> int:
    served = sorted(model.levels)
    default = DEFAULT_STEPS if DEFAULT_STEPS in model.levels else served[-1]
    steps = _integer(data, "steps", 1, MAX_STEPS, default)
    assert steps is not None
    if steps not in model.levels:
        listed = ", ".join(map(str, served))
        message = f"{model.name} has no levels for {steps} steps; it serves {listed}"
        raise invalid(message, code="unsupported_steps", param="steps")
    return steps


def _labels(label: Any, model: Manifest, seed: int, images: int) -> tuple[int, ...]:
    if not model.classes:
        if label is not None:
            message = f"{model.name} has no classes; leave label out"
            raise invalid(message, code="unknown_label", param="label")
        return (-1,) * images
    if label is None:
        return tuple(random_labels(range(seed, seed + images), model.classes).tolist())
    return (_label(label, model),) * images


def _label(label: Any, model: Manifest) -> int:
    """A class index from an index or a class name; upper and lower case are the same."""
    if type(label) not in (int, str):
        message = f"label must be a class index or a class name, not {shown(label)}"
        raise invalid(message, code="wrong_type", param="label")
    if isinstance(label, str):
        names = [name.casefold() for name in model.class_names]
        if label.strip().casefold() in names:
            return names.index(label.strip().casefold())
    elif 0 <= label < model.classes:
        return label
    listed = f" or one of {', '.join(model.class_names)}" if model.class_names else ""
    message = f"{model.name} has no class {shown(label)}; label is a number from 0 to {model.classes - 1}{listed}"
    raise invalid(message, code="unknown_label", param="label")


def _format(data: dict[str, Any]) -> Format:
    value = data.get("format", "png")
    if value not in FORMATS:
        message = f"format must be one of {', '.join(FORMATS)}, not {shown(value)}"
        raise invalid(message, code="unknown_format", param="format")
    return cast(Format, value)


def _model(name: Any, models: Mapping[str, Manifest]) -> str:
    if name is None:
        return next(iter(models))
    if isinstance(name, str) and name in models:
        return name
    message = f"there is no model {shown(name)} here; this server has {', '.join(models)}"
    raise ApiError(HTTPStatus.NOT_FOUND, message, code="model_not_found", param="model")


def _timeout(data: dict[str, Any], longest_s: float) -> float:
    value = data.get("timeout_s")
    if value is None:
        return longest_s
    if type(value) not in (int, float):
        raise invalid(f"timeout_s must be a number, not {shown(value)}", code="wrong_type", param="timeout_s")
    if not MIN_TIMEOUT_S <= value <= longest_s:  # NaN is not
        message = f"timeout_s must be from {MIN_TIMEOUT_S} to {longest_s:g} seconds, not {shown(value)}"
        raise invalid(message, code="out_of_range", param="timeout_s")
    return float(value)
