"""Edits through the engine loop, the route and a real server: what they cost, what they survive, what comes back."""

import asyncio
import base64
import io
import json
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
from server.http import app as lit_spec
from server.http.dialects import edits
from server.http.dialects.edits import Edit
from server.http.errors import ApiError
from server.http.pictures import SIGNATURE
from server.processes.messages import Done
from server.scheduler.loop import Finished
from tests.server.conftest import DEADLINE_S, ROOT, Server, serving
from tests.server.fakes import SHAPE, expected_pixels, png
from tests.server.http.test_pictures import chunk, header
from tests.server.loop_bench import Bench
from tests.server.stage import Stage, play

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (8, 8, 1), np.uint8)
MASK = RNG.choice(np.array([0, 255], np.uint8), (8, 8, 1))
KEPT = MASK[..., 0] == 0
VARY = {"image": png(PICTURE), "label": 1}
REPAINT = {**VARY, "mask": png(MASK)}


def test_a_request_of_several_edits_makes_the_last_calls_only_among_others():
    bench = Bench(capacities=4)
    bench.submit(0, steps=8, images=3, seed=5, edit=Edit(SHAPE, PICTURE.tobytes(), KEPT.tobytes(), 0.25))
    bench.submit(1, steps=3, seed=9)
    bench.turn(3)
    first, second = bench.results
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.id, first.engine_s, bench.batches()) == (0, 2.0, [4, 4, 1])
    for pixels in first.pixels:
        np.testing.assert_array_equal(pixels[KEPT], PICTURE[KEPT])
    assert len({pixels.tobytes() for pixels in first.pixels}) == 3
    np.testing.assert_array_equal(second.pixels[0], expected_pixels(9, 0, 3))


def test_retry_after_and_the_backlog_count_the_calls_that_are_made():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        body = {**VARY, "n": 4, "steps": 8, "strength": 0.25}
        first = stage.post(json.dumps(body).encode())
        await stage.taken()
        assert stage.client.workers[0].backlog_s == 4 * 2 * 0.5  # four images, two calls, 2 s for four rows
        with pytest.raises(ApiError) as caught:
            await stage.post(b'{"n": 4}')
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
        stage.left.set()
        await first
        assert stage.client.workers[0].backlog_s == 0

    play(scenario, capacity=4, max_queue=2, max_images=5)


def test_an_edit_that_loses_its_worker_is_made_again_from_the_same_image():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(json.dumps({**REPAINT, "seed": 7}).encode())
        submit = await stage.taken(0)
        await stage.die(0)
        again = await stage.taken(1)
        assert again == submit and again.request.edit is not None and again.request.edit.image == PICTURE.tobytes()
        stage.links[1].answers.send(Done(submit.id, (b"PNG",), 0.0, 0.0, 0.0))
        response = await task
        assert (response.headers["x-steps"], response.headers["x-calls"]) == ("4", "4")

    play(scenario, workers=2)


@pytest.mark.parametrize("limit", [8, 7])
def test_pictures_of_large_models_are_decoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(lit_spec, "INLINE_RESOLUTION", limit)
    seen = []

    def decode(*arguments: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        raise ApiError(400, "seen", code="seen")

    monkeypatch.setattr(edits, "decode", decode)

    async def scenario(stage: Stage) -> None:
        await stage.ready()
        with pytest.raises(ApiError, match="seen"):
            await stage.post(json.dumps(REPAINT).encode())
        assert stage.spec.admission.images == 0, "its place is free again"

    play(scenario)
    assert seen == [limit == 8]


def test_no_picture_is_decoded_for_a_request_that_cannot_be_served(monkeypatch: pytest.MonkeyPatch):
    def decode(*arguments: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(edits, "decode", decode)
    edit = json.dumps({**REPAINT, "n": 4}).encode()

    async def refused(stage: Stage, code: str) -> None:
        with pytest.raises(ApiError) as caught:
            await stage.post(edit)
        assert caught.value.code == code

    async def scenario(stage: Stage) -> None:
        await refused(stage, "not_ready")
        await stage.ready()
        first = stage.post(b'{"n": 5}')
        await stage.taken()
        await refused(stage, "queue_full")
        stage.left.set()
        await first
        stage.client.draining = True
        await refused(stage, "draining")

    play(scenario, capacity=4, max_queue=2, max_images=5)


def generate(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/generate", json=fields)


def pixels_of(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))[..., None]


def test_repainted_images_keep_the_known_pixels_to_the_byte(client: httpx.Client):
    response = generate(client, **REPAINT, n=3, steps=3, seed=4)
    body = response.json()
    assert (body["steps"], body["calls"], body["strength"], response.headers["x-calls"]) == (3, 3, 1.0, "3")
    images = [pixels_of(base64.b64decode(entry["b64"])) for entry in body["data"]]
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
        "message": "image has 50000x50000 pixels; this model's images have 8x8",
        "type": "invalid_request_error",
        "param": "image",
        "code": "invalid_image",
    }
    assert generate(client, image="A" * 70_000).status_code == 413
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


def test_the_far_end_of_a_pipe_takes_an_edit_as_it_was():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(json.dumps({**REPAINT, "seed": seed}).encode()) for seed in range(5)]
        taken = [await stage.taken() for _ in tasks]
        assert [submit.request.seed for submit in taken] == list(range(5))
        assert {submit.request.edit.known for submit in taken if submit.request.edit} == {KEPT.tobytes()}
        stage.left.set()
        await asyncio.gather(*tasks)

    play(scenario)
