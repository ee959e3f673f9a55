"""The generate route against workers that the test plays itself, over the real pipes."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import Request, Response

from server.http.app import GenerateSpec
from server.processes.admission import Admission
from server.processes.messages import Cancel, Ready, ServedModel, Submit
from server.processes.pipes import Link, WorkerStarted
from server.processes.pool import EngineClient
from server.settings.settings import Settings
from tests.server.fakes import manifest

Scenario = Callable[["Stage"], Awaitable[Any]]


class Stage:
    """The route, its client, and the far ends of the workers' pipes: `links`, by worker."""

    def __init__(self, workers: int, models: tuple[str, ...], settings: dict[str, Any]) -> None:
        settled = Settings(engines=dict.fromkeys(models, Path("unused")), **settings)
        self.announced = 0
        self.client = EngineClient(models, workers, Admission(settled.max_queue), self.announce)
        self.spec = GenerateSpec({name: manifest(name) for name in models}, settled, self.client)
        self.capacity = settled.capacity
        self.workers = workers
        self.links: list[Link] = []
        self.left = asyncio.Event()

    def announce(self) -> None:
        self.announced += 1

    def start(self, worker: int) -> Link:
        """A worker begins a life, not yet warm."""
        link = Link.create()
        self.links[worker : worker + 1] = [link]
        self.client.control(WorkerStarted(worker, link, pid=0))
        return link

    async def warm(self, worker: int, tick_s: float = 2.0) -> None:
        """A worker says that it is warm."""
        served = ServedModel(tick_s, self.capacity, (self.capacity,), {self.capacity: tick_s}, {})
        self.links[worker].answers.send(Ready(dict.fromkeys(self.client.names, served), 0.1))
        await self.until(lambda: self.client.workers[worker].ready is not None)

    async def ready(self) -> None:
        for worker in range(self.workers):
            self.start(worker)
        for worker in range(self.workers):
            await self.warm(worker)

    async def die(self, worker: int) -> None:
        """What the HTTP process sees of kill -9."""
        life = self.client.workers[worker]
        writer = self.links[worker].answers.writer
        assert writer is not None
        writer.close()
        await self.until(lambda: life.dead)

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

    async def taken(self, worker: int = 0) -> Submit:
        """The next request that reaches a worker."""
        message = await asyncio.to_thread(self.links[worker].requests.get)
        assert isinstance(message, Submit)
        return message

    async def cancelled(self, worker: int = 0) -> int:
        """The next message to a worker, which is a Cancel: whose?"""
        message = await asyncio.to_thread(self.links[worker].requests.get)
        assert isinstance(message, Cancel)
        return message.id

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0)

    def close(self) -> None:
        for link in self.links:
            for end in (link.requests.writer, link.answers.writer):  # ends the client's reader threads
                if end and not end.closed:
                    end.close()


def play(scenario: Scenario, *, workers: int = 1, models: tuple[str, ...] = ("tiny",), **settings: Any) -> None:
    async def scene() -> None:
        stage = Stage(workers, models, settings)
        try:
            await asyncio.wait_for(scenario(stage), 60)
        finally:
            stage.close()

    asyncio.run(scene())


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__(selector := _JumpingSelector())
        self.clock = selector

    def time(self) -> float:
        return self.clock.now_s


class _JumpingSelector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(0)
        if not events:
            self.now_s += timeout
        return events
