"""fewstep.client against a real server, and against answers that a test writes."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import numpy as np
import pytest

from fewstep import client as module
from fewstep.client import AsyncClient, Client, ClientError, Images, Patience, Preview, Progress, Wanted
from fewstep.pixels import encode
from server.http.dialects.native_schema import GenerateBody
from tests.server.conftest import ROOT, Server

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (8, 8), np.uint8)
AGAIN = RNG.random((8, 8)) < 0.5


@pytest.fixture(scope="module")
def served(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def array(client: httpx.Client, **fields: Any) -> np.ndarray:
    answer = client.post("/v1/generate", json=fields, headers={"Accept": "application/x-npy"})
    return np.load(io.BytesIO(answer.content))


def test_it_has_every_field_of_the_api_but_those_that_are_its_own_business():
    assert set(GenerateBody.model_fields) - {"format", "stream"} == set(Wanted.__annotations__)


def test_numbers_of_numpy_are_taken_and_what_json_does_not_hold_is_refused_in_a_sentence(served: Client):
    fields = cast(Any, {"seeds": np.arange(3, 5), "labels": [np.int64(1), None], "steps": np.int32(4)})
    np.testing.assert_array_equal(
        served.generate(**fields).pixels, served.generate(seeds=[3, 4], labels=[1, None], steps=4).pixels
    )
    for wrong in ({"mix": float("nan"), "seed_to": 1}, {"label": b"bag"}, {"seeds": {1, 2}}):
        with pytest.raises(ClientError, match="must be numbers, texts or lists of them") as caught:
            served.generate(**cast(Any, wrong))
        assert (caught.value.code, caught.value.param) == ("wrong_type", next(iter(wrong)))


def test_images_are_those_of_the_api_with_what_it_says_of_them(served: Client, client: httpx.Client):
    made = served.generate(seeds=[7, 3], labels=[1, None], steps=[4, 1])
    np.testing.assert_array_equal(made.pixels, array(client, seeds=[7, 3], labels=[1, None], steps=[4, 1]))
    assert (made.seeds, [image.calls for image in made.images]) == ([7, 3], [4, 1])
    assert (made.model, made.steps, made.strength, made.noise_version, made.mode) == ("tiny", 4, None, 1, "exact")
    assert made.images[0].label == 1 and set(made.timings_ms) == {"queue", "engine", "encode"}
    (one,) = served.generate(seed=7, label=1, steps=4).images
    np.testing.assert_array_equal(one.pixels, made.images[0].pixels)


@pytest.mark.parametrize("mask", [AGAIN, np.where(AGAIN, 255, 0).astype(np.uint8)[..., None]], ids=["bool", "gray"])
def test_an_edit_keeps_what_the_mask_does_not_name(served: Client, mask: Any):
    made = served.edit(PICTURE, mask=mask, seed=4, n=2)
    for image in made.images:
        np.testing.assert_array_equal(image.pixels[~AGAIN, 0], PICTURE[~AGAIN])
    assert made.strength == 1
    file = served.edit(encode(PICTURE[..., None], "png"), mask=encode(AGAIN[..., None] * np.uint8(255), "png"), seed=4)
    np.testing.assert_array_equal(file.images[0].pixels, made.images[0].pixels)
    with pytest.raises(ClientError, match=r"image must be .* not float64 \[8, 8\]") as caught:
        served.edit(cast(Any, PICTURE / 255))
    assert (caught.value.status, caught.value.param) == (0, "image")


def test_a_stream_has_every_call_and_then_all_images(served: Client):
    *previews, last = served.stream(seeds=[7, 8], steps=[4, 2], label=1)
    assert isinstance(last, Images)
    calls = sorted((each.image, each.call, each.calls) for each in previews if isinstance(each, Preview))
    assert calls == [(0, 1, 4), (0, 2, 4), (0, 3, 4), (1, 1, 2), (1, 2, 2)]
    np.testing.assert_array_equal(last.pixels, served.generate(seeds=[7, 8], steps=[4, 2], label=1).pixels)
    finished = next(each for each in previews if isinstance(each, Preview) and (each.image, each.call) == (1, 2))
    np.testing.assert_array_equal(finished.pixels, last.images[1].pixels)
    few = list(served.stream(seeds=[7], steps=4, label=1, previews=1))
    assert [type(event) for event in few] == [Preview, Progress, Progress, Images]
    assert few[1] == Progress(image=0, seed=7, call=2, calls=4)
    first = next(each for each in previews if isinstance(each, Preview) and (each.image, each.call) == (0, 1))
    np.testing.assert_array_equal(cast(Preview, few[0]).pixels, first.pixels)
    with pytest.raises(ClientError, match="previews needs stream: true"):
        served.generate(previews=1)


def test_models_and_health(served: Client):
    (model,) = served.models()
    assert (model.id, model.resolution, model.channels, model.classes, model.edits) == ("tiny", 8, 1, 3, True)
    assert 4 in model.steps and len(model.class_names) in (0, model.classes)
    assert served.health()
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(ClientError, match="gave no answer") as caught:
        nobody.health()
    assert (caught.value.status, caught.value.code) == (0, "unreachable")


def test_what_the_server_refuses_is_one_kind_of_error(served: Client):
    with pytest.raises(ClientError, match="from 1 to 8, not 9") as caught:
        served.generate(steps=9)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "out_of_range", "steps")
    with pytest.raises(ClientError, match="from 1 to 8, not 9"):
        list(served.stream(steps=9))


def test_the_client_for_asyncio_gets_the_same(server: Server, served: Client):
    async def scene() -> None:
        async with AsyncClient(server.url) as client:
            made, edited = await asyncio.gather(client.generate(seed=7, n=3), client.edit(PICTURE, seed=4))
            np.testing.assert_array_equal(made.pixels, served.generate(seed=7, n=3).pixels)
            np.testing.assert_array_equal(edited.pixels, served.edit(PICTURE, seed=4).pixels)
            events = [event async for event in client.stream(seed=7, n=3, steps=2, label=0)]
            assert len(events) == 3 + 2 + 1 and isinstance(events[-1], Images)
            assert await client.models() == served.models() and await client.health()
            with pytest.raises(ClientError, match="not 9"):
                await client.generate(steps=9)

    asyncio.run(scene())


# Answers that the test writes


def refused(status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    error = {"message": "later", "type": "x", "param": None, "code": "queue_full"}
    return httpx.Response(status, headers=headers, json={"error": error})


BODY = {
    "model": "tiny", "steps": 1, "strength": None, "noise_version": 1, "mode": "fast", "timings_ms": {},
    "data": [{
        "b64_json": base64.b64encode(encode(PICTURE[..., None], "npy")).decode(), "seed": 7, "label": None,
        "class_name": None, "calls": 1,
    }],
}  # fmt: skip


def answering(*answers: httpx.Response) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport with one answer for each request, and the requests."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answers[len(seen) - 1]

    return httpx.MockTransport(answer), seen


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client would have waited."""
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(module.time, "sleep", waited.append)
    monkeypatch.setattr(module.asyncio, "sleep", note)
    return waited


