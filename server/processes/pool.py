"""The engine workers as an HTTP process sees them: submit, iterate over events, cancel; requests survive a death."""

import asyncio
import itertools
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from export.manifest import engine_of
from server.processes.admission import Admission, Room, Ticket
from server.processes.control import GaveUp, WorkerStarted
from server.processes.messages import Answer, Loading, Ready
from server.processes.pipes import WorkerGoneError, WorkerLink
from server.processes.stream import PoolStream
from server.scheduler.events import Accepted, Failed, Finished, Health, Progress
from server.scheduler.loop import MODEL_FAILING
from server.scheduler.model import ModelInfo
from server.scheduler.refusal import Refusal, unavailable
from server.scheduler.request import Cancel, ImageRequest, Submit
from server.scheduler.stats import Stats

logger = logging.getLogger(__name__)

MAX_REPLAYS = 1  # a request that has seen this many workers die, and one more, may well be the cause
WORKERS_LOST = "the engine workers keep dying; the server is stopping"
DIED_TWICE = "the engine worker died while making this image, and so did the one that tried again"


@dataclass(eq=False)
class Worker:
    """One process of one worker."""

    number: int
    pid: int
    link: WorkerLink
    loading: str | None = None  # the last model it has begun to load
    ready: Ready | None = None
    dead: bool = False
    failing: set[str] = field(default_factory=set)  # models whose network calls keep failing
    backlog_s: float = 0.0  # device time of what it was given and has not answered
    silent_checks: int = 0  # of server.processes.watchdog, since its last message

    def serves(self, model: str) -> bool:
        return self.ready is not None and not self.dead and model not in self.failing

    def work_s(self, request: ImageRequest) -> float:
        """Device time of a request."""
        assert self.ready is not None
        return request.total_rows * self.ready.models[request.engine].row_s


class _Pending(msgspec.Struct, eq=False):
    """A request without its last event."""

    submit: Submit
    stream: PoolStream
    worker: Worker | None = None  # None: waits for a worker to come back
    work_s: float = 0.0
    replays: int = 0
    steps: dict[int, int] = msgspec.field(default_factory=dict)  # image -> the last step whose Progress was passed on


