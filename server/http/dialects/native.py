"""fewstep's own API: POST /v1/generate and GET /v1/models."""

import asyncio
import io
import math
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from export.manifest import Manifest, engine_of, plain_name
from fewstep.conditions import GUIDANCE, LOW
from fewstep.pixels import FORMATS, MEDIA_TYPES, Format, encode, grid
from server.http.access import timings_ms
from server.http.answers import image_headers, json_answer
from server.http.dialects.native_schema import (
    EXCLUSIVE,
    MIN_TIMEOUT_S,
    PICTURES,
    ZIP,
    GenerateBody,
    generate_operation,
    model_operation,
    models_operation,
)
from server.http.edits import (
    REPAINT_STRENGTH,
    VARY_STRENGTH,
    body_limit,
    decode_edit,
    edit_bytes,
    enlarges,
    low_of,
)
from server.http.event_stream import KEEPALIVE_S, message, streamed
from server.http.event_stream import MEDIA_TYPE as EVENTS
from server.http.fields import only_value, parse, validated
from server.http.forms import MEDIA_TYPE as FORM_TYPE
from server.http.forms import Form, is_form
from server.http.local_files import in_browser
from server.http.negotiation import named, preferred
from server.http.openapi import JSON
from server.http.picture_files import MODES
from server.http.png_text import with_text_of, with_texts
from server.http.routes import PRIORITY_HEADER, Route
from server.http.service import IMAGE_REFUSALS, ImageService, Order, Pictures, made, read_body
from server.scheduler.events import Event, Finished, Progress
from server.scheduler.model import ModelInfo
from server.scheduler.refusal import Kind, Refusal, invalid
from server.scheduler.request import ImageRequest
from server.scheduler.validate import (
    check_log_weight,
    check_range,
    choose_model,
    image_count,
    image_request,
    number_or_name,
)
from server.settings.settings import Settings

REFUSALS: Sequence[Kind] = (*IMAGE_REFUSALS, "not_found", "not_acceptable")
FORM = Form(GenerateBody, dict(zip(PICTURES, PICTURES, strict=True)))


@dataclass(frozen=True)
class NativeDialect:
    """The routes of this API."""

    models: Mapping[str, Manifest]  # what is served, by name; the first is the default
    settings: Settings
    service: ImageService
    keepalive_s: float = KEEPALIVE_S

    def routes(self) -> list[Route]:
        operation, served = generate_operation(self.models), "The models that are served; the first is the default."
        return [
            Route("/v1/generate", "POST", self.generate, "Make images.", operation, REFUSALS, True),
            Route("/v1/models", "GET", self.list_models, served, models_operation()),
            *(
                Route(
                    f"/v1/models/{name}", "GET", partial(self.one_model, name), f"What {name} can do.",
                    model_operation(plain_name(name)),
                )
                for name in self.models
            ),
        ]  # fmt: skip

    async def generate(self, http: Request) -> Response:
        """One image goes as it is unless JSON is preferred; several go as JSON unless another form is."""
        limit = body_limit(self.settings, self.models)
        accept = ", ".join(http.headers.getlist("accept"))
        body = await read_body(http, limit, self.settings.timeout_s)
        media_type = http.headers.get("content-type", "")
        asked = self.read(body, accept, only_value(http.headers, PRIORITY_HEADER), media_type)
        del body  # what follows takes its time
        if asked.answer == EVENTS:
            headers = image_headers(asked.request, asked.manifest, self.settings)
            write = partial(events_of, asked, self.settings)
            return await streamed(self.service, asked.order(), http, write, headers, self.keepalive_s)
        done = await made(self.service, asked.order(), http)
        return await self._answer(asked, done)

    async def list_models(self, http: Request) -> Response:
        body = models_body(self.models, self.service.models, self.settings)
        return Response(msgspec.json.encode(body), media_type=JSON)

    async def one_model(self, name: str, http: Request) -> Response:
        """Its entry of the list: clients of OpenAI's API retrieve a model by name."""
        body = models_body({name: self.models[name]}, self.service.models, self.settings, self.models)
        return Response(msgspec.json.encode(body["data"][0]), media_type=JSON)

    def read(self, body: bytes, accept: str = "", priority: str | None = None, content_type: str = "") -> "Asked":
        """What is asked for; pictures are not decoded yet. priority: of the header. Raises Refusal."""
        fields = fields_of(body, content_type)
        manifest = choose_model(fields.model, self.models)
        if is_form(content_type):
            fields = with_numbers(fields, manifest)
        timeout_s = self.settings.timeout_s if fields.timeout_s is None else fields.timeout_s
        check_range("timeout_s", timeout_s, MIN_TIMEOUT_S, self.settings.timeout_s)
        images = count_images(fields, self.settings.max_images)
        answer, format = answer_form(fields, images, accept)
        strength = strength_of(fields)
        if fields.previews is not None and not fields.stream:
            message = "previews needs stream: true, because nothing else has previews"
            raise invalid(message, code="missing_stream", param="previews")
        if fields.log_weight and fields.image is not None:
            check_log_weight(manifest, begun=True, blended=False)
        request = image_request(
            manifest, steps=fields.steps, sigmas=fields.sigmas, seed=fields.seed, seeds=fields.seeds, images=images,
            seed_to=fields.seed_to, mix=fields.mix, label=fields.label, labels=fields.labels, format=format,
            guidance=fields.guidance, pictured=() if fields.upscale is None else (LOW,),
            strength=strength, previews="images" if answer == EVENTS else "none",
            priority=priority if fields.priority is None else fields.priority, log_weight=bool(fields.log_weight),
        )  # fmt: skip
        if fields.previews is not None:
            request = replace(request, preview_count=fields.previews, every_call=True)
        return Asked(fields, manifest, timeout_s, strength, answer, request)

    async def _answer(self, asked: "Asked", done: Finished) -> Response:
        request, manifest = asked.request, asked.manifest
        headers = image_headers(request, manifest, self.settings, done)
        if asked.as_json:
            return await json_answer(lambda: images_body(asked, done, self.settings), done.images, headers)
        if request.images == 1 and asked.answer != ZIP:
            (content,) = with_texts(request, done.images, manifest, edited=asked.edited)
        else:
            content = await asyncio.to_thread(together, asked, done)
        return Response(content, media_type=asked.answer, headers=headers)


