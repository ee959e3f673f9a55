"""The `openai` package for Node, unchanged, against a real server whose network the test controls.

npm install --prefix DIR openai@7
NODE_PATH=DIR/node_modules python -m pytest tests/server/test_openai_node.py
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import DEADLINE_S, wait_until
from tests.server.live import Live, live, of

NODE = shutil.which("node")
SCRIPT = Path(__file__).with_name("openai_node.cjs")
KEY = "k" * 32
SLOTS = 8


def has_package() -> bool:
    found = NODE and subprocess.run([NODE, "-e", "require('openai')"], capture_output=True, check=False)
    return bool(found) and found.returncode == 0


pytestmark = [
    pytest.mark.skipif(not NODE, reason="node is not installed"),
    pytest.mark.skipif(not has_package(), reason="NODE_PATH names no folder with the package openai of npm"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Takes sixteen images at once, eight of which wait."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY, "utf-8")
    flags = ("--capacity", str(SLOTS), "--max-queue", str(SLOTS), "--max-images", "16", "--api-keys-file", str(keys))
    with live(tmp_path_factory.mktemp("plan"), *flags) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def run(server: Live, scene: str, key: str = KEY) -> dict[str, Any]:
    """What a scene of the script says."""
    command = [str(NODE), str(SCRIPT), scene, f"{server.server.url}/v1", key]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_generated_images_are_those_of_our_own_api(server: Live):
    result = run(server, "generate")["result"]
    native = [server.image(of(seed, label="Ankle boot")) for seed in (7, 8)]
    assert [base64.b64decode(image) for image in result["images"]] == native
    assert (result["size"], result["tokens"]) == ("32x32", 4)


def test_an_edit_begins_at_the_file(server: Live):
    result = run(server, "edit")["result"]
    begun = {"image": result["before"], "strength": 0.5, "label": "Sandal", "seed": 8}
    assert base64.b64decode(result["after"]) == server.image(begun)


def test_a_stream_has_partial_images_and_ends_with_the_image(server: Live):
    events = run(server, "stream")["result"]
    assert [name for name, _ in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert base64.b64decode(events[-1][1]) == server.image({"seed": 3, "label": "Bag"})


def test_the_package_lists_the_models_and_says_that_a_key_is_wrong(server: Live):
    assert run(server, "models")["result"] == ["fashion"]
    error = run(server, "models", "wrong")["error"]
    assert (error["name"], error["status"], error["code"]) == ("AuthenticationError", 401, "invalid_api_key")
    assert "not one of this server's" in error["message"]


def test_a_full_server_is_asked_again_by_the_package_itself(server: Live):
    server.plan(calls=0)
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(server.post, of(1, n=16))
        server.admitted(16)
        said = pool.submit(run, server, "generate")
        wait_until(lambda: server.metric("fewstep_rejected_total") >= 1)
        server.plan()
        assert ahead.result(DEADLINE_S).status_code == 200
        assert said.result(DEADLINE_S)["statuses"][-1] == 200
        assert set(said.result()["statuses"][:-1]) == {429}
