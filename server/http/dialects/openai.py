"""OpenAI's Images API: POST /v1/images/generations and /v1/images/edits, with streams, over the same engine.

An unchanged `openai` client works. What the API has no word for is taken beside its fields: seed, num_inference_steps,
label, strength and priority, in the body, in its object `extra_body`, or as headers (server.http.routes.EXTRA_HEADERS);
the body comes before `extra_body`, which comes before headers.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from export.manifest import Manifest
from fewstep.conditions import GUIDANCE, LOW, find
from server.http.access import timings_ms
from server.http.answers import image_headers, json_answer
from server.http.dialects.openai_schema import (
    EXTRAS,
    ImagesBody,
    edits_operation,
    generations_operation,
)
from server.http.edits import (
    REPAINT_STRENGTH,
    VARY_STRENGTH,
    body_limit,
    decode_edit,
    enlarges,
    low_of,
)
from server.http.event_stream import KEEPALIVE_S, message, streamed
from server.http.fields import decoded, only_value, validated
from server.http.forms import Form
from server.http.kept_images import KeptImages
from server.http.openapi import address_of
from server.http.png_text import with_text_of
from server.http.routes import EXTRA_HEADERS, Route
from server.http.service import IMAGE_REFUSALS, ImageService, Order, Pictures, made, read_body
from server.scheduler.events import Event, Finished, Progress
from server.scheduler.refusal import Kind, invalid, shown
from server.scheduler.request import ImageRequest
from server.scheduler.validate import (
    check_range,
    choose_model,
    class_named,
    image_request,
    listed,
    nearest_class,
    number_or_name,
)
from server.settings.settings import Settings

REFUSALS: Sequence[Kind] = (*IMAGE_REFUSALS, "not_found")
PICTURES = {
    "image": "image",
    "image[]": "image",
    "mask": "mask",
    "mask_image": "mask",
}  # names of parts; vLLM-Omni's last
FORM = Form(ImagesBody, PICTURES, nested="extra_body")


class Asked(Struct, frozen=True):
    """A request that has been understood."""

    fields: ImagesBody
    manifest: Manifest
    order: Order
    edited: bool  # whether its images begin at a picture

    @property
    def request(self) -> ImageRequest:
        return self.order.request

    @property
    def event(self) -> str:
        """What the names of its events begin with."""
        return "image_edit" if self.edited else "image_generation"


@dataclass(frozen=True)
class OpenAIDialect:
    """The routes of this API."""

    models: Mapping[str, Manifest]  # what is served, by name; the first is the default
    settings: Settings
    service: ImageService
    kept: KeptImages | None = None  # for answers with urls
    keepalive_s: float = KEEPALIVE_S

    def routes(self) -> list[Route]:
        made_of, edited = "Make images, in OpenAI's words.", "Make other versions of an image, in OpenAI's words."
        generations, edits = generations_operation(), edits_operation()
        return [
            Route("/v1/images/generations", "POST", self.generations, made_of, generations, REFUSALS, True),
            Route("/v1/images/edits", "POST", self.edits, edited, edits, REFUSALS, True),
        ]

    async def generations(self, http: Request) -> Response:
        data = decoded(
            await self._body(http), "send JSON here; /v1/images/edits takes a form with an image to begin at"
        )
        return await self._answer(http, self.read(data, http.headers))

    async def edits(self, http: Request) -> Response:
        data, pictures = FORM.read(await self._body(http), http.headers.get("content-type", ""))
        if "image" not in pictures:
            message = "image is missing: send the picture to begin at as a file, in a part named image"
            raise invalid(message, code="missing_image", param="image")
        return await self._answer(http, self.read(data, http.headers, pictures))

    async def _body(self, http: Request) -> bytes:
        return await read_body(http, body_limit(self.settings, self.models), self.settings.timeout_s)

    def read(self, data: Mapping[str, Any], headers: Headers, pictures: Mapping[str, bytes] | None = None) -> Asked:
        """What is asked for. data: the fields as they came. pictures: the files of an edit. Raises Refusal."""
        fields = validated(with_extras(data, headers), ImagesBody)
        manifest = choose_model(fields.model, self.models)
        check_range("n", 1 if fields.n is None else fields.n, 1, self.settings.max_images)
        check_output(fields, manifest)
        if fields.response_format == "url":
            self._check_urls(fields)
        if pictures is None and fields.strength is not None:
            message = "strength belongs to /v1/images/edits, where there is a picture to begin at"
            raise invalid(message, code="missing_image", param="strength")
        format, images = fields.output_format or "png", fields.n or 1
        by_step = fields.stream and (fields.partial_images or images > 1)
        request = image_request(
            manifest,
            steps=fields.num_inference_steps,
            seed=fields.seed,
            images=images,
            label=label_of(fields, manifest),
            format=format,
            quality=None if format == "png" else fields.output_compression,
            strength=_strength(fields, pictures, manifest),
            priority=fields.priority,
            guidance=fields.guidance_scale if find(manifest.conditions, GUIDANCE) else None,
            pictured=(LOW,) if pictures and enlarges(manifest) else (),
        )
        if by_step:  # the worker makes no preview that is not sent
            request = replace(request, previews="images", preview_count=fields.partial_images or 0)
        decode = partial(decode_files, pictures, manifest) if pictures else None
        order = Order(request, self.settings.timeout_s, decode)
        return Asked(fields, manifest, order, pictures is not None)

    async def _answer(self, http: Request, asked: Asked) -> Response:
        if asked.fields.stream:
            headers = image_headers(asked.request, asked.manifest, self.settings)
            return await streamed(self.service, asked.order, http, Events(asked), headers, self.keepalive_s)
        done = await made(self.service, asked.order, http)
        headers = image_headers(asked.request, asked.manifest, self.settings, done)
        if asked.fields.response_format == "url":
            linked = self._linked(asked, done, address_of(http))
            return await json_answer(lambda: images_body(asked, done, linked), (), headers)
        return await json_answer(lambda: images_body(asked, done, entries(asked, done)), done.images, headers)

    def _check_urls(self, fields: ImagesBody) -> None:
        """Raises Refusal where no url can lead to an image."""
        if fields.stream:
            reason = "the events of a stream carry their images"
        elif self.settings.api_processes > 1:
            reason = f"a url would lead to one of the {self.settings.api_processes} HTTP processes of this server"
        elif self.kept is None:
            reason = "this server keeps no images that a url could lead to"
        else:
            return
        message = f"response_format must be b64_json: {reason}"
        raise invalid(message, code="unsupported_response_format", param="response_format")

    def _linked(self, asked: Asked, done: Finished, address: str) -> list[dict[str, Any]]:
        """The entries of the images, with urls in place of their bytes. Raises Refusal."""
        assert self.kept is not None and asked.request.format != "pixels"
        found = entries(asked, done)
        urls = self.kept.keep([entry.pop("b64_json") for entry in found], asked.request.format, address)
        self.kept.drop_in_time()
        return [{"url": url, **entry} for url, entry in zip(urls, found, strict=True)]


class Events:
    """What is sent for each event of a request's stream."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.shown = asked.request.previewed(0)  # all images make as many calls
        self.completed: set[int] = set()  # images that have been sent

    def __call__(self, event: Event) -> Iterable[bytes]:
        if isinstance(event, Progress):
            if event.step == event.of:
                yield self._completed(event.image, event.preview)
            else:
                yield self._partial(event, event.preview)
        elif isinstance(event, Finished):
            for index, image in enumerate(event.images):
                if index not in self.completed:
                    yield self._completed(index, image)

    def _partial(self, event: Progress, preview: Any) -> bytes:
        name, request = f"{self.asked.event}.partial_image", self.asked.request
        data = {
            "type": name,
            "b64_json": preview,
            "partial_image_index": self.shown.index(event.step),
            **about(self.asked),
            "created_at": int(time.time()),
            "image_index": event.image,
            "seed": request.seeds[event.image],
            "step": event.step,
            "steps": event.of,
        }
        return message(name, data)

    def _completed(self, index: int, image: Any) -> bytes:
        self.completed.add(index)
        name, asked = f"{self.asked.event}.completed", self.asked
        data = {
            "type": name,
            **image_entry(asked, index, image),
            **about(asked),
            "created_at": int(time.time()),
            "image_index": index,
            "usage": usage(1, asked.request.calls),
        }
        return message(name, data)


