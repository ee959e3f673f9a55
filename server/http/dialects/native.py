"""fewstep's own API: POST /v1/generate and GET /v1/models."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from export.manifest import Manifest
from fewstep.pixels import FORMATS, MEDIA_TYPES, Format
from server.http.access import timings_ms
from server.http.answers import image_headers, json_answer
from server.http.dialects.native_schema import (
    MIN_TIMEOUT_S,
    GenerateBody,
    generate_operation,
    models_operation,
)
from server.http.edits import (
    INLINE_RESOLUTION,
    REPAINT_STRENGTH,
    VARY_STRENGTH,
    body_limit,
    check_edits,
    decode_picture,
    edit_bytes,
    edit_of,
)
from server.http.fields import parse
from server.http.negotiation import preferred
from server.http.openapi import JSON
from server.http.pictures import MODES, REPAINTED_FROM, decode_base64
from server.http.png_text import with_texts
from server.http.routes import Route
from server.http.service import ImageService, Order, made, read_body
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
        body = await read_body(http, body_limit(self.settings, self.models), self.settings.timeout_s)
        asked = self.read(body, ", ".join(http.headers.getlist("accept")))
        done = await made(self.service, asked.order(), http)
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
        headers = image_headers(request, manifest, self.settings, done)
        if asked.as_json:
            return await json_answer(lambda: images_body(asked, done, self.settings), done.images, headers)
        assert request.format != "pixels"
        (image,) = with_texts(request, done.images, manifest, edited=asked.edited)
        return Response(image, media_type=MEDIA_TYPES[request.format], headers=headers)


@dataclass(frozen=True)
class Asked:
    """A body that has been understood."""

    fields: GenerateBody
    manifest: Manifest
    timeout_s: float
    strength: float | None  # None: the images begin at noise alone
    as_json: bool
    request: ImageRequest  # without the pictures of `fields`

    @property
    def edited(self) -> bool:
        return self.fields.image is not None

    def order(self) -> Order:
        fields, manifest = self.fields, self.manifest
        if fields.image is None:
            return Order(self.request, self.timeout_s)
        decode = partial(decode_edit, fields.image, fields.mask, manifest)
        return Order(self.request, self.timeout_s, decode, manifest.resolution > INLINE_RESOLUTION)


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


def decode_edit(image: str, mask: str | None, manifest: Manifest) -> Edit:
    """Pictures as base64 -> what the images begin at. Raises Refusal."""
    check_edits(manifest)
    side = manifest.resolution
    pixels = decode_picture("image", lambda: decode_base64(image, side, manifest.channels))
    if mask is None:
        return edit_of(manifest, pixels, None)
    levels = decode_picture("mask", lambda: decode_base64(mask, side, 1)[..., 0])
    return edit_of(manifest, pixels, levels < REPAINTED_FROM)


def images_body(asked: Asked, done: Finished, settings: Settings) -> dict[str, Any]:
    """The JSON of images; bytes become base64."""
    request, manifest = asked.request, asked.manifest
    assert request.format != "pixels"
    names, images = manifest.class_names, with_texts(request, done.images, manifest, edited=asked.edited)
    return {
        "created": int(time.time()),
        "model": request.model,
        "steps": request.steps,
        "calls": request.calls,
        "strength": asked.strength,
        "noise_version": manifest.noise_version,
        "mode": settings.mode,
        "media_type": MEDIA_TYPES[request.format],
        "timings_ms": timings_ms(done),
        "data": [
            {
                "b64": image,
                "seed": seed,
                "label": label if manifest.classes else None,
                "class_name": names[label] if names else None,
            }
            for image, seed, label in zip(images, request.seeds, request.labels, strict=True)
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
