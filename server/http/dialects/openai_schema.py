"""The bodies of OpenAI's Images API as this server reads them, and what it answers, in words of JSON Schema."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.pixels import MEDIA_TYPES
from server.http.event_stream import MEDIA_TYPE as EVENTS
from server.http.openapi import EVENT_SCHEMA, JSON, Schema, described, headers, record, reference
from server.http.routes import IMAGE_HEADERS
from server.scheduler.request import Priority
from server.scheduler.validate import SEED_LIMIT

MAX_PARTIAL_IMAGES = 3
NO_EFFECT = "Accepted without effect."
EXTRAS = ("seed", "num_inference_steps", "steps", "label", "strength", "priority")  # also taken from `extra_body`
OutputFormat = Literal["png", "jpeg", "webp"]


class ImagesBody(BaseModel):
    """The fields of POST /v1/images/generations and, beside the pictures, of /v1/images/edits; null means absent.
    Bounds that depend on the model or on the settings are checked in server.http.dialects.openai."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | None = Field(
        default=None,
        description='A class name in any case, or a class number where classes have no names; "" for any class. '
        "Without effect where label is given or the model has no classes.",
    )
    model: str | None = Field(default=None, description="Which model makes the images; absent: the first.")
    n: int | None = Field(default=None, description="How many images; absent: 1.")
    size: str | None = Field(default=None, description="auto, or the size of the model's images, such as 32x32.")
    output_format: OutputFormat | None = Field(default=None, description="Encoding of the images; absent: png.")
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Quality of jpeg and webp; absent: 100 for jpeg, and webp is lossless. With png, 100 alone.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description="b64_json; or url: signed, valid for some minutes, of one HTTP process only, and not of a stream.",
    )
    stream: bool | None = Field(default=None, description="true: the answer is a stream of server-sent events.")
    partial_images: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PARTIAL_IMAGES,
        description="With stream: how many denoised images of earlier network calls are sent before each image.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=SEED_LIMIT - 1,
        description="Image i has the noise of seed + i; the same seed gives the same image. Absent: drawn, returned.",
    )
    num_inference_steps: int | None = Field(default=None, description="Network calls per image.")
    steps: int | None = Field(default=None, description="The same as num_inference_steps.")
    label: int | str | None = Field(default=None, description="Class index or name; comes before prompt.")
    strength: float | None = Field(
        default=None, gt=0, le=1, description="Of an edit: the share of the network calls that are made."
    )
    priority: Priority | None = Field(
        default=None, description="batch: others may be served first for a while; absent: interactive."
    )
    extra_body: dict[str, Any] | None = Field(
        default=None,
        description=f"An object with {', '.join(EXTRAS)}, for clients that nest them; of a form, as JSON, "
        "or each as extra_body[NAME].",
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        default=None, description=f"{NO_EFFECT} num_inference_steps decides."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None, description=f"{NO_EFFECT} All images are opaque."
    )
    moderation: Literal["auto", "low"] | None = Field(
        default=None, description=f"{NO_EFFECT} Nothing is moderated: the model knows no other classes than its own."
    )
    style: str | None = Field(default=None, description=NO_EFFECT)
    user: str | None = Field(default=None, description=NO_EFFECT)
    safety_identifier: str | None = Field(default=None, description=NO_EFFECT)
    input_fidelity: str | None = Field(default=None, description=f"{NO_EFFECT} strength decides.")
    negative_prompt: str | None = Field(default=None, description=NO_EFFECT)
    guidance_scale: float | None = Field(
        default=None, description="Guidance weight, for models that take one; without effect for the others."
    )
    true_cfg_scale: float | None = Field(default=None, description=NO_EFFECT)
    generator_device: str | None = Field(default=None, description=NO_EFFECT)
    enable_teacache: bool | None = Field(default=None, description=NO_EFFECT)
    output_quality: str | None = Field(default=None, description=NO_EFFECT)


def schemas() -> Schema:
    """For the document."""
    return {"ImagesRequest": described(ImagesBody), "ImagesResponse": _response()}


def generations_operation() -> Schema:
    """Of POST /v1/images/generations."""
    content = {JSON: {"schema": reference("schemas", "ImagesRequest"), "example": {"prompt": "", "seed": 7}}}
    return {"operationId": "images_generations", "requestBody": {"required": True, "content": content}, **_answers()}


def edits_operation() -> Schema:
    """Of POST /v1/images/edits."""
    picture = {"type": "string", "format": "binary"}
    pictures: Mapping[str, Schema] = {
        "image": {
            **picture,
            "description": "A PNG, JPEG or WebP; of another size, its middle square is resized. image[] is the same. A "
            "model that enlarges images enlarges this one.",
        },
        "mask": {
            **picture,
            "description": "What is transparent is made again; where nothing is, what is white (gray from 128 on).",
        },
    }
    form = described(ImagesBody)
    form = {**form, "properties": {**pictures, **form["properties"]}, "required": ["image"]}
    content = {"multipart/form-data": {"schema": form}}
    return {"operationId": "images_edits", "requestBody": {"required": True, "content": content}, **_answers()}


def _answers() -> Schema:
    content = {JSON: {"schema": reference("schemas", "ImagesResponse")}, EVENTS: {"schema": EVENT_SCHEMA}}
    described = {"description": "The images, or with stream their events.", "headers": headers(IMAGE_HEADERS)}
    return {"responses": {"200": {**described, "content": content}}}


def _response() -> Schema:
    text: Schema = {"type": "string"}
    whole: Schema = {"type": "integer", "minimum": 0}
    milliseconds: Schema = {"type": "number", "minimum": 0}
    about = {"revised_prompt": {"type": ["string", "null"]}, "seed": whole, "label": {"type": ["integer", "null"]}}
    image = {
        "anyOf": [
            record({"b64_json": {**text, "contentEncoding": "base64"}, **about}),
            record({"url": {**text, "format": "uri"}, **about}),
        ]
    }
    tokens = record({"text_tokens": whole, "image_tokens": whole})
    usage = {"input_tokens": whole, "input_tokens_details": tokens, "output_tokens": whole, "total_tokens": whole}
    return record(
        {
            "created": whole,
            "data": {"type": "array", "minItems": 1, "items": image},
            "background": {"const": "opaque"},
            "output_format": {"enum": [name for name in MEDIA_TYPES if name != "npy"]},
            "quality": text,
            "size": text,
            "usage": record(usage),
            "model": text,
            "num_inference_steps": whole,
            "timings_ms": record(dict.fromkeys(("queue", "engine", "encode"), milliseconds)),
        }
    )
