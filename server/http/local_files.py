"""What the page needs to make images by itself: onnxruntime-web's files, our modules for it, and the networks.

Only where the setting page_runtime names a folder. Large files are sent from disk in pieces, never held in memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from export.manifest import Manifest
from server.http.page_files import FOLDER, HEADERS, MEDIA_TYPES, is_known, page_file
from server.http.routes import Answer, Route
from server.settings.settings import RUNTIME_FILES, Settings

MAX_NETWORK_BYTES = 256 * 2**20  # that a page is offered; a browser holds a network several times
MODULES = FOLDER / "local"


def in_browser(name: str, manifest: Manifest, settings: Settings) -> dict[str, Any] | None:
    """What a page needs to know of a model that it may run by itself; None for those that it cannot."""
    if settings.page_runtime is None or manifest.extra or manifest.conditions or manifest.dtype != "float32":
        return None
    path = settings.engines[name] / manifest.network
    size = path.stat().st_size if path.is_file() else 0
    if not 0 < size <= MAX_NETWORK_BYTES:
        return None
    return {"network": _address(name), "bytes": size, "sigma_data": manifest.sigma_data}


def local_routes(models: Mapping[str, Manifest], settings: Settings) -> list[Route]:
    """Networks need a key where images do; the rest is as public as the page."""
    if settings.page_runtime is None:
        return []
    runtime, about = Path(settings.page_runtime), "A file of the page."
    routes = [
        Route(f"/page/local/{path.name}", "GET", page_file(path), about, keyless=True, quiet=True)
        for path in sorted(MODULES.glob("*.mjs"))
    ]
    for name in RUNTIME_FILES:
        stat = (runtime / name).stat()
        tag = f"{stat.st_size:x}-{stat.st_mtime_ns:x}"
        answer = _large_file(runtime / name, MEDIA_TYPES[Path(name).suffix], tag)
        routes.append(Route(f"/page/runtime/{name}", "GET", answer, about, keyless=True, quiet=True))
    for name, manifest in models.items():
        if in_browser(name, manifest, settings):
            path = settings.engines[name] / manifest.network
            answer = _large_file(path, "application/octet-stream", manifest.network_sha256[:16])
            routes.append(Route(f"/{_address(name)}", "GET", answer, "The network of a model.", quiet=True))
    return routes


def _address(model: str) -> str:
    """Of a network, as the page asks for it: relative, so that it works below a proxy's path, too."""
    return f"page/networks/{model}.onnx"


def _large_file(path: Path, media_type: str, tag: str) -> Answer:
    headers = {**HEADERS, "ETag": f'"{tag}"'}

    async def answer(http: Request) -> Response:
        if is_known(headers["ETag"], http):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers, media_type=media_type)

    return answer