def with_extras(data: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """The fields, with those of our own that came in `extra_body` or as headers. Raises Refusal."""
    sent = {name: only_value(headers, header) for header, name in EXTRA_HEADERS.items()}
    given = {name: FORM.typed(name, text) for name, text in sent.items() if text is not None}
    nested = data.get("extra_body")
    if isinstance(nested, dict):
        for name in nested:
            if name not in EXTRAS:
                message = f"{shown(name)} is not a field of extra_body; its fields are {', '.join(EXTRAS)}"
                raise invalid(message, code="unknown_field", param="extra_body")
        given |= _present(nested)
    return given | _present(data)


def _present(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null; `steps` under its other name. Raises Refusal where the two differ."""
    given = {name: value for name, value in data.items() if value is not None}
    if "steps" in given:
        steps = given.pop("steps")
        if given.setdefault("num_inference_steps", steps) != steps:
            message = "steps and num_inference_steps are the same and differ here; give one of them"
            raise invalid(message, code="conflict", param="num_inference_steps")
    return given


def check_output(fields: ImagesBody, manifest: Manifest) -> None:
    """Raises Refusal for an answer that cannot be made."""
    size = size_of(manifest)
    if fields.size not in (None, "auto", size):
        message = f"size must be auto or {size}, the size of this model's images, not {shown(fields.size)}"
        raise invalid(message, code="unsupported_size", param="size")
    if fields.output_compression not in (None, 100) and fields.output_format in (None, "png"):
        message = f"output_compression must be 100 with png, not {fields.output_compression}; ask for jpeg or webp"
        raise invalid(message, code="out_of_range", param="output_compression")
    if fields.partial_images and not fields.stream:
        raise invalid("partial_images needs stream: true", code="missing_stream", param="partial_images")


def label_of(fields: ImagesBody, manifest: Manifest) -> int | str | None:
    """The class that is asked for; None: any. Raises Refusal for a prompt that names no class."""
    if fields.label is not None:
        return number_or_name(fields.label, manifest)
    prompt = (fields.prompt or "").strip()
    if not prompt or not manifest.classes:
        return None
    label = number_or_name(prompt, manifest)
    index = class_named(prompt, manifest) if isinstance(label, str) else label
    if index is not None and index < manifest.classes:
        return index
    nearest = nearest_class(prompt, manifest)
    classes = listed(manifest.class_names) if manifest.class_names else f"a number from 0 to {manifest.classes - 1}"
    message = (
        f"prompt {shown(prompt)} names no class of {manifest.name}"
        + (f"; the nearest is {shown(nearest)}" if nearest else "")
        + f'; a prompt is one of {classes}, or "" for any class'
    )
    raise invalid(message, code="unknown_prompt", param="prompt")


def _strength(fields: ImagesBody, pictures: Mapping[str, bytes] | None, manifest: Manifest) -> float | None:
    """Raises Refusal for what has no meaning where an image is enlarged."""
    if enlarges(manifest):
        for name, given in (("mask", "mask" in (pictures or {})), ("strength", fields.strength is not None)):
            if given:
                message = f"{manifest.name} enlarges the image; leave {name} out"
                raise invalid(message, code="unsupported_condition", param=name)
        return None
    if pictures is None or fields.strength is not None:
        return fields.strength
    return REPAINT_STRENGTH if "mask" in pictures else VARY_STRENGTH


def decode_files(pictures: Mapping[str, bytes], manifest: Manifest) -> Pictures:
    """Files -> what the images begin at, or what is enlarged. Raises Refusal."""
    if enlarges(manifest):
        return Pictures(None, (low_of(manifest, pictures["image"]),))
    return Pictures(decode_edit(pictures["image"], pictures.get("mask"), manifest))


def size_of(manifest: Manifest) -> str:
    return f"{manifest.resolution}x{manifest.resolution}"


def about(asked: Asked) -> dict[str, Any]:
    """What answers and events say of all images."""
    return {
        "background": "opaque",
        "output_format": asked.request.format,
        "quality": asked.fields.quality or "auto",
        "size": size_of(asked.manifest),
    }


def usage(images: int, calls: int) -> dict[str, Any]:
    """One token is one network call for one image; a prompt is none."""
    spent = images * calls
    details = {"text_tokens": 0, "image_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": details, "output_tokens": spent, "total_tokens": spent}


def image_entry(asked: Asked, index: int, image: Any) -> dict[str, Any]:
    """The entry of one image; its bytes become base64."""
    request, manifest = asked.request, asked.manifest
    label = request.labels[index]
    return {
        "b64_json": with_text_of(request, index, image, manifest, edited=asked.edited),
        "revised_prompt": manifest.class_names[label] if manifest.class_names else None,
        "seed": request.seeds[index],
        "label": label if manifest.classes else None,
    }


def entries(asked: Asked, done: Finished) -> list[dict[str, Any]]:
    """The entry of each image."""
    return [image_entry(asked, index, image) for index, image in enumerate(done.images)]


def images_body(asked: Asked, done: Finished, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer without stream. data: the entry of each image."""
    request = asked.request
    return {
        "created": int(time.time()),
        "data": data,
        **about(asked),
        "usage": usage(request.images, request.calls),
        "model": request.model,
        "num_inference_steps": request.steps,
        "timings_ms": timings_ms(done),
    }
