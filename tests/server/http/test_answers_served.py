"""Forms of the answer to POST /v1/generate, from a real server: lists, levels of one's own, sheets, zips, streams."""

import base64
import io
import json
import socket
import zipfile
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from fewstep.noise import noise_for
from fewstep.pixels import KEYWORD, grid, text_of, to_pixels
from fewstep.samplers import sample_dpdm
from tests.server.conftest import DEADLINE_S, Server
from tests.server.fakes import LEVELS, SHAPE


def generate(client: httpx.Client, accept: str = "*/*", **fields: Any) -> httpx.Response:
    answer = client.post("/v1/generate", json=fields, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def array(client: httpx.Client, **fields: Any) -> np.ndarray:
    return np.load(io.BytesIO(generate(client, "application/x-npy", **fields).content))


LISTS = {"seeds": [7, 3, 7, 9, 1], "labels": [1, 0, 2, "coat", "bag"], "steps": [4, 1, 8, 2, 4]}


def test_images_of_lists_are_those_of_single_requests_to_the_byte(client: httpx.Client):
    body = generate(client, **LISTS).json()
    assert [entry["calls"] for entry in body["data"]] == LISTS["steps"]
    for index, entry in enumerate(body["data"]):
        fields = {name[:-1] if name != "steps" else name: values[index] for name, values in LISTS.items()}
        assert base64.b64decode(entry["b64_json"]) == generate(client, "image/png", **fields).content


def test_several_images_come_as_an_array_a_sheet_or_a_zip(client: httpx.Client):
    pixels = array(client, **LISTS)
    assert pixels.shape == (5, 8, 8, 1)
    for index, seed in enumerate(LISTS["seeds"]):
        single = array(client, seed=seed, label=LISTS["labels"][index], steps=LISTS["steps"][index])
        np.testing.assert_array_equal(pixels[index], single)
    for media_type in ("image/png", "image/webp"):
        sheet = generate(client, media_type, **LISTS)
        assert sheet.headers["content-type"] == media_type
        shown = np.asarray(Image.open(io.BytesIO(sheet.content)).convert("L"))
        np.testing.assert_array_equal(shown, grid(pixels, 3)[..., 0])
    with zipfile.ZipFile(io.BytesIO(generate(client, "application/zip", **LISTS).content)) as archive:
        assert archive.namelist() == [f"{i:03d}-seed-{seed}.png" for i, seed in enumerate(LISTS["seeds"])]
        shown = np.asarray(Image.open(io.BytesIO(archive.read("002-seed-7.png"))))
    np.testing.assert_array_equal(shown, pixels[2, ..., 0])
    with zipfile.ZipFile(io.BytesIO(generate(client, "application/zip", format="webp", seed=4).content)) as archive:
        assert archive.namelist() == ["000-seed-4.webp"]


def test_levels_of_ones_own_are_those_of_the_network_calls(client: httpx.Client, engine_dir: Any):
    from export.engine import load_engine

    sigmas, labels = [80.0, 5.5, 1.25], np.array([2])
    denoiser = load_engine(engine_dir, threads=1).denoiser
    sample = sample_dpdm(lambda x, sigma: denoiser(x, sigma, labels), noise_for([9], SHAPE), sigmas)
    pixels = array(client, seed=9, label=2, sigmas=sigmas)
    assert np.abs(pixels.astype(int) - to_pixels(sample.images)[0]).max() <= 1  # batch 1 there, 8 here
    answer = generate(client, seed=9, label=2, sigmas=list(LEVELS[4]))
    assert answer.headers["x-calls"] == "4"
    assert answer.content == generate(client, seed=9, label=2, steps=4).content
    assert generate(client, seed=9, sigmas=[80.0 - level for level in range(7)]).headers["x-steps"] == "7"


def test_a_png_says_what_it_was_made_of(client: httpx.Client):
    def text(**fields: Any) -> dict[str, Any]:
        return json.loads(text_of(generate(client, "image/png", **fields).content, KEYWORD) or "")

    made = {"model": "tiny", "checkpoint": "c" * 12, "noise_version": 1, "seed": 5, "label": 1, "steps": 2}
    assert text(seed=5, label=1, steps=2) == made
    assert text(seed=5, label=1, sigmas=[80, 1.5]) == {**made, "sigmas": [80.0, 1.5]}
    entries = generate(client, seeds=[6, 5], label=1, steps=[4, 2]).json()["data"]
    assert [json.loads(text_of(base64.b64decode(each["b64_json"]), KEYWORD) or "") for each in entries] == [
        {**made, "seed": 6, "steps": 4}, made,
    ]  # fmt: skip
    picture = base64.b64encode(generate(client, seed=1).content).decode()
    assert text(seed=5, label=1, steps=4, image=picture)["edit"] is True


def events(content: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in content.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_stream_has_the_previews_of_every_image_and_then_the_json(client: httpx.Client):
    streamed = generate(client, stream=True, seeds=[7, 8], steps=[4, 2], label=1)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *before, (name, last) = events(streamed.text)
    previews = [(name, data) for name, data in before if name == "preview"]
    ((_, first),) = [(name, data) for name, data in before if name == "image"]
    assert name == "images" and len(before) == len(previews) + 1
    assert sorted((each["image"], each["call"], each["calls"]) for _, each in previews) == [
        (0, 1, 4), (0, 2, 4), (0, 3, 4), (1, 1, 2),
    ]  # fmt: skip
    assert all(base64.b64decode(each["b64_json"]).startswith(b"\x89PNG") for _, each in previews)
    plain = generate(client, seeds=[7, 8], steps=[4, 2], label=1).json()
    assert last["data"] == plain["data"]
    assert (first["image"], first["call"], first["b64_json"]) == (1, 2, plain["data"][1]["b64_json"]), (
        "it had fewer calls to make"
    )
    assert events(generate(client, "text/event-stream", seed=7, steps=1).text)[0][0] == "images"


def test_a_stream_has_as_many_previews_as_it_asks_for_and_the_same_images(client: httpx.Client):
    body = {"stream": True, "seeds": [7, 8], "steps": [8, 2], "label": 1}
    every = {(name, each["image"], each["call"]): each for name, each in events(generate(client, **body).text)[:-1]}
    for count, shown in ((0, []), (2, [(0, 1), (0, 4), (1, 1)])):
        *before, (_, last) = events(generate(client, **body, previews=count).text)
        previews = {(each["image"], each["call"]): each for name, each in before if name == "preview"}
        progress = {(each["image"], each["call"]): each for name, each in before if name == "progress"}
        assert sorted(previews) == shown
        assert all(every["preview", *place] == each for place, each in previews.items())
        assert sorted([*previews, *progress]) == [(0, call) for call in range(1, 8)] + [(1, 1)]
        for (image, call), each in progress.items():
            assert each == {"image": image, "seed": 7 + image, "label": 1, "call": call, "calls": (8, 2)[image]}
        assert [each for name, each in before if name == "image"] == [every["image", 1, 2]]
        assert len(before) == len(previews) + len(progress) + 1
    assert last["data"] == generate(client, seeds=[7, 8], steps=[8, 2], label=1).json()["data"]


def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_its_connection(server: Server):
    address, body = urlsplit(server.url), b'{"stream": true, "seed": 7, "steps": 4}'
    head = f"POST /v1/generate HTTP/1.0\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = b""
    with socket.create_connection((address.hostname, address.port), DEADLINE_S) as connection:
        connection.sendall(head.encode() + body)
        while data := connection.recv(65536):
            answer += data
    head, _, content = answer.decode().partition("\r\n\r\n")
    assert "transfer-encoding" not in head.lower() and "connection: close" in head
    assert [name for name, _ in events(content)] == ["preview"] * 3 + ["images"]