def blocking(transport: httpx.MockTransport, patience: Patience) -> Images:
    with Client("http://host", "key", patience=patience, transport=transport) as client:
        return client.generate(seed=7)


def in_a_loop(transport: httpx.MockTransport, patience: Patience) -> Images:
    async def scene() -> Images:
        async with AsyncClient("http://host", "key", patience=patience, transport=transport) as client:
            return await client.generate(seed=7)

    return asyncio.run(scene())


Generate = Callable[[httpx.MockTransport, Patience], Images]


@pytest.mark.parametrize("generate", [blocking, in_a_loop])
def test_a_busy_server_is_asked_again_after_the_time_that_it_names(generate: Generate, waits: list[float]):
    transport, seen = answering(refused(429, {"retry-after": "7"}), refused(503), httpx.Response(200, json=BODY))
    assert generate(transport, Patience()).seeds == [7]
    assert waits == [7, 1] and len({request.content for request in seen}) == 1
    assert {request.headers["authorization"] for request in seen} == {"Bearer key"}


@pytest.mark.parametrize("generate", [blocking, in_a_loop])
@pytest.mark.parametrize(
    ("answers", "patience", "waited"),
    [
        ([(429, "1"), (429, "1")], Patience(retries=1), [1]),
        ([(429, "61")], Patience(), []),
        ([(504, "1")], Patience(), []),
    ],
    ids=["retries", "too long", "not busy"],
)
def test_patience_ends(
    generate: Generate, waits: list[float], answers: list[tuple[int, str]], patience: Patience, waited: list[float]
):
    transport, seen = answering(*(refused(status, {"retry-after": named}) for status, named in answers))
    with pytest.raises(ClientError, match="later") as caught:
        generate(transport, patience)
    assert caught.value.status == answers[-1][0] and waits == waited and len(seen) == len(answers)


@pytest.mark.parametrize("content", [b"<html>", b'{"error": "text"}', b"[]"])
def test_an_answer_of_a_proxy_is_an_error_too(content: bytes):
    transport, _ = answering(httpx.Response(502, content=content))
    with pytest.raises(ClientError, match="http://host/v1/generate answered 502 Bad Gateway") as caught:
        blocking(transport, Patience())
    assert (caught.value.status, caught.value.code) == (502, "unknown_answer")


def test_an_error_within_a_stream_is_raised_and_unknown_events_are_left_out():
    error = {"message": "the network call failed", "type": "x", "param": None, "code": "network_failed"}
    text = f": keepalive\n\nevent: news\ndata: {{}}\n\nevent: error\ndata: {json.dumps({'error': error})}\n\n"
    transport, _ = answering(httpx.Response(200, text=text))
    with Client(transport=transport) as client, pytest.raises(ClientError, match="the network call failed") as caught:
        list(client.stream())
    assert (caught.value.status, caught.value.code) == (0, "network_failed")


def test_without_httpx_the_client_says_what_to_install():
    code = "import sys; sys.modules['httpx'] = None; import fewstep.client"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "httpx is not installed; it comes with [client]:" in done.stderr.splitlines()[-1]
