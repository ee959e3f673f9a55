"""What is written into a PNG, so that its image can be made again from the file: `fewstep remake`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from export.manifest import Manifest
from fewstep.conditions import GUIDANCE
from fewstep.pixels import KEYWORD, with_text
from server.scheduler.request import ImageRequest

ENCODER = msgspec.json.Encoder()
CHECKPOINT_CHARACTERS = 12  # of the hash: enough to tell that another checkpoint is served under the name


def with_text_of(request: ImageRequest, index: int, image: Any, manifest: Manifest, *, edited: bool) -> Any:
    """Image `index` of a request; a PNG with a tEXt chunk of the keyword KEYWORD that holds a JSON object."""
    if request.format != "png":
        return image
    return with_text(image, KEYWORD, as_text(recipe(request, index, manifest, edited=edited)))


def with_texts(request: ImageRequest, images: Sequence[Any], manifest: Manifest, *, edited: bool) -> tuple[Any, ...]:
    """All images of a request likewise."""
    return tuple(with_text_of(request, index, image, manifest, edited=edited) for index, image in enumerate(images))


def as_text(facts: Mapping[str, Any]) -> str:
    """JSON in ASCII, as a PNG's text must be."""
    text = ENCODER.encode(facts).decode()
    return text if text.isascii() else json.dumps(facts)


def recipe(request: ImageRequest, index: int, manifest: Manifest, *, edited: bool) -> dict[str, Any]:
    """What image `index` is made of. Of an edit, the picture that it began at is missing."""
    text: dict[str, Any] = {
        "model": request.model,
        "checkpoint": manifest.checkpoint[:CHECKPOINT_CHARACTERS],
        "noise_version": manifest.noise_version,
        "seed": request.seeds[index],
        "label": request.labels[index] if manifest.classes else None,
        "steps": len(request.levels(index)) if request.schedules else request.steps,
    }
    if request.levels(index) != manifest.levels.get(text["steps"]):
        text["sigmas"] = request.levels(index)
    if request.blends:
        text["seed_to"], text["mix"] = request.blends[index]
    if weight := request.condition(GUIDANCE):
        text["guidance"] = weight.number(index)
    return {**text, "edit": True} if edited else text
