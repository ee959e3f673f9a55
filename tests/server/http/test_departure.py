"""The departure of a client is told once, whether it was before or after `watch`, and not after `forget`."""

import asyncio

import pytest
from starlette.requests import Request

from server.http.departure import DEPARTURE, Departure, watch
from tests.server.in_process import Site, code_of, play


@pytest.mark.parametrize("order", ["watch happen", "happen watch", "watch forget happen"])
def test_it_is_told_in_either_order_unless_it_was_forgotten(order: str):
    seen: list[str] = []
    departure = Departure(lambda: seen.append("reads on"))
    steps = {
        "watch": lambda: departure.watch(lambda: seen.append("left")),
        "happen": departure.happened,
        "forget": departure.forget,
    }
    for step in order.split():
        steps[step]()
    assert seen == ["reads on"] + ["left"] * ("forget" not in order)


def test_where_the_protocol_does_not_tell_a_task_waits_for_it():
    async def scene() -> None:
        left, told = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

        http = Request({"type": "http"}, receive)
        watch(http, told.set)
        left.set()
        await told.wait()
        assert DEPARTURE not in http.scope and len(asyncio.all_tasks()) == 1

    asyncio.run(scene())


@pytest.mark.parametrize(("leaves", "status", "code"), [(True, 499, None), (False, 503, "draining")])
def test_why_a_request_was_cancelled_is_what_its_host_says(leaves: bool, status: int, code: str | None):
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        site.app.cancelled_when_client_leaves = leaves
        asked = site.generate(b'{"seed": 1}')
        submit = await worker.taken()
        asked.cancel()
        response = await asked
        assert response.status_code == status and (code is None or code_of(response) == code)
        assert await worker.cancelled() == submit.id

    page = play(scenario).get("/metrics").text
    assert ('fewstep_cancelled_total{stage="images"} 1.0' in page) == leaves
