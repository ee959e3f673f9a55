"""From finished images to an HTTP answer: raw bytes for one image, JSON for several or on request."""

import base64
import time
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from export.manifest import Manifest
from fewstep.pixels import MEDIA_TYPES
from server.http.dialects.edits import edits_served
from server.http.dialects.native import GenerateRequest, body_limit
from server.processes.messages import Done, ServedModel
from server.settings.settings import Settings


def generate_response(
    http: Request, request: GenerateRequest, done: Done, model: Manifest, settings: Settings
) -> Response:
    """One image goes as it is unless the client asks for JSON; several always go as JSON with base64."""
    headers = {
        "X-Steps": str(request.steps),
        "X-Calls": str(request.calls),
        "X-Seed": str(request.seed),
        "X-Noise-Version": str(model.noise_version),
        "X-Mode": settings.mode,
        "X-Model": request.model,
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
        "model": request.model,
        "steps": request.steps,
        "calls": request.calls,
        "strength": request.edit.strength if request.edit else None,
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


def models_body(
    models: Mapping[str, Manifest], served: Mapping[str, ServedModel], settings: Settings
) -> dict[str, Any]:
    """`GET /v1/models`; the first is the default. served: what workers have said about those they have loaded."""
    limit = body_limit(settings.max_body_bytes, models)
    data = [_model_entry(name, model, served.get(name), settings, limit) for name, model in models.items()]
    return {"object": "list", "data": data}


def _model_entry(
    name: str, model: Manifest, served: ServedModel | None, settings: Settings, max_body_bytes: int
) -> dict[str, Any]:
    entry = {
        "id": name,
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
        "edits": edits_served(model, max_body_bytes),
        "backend": settings.backend or model.backend,
        "dtype": model.dtype,
        "mode": settings.mode,
        "noise_version": model.noise_version,
        "checkpoint": model.checkpoint,
        "parity": model.parity,
    }
    if served:
        entry |= {"capacity": served.capacity, "buckets": list(served.buckets), "runs": dict(served.facts)}
    return entry


def model_facts(model: Manifest, served: ServedModel | None, settings: Settings) -> dict[str, str]:
    """What runs a model, as short texts."""
    return {
        "backend": settings.backend or model.backend,
        "dtype": model.dtype,
        "mode": settings.mode,
        "noise_version": str(model.noise_version),
        "checkpoint": model.checkpoint[:12],
        **(served.facts if served else {}),
    }
