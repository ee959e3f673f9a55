"""Images behind urls: how long and how many are kept, and what is said of the others."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.datastructures import QueryParams

from server.http.kept_images import PATH, Kept, KeptImages
from server.scheduler.events import Finished
from server.scheduler.refusal import Refusal
from tests.server.in_process import Site, code_of, play

ADDRESS = "http://host:8000"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def find(images: KeptImages, url: str) -> Kept:
    address, _, query = url.partition("?")
    assert address == ADDRESS + PATH
    return images.find(QueryParams(query))


def refusal(images: KeptImages, url: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        find(images, url)
    return caught.value


def test_an_image_is_found_until_its_url_expires():
    clock = Clock()
    images = KeptImages(100, 10, clock)
    first, second = images.keep([b"first", b"second"], "png", ADDRESS)
    clock.now += 9
    (webp,) = images.keep([b"RIFF"], "webp", ADDRESS)
    assert (find(images, first).content, find(images, second).content) == (b"first", b"second")
    assert (find(images, webp).media_type, find(images, first).media_type) == ("image/webp", "image/png")
    clock.now += 1
    error = refusal(images, first)
    assert (error.kind, error.code) == ("gone", "url_expired") and "kept for 10 s" in error.message
    images.drop()
    assert (len(images.images), images.bytes) == (1, 4) and find(images, webp).content == b"RIFF"


def test_the_oldest_images_make_room_and_no_more_bytes_are_kept_than_allowed():
    images = KeptImages(10, 60, Clock())
    urls = [images.keep([bytes([number] * 4)], "png", ADDRESS)[0] for number in range(3)]
    error = refusal(images, urls[0])
    assert (error.kind, error.code) == ("gone", "url_dropped") and "10 bytes" in error.message
    assert [find(images, url).content[0] for url in urls[1:]] == [1, 2] and images.bytes == 8
    with pytest.raises(Refusal, match="the images have 11 bytes, and the server keeps at most 10") as caught:
        images.keep([bytes(6), bytes(5)], "png", ADDRESS)
    assert caught.value.kind == "invalid" and images.bytes == 8


@pytest.mark.parametrize("change", ["image=", "expires=", "signature="])
def test_a_url_that_was_changed_leads_nowhere(change: str):
    images = KeptImages(10, 60, Clock())
    (url,) = images.keep([b"png"], "png", ADDRESS)
    for wrong in (
        url.replace(change, change + "1"),
        url.replace(change, "other="),
        f"{ADDRESS}{PATH}?{change}\xff%ff",
    ):
        assert refusal(images, wrong).code == "wrong_signature"
    assert refusal(KeptImages(10, 60, Clock()), url).code == "wrong_signature", "of another server"


def test_expired_images_are_forgotten_without_a_request():
    clock = Clock()
    images = KeptImages(10, 0.001, clock)

    async def scene() -> None:
        images.keep([b"png"], "png", ADDRESS)
        images.drop_in_time()
        clock.now += 60
        assert images.timer is not None
        images.timer.cancel()
        images._on_time()
        assert (images.images, images.bytes, images.timer) == ({}, 0, None)

    asyncio.run(scene())


async def made(site: Site, body: dict[str, Any], images: tuple[bytes, ...]) -> httpx.Response:
    """The answer to a request, whose images the test makes."""
    worker = await site.warm()
    task = asyncio.create_task(site.ask("POST", "/v1/images/generations", json.dumps(body).encode()))
    submit = await worker.taken()
    await worker.send(Finished(submit.id, submit.request.format, images, 0.0, 0.0))
    return await task


def test_what_the_server_cannot_keep_is_refused_once_it_is_made():
    async def scenario(site: Site) -> None:
        answer = await made(site, {"response_format": "url"}, (bytes(2**20 + 1),))
        assert (answer.status_code, code_of(answer)) == (400, "out_of_range")
        answer = await made(site, {"response_format": "url", "seed": 5}, (b"PNG",))
        (entry,) = answer.json()["data"]
        assert entry["url"].startswith(f"http://127.0.0.1{PATH}?image=") and entry["seed"] == 5

    play(scenario, url_bytes=2**20)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"api_processes": 2}, "one of the 2 HTTP processes"), ({"url_bytes": 0}, "keeps no images")],
)
def test_where_a_url_could_lead_nowhere_it_is_refused_before_anything_is_made(settings: dict[str, Any], words: str):
    site = Site(**settings)
    answer = asyncio.run(site.ask("POST", "/v1/images/generations", b'{"response_format": "url"}'))
    assert (answer.status_code, code_of(answer)) == (400, "unsupported_response_format")
    assert words in answer.json()["error"]["message"] and answer.json()["error"]["param"] == "response_format"
    assert site.get(PATH).status_code == 404
