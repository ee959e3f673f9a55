"""fewstep's own API in words of JSON Schema: the body of POST /v1/generate, for each model, and what is answered."""

import unicodedata
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from export.manifest import Manifest, plain_name
from fewstep.conditions import GUIDANCE, find
from fewstep.pixels import MEDIA_TYPES, Format
from fewstep.schedule import MAX_STEPS
from server.http.edits import REPAINT_STRENGTH, VARY_STRENGTH, enlarges
from server.http.event_stream import MEDIA_TYPE as EVENTS
from server.http.forms import MEDIA_TYPE as FORM_TYPE
from server.http.openapi import EVENT_SCHEMA, JSON, Schema, answers, described, headers, record, reference
from server.http.picture_files import MODES, REPAINTED_FROM
from server.http.routes import IMAGE_HEADERS
from server.scheduler.request import Priority
from server.scheduler.validate import SEED_LIMIT, choose_steps
from server.settings.settings import Settings

MIN_TIMEOUT_S = 0.001
MAX_PREVIEWS = MAX_STEPS - 1  # of an image: the last call makes the image itself
ZIP = "application/zip"
PICTURES = ("image", "mask", "upscale")  # fields
PICTURE = "picture"  # format of a string that is a whole file, as base64
EXCLUSIVE = (("seed", "seeds"), ("seeds", "seed_to"), ("label", "labels"), ("steps", "sigmas"), ("strength", "sigmas"))
ENCODED: Schema = {"type": "string", "format": PICTURE, "contentEncoding": "base64"}
SEED: Schema = {"type": "integer", "minimum": 0, "maximum": SEED_LIMIT - 1}
MIX: Schema = {"type": "number", "minimum": 0, "maximum": 1}
SYNTAX_CHARACTERS = frozenset(r"^$\.*+?()[]{}|/")  # of ECMA's regular expressions, which JSON Schema has


