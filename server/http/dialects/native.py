"""fewstep's own API: POST /v1/generate and GET /v1/models."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from export.manifest import Manifest
from fewstep.pixels import FORMATS, MEDIA_TYPES, Format
from server.http.access import record_of, timings_ms
from server.http.dialects.native_schema import (
    MIN_TIMEOUT_S,
    REPAINT_STRENGTH,
    REPAINTED_FROM,
    VARY_STRENGTH,
    GenerateBody,
    generate_operation,
    models_operation,
)
from server.http.fields import parse
from server.http.negotiation import preferred
from server.http.openapi import JSON
from server.http.pictures import MODES, PictureError, decode_base64, max_base64
from server.http.routes import Route
from server.http.service import ImageService, finished, read_body
from server.scheduler.events import Finished
from server.scheduler.model import ModelInfo
from server.scheduler.refusal import Kind, Refusal, invalid
from server.scheduler.request import Edit, ImageRequest
from server.scheduler.validate import check_range, choose_model, image_request
from server.settings.settings import Settings

GENERATE_REFUSALS: Sequence[Kind] = (
    "invalid", "not_found", "not_acceptable", "slow", "too_large", "unsupported", "full", "failed", "unavailable",
    "timeout",
)  # fmt: skip
MIN_BODY_LIMIT = 65_536  # bytes; of a server whose settings name no other
OTHER_FIELDS_BYTES = 4_096  # of a body, beside its pictures
INLINE_RESOLUTION = 64  # larger pictures are decoded off the event loop: 512x512 takes some milliseconds
INLINE_BYTES = 65_536  # more bytes of images than this are made into JSON off the event loop


@dataclass(frozen=True)
class NativeDialect:
    """The routes of this API."""

    models: Mapping[str, Manifest]  # what is served, by name; the first is the default
    settings: Settings
    service: ImageService

    def routes(self) -> list[Route]:
        operation, served = generate_operation(self.models), "The models that are served; the first is the default."
        return [
            Route("/v1/generate", "POST", self.generate, "Make images.", operation, GENERATE_REFUSALS, True),
            Route("/v1/models", "GET", self.list_models, served, models_operation()),
        ]

    async def generate(self, http: Request) -> Response:
        """One image goes as it is unless JSON is preferred; several go as JSON."""
        record = record_of(http.scope)
        body = await read_body(http, body_limit(self.settings, self.models), self.settings.timeout_s)
        asked = self.read(body, ", ".join(http.headers.getlist("accept")))
        request = asked.request
        record.request = request
        ticket = self.service.admit(request.model, request.images, request.calls)
        try:
            request = await _with_edit(request, asked.fields, asked.manifest)
            record.request, record.stage = request, "images"
            record.finished = done = await finished(self.service, request, asked.timeout_s, http)
        finally:
            self.service.release(ticket)
        return await self._answer(asked, done)

    async def list_models(self, http: Request) -> Response:
        body = models_body(self.models, self.service.models, self.settings)
        return Response(msgspec.json.encode(body), media_type=JSON)

    def read(self, body: bytes, accept: str = "") -> "Asked":
        """What is asked for; pictures are not decoded yet. Raises Refusal."""
        fields = parse(body, GenerateBody)
        manifest = choose_model(fields.model, self.models)
        timeout_s = self.settings.timeout_s if fields.timeout_s is None else fields.timeout_s
        check_range("timeout_s", timeout_s, MIN_TIMEOUT_S, self.settings.timeout_s)
        images = 1 if fields.n is None else fields.n
        check_range("n", images, 1, self.settings.max_images)
        format, as_json = answer_form(fields, accept)
        strength = strength_of(fields)
        request = image_request(
            manifest, steps=fields.steps, seed=fields.seed, images=images, label=fields.label, format=format,
            strength=strength,
        )  # fmt: skip
        return Asked(fields, manifest, timeout_s, strength, as_json, request)

    async def _answer(self, asked: "Asked", done: Finished) -> Response:
        request, manifest = asked.request, asked.manifest
        headers = {
            "X-Steps": str(request.steps),
            "X-Calls": str(request.calls),
            "X-Seed": str(request.seeds[0]),
            "X-Noise-Version": str(manifest.noise_version),
            "X-Mode": self.settings.mode,
            "X-Model": request.model,
            "Server-Timing": ", ".join(f"{name};dur={ms:.3f}" for name, ms in timings_ms(done).items()),
        }
        if asked.as_json:
            body = images_body(request, done, manifest, self.settings, asked.strength)
            large = sum(map(len, done.images)) > INLINE_BYTES
            content = await asyncio.to_thread(msgspec.json.encode, body) if large else msgspec.json.encode(body)
            return Response(content, media_type=JSON, headers=headers)
        if manifest.classes:
            headers["X-Label"] = str(request.labels[0])
        assert request.format != "pixels"
        return Response(done.images[0], media_type=MEDIA_TYPES[request.format], headers=headers)


@dataclass(frozen=True)
class Asked:
    """A body that has been understood."""

    fields: GenerateBody
    manifest: Manifest
    timeout_s: float
    strength: float | None  # None: the images begin at noise alone
    as_json: bool
    request: ImageRequest  # without the pictures of `fields`


def answer_form(fields: GenerateBody, accept: str) -> tuple[Format, bool]:
    """The encoding of the images, and whether the answer is JSON. Raises Refusal where nothing fits Accept."""
    formats: Sequence[Format] = FORMATS if fields.format is None else (fields.format,)
    if (fields.n or 1) > 1:
        if preferred(accept, (JSON,)) is None:
            message = "several images come as application/json, which Accept does not allow; ask for n = 1"
            raise Refusal("not_acceptable", "not_acceptable", message)
        return formats[0], True
    offers: dict[str, Format] = {MEDIA_TYPES[format]: format for format in formats}
    types = [*offers]
    types.insert(len(types) - (fields.format is None), JSON)  # application/* means JSON, unless npy is asked for
    chosen = preferred(accept, tuple(types))
    if chosen is None:
        message = f"one image comes as {', '.join(offers)} or {JSON}, none of which Accept allows"
        raise Refusal("not_acceptable", "not_acceptable", message)
    return offers.get(chosen, formats[0]), chosen == JSON


def strength_of(fields: GenerateBody) -> float | None:
    """None: the images begin at noise alone. Raises Refusal for fields that need an image."""
    if fields.image is not None:
        default = VARY_STRENGTH if fields.mask is None else REPAINT_STRENGTH
        return default if fields.strength is None else fields.strength
    for name in ("mask", "strength"):
        if getattr(fields, name) is not None:
            raise invalid(f"{name} needs image: the picture to begin at", code="missing_image", param=name)
    return None


async def _with_edit(asked: ImageRequest, fields: GenerateBody, manifest: Manifest) -> ImageRequest:
    """The request with its decoded pictures, if it has any. Raises Refusal."""
    if fields.image is None:
        return asked
    if manifest.resolution <= INLINE_RESOLUTION:
        return replace(asked, edit=decode_edit(fields.image, fields.mask, manifest))
    return replace(asked, edit=await asyncio.to_thread(decode_edit, fields.image, fields.mask, manifest))


def decode_edit(image: str, mask: str | None, manifest: Manifest) -> Edit:
    """Pictures as base64 -> what the images begin at. Raises Refusal."""
    if manifest.channels not in MODES:
        message = f"{manifest.name} makes images of {manifest.channels} channels, which no picture has; leave image out"
        raise invalid(message, code="invalid_image", param="image")
    pixels = _decoded("image", image, manifest.resolution, manifest.channels)
    known = None if mask is None else _decoded("mask", mask, manifest.resolution, 1) < REPAINTED_FROM
    return Edit(manifest.image_shape, pixels.tobytes(), None if known is None else known.tobytes())


def _decoded(name: str, text: str, resolution: int, channels: int) -> NDArray[np.uint8]:
    try:
        return decode_base64(text, resolution, channels)
    except PictureError as error:
        raise invalid(f"{name} {error}", code="invalid_image", param=name) from error


def body_limit(settings: Settings, models: Mapping[str, Manifest]) -> int:
    """The largest body in bytes: as set, or for 0 what an edit of the largest model needs, and never below 64 KiB."""
    return settings.max_body_bytes or max(MIN_BODY_LIMIT, *map(edit_bytes, models.values()))


def edit_bytes(manifest: Manifest) -> int:
    """The largest body that an edit of this model's images needs."""
    return 2 * max_base64(manifest.resolution) + OTHER_FIELDS_BYTES


