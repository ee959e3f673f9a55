"""What no client and no model file can reach: pickle, evaluation, the file system, image decoders but one."""

import ast
import asyncio
import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace
from PIL import Image

from fewstep.pixels import FORMATS
from server.http.dialects.native import NativeDialect, decode_edit
from server.http.dialects.native_schema import GenerateBody
from server.http.service import ImageService
from server.scheduler.refusal import Refusal
from server.scheduler.request import ImageRequest
from server.settings.settings import Settings
from tests.server.fakes import manifest
from tests.server.in_process import Site

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
    left = list((ROOT / "server").rglob("*.py"))
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


def test_messages_between_processes_are_no_pickles():
    """multiprocessing's queues pickle, and so do its connections but for bytes; a process that is forked gets nothing
    that is pickled. Workers of `fewstep generate` are spawned with what the command line said, and send JSON."""
    pickling = {"Queue", "JoinableQueue", "Manager", "Pool", "Listener", "Client", "SimpleQueue"}
    for path, source in reachable().items():
        if any(name.startswith("multiprocessing") for name in modules_of(source)):
            used = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
            assert not used & pickling, path
            assert "Pipe" not in used or not used & {"send", "recv"}, path
            context = "spawn" if path == ROOT / "server" / "bulk" / "make.py" else "fork"
            assert f'multiprocessing.get_context("{context}")' in source, path


def decoders(source: str) -> list[str]:
    """Calls that decode an image, as they are written."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = ("Image.open", "ImageFile.Parser", "ImageFile", "imdecode", "imread")
    return [ast.unparse(call) for call in calls if ast.unparse(call.func).endswith(names)]


def test_images_are_decoded_in_one_place_from_memory_by_decoders_that_are_named():
    """What stands before these calls, and what they are given, is held by tests/server/http/test_pictures.py."""
    found = {
        path.relative_to(ROOT).as_posix(): calls for path, source in reachable().items() if (calls := decoders(source))
    }
    assert list(found) == ["server/http/pictures.py"]
    pattern = r"(Png|Jpeg|WebP)ImagePlugin\.\1ImageFile\(io\.BytesIO\((SIGNATURE \+ kept|data|filled)\)\)"
    assert [call for call in found["server/http/pictures.py"] if not re.fullmatch(pattern, call)] == []
    assert decoders("PIL.Image.open(path)") and decoders("cv2.imread(path)")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def post(site: Site, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return asyncio.run(site.ask("POST", "/v1/generate", body, headers or {}))


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("image/png", "malformed_json"),
        ("multipart/form-data; boundary=x", "malformed_form"),
        ("application/json", "malformed_json"),
    ],
)
def test_an_image_is_not_a_request(media_type: str, code: str):
    response = post(Site(), png(), {"content-type": media_type})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def accepts(body: bytes) -> ImageRequest | None:
    """What the engine would get, with the pictures decoded; None for what is refused."""
    dialect = NativeDialect(MODELS, Settings({"tiny": Path("/nowhere")}), cast(ImageService, None))
    try:
        asked = dialect.read(body)
        fields = asked.fields
        edit = decode_edit(fields.image, fields.mask, asked.manifest) if fields.image is not None else None
    except Refusal:
        return None
    return replace(asked.request, edit=edit)


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
    st.sampled_from([*GenerateBody.model_fields]) | texts,
    texts | st.integers() | st.lists(texts, max_size=2),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(body=bodies)
@example({"image": base64.b64encode(png()).decode()})
@example({"image": "/etc/passwd", "mask": "/etc/passwd"})
def test_no_text_in_a_request_opens_a_file_or_a_connection(body: dict[str, Any]):
    global watching
    site = Site()
    first = {"image": base64.b64encode(png()).decode()}
    accepts(json.dumps(first).encode())  # whatever the libraries load at their first use
    post(site, b"")
    touched.clear()
    watching = True
    try:
        answers = [post(site, json.dumps(body).encode()), *(site.get(path) for path in PATHS)]
        accepts(json.dumps(body).encode())
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


OF_OURS = ("model", "format", "previews", "priority", "edit")  # fields that are texts, or hold bytes


@given(bodies)
def test_the_only_texts_that_reach_the_engine_are_ours(body: dict[str, Any]):
    if (request := accepts(json.dumps(body).encode())) is None:
        return
    assert request.model in MODELS and request.format in FORMATS and request.previews == "none"
    assert request.priority in ("interactive", "batch")
    others = [value for name, value in asdict(request).items() if name not in OF_OURS]
    assert not [value for value in others if isinstance(value, str | bytes)]
    if edit := request.edit:
        assert (len(edit.image) == 64 and edit.known is None) or len(edit.known or b"") == 64
