"""The HTTP side of the server in this process: all routes behind the app, and workers that the test plays."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from server.hosts.http_process import HttpProcess
from server.http.app import App
from server.http.routes import Route
from server.processes.messages import Answer, MessageReader, Ready, encode
from server.scheduler.model import ModelInfo
from server.scheduler.request import Cancel, Submit
from server.settings.settings import Settings
from tests.server.fakes import manifest

DEADLINE_S = 60.0  # of a test that waits for what does not come
HOST = "127.0.0.1"
Headers = Mapping[str, str | bytes] | Sequence[tuple[str, str]]


class PlayedWorker:
    """The worker's end of its socket."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.reader = MessageReader()
        self.messages: list[Any] = []

    async def message(self) -> Any:
        while not self.messages:
            data = await asyncio.get_running_loop().sock_recv(self.end, 2**18)
            assert data, "the HTTP side has closed the socket"
            self.messages += self.reader.feed(data)
        return self.messages.pop(0)

    async def taken(self) -> Submit:
        """The next request."""
        message = await self.message()
        assert isinstance(message, Submit)
        return message

    async def cancelled(self) -> int:
        """The next message, which is a Cancel: of what id?"""
        message = await self.message()
        assert isinstance(message, Cancel)
        return message.id

    async def send(self, *answers: Answer) -> None:
        await asyncio.get_running_loop().sock_sendall(self.end, b"".join(map(encode, answers)))


class Site:
    """more: routes beside the server's own. left: set it when clients leave. client: the address of all of them."""

    def __init__(
        self, *, workers: int = 1, models: tuple[str, ...] = ("tiny",), more: Sequence[Route] = (), **settings: Any
    ) -> None:
        self.settings = Settings(dict.fromkeys(models, Path("/nowhere")), workers=workers, **settings)
        server = HttpProcess(self.settings, {name: manifest(name) for name in models}, workers)
        self.pool, self.metrics, self.bodies = server.pool, server.metrics, server.bodies
        self.pool.on_ready, self.pool.on_lost = lambda: None, lambda worker: None  # the parent would hear of both
        self.app = App([*server.routes, *more], self.settings, server.metrics, server.bodies)
        self.workers: dict[int, PlayedWorker] = {}
        self.left = asyncio.Event()
        self.client = HOST

    async def start(self, number: int = 0) -> PlayedWorker:
        """A worker begins a life, not yet warm."""
        ours, far = socket.socketpair()
        self.workers[number] = PlayedWorker(far)
        await self.pool.connect(number, 0, ours)
        return self.workers[number]

    async def warm(self, number: int = 0, tick_s: float = 2.0) -> PlayedWorker:
        """A worker says that it is warm; its network takes tick_s for all slots."""
        worker, slots = self.workers.get(number) or await self.start(number), self.settings.capacity or 8
        info = ModelInfo(tick_s, slots, (slots,), {})
        await worker.send(Ready(dict.fromkeys(self.pool.names, info), 0.1))
        await until(lambda: self.pool.workers[number].ready is not None)
        return worker

    async def die(self, number: int = 0) -> None:
        """What the HTTP side sees of kill -9."""
        life = self.pool.workers[number]
        self.workers[number].end.close()
        await until(lambda: life.dead)

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> httpx.Response:
        """The answer. Its status is 499 where the client has left, and 0 where there was none."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if "host" not in [name for name, _ in pairs]:
            pairs.insert(0, ("host", HOST))
        raw = [(name.encode(), value if isinstance(value, bytes) else value.encode("latin-1")) for name, value in pairs]
        bodies = [body]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "server": (HOST, 80),
            "client": (self.client, 1),
            "method": method,
            "root_path": "",
            "path": path,
            "query_string": b"",
            "headers": raw,
        }
        await self.app(scope, receive, send)
        if not sent:
            return httpx.Response(0)
        content = b"".join(message.get("body", b"") for message in sent)
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=content)

    def get(self, path: str, headers: Headers = (), method: str = "GET") -> httpx.Response:
        return asyncio.run(self.ask(method, path, headers=headers))

    def generate(self, body: bytes = b"{}", headers: Headers = ()) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.ask("POST", "/v1/generate", body, headers))

    def close(self) -> None:
        for worker in self.pool.workers.values():
            worker.link.close()
        for worker in self.workers.values():
            worker.end.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def play(scenario: Callable[[Site], Awaitable[None]], **site: Any) -> Site:
    """A scene with a site; afterwards no task of it is left."""
    found: list[Site] = []

    async def scene() -> None:
        played = Site(**site)
        found.append(played)
        try:
            await asyncio.wait_for(scenario(played), DEADLINE_S)
        finally:
            played.close()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scene())
    return found[0]


def code_of(response: httpx.Response) -> str:
    """Of an error in the one shape that errors have."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error["code"]
