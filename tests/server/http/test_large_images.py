"""Images of 256 pixels in colour: they are served, and whatever takes long of them leaves the event loop alone."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image

from export.engine import load_engine
from fewstep.noise import noise_for
from fewstep.pixels import encode, to_pixels
from fewstep.samplers import sample_dpdm
from server.http import pictures
from server.http.answers import INLINE_BYTES
from server.scheduler.events import Finished, Progress
from tests.server import in_process
from tests.server.conftest import serving, write_engine
from tests.server.fakes import LEVELS, manifest
from tests.server.in_process import Site, play

SIDE, SHAPE = 256, (3, 256, 256)
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)  # noise: no PNG is larger
PNG = encode(PIXELS, "png")
B64 = base64.b64encode(PNG).decode()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites serve a model of 256 pixels."""
    monkeypatch.setattr(in_process, "manifest", lambda name: replace(manifest(name), channels=3, resolution=SIDE))


@pytest.fixture
def json_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that have made JSON of more than INLINE_BYTES, one entry for each text."""
    threads: list[int] = []
    encode_json = msgspec.json.encode

    def noted(value: Any) -> bytes:
        text = encode_json(value)
        if len(text) > INLINE_BYTES:
            threads.append(threading.get_ident())
        return text

    monkeypatch.setattr(msgspec.json, "encode", noted)
    return threads


@pytest.mark.parametrize(
    ("path", "body", "texts"),
    [
        ("/v1/generate", {"n": 2}, 1),
        ("/v1/generate", {"n": 1, "stream": True, "steps": 2}, 2),
        ("/v1/images/generations", {"prompt": "bag", "n": 2}, 1),
        ("/v1/images/generations", {"prompt": "bag", "stream": True, "partial_images": 1}, 2),
    ],
    ids=["JSON", "events", "OpenAI's JSON", "OpenAI's events"],
)
def test_no_image_becomes_text_on_the_event_loop(
    large: None, json_threads: list[int], path: str, body: dict[str, Any], texts: int
):
    async def scene(site: Site) -> None:
        worker = await site.warm()
        asking = asyncio.create_task(site.ask("POST", path, json.dumps(body).encode(), {"accept": "*/*"}))
        request = await worker.taken()
        if body.get("stream"):
            await worker.send(Progress(request.id, 0, 1, request.request.calls, "png", PNG))
        await worker.send(Finished(request.id, "png", (PNG,) * body.get("n", 1), 0.0, 0.1))
        answer = await asking
        assert answer.status_code == 200 and len(answer.content) > texts * len(B64)
        assert len(json_threads) >= texts and threading.get_ident() not in json_threads

    assert len(PNG) > INLINE_BYTES
    play(scene)


def test_a_picture_of_a_body_is_decoded_off_the_event_loop(large: None, monkeypatch: pytest.MonkeyPatch):
    threads: list[int] = []
    opened = pictures._opened

    def noted(data: bytes) -> Any:
        threads.append(threading.get_ident())
        return opened(data)

    monkeypatch.setattr(pictures, "_opened", noted)

    async def scene(site: Site) -> None:
        worker = await site.warm()
        asking = site.generate(json.dumps({"image": B64, "steps": 4, "strength": 0.5}).encode())
        request = await worker.taken()
        assert request.request.edit is not None and request.request.edit.image == PIXELS.tobytes()
        await worker.send(Finished(request.id, "png", (PNG,), 0.0, 0.1))
        answer = await asking
        assert answer.status_code == 200 and answer.content.endswith(PNG[-64:])
        assert threads and threading.get_ident() not in threads

    play(scene)


@pytest.fixture(scope="module")
def engine_256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "engine"
    write_engine(folder, channels=3, resolution=SIDE)
    return folder


@pytest.fixture(scope="module")
def client(engine_256: Path) -> Iterator[httpx.Client]:
    with serving(engine_256, "--capacity", "4") as server, server.client() as client:
        yield client


def shown(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_images_of_256_pixels_are_those_of_the_sampler(client: httpx.Client, engine_256: Path):
    denoiser = load_engine(engine_256, threads=1).denoiser
    sample = sample_dpdm(lambda x, sigma: denoiser(x, sigma, np.array([1])), noise_for([5], SHAPE), LEVELS[2])
    expected = to_pixels(sample.images)[0].astype(int)
    body = {"seed": 5, "label": 1, "steps": 2}
    single = client.post("/v1/generate", json=body, headers={"Accept": "image/png"})
    assert np.abs(shown(single.content) - expected).max() <= 1
    webp = client.post("/v1/generate", json=body, headers={"Accept": "image/webp"})
    np.testing.assert_array_equal(shown(webp.content), shown(single.content))
    several = client.post("/v1/generate", json={**body, "n": 6, "labels": None}).json()["data"]  # more than slots
    assert len(several) == 6
    np.testing.assert_array_equal(shown(base64.b64decode(several[0]["b64_json"])), shown(single.content))


def test_a_picture_of_256_pixels_begins_an_image(client: httpx.Client):
    answer = client.post("/v1/generate", json={"image": B64, "steps": 4, "strength": 0.25, "seed": 1})
    assert answer.status_code == 200 and shown(answer.content).shape == (SIDE, SIDE, 3)
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    body = {"image": B64, "mask": base64.b64encode(encode(mask, "png")).decode(), "steps": 4, "seed": 1}
    kept = client.post("/v1/generate", json=body, headers={"Accept": "image/png"})
    assert kept.status_code == 200, kept.text
    np.testing.assert_array_equal(shown(kept.content), PIXELS)  # nothing is made again where the mask is black
