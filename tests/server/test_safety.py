"""What no client and no model file can reach: pickle, evaluation, the file system, image decoders but one."""

import ast
import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.pixels import FORMATS
from server.http.app import GenerateSpec
from server.http.dialects.native import FIELDS, parse_request
from server.http.errors import ApiError, install_error_handlers
from server.processes.admission import Admission
from server.processes.pool import EngineClient
from server.settings.settings import Settings
from tests.server.fakes import manifest

ROOT = Path(__file__).parents[2]
ROOMS = ("fewstep", "kernels", "export", "server")
PICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
MODELS = {"tiny": manifest()}


def modules_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def reachable() -> dict[Path, str]:
    """Every file of ours that the server can load, starting at server/, with its source."""
    found: dict[Path, str] = {}
    left = list((ROOT / "server").glob("*.py"))
    while left:
        path = left.pop()
        if path in found:
            continue
        found[path] = path.read_text("utf-8")
        for name in modules_of(found[path]):
            if name.partition(".")[0] in ROOMS:
                base = ROOT / name.replace(".", "/")
                left += [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
    return found


def dangers(source: str) -> list[str]:
    """Ways to run what a file or a message says."""
    found = [name for name in modules_of(source) if name.partition(".")[0] in PICKLERS]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in EVALUATORS or keywords.get("allow_pickle") == "True" or keywords.get("weights_only") == "False":
            found.append(ast.unparse(node))
        if name in ("torch.load", "np.load", "numpy.load") and not {"weights_only", "allow_pickle"} & set(keywords):
            found.append(ast.unparse(node))
    return found


def test_nothing_the_server_loads_unpickles_or_evaluates():
    files = reachable()
    assert {"engine.py", "manifest.py", "noise.py", "worker.py"} <= {path.name for path in files}
    assert {str(path): danger for path, source in files.items() if (danger := dangers(source))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "torch.load(x)",
        "np.load(f, allow_pickle=True)",
        "def f():\n import dill",
    ],
)
def test_the_scan_catches(source: str):
    assert dangers(source)


def test_pickled_messages_stay_on_the_pipes_between_forked_processes():
    """multiprocessing's connections pickle. Ours are anonymous pipes that the parent made before it forked."""
    users = {
        path.relative_to(ROOT).as_posix(): names
        for path, source in reachable().items()
        if (names := {name for name in modules_of(source) if name.startswith("multiprocessing.")})
    }
    used = set().union(*users.values())
    assert not {name for name in used if name.rpartition(".")[2] in ("Listener", "Client", "Manager", "managers")}
    piped = {file for file, names in users.items() if {"multiprocessing.Pipe", "multiprocessing.connection"} & names}
    assert piped <= {"server/processes/pipes.py", "server/processes/supervisor.py"}


def decoders(source: str) -> list[str]:
    """Calls that decode an image, as they are written."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = ("Image.open", "ImageFile.Parser", "PngImageFile", "imdecode", "imread")
    return [ast.unparse(call) for call in calls if ast.unparse(call.func).endswith(names)]


def test_images_are_decoded_in_one_place_from_memory_and_as_png_only():
    """What stands before that call, and what it is given, is held by tests/server/test_png.py."""
    found = {
        path.relative_to(ROOT).as_posix(): calls for path, source in reachable().items() if (calls := decoders(source))
    }
    assert found == {"server/http/pictures.py": ["Image.open(io.BytesIO(png), formats=('PNG',))"]}
    assert decoders("PIL.Image.open(path)") and decoders("cv2.imread(path)")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class App:
    """The real routes, without a worker behind them."""

    def __init__(self) -> None:
        client = EngineClient(MODELS, 1, Admission(4), lambda: None)
        spec = GenerateSpec(MODELS, Settings({"tiny": Path("/nowhere")}), client)
        self.app = FastAPI(openapi_url=None)
        for path, (answer, methods) in spec.routes.items():
            self.app.add_api_route(path, answer, methods=methods)
        for layer in spec.middlewares:
            assert isinstance(layer, tuple)
            self.app.add_middleware(layer[0], **layer[1])
        install_error_handlers(self.app)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        async def scene() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://localhost"
            ) as client:
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(scene())


@pytest.mark.parametrize("media_type", ["image/png", "multipart/form-data; boundary=x", "application/json"])
def test_an_image_is_not_a_request(media_type: str):
    response = App().ask("POST", "/v1/generate", png(), **{"content-type": media_type})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_json")


WATCHED = ("open", "os.listdir", "os.scandir", "pickle.find_class", "subprocess.Popen", "exec", "socket.connect")
watching = False
touched: list[tuple[str, Any]] = []


def watch(event: str, arguments: Any) -> None:
    if watching and event in WATCHED:
        touched.append((event, arguments[0]))


sys.addaudithook(watch)  # cannot be taken off again; idle unless watching

PATHS = [
    "/../../etc/passwd",
    "/%2e%2e/etc/passwd",
    "/etc/passwd",
    "/page/index.html",
    "/static/../settings.py",
    "/v1/models/../../x",
]
texts = st.sampled_from(
    [
        *PATHS,
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
        "data:image/png;base64,L2V0Yw==",
        "C:\\boot.ini",
        "\x00",
        "fashion/../tiny",
    ]
) | st.text(max_size=30)
bodies = st.dictionaries(
    st.sampled_from(FIELDS) | texts, texts | st.integers() | st.lists(texts, max_size=2), max_size=4
)


@settings(max_examples=25, deadline=None)
@given(body=bodies)
@example({"image": base64.b64encode(png()).decode()})
@example({"image": "/etc/passwd", "mask": "/etc/passwd"})
def test_no_text_in_a_request_opens_a_file_or_a_connection(body: dict[str, Any]):
    global watching
    app = App()
    first = {"image": base64.b64encode(png()).decode()}
    app.ask("POST", "/v1/generate", json.dumps(first).encode())  # whatever the libraries load at their first use
    touched.clear()
    watching = True
    try:
        answers = [
            app.ask("POST", "/v1/generate", json.dumps(body).encode()),
            *(app.ask("GET", path) for path in PATHS),
        ]
    finally:
        watching = False
    assert touched == []
    assert all(400 <= answer.status_code < 500 or answer.status_code == 503 for answer in answers)


def test_the_watch_would_notice(tmp_path: Path):
    global watching
    touched.clear()
    watching = True
    try:
        (tmp_path / "file").write_text("x")
    finally:
        watching = False
    assert touched


@given(bodies)
def test_the_only_texts_that_reach_the_engine_are_ours(body: dict[str, Any]):
    try:
        request = parse_request(json.dumps(body).encode(), MODELS, 4, 60.0).decoded(MODELS)
    except ApiError:
        return
    assert request.model in MODELS and request.format in FORMATS
    others = [value for name, value in vars(request).items() if name not in ("model", "format")]
    assert not [value for value in others if isinstance(value, str | bytes)]