class Asked(Struct, frozen=True):
    """A body that has been understood."""

    fields: GenerateBody
    manifest: Manifest
    timeout_s: float
    strength: float | None  # None: no share of a step count is made, but all of its calls or those of `sigmas`
    answer: str  # media type
    request: ImageRequest  # without the pictures of `fields`

    @property
    def as_json(self) -> bool:
        return self.answer == JSON

    @property
    def edited(self) -> bool:
        return self.fields.image is not None or self.fields.upscale is not None

    def order(self) -> Order:
        decode = partial(decode_pictures, self.fields, self.manifest) if self.edited else None
        return Order(self.request, self.timeout_s, decode)


def fields_of(body: bytes, content_type: str) -> GenerateBody:
    """JSON, whatever its Content-Type, or a form. Raises Refusal."""
    if not is_form(content_type):
        return parse(body, GenerateBody, f"send it with the Content-Type {FORM_TYPE}, or JSON with pictures as base64")
    texts, files = FORM.read(body, content_type)
    return validated(texts | files, GenerateBody)


def with_numbers(fields: GenerateBody, manifest: Manifest) -> GenerateBody:
    """The fields of a form; classes in it that are numbers have come as text."""
    labels = fields.labels and [number_or_name(each, manifest) for each in fields.labels]
    return fields.model_copy(update={"label": number_or_name(fields.label, manifest), "labels": labels})


def count_images(fields: GenerateBody, most: int) -> int:
    """How many images are asked for. Raises Refusal for fields that exclude each other, and beyond `most`."""
    for first, second in EXCLUSIVE:
        if getattr(fields, first) is not None and getattr(fields, second) is not None:
            raise invalid(f"give {first} or {second}, not both", code="conflict", param=second)
    lists = {
        name: value
        for name in ("seeds", "labels", "steps", "mix", "guidance")
        if isinstance(value := getattr(fields, name), list)
    }
    if fields.n is not None:
        check_range("n", fields.n, 1, most)
    for name, entries in lists.items():
        if len(entries) > most:
            message = f"{name} has {len(entries)} entries; a request makes at most {most} images"
            raise invalid(message, code="out_of_range", param=name)
    return image_count(fields.n, {name: len(entries) for name, entries in lists.items()})


def answer_form(fields: GenerateBody, images: int, accept: str) -> tuple[str, Format]:
    """The media type of the answer, and the encoding of the images. Raises Refusal where nothing fits Accept.

    Several images come as JSON, as a zip, as one sheet of them in an image format, or as one array. Events come where
    the body asks for a stream, or has no field stream and Accept names their type itself: a range such as text/* is not
    enough.
    """
    return _answer_form(fields.format, fields.stream, images > 1, accept)


@lru_cache(maxsize=256)  # clients ask in few different ways
def _answer_form(format: Format | None, stream: bool | None, several: bool, accept: str) -> tuple[str, Format]:
    formats: Sequence[Format] = FORMATS if format is None else (format,)
    by_type: dict[str, Format] = {MEDIA_TYPES[each]: each for each in formats}
    types = [*by_type]
    if several:
        types.insert(0, JSON)
    else:
        types.insert(len(types) - (format is None), JSON)  # application/* means JSON, unless npy is asked for
    types.append(ZIP)
    events = stream or (stream is None and named(accept, EVENTS))
    chosen = preferred(accept, (EVENTS,) if stream else (*types, EVENTS) if events else tuple(types))
    if chosen is None:
        raise Refusal("not_acceptable", "not_acceptable", _not_acceptable(stream, several, types))
    if several and chosen in by_type:
        return chosen, "npy"
    return chosen, by_type.get(chosen, formats[0])


def _not_acceptable(stream: bool | None, several: bool, types: Sequence[str]) -> str:
    """types: what the images can come as, beside events."""
    if stream:
        return f"a stream comes as {EVENTS}, which Accept does not allow"
    count = "several images come" if several else "one image comes"
    events = "no events come with stream: false" if stream is False else f"events come where it names {EVENTS}"
    return f"{count} as {', '.join(types[:-1])} or {types[-1]}, none of which Accept allows; {events}"


