"""A real `python -m server` on a tiny engine, over loopback."""

import base64
import io
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.noise import NOISE_VERSION, noise_for, random_labels
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from tests.server.conftest import DEADLINE_S, Server, serving
from tests.server.fakes import CLASSES, LEVELS, SHAPE


def generate(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/generate", json=fields)


def test_one_image_comes_as_bytes_with_everything_needed_to_make_it_again(client: httpx.Client):
    response = generate(client, steps=3, seed=7, label="ankle boot")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    headers = {name: response.headers[name] for name in ("x-seed", "x-steps", "x-label", "x-mode")}
    assert headers == {"x-seed": "7", "x-steps": "3", "x-label": "1", "x-mode": "exact"}
    assert response.headers["x-noise-version"] == str(NOISE_VERSION)
    assert re.fullmatch(r"queue;dur=[\d.]+, engine;dur=[\d.]+, encode;dur=[\d.]+", response.headers["server-timing"])
    image = Image.open(io.BytesIO(response.content))
    assert (image.size, image.mode) == ((8, 8), "L")
    assert generate(client, steps=3, seed=7, label=1).content == response.content


def test_the_pixels_are_those_of_the_sampler_over_the_same_engine(client: httpx.Client, engine_dir: Any):
    from export.engine import load_engine

    pixels = np.load(io.BytesIO(generate(client, steps=4, seed=9, label=2, format="npy").content))
    denoiser = load_engine(engine_dir, threads=1).denoiser
    labels = np.array([2])
    sample = sample_dpdm(lambda x, sigma: denoiser(x, sigma, labels), noise_for([9], SHAPE), LEVELS[4])
    assert np.abs(pixels.astype(int) - to_pixels(sample.images)[0]).max() <= 1  # batch 1 there, 8 here


@pytest.mark.parametrize(("format", "media"), [("png", "image/png"), ("webp", "image/webp")])
def test_lossless_formats_agree_with_the_raw_array(client: httpx.Client, format: str, media: str):
    raw = np.load(io.BytesIO(generate(client, seed=1, format="npy").content))
    response = generate(client, seed=1, format=format)
    assert response.headers["content-type"] == media
    shown = np.asarray(Image.open(io.BytesIO(response.content)).convert("L"))
    np.testing.assert_array_equal(shown, raw[..., 0])


def test_several_images_come_as_json_and_image_i_is_the_image_of_seed_plus_i(client: httpx.Client):
    body = generate(client, n=20, seed=40, steps=2).json()
    assert (body["model"], body["steps"], body["mode"]) == ("tiny", 2, "exact")
    assert (body["media_type"], body["noise_version"]) == ("image/png", NOISE_VERSION)
    assert set(body["timings_ms"]) == {"queue", "engine", "encode"}
    assert [entry["seed"] for entry in body["data"]] == list(range(40, 60))
    labels = random_labels(range(40, 60), CLASSES).tolist()
    assert [entry["label"] for entry in body["data"]] == labels
    names = ["Bag", "Ankle boot", "Coat"]
    assert [entry["class_name"] for entry in body["data"]] == [names[label] for label in labels]
    for i in (0, 7, 19):
        single = generate(client, seed=40 + i, steps=2)
        assert single.content == base64.b64decode(body["data"][i]["b64_json"])


def test_a_client_may_ask_for_json_for_one_image(client: httpx.Client):
    response = client.post("/v1/generate", json={"seed": 3}, headers={"Accept": "application/json"})
    (entry,) = response.json()["data"]
    assert base64.b64decode(entry["b64_json"]) == generate(client, seed=3).content


def test_a_seed_that_was_drawn_is_returned_and_repeats_the_image(client: httpx.Client):
    response = client.post("/v1/generate")
    again = generate(client, seed=int(response.headers["x-seed"]))
    assert again.content == response.content


def test_exact_mode_gives_the_same_bytes_alone_and_among_thirty_mixed_requests(server: Server):
    requests = [{"seed": 100 + i, "steps": (1, 2, 3, 8)[i % 4], "n": 1 + i % 3} for i in range(30)]
    target = {"seed": 7, "steps": 5, "label": 1}
    with server.client() as client:
        alone = generate(client, **target).content

        def post(fields: dict[str, Any]) -> httpx.Response:
            return generate(client, **fields)

        with ThreadPoolExecutor(31) as pool:
            answers = list(pool.map(post, [*requests[:15], target, *requests[15:]]))
    assert [answer.status_code for answer in answers] == [200] * 31
    assert answers[15].content == alone
    for fields, answer in zip(requests, [*answers[:15], *answers[16:]], strict=True):
        if fields["n"] == 1:
            assert answer.headers["x-seed"] == str(fields["seed"])
        else:
            assert len(answer.json()["data"]) == fields["n"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/generate", b"{", 400, "malformed_json"),
        ("POST", "/v1/generate", b'{"steps": 9}', 400, "out_of_range"),
        ("POST", "/v1/generate", b'{"steps": 7}', 400, "unsupported_steps"),
        ("POST", "/v1/generate", b'{"stepz": 1}', 400, "unknown_field"),
        ("POST", "/v1/generate", b'{"model": "x"}', 404, "model_not_found"),
        ("POST", "/v1/generate", b" " * 6_000_000, 413, "body_too_large"),
        ("GET", "/v1/generate", b"", 405, "method_not_allowed"),
        ("GET", "/predict", b"", 404, "not_found"),
        ("POST", "/livez", b"", 405, "method_not_allowed"),
    ],
)
def test_refusals_have_one_shape(client: httpx.Client, method: str, path: str, body: bytes, status: int, code: str):
    response = client.request(method, path, content=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]


def test_a_chunked_body_that_never_ends_gets_413(client: httpx.Client):
    def chunks() -> Iterator[bytes]:
        for _ in range(1_000):
            yield b" " * 10_240

    assert client.post("/v1/generate", content=chunks()).status_code == 413
    assert generate(client, seed=1).status_code == 200


def test_request_ids_are_kept_when_sane_and_replaced_when_not(client: httpx.Client):
    assert client.get("/livez", headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    replaced = client.get("/nowhere", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", replaced)


def test_models_lists_what_a_client_needs_to_ask_well(client: httpx.Client):
    body = client.get("/v1/models").json()
    (model,) = body["data"]
    assert body["object"] == "list"
    assert (model["id"], model["classes"], model["class_names"]) == ("tiny", 3, ["Bag", "Ankle boot", "Coat"])
    assert (model["resolution"], model["channels"]) == (8, 1)
    assert model["steps"] == [1, 2, 3, 4, 5, 6, 8]
    assert model["levels"]["1"] == list(LEVELS[1])
    assert (model["mode"], model["backend"], model["checkpoint"]) == ("exact", "onnxruntime-cpu", "c" * 64)


def test_probes_and_page(client: httpx.Client):
    assert client.get("/livez").text == client.get("/readyz").text == "ok\n"
    assert client.head("/readyz").status_code == 200
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.text), "the page must not load anything from elsewhere"


def test_no_process_of_the_server_has_loaded_torch(server: Server, client: httpx.Client):
    assert generate(client, seed=1).status_code == 200
    children = server.children()
    assert len(children) == 2
    loaded = {child.pid: " ".join(m.path for m in child.memory_maps()) for child in children}
    assert all("libtorch" not in maps for maps in loaded.values())
    assert sum("onnxruntime" in maps for maps in loaded.values()) == 1, "only the worker needs the engine"


def test_a_client_that_still_sends_its_body_when_the_server_stops_is_answered(engine_dir: Path):
    with serving(engine_dir, "--grace-s", "0") as server:
        url = urlsplit(server.url)
        head = (
            f"POST /v1/generate HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection((url.hostname, url.port), DEADLINE_S) as connection:
            connection.sendall(head.encode() + b"{")
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # its body is being read
            server.process.send_signal(signal.SIGTERM)
            received = b""
            while piece := connection.recv(65_536):
                received += piece
        assert received.startswith(b"HTTP/1.1 503 ") and b'"code": "draining"' in received
        assert server.process.wait(DEADLINE_S) == 0
        assert server.process.stderr is not None and "Traceback" not in server.process.stderr.read()
