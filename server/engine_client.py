"""The engine worker as the HTTP process sees it: submit, await, cancel, and know when it is gone."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable

from server.errors import ApiError, unavailable
from server.messages import Answer, Cancel, Done, Failed, Ready, Submit
from server.requests import GenerateRequest
from server.transport import Link, WorkerGoneError


class EngineClient:
    """Lives on the event loop; one daemon thread reads the answer pipe and wakes the loop."""

    def __init__(self, link: Link, on_ready: Callable[[], None]) -> None:
        self.link = link
        self.on_ready = on_ready
        self.ready: Ready | None = None
        self.lost = False
        self.pending: dict[int, asyncio.Future[Done]] = {}
        self.ids = itertools.count()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        threading.Thread(target=self._read, args=(loop,), name="answers", daemon=True).start()

    def check_ready(self) -> Ready:
        """Raises ApiError 503 unless the worker is warm and alive."""
        if self.lost:
            raise unavailable("the engine worker has died; the server is stopping", code="worker_lost")
        if self.ready is None:
            raise unavailable("the model is still loading; try again in a second", code="not_ready")
        return self.ready

    def submit(self, request: GenerateRequest) -> tuple[int, asyncio.Future[Done]]:
        """Hand a request to the worker. The future ends in Done or an ApiError; `forget` must follow."""
        self.check_ready()
        number = next(self.ids)
        try:
            self.link.requests.put(Submit(number, request, time.monotonic()))
        except WorkerGoneError as error:
            raise unavailable(str(error), code="worker_lost") from error
        future = self.pending[number] = asyncio.get_running_loop().create_future()
        return number, future

    def forget(self, number: int) -> None:
        """End interest in a request. If it still runs, it is cancelled: its slots are free within a step."""
        future = self.pending.pop(number)
        if future.done() or self.lost:
            return
        future.cancel()
        try:
            self.link.requests.put(Cancel(number))
        except WorkerGoneError:  # a dead worker holds no slots
            return

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while (answer := self.link.answers.receive()) is not None:
                loop.call_soon_threadsafe(self._arrived, answer)
            loop.call_soon_threadsafe(self._gone)
        except RuntimeError:  # the event loop is closed: the server has stopped and nobody waits
            return

    def _arrived(self, answer: Answer) -> None:
        if isinstance(answer, Ready):
            self.ready = answer
            self.on_ready()
            return
        future = self.pending.get(answer.id)
        if future is None or future.done():  # cancelled while its answer was on the way
            return
        if isinstance(answer, Failed):
            future.set_exception(ApiError(500, answer.message, code=answer.code))
        else:
            future.set_result(answer)

    def _gone(self) -> None:
        self.lost = True
        for future in self.pending.values():
            if not future.done():
                message = "the engine worker died while making this image; the same seed gives the same image again"
                future.set_exception(unavailable(message, code="worker_lost"))