def images_body(
    asked: ImageRequest, done: Finished, manifest: Manifest, settings: Settings, strength: float | None
) -> dict[str, Any]:
    """The JSON of images; bytes become base64."""
    assert asked.format != "pixels"
    names = manifest.class_names
    return {
        "created": int(time.time()),
        "model": asked.model,
        "steps": asked.steps,
        "calls": asked.calls,
        "strength": strength,
        "noise_version": manifest.noise_version,
        "mode": settings.mode,
        "media_type": MEDIA_TYPES[asked.format],
        "timings_ms": timings_ms(done),
        "data": [
            {
                "b64": image,
                "seed": seed,
                "label": label if manifest.classes else None,
                "class_name": names[label] if names else None,
            }
            for image, seed, label in zip(done.images, asked.seeds, asked.labels, strict=True)
        ],
    }


def models_body(models: Mapping[str, Manifest], loaded: Mapping[str, ModelInfo], settings: Settings) -> dict[str, Any]:
    """`GET /v1/models`. loaded: how workers run the models that they have loaded."""
    limit = body_limit(settings, models)
    data = [_model_entry(name, manifest, loaded.get(name), settings, limit) for name, manifest in models.items()]
    return {"object": "list", "data": data}


def _model_entry(
    name: str, manifest: Manifest, info: ModelInfo | None, settings: Settings, limit: int
) -> dict[str, Any]:
    entry = {
        "id": name,
        "object": "model",
        "owned_by": "fewstep",
        "created": 0,  # clients of this list expect the field; an engine has a hash instead of a date
        "classes": manifest.classes,
        "class_names": list(manifest.class_names),
        "channels": manifest.channels,
        "resolution": manifest.resolution,
        "steps": sorted(manifest.levels),
        "levels": {str(steps): list(sigmas) for steps, sigmas in sorted(manifest.levels.items())},
        "max_images": settings.max_images,
        "edits": manifest.channels in MODES and edit_bytes(manifest) <= limit,
        "backend": settings.backend or manifest.backend,
        "dtype": manifest.dtype,
        "mode": settings.mode,
        "noise_version": manifest.noise_version,
        "checkpoint": manifest.checkpoint,
        "parity": manifest.parity,
    }
    if info:
        entry |= {"capacity": info.capacity, "buckets": list(info.buckets), "runs": dict(info.facts)}
    return entry
