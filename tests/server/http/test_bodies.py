"""The bytes of all bodies together have a limit, those of one address a lower one; all are given back at the end."""

import asyncio
from typing import Any

import pytest

from server.http.bodies import AT_ONCE, UNCOUNTED_BYTES, Bodies, holder
from server.http.edits import MIN_BODY_LIMIT
from server.scheduler.refusal import Refusal
from tests.server.in_process import Site, code_of, play

LARGE = UNCOUNTED_BYTES + 1_000


def test_bytes_beyond_the_first_of_each_body_are_counted_until_it_is_released():
    async def scene() -> None:
        bodies = Bodies(1_000)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(UNCOUNTED_BYTES // 2 + 400), "more_body": True}

        one, other = bodies.counted(receive), bodies.counted(receive)
        for body, held in ((one, 0), (one, 800), (other, 800)):
            await body.receive()
            assert bodies.held == held
        with pytest.raises(Refusal, match="more than 1000 bytes") as caught:
            await other.receive()
        assert (caught.value.kind, caught.value.code, caught.value.retry_after_s) == ("full", "bodies_full", 1)
        other.release()
        assert bodies.held == 800
        one.release()
        one.release()
        assert bodies.held == 0

    asyncio.run(scene())


def test_a_server_holds_as_many_bodies_as_a_multiple_of_the_largest():
    assert Site().bodies.most_bytes == AT_ONCE * MIN_BODY_LIMIT
    few = Site(max_body_bytes=200_000, body_share=1 / AT_ONCE).bodies
    assert few.most_bytes == AT_ONCE * 200_000 and few.most_bytes * few.share == 200_000


def test_bodies_are_held_while_images_are_made_and_no_longer():
    async def scenario(site: Site) -> None:
        site.bodies.most_bytes, site.bodies.share = 1_500, 1.0
        worker = await site.warm()
        body = b"{}" + b" " * (LARGE - 2)
        first = site.generate(body)
        submit = await worker.taken()
        assert site.bodies.held == 1_000
        refused = await site.ask("POST", "/v1/generate", body)
        assert (refused.status_code, code_of(refused), refused.headers["retry-after"]) == (429, "bodies_full", "1")
        small = site.generate(b"{}")
        await worker.taken()
        assert site.bodies.held == 1_000
        site.left.set()
        assert [(await each).status_code for each in (first, small)] == [499, 499]
        assert site.bodies.held == 0 and submit.request.images == 1

    play(scenario)


def test_one_address_cannot_keep_the_others_out():
    async def scenario(site: Site) -> None:
        site.bodies.most_bytes = 4_000  # of which one address may hold a quarter
        worker = await site.warm()
        body = b"{}" + b" " * (LARGE - 2)
        site.client = "2001:db8::1"
        first = site.generate(body)
        await worker.taken()
        site.client = "2001:db8::ffff:2"  # of the same site
        refused = await site.ask("POST", "/v1/generate", body)
        assert (refused.status_code, code_of(refused), refused.headers["retry-after"]) == (429, "bodies_full", "1")
        assert "from your address together have more than 1000 bytes" in refused.json()["error"]["message"]
        site.client = "2001:db8:0:1::1"
        other = site.generate(body)
        await worker.taken()
        assert site.bodies.held == 2_000
        site.left.set()
        assert [(await each).status_code for each in (first, other)] == [499, 499]
        assert site.bodies.held == 0 and not site.bodies.held_by

    play(scenario)


@pytest.mark.parametrize(
    ("address", "shared_with"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("what a proxy wrote", "what a proxy wrote"),
    ],
)
def test_whose_room_an_address_takes(address: str, shared_with: str):
    assert holder(address) == shared_with