class GenerateBody(BaseModel):
    """The fields of POST /v1/generate; null means absent in each of them. Bounds that depend on the model or on the
    settings are checked in server.scheduler.validate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, description="Which model makes the images; absent: the first.")
    steps: int | list[int] | None = Field(
        default=None,
        description="Network calls per image, or those of each; with image, the last of them are made.",
    )
    n: int | None = Field(default=None, description="How many images; absent: 1, or as many as lists have entries.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=SEED_LIMIT - 1,
        description="Image i has the noise of seed + i; the same seed gives the same image. Absent: drawn, returned.",
    )
    seeds: list[int] | None = Field(default=None, description="In place of seed: the seed of each image.")
    seed_to: int | None = Field(
        default=None,
        ge=0,
        le=SEED_LIMIT - 1,
        description="Another seed: the noise of every image is then on the way from that of seed to that of this one.",
    )
    mix: float | list[float] | None = Field(
        default=None,
        description="With seed_to: how far on the way, 0 to 1, or that of each image; absent: evenly from 0 to 1.",
    )
    label: int | str | None = Field(
        default=None, description="Class index, or class name in any case; absent: each image draws its own."
    )
    labels: list[int | str | None] | None = Field(
        default=None, description="In place of label: that of each image; null draws one."
    )
    sigmas: list[float] | None = Field(
        default=None,
        description="In place of steps: the noise level of each network call, each below the one before.",
    )
    guidance: float | list[float] | None = Field(
        default=None,
        description="Guidance weight, or that of each image, for models that take one: above 1 images resemble their "
        "class more and one another less. Absent: 1.",
    )
    format: Format | None = Field(default=None, description="Encoding of the images; absent: by Accept, else png.")
    stream: bool | None = Field(
        default=None,
        description="true: server-sent events, `preview` with the denoised image of each network call but the last, "
        "`image` with each finished image but the last, then `images` with the JSON answer.",
    )
    previews: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PREVIEWS,
        description="With stream: how many network calls of each image have a `preview`, the first among them and the "
        "others at equal distances; the rest have `progress`, without an image. Absent: all but the last call.",
    )
    priority: Priority | None = Field(
        default=None,
        description="batch: others may be served first for a while, as no user waits for it; absent: "
        "interactive, or what the header X-Priority says.",
    )
    timeout_s: float | None = Field(default=None, description="Seconds in which the answer is wanted; later it is 504.")
    log_weight: bool | None = Field(
        default=None,
        description="true: with each image comes log p_prior - log p_posterior of its steps, for adapters of a "
        "posterior's own chain; with log r of the image added it is the log of its importance weight.",
    )
    image: str | bytes | None = Field(  # bytes: a file of a form
        default=None,
        description="The picture that every image of the request begins at: a PNG, JPEG or WebP, as base64 or as a "
        "file of a form. Of another size, its middle square is resized.",
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the steps' calls that are made, the last ones, rounded up: how much changes. "
        f"Absent: {VARY_STRENGTH:g}, with a mask {REPAINT_STRENGTH:g}.",
    )
    mask: str | bytes | None = Field(
        default=None,
        description=f"A picture: what is transparent is made again; where nothing is, gray from {REPAINTED_FROM} on. "
        "The rest of the image stays as it was.",
    )
    upscale: str | bytes | None = Field(
        default=None,
        description="The picture that a model for it enlarges, as image. Of another size than the model takes, its "
        "middle square is resized to that.",
    )


def schemas(models: Mapping[str, Manifest], settings: Settings) -> Schema:
    """For the document: a GenerateRequest.NAME of each model (the first is the default), Images, Model and Models."""
    default = next(iter(models))
    requests = {
        request_name(name): _request(name, manifest, settings, name == default) for name, manifest in models.items()
    }
    images = {"ImageCount": _image_count(settings.max_images), "Images": _images()}
    return {**requests, **images, "Model": _model(), "Models": _models()}


def request_name(model: str) -> str:
    return f"GenerateRequest.{plain_name(model)}"


def generate_operation(models: Mapping[str, Manifest]) -> Schema:
    """Of POST /v1/generate. models: the first is the default."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    body = {"anyOf": [reference("schemas", request_name(name)) for name in models]}
    example = {"steps": choose_steps(None, next(iter(models.values()))), "seed": 7}
    return {
        "requestBody": {
            "required": False,
            "content": {JSON: {"schema": body, "example": example}, FORM_TYPE: {"schema": _form()}},
        },
        "responses": {
            "200": {
                "description": "One image as it is, unless Accept prefers JSON; several as JSON, or as Accept prefers: "
                "a zip, one array, or one sheet of them, row by row.",
                "headers": headers(IMAGE_HEADERS),
                "content": {
                    **dict.fromkeys(MEDIA_TYPES.values(), picture),
                    JSON: {"schema": reference("schemas", "Images")},
                    ZIP: picture,
                    EVENTS: {"schema": EVENT_SCHEMA},
                },
            }
        },
    }


def _form() -> Schema:
    """The same fields as parts of a form."""
    fields = described(GenerateBody)
    file = {"type": "string", "format": "binary"}
    files = {name: {**file, "description": fields["properties"][name]["description"]} for name in PICTURES}
    return {
        **fields,
        "description": "The pictures as files; a list as JSON in one part, or in a part for each entry.",
        "properties": {**fields["properties"], **files},
    }


def models_operation() -> Schema:
    """Of GET /v1/models."""
    return answers(JSON, reference("schemas", "Models"), "The models.")


def model_operation(name: str) -> Schema:
    """Of GET /v1/models/NAME. name: what ends the name of the operation."""
    return {"operationId": f"v1_model_{name}", **answers(JSON, reference("schemas", "Model"), "The model.")}


