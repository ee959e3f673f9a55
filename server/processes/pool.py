"""The engine workers as the HTTP process sees them: submit, await, cancel, and outlive the death of one."""

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from server.http.dialects.native import GenerateRequest
from server.http.errors import ApiError, unavailable
from server.processes.admission import Admission, Room
from server.processes.messages import (
    MODEL_FAILING,
    Answer,
    Cancel,
    Done,
    Failed,
    Health,
    Loading,
    Ready,
    ServedModel,
    Stats,
    Submit,
)
from server.processes.pipes import GaveUp, Link, WorkerGoneError, WorkerStarted
from server.scheduler.stats import gone, together

logger = logging.getLogger(__name__)

MAX_REPLAYS = 1  # a request that has seen this many workers die, and one more, may well be the cause

STATUS = {"timeout": 504}  # of a Failed by its code; 500 otherwise


@dataclass(eq=False)
class Worker:
    """One life of one worker."""

    number: int
    link: Link
    pid: int
    loading: str | None = None  # the last model it has begun to load
    ready: Ready | None = None
    dead: bool = False
    failing: set[str] = field(default_factory=set)  # models whose network calls keep failing
    backlog_s: float = 0.0  # device time of what it was given and has not answered
    silent_checks: int = 0  # of server.processes.watchdog, since it said something

    def serves(self, model: str) -> bool:
        return self.ready is not None and not self.dead and model not in self.failing

    def work_s(self, request: GenerateRequest) -> float:
        """Device time of a request."""
        assert self.ready is not None
        return request.images * request.calls * row_s(self.ready.models[request.model])


@dataclass(eq=False)
class _Pending:
    """A request that has no answer yet."""

    submit: Submit
    future: asyncio.Future[Done]
    worker: Worker | None = None  # None: waits for a worker to come back
    work_s: float = 0.0
    replays: int = 0


