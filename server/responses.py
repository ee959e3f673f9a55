"""From finished images to an HTTP answer: raw bytes for one image, JSON for several or on request."""

import base64
import time
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from export.manifest import Manifest
from fewstep.pixels import MEDIA_TYPES
from server.messages import Done
from server.requests import GenerateRequest
from server.settings import Settings


def generate_response(
    http: Request, request: GenerateRequest, done: Done, model: Manifest, settings: Settings
) -> Response:
    """One image goes as it is unless the client asks for JSON; several always go as JSON with base64."""
    headers = {
        "X-Steps": str(request.steps),
        "X-Seed": str(request.seed),
        "X-Noise-Version": str(model.noise_version),
        "X-Mode": settings.mode,
        "Server-Timing": ", ".join(f"{name};dur={ms:.3f}" for name, ms in timings_ms(done).items()),
    }
    if request.images == 1 and "application/json" not in http.headers.get("accept", ""):
        if model.classes:
            headers["X-Label"] = str(request.labels[0])
        return Response(done.images[0], media_type=MEDIA_TYPES[request.format], headers=headers)
    return JSONResponse(_json_body(request, done, model, settings), headers=headers)


def timings_ms(done: Done) -> dict[str, float]:
    """Milliseconds in the queue, in the engine, and in the image encoder."""
    seconds = {"queue": done.queue_s, "engine": done.engine_s, "encode": done.encode_s}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def _json_body(request: GenerateRequest, done: Done, model: Manifest, settings: Settings) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "model": model.name,
        "steps": request.steps,
        "noise_version": model.noise_version,
        "mode": settings.mode,
        "media_type": MEDIA_TYPES[request.format],
        "timings_ms": timings_ms(done),
        "data": [
            {
                "b64": base64.b64encode(image).decode("ascii"),
                "seed": request.seed + index,
                "label": label if model.classes else None,
                "class_name": model.class_names[label] if model.class_names else None,
            }
            for index, (image, label) in enumerate(zip(done.images, request.labels, strict=True))
        ],
    }


def models_body(model: Manifest, settings: Settings) -> dict[str, Any]:
    """`GET /v1/models`."""
    entry = {
        "id": model.name,
        "object": "model",
        "owned_by": "fewstep",
        "created": 0,  # clients of this list expect the field; an engine has a hash instead of a date
        "classes": model.classes,
        "class_names": list(model.class_names),
        "channels": model.channels,
        "resolution": model.resolution,
        "steps": sorted(model.levels),
        "levels": {str(steps): list(sigmas) for steps, sigmas in sorted(model.levels.items())},
        "max_images": settings.max_images,
        "backend": model.backend,
        "dtype": model.dtype,
        "mode": settings.mode,
        "noise_version": model.noise_version,
        "checkpoint": model.checkpoint,
        "parity": model.parity,
    }
    return {"object": "list", "data": [entry]}