def _request(name: str, manifest: Manifest, settings: Settings, default: bool) -> Schema:
    """GenerateBody with what the model and the settings allow."""
    schema = GenerateBody.model_json_schema()
    counts: Schema = {"enum": sorted(manifest.levels)}
    allowed: dict[str, Schema] = {
        "model": {"enum": [name, None] if default else [name]},
        "steps": {
            "anyOf": [counts, {"type": "array", "items": counts}, {"type": "null"}],
            "default": choose_steps(None, manifest),
        },
        "sigmas": _sigmas(manifest),
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": settings.max_images, "default": 1},
        "seed": {**SEED, "type": ["integer", "null"]},
        "seeds": {"type": ["array", "null"], "items": SEED},
        "seed_to": {**SEED, "type": ["integer", "null"]},
        "mix": {"anyOf": [MIX, {"type": "array", "items": MIX}, {"type": "null"}]},
        "label": _label(manifest),
        "labels": {"type": ["array", "null"], "items": _label(manifest)},
        "guidance": _guidance(manifest),
        "format": {"enum": [*MEDIA_TYPES, None]},
        "stream": {"type": ["boolean", "null"]},
        "previews": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_PREVIEWS},
        "priority": {"enum": [*get_args(Priority), None]},
        "timeout_s": {
            "type": ["number", "null"],
            "minimum": MIN_TIMEOUT_S,
            "maximum": settings.timeout_s,
            "default": settings.timeout_s,
        },
        "log_weight": {"type": ["boolean", "null"]} if manifest.weighs else {"enum": [False, None]},
        "image": _picture(manifest),
        "strength": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
        "mask": _picture(manifest),
        "upscale": ENCODED if enlarges(manifest) else {"type": "null"},
    }
    properties = {
        field: {**allowed[field], "description": described["description"]}
        for field, described in schema["properties"].items()
    }
    needed = ([] if default else ["model"]) + (["upscale"] if enlarges(manifest) else [])
    required = {"required": needed} if needed else {}
    conditions: Schema = {
        "allOf": [
            reference("schemas", "ImageCount"),
            {"anyOf": [_given("image", {"type": "string"}), _absent("strength", "mask")]},
            {"anyOf": [SEED_TO_GIVEN, _absent("mix")]},
            {"anyOf": [_given("stream", {"const": True}), _absent("previews")]},
            # A log weight is that of images drawn from noise of their own.
            {"anyOf": [_absent("image", "seed_to"), {"properties": {"log_weight": {"enum": [False, None]}}}]},
            *map(_not_both, EXCLUSIVE),
        ]
    }  # fmt: skip
    return {"type": "object", "properties": properties, "additionalProperties": False, **required, **conditions}


def _given(name: str, value: Schema) -> Schema:
    return {"properties": {name: value}, "required": [name]}


def _absent(*names: str) -> Schema:
    return {"properties": {name: {"type": "null"} for name in names}}


SEED_TO_GIVEN = _given("seed_to", {"type": "integer"})


def _not_both(names: tuple[str, str]) -> Schema:
    return {"anyOf": [*map(_absent, names)]}


def _image_count(max_images: int) -> Schema:
    """Lists have an entry for each image; without seed_to, the last image's seed, seed + n - 1, is a seed, too."""

    def branch(n: int) -> Schema:
        entries: Schema = {"minItems": n, "maxItems": n}  # of what is no list they say nothing
        properties = {
            "n": {"enum": [n, None]},
            **dict.fromkeys(("seeds", "labels", "steps", "mix", "guidance"), entries),
        }
        seed: Schema = {"properties": {"seed": {"maximum": SEED_LIMIT - n}}}
        return {"properties": properties, "anyOf": [seed, SEED_TO_GIVEN]}

    return {"anyOf": [branch(n) for n in range(1, max_images + 1)]}


def _sigmas(manifest: Manifest) -> Schema:
    """That each is below the one before, JSON Schema cannot say."""
    known = [sigma for levels in manifest.levels.values() for sigma in levels]
    level: Schema = {"type": "number", "minimum": min(known), "maximum": max(known)}
    return {"type": ["array", "null"], "items": level, "minItems": 1, "maxItems": MAX_STEPS, "uniqueItems": True}


