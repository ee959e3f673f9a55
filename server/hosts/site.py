"""What every host of the dialects serves: all routes in one list, and what runs each model."""

from collections.abc import Callable, Mapping

from export.manifest import Manifest, engine_of
from server.http.dialects import inference_schema, native_schema, openai_schema
from server.http.dialects.inference import InferenceDialect
from server.http.dialects.native import NativeDialect
from server.http.dialects.openai import OpenAIDialect
from server.http.kept_images import KeptImages
from server.http.local_files import local_routes
from server.http.openapi import document_routes
from server.http.page_files import page_routes
from server.http.routes import Route
from server.http.service import ImageService
from server.http.system import SystemRoutes
from server.settings.settings import Settings


def every_route(
    models: Mapping[str, Manifest],
    settings: Settings,
    service: ImageService,
    kept: KeptImages | None,
    render: Callable[[str], tuple[bytes, str]],
) -> list[Route]:
    """kept: images that have a url, where there are urls. render: the Accept header -> the page of /metrics."""
    native, openai = NativeDialect(models, settings, service), OpenAIDialect(models, settings, service, kept)
    inference, system = InferenceDialect(models, settings, service), SystemRoutes(settings, service, render)
    described = [*native.routes(), *openai.routes(), *inference.routes(), *system.routes()]
    described += [kept.route()] if kept else []
    schemas = {**native_schema.schemas(models, settings), **openai_schema.schemas(), **inference_schema.schemas()}
    document = document_routes(described, schemas, settings)
    return [*described, *document, *page_routes(), *local_routes(models, settings)]


def facts(models: Mapping[str, Manifest], service: ImageService, settings: Settings) -> dict[str, dict[str, str]]:
    """What runs each model, as short texts, for the metrics."""
    return {
        name: {
            "backend": settings.backend or model.backend,
            "dtype": model.dtype,
            "mode": settings.mode,
            "noise_version": str(model.noise_version),
            "checkpoint": model.checkpoint[:12],
            **(service.models[engine_of(name)].facts if engine_of(name) in service.models else {}),
        }
        for name, model in models.items()
    }
