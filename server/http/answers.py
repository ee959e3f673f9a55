"""Answers with images, whatever the dialect."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from export.manifest import Manifest
from server.http.access import timings_ms
from server.http.openapi import JSON
from server.scheduler.events import Finished
from server.scheduler.request import ImageRequest
from server.settings.settings import Settings

INLINE_BYTES = 65_536  # more bytes of images than this are made into JSON off the event loop
Made = TypeVar("Made")


def image_headers(
    request: ImageRequest, manifest: Manifest, settings: Settings, done: Finished | None = None
) -> dict[str, str]:
    """What answers with images say of them. done: None while they are being made."""
    headers = {
        "X-Steps": str(request.steps),
        "X-Calls": str(request.calls),
        "X-Seed": str(request.seeds[0]),
        "X-Noise-Version": str(manifest.noise_version),
        "X-Mode": settings.mode,
        "X-Model": request.model,
    }
    if manifest.classes and request.images == 1:
        headers["X-Label"] = str(request.labels[0])
    if done is not None and done.log_weights:
        headers["X-Log-Weight"] = ",".join(f"{log_weight:.9g}" for log_weight in done.log_weights)
    if done is not None:
        headers["Server-Timing"] = ", ".join(f"{name};dur={ms:.3f}" for name, ms in timings_ms(done).items())
    return headers


async def json_answer(
    body: Callable[[], Mapping[str, Any]], images: Sequence[bytes], headers: Mapping[str, str]
) -> Response:
    """body: makes the object that holds the images; bytes in it become base64."""
    content = await made_of(images, lambda: msgspec.json.encode(body()))
    return Response(content, media_type=JSON, headers=headers)


async def made_of(images: Iterable[Any], make: Callable[[], Made]) -> Made:
    """What `make` makes of encoded images; of large ones, off the event loop. None: no image."""
    large = sum(len(image) for image in images if image is not None) > INLINE_BYTES
    return await asyncio.to_thread(make) if large else make()