def _label(manifest: Manifest) -> Schema:
    if not manifest.classes:
        return {"type": "null"}
    choices: list[Schema] = [{"type": "integer", "minimum": 0, "maximum": manifest.classes - 1}, {"type": "null"}]
    if manifest.class_names:
        names = "|".join(map(_any_case, manifest.class_names))
        choices += [
            {"enum": list(manifest.class_names)},
            {"title": "a name in any case", "type": "string", "pattern": rf"^\s*(?:{names})\s*$"},
        ]
    return {"anyOf": choices}


def _any_case(name: str) -> str:
    """A regular expression of a class name in any case, composed or decomposed."""
    return "".join(map(_letter, unicodedata.normalize("NFC", name.strip())))


def _letter(letter: str) -> str:
    cases = (letter, letter.lower(), letter.upper(), letter.title(), letter.casefold())
    written = {unicodedata.normalize(form, case) for form in ("NFC", "NFD") for case in cases}
    escaped = sorted("".join(f"\\{c}" if c in SYNTAX_CHARACTERS else c for c in each) for each in written)
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"


def _guidance(manifest: Manifest) -> Schema:
    condition = find(manifest.conditions, GUIDANCE)
    if condition is None:
        return {"type": "null"}
    weight: Schema = {"type": "number", "minimum": condition.low, "maximum": condition.high}
    return {"anyOf": [weight, {"type": "array", "items": weight}, {"type": "null"}]}


def _picture(manifest: Manifest) -> Schema:
    return {"anyOf": [ENCODED, {"type": "null"}]} if manifest.channels in MODES else {"type": "null"}


def _images() -> Schema:
    text: Schema = {"type": "string"}
    whole: Schema = {"type": "integer", "minimum": 0}
    milliseconds: Schema = {"type": "number", "minimum": 0}
    image = {
        "b64_json": {**text, "contentEncoding": "base64"},
        "seed": whole,
        "label": {"type": ["integer", "null"]},
        "class_name": {"type": ["string", "null"]},
        "calls": whole,
        "seed_to": {"type": ["integer", "null"]},
        "mix": {"anyOf": [MIX, {"type": "null"}]},
    }
    asked: Schema = {
        "guidance": {"type": "number", "description": "Where the request has a guidance weight."},
        "log_weight": {"type": "number", "description": "Where the request asks for it."},
    }
    return record(
        {
            "created": whole,
            "model": text,
            "steps": whole,
            "calls": whole,
            "strength": {"type": ["number", "null"]},
            "noise_version": whole,
            "mode": {"enum": ["fast", "exact"]},
            "media_type": {"enum": list(MEDIA_TYPES.values())},
            "timings_ms": record(dict.fromkeys(("queue", "engine", "encode"), milliseconds)),
            "data": {"type": "array", "minItems": 1, "items": _with_optional(record(image), asked)},
        }
    )


def _with_optional(schema: Schema, properties: Schema) -> Schema:
    """A record that may have further properties of these names."""
    return {**schema, "properties": {**schema["properties"], **properties}}


def _model() -> Schema:
    whole: Schema = {"type": "integer", "minimum": 0}
    model = {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "steps": {"type": "array", "items": whole},
        "classes": whole,
        "edits": {"type": "boolean"},
        "log_weights": {"type": "boolean"},
        "conditions": {"type": "array", "description": "What the model takes beside classes; [] for most."},
        "browser": {"type": ["object", "null"], "description": "What a page needs to run the network by itself."},
    }
    return {**record(model), "additionalProperties": True}


def _models() -> Schema:
    entries = {"type": "array", "minItems": 1, "items": reference("schemas", "Model")}
    return record({"object": {"const": "list"}, "data": entries})
