"""The generate route against workers that the test plays itself, over the real sockets."""

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.http.dialects.native import NativeDialect
from server.processes.admission import Admission
from server.processes.messages import Answer, Ready
from server.processes.pipes import HttpLinks
from server.processes.pool import WorkerPool
from server.scheduler.events import Finished
from server.scheduler.model import ModelInfo
from server.scheduler.request import Cancel, Submit
from server.settings.settings import Settings
from tests.server.fakes import manifest

Scenario = Callable[["Stage"], Awaitable[Any]]


class PlayedWorker:
    """The far end of one worker's socket, in one life."""

    def __init__(self) -> None:
        self.http_end, self.end = socket.socketpair()
        self.links = HttpLinks([self.end])
        self.messages: deque[Submit | Cancel] = deque()  # received and not yet looked at

    def send(self, *answers: Answer) -> None:
        self.links.send(answers)

    def get(self) -> Submit | Cancel:
        """The next message. Blocks."""
        while not self.messages:
            taken = self.links.take(60)
            assert taken, "no message came"
            self.messages += taken
        return self.messages.popleft()


class Stage:
    """The route, its pool, and the workers that the test plays, by number."""

    def __init__(self, workers: int, models: tuple[str, ...], settings: dict[str, Any]) -> None:
        settled = Settings(engines=dict.fromkeys(models, Path("unused")), **settings)
        self.announced = 0
        self.lost: list[int] = []  # process ids of workers that the pool has lost
        self.admission = Admission(settled.max_queue, models)
        self.pool = WorkerPool(
            models, workers, self.admission, self.announce, lambda worker: self.lost.append(worker.pid)
        )
        self.dialect = NativeDialect({name: manifest(name) for name in models}, settled, self.pool)
        self.capacity = settled.capacity or 8
        self.workers: list[PlayedWorker] = []
        self.count = workers
        self.left = asyncio.Event()

    def announce(self) -> None:
        self.announced += 1

    async def start(self, worker: int) -> PlayedWorker:
        """A worker begins a life, not yet warm."""
        played = PlayedWorker()
        self.workers[worker : worker + 1] = [played]
        await self.pool.connect(worker, 1000 + worker, played.http_end)
        return played

    async def warm(self, worker: int, tick_s: float = 2.0) -> None:
        """A worker says that it is warm."""
        info = ModelInfo(tick_s, self.capacity, (self.capacity,), {})
        self.workers[worker].send(Ready(dict.fromkeys(self.pool.names, info), 0.1))
        await self.until(lambda: self.pool.workers[worker].ready is not None)

    async def ready(self) -> None:
        for worker in range(self.count):
            await self.start(worker)
        for worker in range(self.count):
            await self.warm(worker)

    async def die(self, worker: int) -> None:
        """What the HTTP process sees of kill -9."""
        life = self.pool.workers[worker]
        self.workers[worker].end.close()
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
        return asyncio.create_task(self.dialect.generate(Request(scope, receive)))

    async def taken(self, worker: int = 0) -> Submit:
        """The next request that reaches a worker."""
        message = await asyncio.to_thread(self.workers[worker].get)
        assert isinstance(message, Submit)
        return message

    async def cancelled(self, worker: int = 0) -> int:
        """The next message to a worker, which is a Cancel: whose?"""
        message = await asyncio.to_thread(self.workers[worker].get)
        assert isinstance(message, Cancel)
        return message.id

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0)

    def close(self) -> None:
        for worker in self.workers:
            worker.end.close()


def done(submit: Submit, seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Finished:
    """The answer to a request; its images say which seeds they are of. seconds: queue, engine, encoder."""
    images = tuple(f"image of {seed}".encode() for seed in submit.request.seeds)
    return Finished(submit.id, submit.request.format, images, *seconds)


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