class WorkerPool:
    """Runs on the event loop of one HTTP process.

    models: names of the engines that every worker runs. workers: how many there will be. on_ready: called once, when
    all of them are warm. on_lost: called with every worker process whose socket is closed here; if the process still
    runs, it is of no use to this HTTP process, and must be replaced.
    """

    def __init__(
        self,
        models: Sequence[str],
        workers: int,
        admission: Admission,
        on_ready: Callable[[], None],
        on_lost: Callable[[Worker], None] = lambda worker: None,
    ) -> None:
        self.names = models
        self.expected = workers
        self.admission = admission
        self.on_ready = on_ready
        self.on_lost = on_lost
        self.started = False  # all workers have been warm at the same time
        self.lost = False  # no worker will come back
        self.draining = False  # set by a stop signal
        self.models: dict[str, ModelInfo] = {}  # as some worker serves them; the last to become warm
        self.workers: dict[int, Worker] = {}  # the present process of each
        self.stats: dict[int, Stats] = {}  # by worker number, its earlier processes included
        self.restarts = 0
        self.pending: dict[int, _Pending] = {}
        self.ids = itertools.count()
        self.past: dict[int, Stats] = {}  # of processes that have ended, by worker number

    @property
    def warm_up_s(self) -> dict[int, float]:
        """Seconds of loading and warming up, by worker number."""
        return {number: worker.ready.warm_up_s for number, worker in self.workers.items() if worker.ready}

    def use_ids(self, process: int, processes: int) -> None:
        """Say which HTTP process this is, of how many: a worker sends the answer for an id back by its remainder."""
        self.ids = itertools.count(process, processes)

    async def control(self, message: WorkerStarted | GaveUp) -> None:
        """What the parent says."""
        if isinstance(message, GaveUp):
            self.lost = True
            self.fail_all(unavailable(WORKERS_LOST, code="worker_lost"))
        else:
            await self.connect(message.worker, message.pid, message.link)

    async def connect(self, number: int, pid: int, end: socket.socket) -> Worker:
        """A worker has been forked; `end` is this process's end of its socket."""
        link = WorkerLink(lambda answer: self._arrived(worker, answer), lambda: self._gone(worker))
        worker = Worker(number, pid, link)
        self.restarts += number in self.workers
        self.workers[number] = worker
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=end)
        return worker

    def check_ready(self, model: str | None = None) -> None:
        """Raises Refusal "unavailable" unless a request for this model would be served; None: for some model.

        model: as it is served, an engine or one of its adapters.
        """
        if self.lost:
            raise unavailable(WORKERS_LOST, code="worker_lost")
        if self.draining:
            raise unavailable("the server is stopping; send the request to another one", code="draining")
        if not self.started:
            raise unavailable("the model is still loading; try again in a second", code="not_ready")
        if not any(worker.ready and not worker.dead for worker in self.workers.values()):
            message = "the engine worker has died and is being restarted; try again in a second"
            raise unavailable(message, code="worker_lost")
        names = self.names if model is None else (engine_of(model),)
        if not any(worker.serves(name) for name in names for worker in self.workers.values()):
            raise unavailable(MODEL_FAILING.format(" and ".join(names)), code="model_failing")

    def admit(self, model: str, images: int, calls: int) -> Ticket:
        """Count a request in before any work is done for it; `release` must follow. Raises Refusal."""
        self.check_ready(model)
        return self.admission.enter(engine_of(model), images, calls)

    def release(self, ticket: Ticket) -> None:
        self.admission.leave(ticket)

    def submit(self, request: ImageRequest, timeout_s: float) -> PoolStream:
        """Hand an admitted request to the worker with the least to do. Raises Refusal when none takes it.

        The stream must be iterated to its end or cancelled.
        """
        number, now = next(self.ids), time.monotonic()
        stream = PoolStream(lambda: self._cancel(number))
        entry = _Pending(Submit(number, request, now, now + timeout_s), stream)
        if not self._give(entry):
            raise unavailable("the engine worker has stopped taking requests", code="worker_lost")
        self.pending[number] = entry
        stream.put(Accepted(number))
        return stream

    def owed(self) -> Counter[Worker]:
        """How many requests each worker has not answered; workers without one are left out."""
        return Counter(entry.worker for entry in self.pending.values() if entry.worker)

    def fail_all(self, why: Refusal) -> None:
        """End every request."""
        for entry in list(self.pending.values()):
            self._cancel_at_worker(entry)
            self._fail(entry, why)

    def _cancel(self, number: int) -> None:
        if entry := self.pending.pop(number, None):
            self._cancel_at_worker(entry)

    def _cancel_at_worker(self, entry: _Pending) -> None:
        worker = entry.worker
        self._take_back(entry)
        if worker and not worker.dead:
            try:
                worker.link.send(Cancel(entry.submit.id))
            except WorkerGoneError:  # a dead worker holds no slots
                return

    def _give(self, entry: _Pending) -> bool:
        """To the worker with the least to do; False when there is none that takes it."""
        request = entry.submit.request
        willing = [worker for worker in self.workers.values() if worker.serves(request.engine)]
        for worker in sorted(willing, key=lambda worker: worker.backlog_s):
            try:
                worker.link.send(entry.submit)
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
            entry.worker = None

    def _arrived(self, worker: Worker, answer: Answer) -> None:
        worker.silent_checks = 0
        if isinstance(answer, Loading):
            worker.loading = answer.model
        elif isinstance(answer, Ready):
            self._warm(worker, answer)
        elif isinstance(answer, Stats):
            self.stats[worker.number] = answer.after(self.past.get(worker.number))
        elif isinstance(answer, Health):
            (worker.failing.discard if answer.ok else worker.failing.add)(answer.model)
        elif (entry := self.pending.get(answer.id)) is None or entry.worker is not worker:
            return  # cancelled while its answer was on the way
        elif isinstance(answer, Progress):
            if answer.step > entry.steps.get(answer.image, 0):  # a replay repeats no event
                entry.steps[answer.image] = answer.step
                entry.stream.put(answer)
        elif not (isinstance(answer, Failed) and answer.code == "model_failing" and self._elsewhere(entry)):
            self._end(entry, answer)

    def _end(self, entry: _Pending, last: Finished | Failed) -> None:
        self._take_back(entry)
        self.pending.pop(entry.submit.id, None)
        entry.stream.put(last)

    def _fail(self, entry: _Pending, why: Refusal) -> None:
        self._end(entry, Failed.of(entry.submit.id, why))

    def _elsewhere(self, entry: _Pending) -> bool:
        """Give a request that waited for a failing model to another worker, if one serves the model."""
        assert entry.worker is not None
        entry.worker.failing.add(entry.submit.request.engine)  # the worker's Health is on its way
        self._take_back(entry)
        return self._give(entry)

    def _warm(self, worker: Worker, ready: Ready) -> None:
        worker.ready = ready
        self.models.update(ready.models)
        self._measure_rooms()
        warm = [each for each in self.workers.values() if each.ready and not each.dead]
        if not self.started and not self.draining and len(warm) == self.expected:
            self.started = True
            self.on_ready()
        for entry in list(self.pending.values()):
            if entry.worker is None:
                self._replay(entry)

    def _gone(self, worker: Worker) -> None:
        worker.dead = True
        if last := self.stats.get(worker.number):
            self.stats[worker.number] = self.past[worker.number] = last.ended()
        self._measure_rooms()
        self.on_lost(worker)
        for entry in list(self.pending.values()):
            if entry.worker is not worker:
                continue
            self._take_back(entry)
            if entry.replays == MAX_REPLAYS:
                self._fail(entry, unavailable(DIED_TWICE, code="worker_lost"))
            else:
                entry.replays += 1
                self._replay(entry)

    def _replay(self, entry: _Pending) -> None:
        """Make the images again from the start, which gives the same images; wait if no worker can."""
        if self.lost:
            self._fail(entry, unavailable(WORKERS_LOST, code="worker_lost"))
        elif not self._give(entry):
            logger.info("request %s waits for a worker to come back", entry.submit.id)

    def _measure_rooms(self) -> None:
        """Tell the admission what there is. When no worker is left, it keeps counting with what there was."""
        warm = [worker.ready for worker in self.workers.values() if worker.ready and not worker.dead]
        if not warm:
            return
        rooms: dict[str, Room] = {}
        for name in self.names:
            served = [ready.models[name] for ready in warm]
            slots = sum(model.capacity for model in served)
            rooms[name] = Room(slots, len(served), sum(model.row_s for model in served) / len(served))
            self.admission.most[name] = max(slots, served[0].capacity * self.expected)
        self.admission.rooms = rooms
