"""Edits through the engine loop, the route and a real server: what they cost, what they survive, what comes back."""

import base64
import io
import json
import math
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.pixels import Pixels
from server.http.dialects import native
from server.http.pictures import SIGNATURE
from server.scheduler.events import Finished
from server.scheduler.request import Edit, ImageRequest, Submit
from tests.server.conftest import DEADLINE_S, ROOT, Server, serving
from tests.server.fakes import LEVELS, SHAPE, expected_pixels, png
from tests.server.http.test_pictures import chunk, header
from tests.server.in_process import Site, play
from tests.server.loop_bench import Bench

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (8, 8, 1), np.uint8)
MASK = RNG.choice(np.array([0, 255], np.uint8), (8, 8, 1))
KEPT = MASK[..., 0] == 0
VARY = {"image": png(PICTURE), "label": 1}
REPAINT = {**VARY, "mask": png(MASK)}


def test_a_request_of_several_edits_makes_the_last_calls_only_beside_others():
    bench = Bench(capacities=4)
    edit = Edit(SHAPE, PICTURE.tobytes(), KEPT.tobytes())
    bench.inbox.put(Submit(0, ImageRequest("tiny", 8, (5, 6, 7), (0, 1, 2), LEVELS[8][-2:], edit=edit), 0.0, math.inf))
    bench.submit(1, steps=3, seed=9)
    bench.turn(3)
    first, second = bench.results
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.id, first.engine_s, bench.batches()) == (0, 2.0, [4, 4, 1])
    for pixels in first.images:
        np.testing.assert_array_equal(pixels[KEPT], PICTURE[KEPT])
    assert len({pixels.tobytes() for pixels in first.images}) == 3
    np.testing.assert_array_equal(second.images[0], expected_pixels(9, 0, 3))


def test_retry_after_and_the_backlog_count_the_calls_that_are_made():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        first = site.generate(json.dumps({**VARY, "n": 4, "steps": 8, "strength": 0.25}).encode())
        await worker.taken()
        assert site.pool.workers[0].backlog_s == 4 * 2 * 0.5  # four images, two calls, 2 s for four rows
        refused = await site.ask("POST", "/v1/generate", b'{"n": 4}')
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        site.left.set()
        await first
        assert site.pool.workers[0].backlog_s == 0

    play(scenario, capacity=4, max_queue=2, max_images=5)


def test_an_edit_that_loses_its_worker_is_made_again_from_the_same_image():
    async def scenario(site: Site) -> None:
        first, second = await site.warm(0), await site.warm(1)
        task = site.generate(json.dumps({**REPAINT, "seed": 7}).encode())
        submit = await first.taken()
        await site.die(0)
        again = await second.taken()
        assert again == submit and again.request.edit is not None
        assert (again.request.edit.image, again.request.edit.known) == (PICTURE.tobytes(), KEPT.tobytes())
        await second.send(Finished(submit.id, "png", (b"PNG",), 0.0, 0.0))
        response = await task
        assert (response.headers["x-steps"], response.headers["x-calls"]) == ("4", "4")

    play(scenario, workers=2)


def test_pictures_are_decoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch):
    decode, seen = native.decode_edit, []

    def watched(*arguments: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return decode(*arguments)

    monkeypatch.setattr(native, "decode_edit", watched)

    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = site.generate(json.dumps(VARY).encode())
        await worker.taken()
        site.left.set()
        await task

    play(scenario)
    assert seen == [False]


def generate(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/generate", json=fields)


def pixels_of(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))[..., None]


def test_repainted_images_keep_the_known_pixels_to_the_byte(client: httpx.Client):
    response = generate(client, **REPAINT, n=3, steps=3, seed=4)
    body = response.json()
    assert (body["steps"], body["calls"], body["strength"], response.headers["x-calls"]) == (3, 3, 1.0, "3")
    images = [pixels_of(base64.b64decode(entry["b64_json"])) for entry in body["data"]]
    for pixels in images:
        np.testing.assert_array_equal(pixels[KEPT], PICTURE[KEPT])
    assert len({pixels.tobytes() for pixels in images}) == 3
    assert [entry["seed"] for entry in body["data"]] == [4, 5, 6]
    single = generate(client, **REPAINT, steps=3, seed=5)
    np.testing.assert_array_equal(pixels_of(single.content), images[1])


def test_more_strength_leaves_less_of_the_image(client: httpx.Client):
    gaps = []
    for strength in (0.125, 0.5, 1.0):
        response = generate(client, **VARY, steps=8, seed=1, strength=strength)
        assert response.headers["x-calls"] == str(int(8 * strength))
        gaps.append(np.abs(pixels_of(response.content).astype(int) - PICTURE).mean())
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1] / 2


def test_exact_mode_gives_edits_and_others_the_same_bytes_alone_and_together(server: Server):
    kinds = [{}, {**VARY, "strength": 0.5}, REPAINT]
    requests = [{"seed": 100 + i, "steps": (1, 2, 3, 8)[i % 4], **kinds[i % 3]} for i in range(24)]
    with server.client() as client:
        alone = [generate(client, **fields).content for fields in requests]
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda fields: generate(client, **fields), requests))
    assert [answer.content for answer in answers] == alone


def test_models_and_the_document_say_that_edits_are_served(client: httpx.Client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["edits"] is True
    schema = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest.tiny"]
    assert {"image", "mask", "strength"} <= set(schema["properties"])


def test_a_bomb_gets_a_sentence_and_the_server_goes_on(client: httpx.Client):
    rows = chunk(b"IDAT", bytes(4_000))
    bomb = base64.b64encode(SIGNATURE + header(50_000, 50_000) + rows + chunk(b"IEND", b"")).decode()
    response = generate(client, image=bomb)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "image has 50000x50000 pixels; a picture has at most 16777216, such as 4096x4096",
        "type": "invalid_request_error",
        "param": "image",
        "code": "invalid_image",
    }
    assert generate(client, image="A" * 6_000_000).status_code == 413
    assert generate(client).status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="the example calls curl")
def test_the_example_in_the_documentation_runs(tmp_path: Path):
    """Against the shipped student, as it is written but for the port."""
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
    example = manual.split("## Edits")[1].split("```sh\n")[1].split("```")[0]
    with serving(ROOT / "models" / "fashion" / "engine") as fashion:
        script = example.replace("http://127.0.0.1:8000", fashion.url).replace("python -c", f"{sys.executable} -c")
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True, timeout=DEADLINE_S)
    boot, varied, repainted = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("boot", "varied", "repainted")
    )
    np.testing.assert_array_equal(repainted[:16], boot[:16])
    assert (repainted[16:] != boot[16:]).any() and 0 < np.abs(varied.astype(int) - boot).mean() < 40