def together(asked: Asked, done: Finished) -> bytes:
    """All images as one file: a zip, one array [n, H, W, C], or one sheet of them, row by row, as square as can be."""
    if asked.answer == ZIP:
        return zipped(asked, done)
    pixels = np.stack([np.load(io.BytesIO(image), allow_pickle=False) for image in done.images])
    if asked.answer == MEDIA_TYPES["npy"]:
        buffer = io.BytesIO()
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue()
    sheet = grid(pixels, math.ceil(math.sqrt(len(pixels))))
    return encode(sheet, next(format for format in FORMATS if MEDIA_TYPES[format] == asked.answer))


def zipped(asked: Asked, done: Finished) -> bytes:
    """A zip with a file for each image, whose name begins with its index and says its seed."""
    request, buffer = asked.request, io.BytesIO()
    images = with_texts(request, done.images, asked.manifest, edited=asked.edited)
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: images are compressed already
        for index, (image, seed) in enumerate(zip(images, request.seeds, strict=True)):
            archive.writestr(zipfile.ZipInfo(f"{index:03d}-seed-{seed}.{request.format}"), image)
    return buffer.getvalue()


def events_of(asked: Asked, settings: Settings, event: Event) -> Iterable[bytes]:
    """What a stream sends for an event of its request."""
    request = asked.request
    if isinstance(event, Progress):
        label = request.labels[event.image] if asked.manifest.classes else None
        data = {"image": event.image, "seed": request.seeds[event.image], "label": label}
        data |= {"call": event.step, "calls": event.of}
        if event.step == event.of:
            image = with_text_of(request, event.image, event.preview, asked.manifest, edited=asked.edited)
            yield message("image", {**data, "b64_json": image})
        elif event.preview is None:
            yield message("progress", data)
        else:
            yield message("preview", {**data, "b64_json": event.preview})
    elif isinstance(event, Finished):
        yield message("images", images_body(asked, event, settings))


def strength_of(fields: GenerateBody) -> float | None:
    """None: the images begin at noise alone, or their levels are given. Raises Refusal for what needs an image."""
    if fields.image is not None:
        if fields.sigmas is not None:
            return None
        default = VARY_STRENGTH if fields.mask is None else REPAINT_STRENGTH
        return default if fields.strength is None else fields.strength
    for name in ("mask", "strength"):
        if getattr(fields, name) is not None:
            raise invalid(f"{name} needs image: the picture to begin at", code="missing_image", param=name)
    return None


def decode_pictures(fields: GenerateBody, manifest: Manifest) -> Pictures:
    """The pictures of a body, decoded. Raises Refusal."""
    edit = None if fields.image is None else decode_edit(fields.image, fields.mask, manifest)
    if (picture := fields.upscale) is None:
        return Pictures(edit)
    return Pictures(edit, (low_of(manifest, picture),))


def images_body(asked: Asked, done: Finished, settings: Settings) -> dict[str, Any]:
    """The JSON of images; bytes become base64."""
    request, manifest = asked.request, asked.manifest
    assert request.format != "pixels"
    weight = request.condition(GUIDANCE)
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
                "b64_json": image,
                "seed": seed,
                "label": label if manifest.classes else None,
                "class_name": names[label] if names else None,
                "calls": len(request.levels(index)),
                "seed_to": request.blends[index].seed if request.blends else None,
                "mix": request.blends[index].mix if request.blends else None,
                **({"guidance": weight.number(index)} if weight else {}),
                **({"log_weight": done.log_weights[index]} if done.log_weights else {}),
            }
            for index, (image, seed, label) in enumerate(zip(images, request.seeds, request.labels, strict=True))
        ],
    }


def models_body(
    models: Mapping[str, Manifest],
    loaded: Mapping[str, ModelInfo],
    settings: Settings,
    served: Mapping[str, Manifest] | None = None,
) -> dict[str, Any]:
    """`GET /v1/models`. loaded: how workers run the models that they have loaded. served: all models of the server,
    where `models` are some of them."""
    limit = body_limit(settings, served or models)
    data = [
        _model_entry(name, manifest, loaded.get(engine_of(name)), settings, limit) for name, manifest in models.items()
    ]
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
        "edits": manifest.channels in MODES and edit_bytes(manifest) <= limit and not enlarges(manifest),
        "log_weights": manifest.weighs,
        "conditions": [
            {"name": each.name, "shape": each.shape, "low": each.low, "high": each.high, "default": each.default}
            for each in manifest.conditions
        ],
        "backend": settings.backend or manifest.backend,
        "dtype": manifest.dtype,
        "mode": settings.mode,
        "noise_version": manifest.noise_version,
        "checkpoint": manifest.checkpoint,
        "parity": manifest.parity,
        "browser": in_browser(name, manifest, settings),
    }
    if info:
        entry |= {"capacity": info.capacity, "buckets": list(info.buckets), "runs": dict(info.facts)}
    return entry
