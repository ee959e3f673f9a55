"""The generate route against a worker that the test plays itself, over the real pipes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from server.admission import Admission
from server.engine_client import EngineClient
from server.errors import CLIENT_GONE, ApiError
from server.lit_spec import GenerateSpec
from server.messages import Cancel, Done, Failed, Ready, Submit
from server.settings import Settings
from server.transport import Link, WorkerGoneError
from tests.server.fakes import manifest

Scenario = Callable[["Stage"], Awaitable[Any]]


class Stage:
    """One route, its client, and the far ends of the pipes."""

    def __init__(self, link: Link, **settings: Any) -> None:
        self.link = link
        self.client = EngineClient(link, on_ready=lambda: None)
        self.spec = GenerateSpec(manifest(), Settings(engine=Path("unused"), **settings), self.client)
        self.left = asyncio.Event()

    async def ready(self) -> None:
        self.client.start(asyncio.get_running_loop())
        self.link.answers.send(Ready(tick_s=2.0))
        while self.client.ready is None:
            await asyncio.sleep(0)

    def post(self, body: bytes = b"{}") -> asyncio.Task[Response]:
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": [], "query_string": b""}
        return asyncio.create_task(self.spec.generate(Request(scope, receive)))

    async def taken(self) -> Submit | Cancel:
        """The next message that reaches the worker."""
        message = await asyncio.to_thread(self.link.requests.get)
        assert message is not None
        return message


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    for end in (link.requests.writer, link.answers.writer):  # ends the client's reader thread
        end.close()


def play(link: Link, scenario: Scenario, **settings: Any) -> None:
    async def scene() -> None:
        stage = Stage(link, **settings)
        await scenario(stage)

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_an_answer_becomes_an_image_and_the_count_returns_to_zero(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 5}')
        submit = await stage.taken()
        assert isinstance(submit, Submit) and submit.request.seed == 5
        assert stage.spec.admission.images == 1
        link.answers.send(Done(submit.id, (b"PNG",), 0.001, 0.002, 0.0005))
        response = await task
        assert (response.status_code, response.body, response.headers["x-seed"]) == (200, b"PNG", "5")
        assert response.headers["server-timing"] == "queue;dur=1.000, engine;dur=2.000, encode;dur=0.500"
        assert (stage.spec.admission.images, stage.client.pending) == (0, {})

    play(link, scenario)


def test_a_client_that_leaves_cancels_its_request(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        stage.left.set()
        assert (await task).status_code == CLIENT_GONE
        assert await stage.taken() == Cancel(submit.id)
        assert (stage.spec.admission.images, stage.client.pending) == (0, {})

    play(link, scenario)


def test_a_request_that_takes_too_long_gets_504_and_is_cancelled(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        with pytest.raises(ApiError) as caught:
            await task
        assert (caught.value.status, caught.value.code) == (504, "timeout")
        assert await stage.taken() == Cancel(submit.id)

    play(link, scenario, timeout_s=0.1)


def test_a_worker_that_dies_answers_503_to_all_who_wait_and_to_all_who_come(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(), stage.post()]
        await stage.taken()
        await stage.taken()
        link.answers.writer.close()
        for task in [*tasks, stage.post()]:
            with pytest.raises(ApiError) as caught:
                await task
            assert (caught.value.status, caught.value.code) == (503, "worker_lost")

    play(link, scenario)


def test_before_the_worker_is_warm_the_answer_is_503(link: Link):
    async def scenario(stage: Stage) -> None:
        with pytest.raises(ApiError) as caught:
            await stage.post()
        assert (caught.value.status, caught.value.code) == (503, "not_ready")

    play(link, scenario)


def test_a_failed_network_call_is_a_500_that_says_so(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        link.answers.send(Failed(submit.id, "network_error", "the network call failed"))
        with pytest.raises(ApiError, match="network call failed") as caught:
            await task
        assert caught.value.status == 500

    play(link, scenario)


def test_a_full_queue_answers_429_until_there_is_room(link: Link):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        first = stage.post(b'{"n": 5, "steps": 8}')
        submit = await stage.taken()
        with pytest.raises(ApiError) as caught:
            await stage.post(b'{"n": 2}')
        # One image too many, 8 rows each, 4 rows per tick of 2 s.
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "4")
        fits = stage.post(b'{"n": 1}')
        assert isinstance(await stage.taken(), Submit)
        stage.left.set()
        await asyncio.gather(first, fits)
        assert isinstance(submit, Submit) and stage.spec.admission.images == 0

    play(link, scenario, capacity=4, max_queue=2, max_images=5)


def test_a_worker_that_no_longer_reads_never_blocks_the_sender(link: Link):
    with pytest.raises(WorkerGoneError, match="stopped taking requests"):
        for number in range(100_000):
            link.requests.put(Cancel(number))


def test_retry_after_is_the_time_the_backlog_needs():
    admission = Admission(capacity=8, limit=64)
    admission.enter(64, 4, tick_s=0.5)
    assert admission.retry_after_s(excess=64, tick_s=0.5) == 16  # 256 rows, 8 per half second
    assert admission.retry_after_s(excess=1, tick_s=0.5) == 1
    admission.leave(64, 4)
    assert (admission.images, admission.rows) == (0, 0)