class EngineClient:
    """Lives on the event loop; one daemon thread per worker reads the answer pipe and wakes the loop.

    models: names of what every worker serves. workers: how many there will be.
    on_ready: called once, when all of them are warm.
    """

    def __init__(
        self, models: Collection[str], workers: int, admission: Admission, on_ready: Callable[[], None]
    ) -> None:
        self.names = models
        self.expected = workers
        self.admission = admission
        self.on_ready = on_ready
        self.started = False  # all workers have been warm at the same time
        self.lost = False  # no worker will come back
        self.draining = False  # set when the server is told to stop
        self.models: dict[str, ServedModel] = {}  # as some worker serves them; the last to become warm
        self.workers: dict[int, Worker] = {}  # the present life of each
        self.stats: dict[int, Stats] = {}  # by worker number, over all its lives
        self.restarts = 0
        self.pending: dict[int, _Pending] = {}
        self.ids = itertools.count()
        self.past: dict[int, Stats] = {}  # of the lives that have ended

    def control(self, message: WorkerStarted | GaveUp) -> None:
        """What the parent says. Call on the event loop."""
        if isinstance(message, GaveUp):
            self.lost = True
            self.fail_all("the engine workers keep dying; the server is stopping", "worker_lost")
            return
        worker = Worker(message.worker, message.link, message.pid)
        self.restarts += message.worker in self.workers
        self.workers[message.worker] = worker
        arguments = (worker, asyncio.get_running_loop())
        threading.Thread(target=self._read, args=arguments, name="answers", daemon=True).start()

    def check_ready(self, model: str | None = None) -> None:
        """Raises ApiError 503 unless a request for this model, or for any, would be served."""
        if self.lost:
            raise unavailable("the engine workers keep dying; the server is stopping", code="worker_lost")
        if self.draining:
            raise unavailable("the server is stopping; send the request to another one", code="draining")
        if not self.started:
            raise unavailable("the model is still loading; try again in a second", code="not_ready")
        if not any(worker.ready and not worker.dead for worker in self.workers.values()):
            message = "the engine worker has died and is being restarted; try again in a second"
            raise unavailable(message, code="worker_lost")
        for name in self.names if model is None else (model,):
            if not any(worker.serves(name) for worker in self.workers.values()):
                raise unavailable(_failing(name), code=MODEL_FAILING)

    def submit(self, request: GenerateRequest) -> tuple[int, asyncio.Future[Done]]:
        """Hand a request to the worker with the least to do.

        The future ends in Done or an ApiError; `forget` must follow. Raises ApiError 503 when none takes it.
        """
        self.check_ready(request.model)
        number, now = next(self.ids), time.monotonic()
        submit = Submit(number, request, now, now + request.timeout_s)
        entry = _Pending(submit, asyncio.get_running_loop().create_future())
        if not self._give(entry):
            raise unavailable("the engine worker has stopped taking requests", code="worker_lost")
        self.pending[number] = entry
        return number, entry.future

    def forget(self, number: int) -> None:
        """End interest in a request. If it still runs, it is cancelled: its slots are free within a step."""
        entry = self.pending.pop(number)
        self._take_back(entry)
        if entry.future.done():
            return
        entry.future.cancel()
        if entry.worker and not entry.worker.dead:
            try:
                entry.worker.link.requests.put(Cancel(number))
            except WorkerGoneError:  # a dead worker holds no slots
                return

    def owed(self) -> Counter[Worker]:
        """How many answers each worker owes; those that owe none are left out."""
        return Counter(entry.worker for entry in self.pending.values() if entry.worker and not entry.future.done())

    def fail_all(self, message: str, code: str) -> None:
        """Answer 503 to everyone who waits."""
        for entry in self.pending.values():
            self._fail(entry, message, code)

    def _give(self, entry: _Pending) -> bool:
        """To the worker with the least to do; False when there is none that takes it."""
        request = entry.submit.request
        willing = [worker for worker in self.workers.values() if worker.serves(request.model)]
        for worker in sorted(willing, key=lambda worker: worker.backlog_s):
            try:
                worker.link.requests.put(entry.submit)
            except WorkerGoneError:
                continue
            entry.worker, entry.work_s = worker, worker.work_s(request)
            worker.backlog_s += entry.work_s
            return True
        return False

    def _take_back(self, entry: _Pending) -> None:
        """A worker is no longer busy with a request."""
        if entry.worker:
            entry.worker.backlog_s -= entry.work_s
            entry.work_s = 0.0

    def _read(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while (answer := self._answer(worker)) is not None:
                loop.call_soon_threadsafe(self._arrived, worker, answer)
            loop.call_soon_threadsafe(self._gone, worker)
        except RuntimeError:  # the event loop is closed: the server has stopped and nobody waits
            return

    def _answer(self, worker: Worker) -> Answer | None:
        """The worker's next answer; None when there will be none."""
        try:
            return worker.link.answers.receive()
        except Exception:  # then its pipes are closed, so that it ends, and its requests are made again
            logger.exception("an answer of engine worker %d could not be read; the worker is given up", worker.number)
            return None

    def _arrived(self, worker: Worker, answer: Answer) -> None:
        worker.silent_checks = 0
        if isinstance(answer, Loading):
            worker.loading = answer.model
        elif isinstance(answer, Ready):
            self._warm(worker, answer)
        elif isinstance(answer, Stats):
            self.stats[worker.number] = together(self.past.get(worker.number), answer)
        elif isinstance(answer, Health):
            (worker.failing.discard if answer.ok else worker.failing.add)(answer.model)
        elif (entry := self.pending.get(answer.id)) is None or entry.future.done():
            return  # cancelled while its answer was on the way
        elif isinstance(answer, Failed) and answer.code == MODEL_FAILING:
            self._give_elsewhere(entry)
        elif isinstance(answer, Failed):
            entry.future.set_exception(ApiError(STATUS.get(answer.code, 500), answer.message, code=answer.code))
        else:
            entry.future.set_result(answer)

    def _warm(self, worker: Worker, ready: Ready) -> None:
        worker.ready = ready
        self.models.update(ready.models)
        self._measure_rooms()
        warm = [each for each in self.workers.values() if each.ready and not each.dead]
        if not self.started and not self.draining and len(warm) == self.expected:
            self.started = True
            self.on_ready()
        for entry in list(self.pending.values()):
            if entry.worker is None and not entry.future.done():
                self._replay(entry)

    def _gone(self, worker: Worker) -> None:
        worker.dead = True
        worker.link.close()
        if last := self.stats.get(worker.number):
            self.stats[worker.number] = self.past[worker.number] = gone(last)
        self._measure_rooms()
        for entry in list(self.pending.values()):
            if entry.worker is not worker or entry.future.done():
                continue
            if entry.replays == MAX_REPLAYS:
                again = "the engine worker died while making this image, and so did the one that tried again"
                self._fail(entry, again, "worker_lost")
            else:
                entry.replays += 1
                self._replay(entry)

    def _replay(self, entry: _Pending) -> None:
        """Make the images again from the start, which gives the same images; wait if nobody can."""
        entry.worker = None
        if self.lost:
            self._fail(entry, "the engine workers keep dying; the server is stopping", "worker_lost")
        elif not self._give(entry):
            logger.info("request %s waits for a worker to come back", entry.submit.id)

    def _give_elsewhere(self, entry: _Pending) -> None:
        """A worker whose network fails has given a request back untried."""
        self._take_back(entry)
        entry.worker = None
        if not self._give(entry):
            self._fail(entry, _failing(entry.submit.request.model), MODEL_FAILING)

    def _fail(self, entry: _Pending, message: str, code: str) -> None:
        if not entry.future.done():
            entry.future.set_exception(unavailable(message, code=code))

    def _measure_rooms(self) -> None:
        """Tell the admission what is there. When no worker is left, it keeps counting with what there was."""
        warm = [worker.ready for worker in self.workers.values() if worker.ready and not worker.dead]
        if not warm:
            return
        rooms: dict[str, Room] = {}
        for name in self.names:
            served = [ready.models[name] for ready in warm]
            slots = sum(model.capacity for model in served)
            rooms[name] = Room(slots, len(served), sum(map(row_s, served)) / len(served))
        self.admission.rooms = rooms


def _failing(model: str) -> str:
    return f"the network of {model} has failed several times in a row; it is tried again every second"


def row_s(model: ServedModel) -> float:
    """Device time of one row in a network call over all slots."""
    return model.tick_s / model.capacity
