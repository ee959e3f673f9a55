"""An engine worker as LitServe sees it: a LitAPI that loads the models and a LitLoop that runs our loop.

Threads: intake (request pipe -> inbox), engine (the main thread), and a few for output (encode -> answer pipe).
"""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec

from export.manifest import Manifest
from fewstep.card import CheckpointError
from fewstep.pixels import encode
from server.processes.gc_freeze import freeze_heap
from server.processes.messages import Answer, Done, Failed, Loading, Message, Ready
from server.processes.pipes import AnswerPipe, Link, RequestPipe
from server.scheduler.calibration import SharedTimes
from server.scheduler.loading import load_model
from server.scheduler.loop import Delivery, EngineLoop, Finished
from server.scheduler.model import Served
from server.scheduler.policy import earliest_deadline, fifo
from server.settings.settings import Settings

logger = logging.getLogger(__name__)

EXIT_BAD_ENGINE = 2  # the engine cannot be served; a sentence has said why
EXIT_NOT_LOADED = 3  # loading raised something else; the log has it
ENCODERS = 2  # threads; Pillow and zlib work outside the interpreter's lock
# The engine thread needs the interpreter for a moment after each network call; another thread lets go of it
# within this time, not within Python's 5 ms.
SWITCH_INTERVAL_S = 0.0005


class StudentAPI(LitAPI):
    """Loads the engines in the worker; requests never pass through LitAPI's own methods."""

    models: dict[str, Served]
    ready: Ready
    link: Link  # in a worker

    def __init__(
        self,
        settings: Settings,
        announced: Mapping[str, Manifest],
        times: SharedTimes,
        loop: LitLoop,
        spec: LitSpec | None = None,
    ) -> None:
        super().__init__(loop=loop, spec=spec)
        self.settings = settings
        self.announced = announced  # by model name: what clients are told
        self.times = times
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.loaded = threading.Event()

    def connect(self, link: Link) -> None:
        """Begin to read requests, and end the process when the HTTP process is gone. Call in a worker, before setup."""
        self.link = link
        start_thread("intake", self._intake)

    def _intake(self) -> None:
        while (message := self.link.requests.get()) is not None:
            self.inbox.put(message)
        if not self.loaded.is_set():  # nothing to finish, and loading may take minutes
            os._exit(0)
        self.inbox.put(None)

    async def authorize(self) -> None:
        """Nothing: server.http.gate checks keys. LitServe's default takes a thread per request."""

    def setup(self, device: str) -> None:
        """Load and warm up every model. Ends the process, with a sentence, when an engine cannot be served."""
        started_s = time.monotonic()
        self.models, served = {}, {}
        try:
            for name, folder in self.settings.engines.items():
                send_or_exit(self.link.answers, Loading(name))
                self.models[name], served[name] = load_model(
                    name, folder, self.settings, self.times, self.announced[name]
                )
        except CheckpointError as error:
            print(error, file=sys.stderr, flush=True)
            sys.exit(EXIT_BAD_ENGINE)
        except Exception:  # LitServe would go on without an engine
            logger.exception("the engine worker cannot start")
            sys.exit(EXIT_NOT_LOADED)
        self.ready = Ready(served, time.monotonic() - started_s)
        logger.debug("engines loaded and warm after %.3f s", self.ready.warm_up_s)


class StepLoop(LitLoop):
    """Replaces LitServe's loops: images come and go at every network call, not at every request."""

    def pre_setup(self, lit_api: LitAPI, spec: LitSpec | None = None) -> None:
        """Nothing: LitServe checks here that predict is a generator, and this loop does not call predict."""

    def __call__(
        self,
        lit_api: LitAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Until the HTTP process closes its end of the request pipe."""
        assert isinstance(lit_api, StudentAPI)
        assert isinstance(request_queue, RequestPipe)
        assert isinstance(transport, AnswerPipe)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        images: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        notes: queue.SimpleQueue[Delivery] = queue.SimpleQueue()  # in one thread: their order matters

        def deliver(result: Delivery) -> None:
            (images if isinstance(result, Finished) else notes).put(result)

        policy = earliest_deadline if lit_api.settings.policy == "deadline" else fifo
        loop = EngineLoop(lit_api.models, deliver=deliver, policy=policy)
        loop.inbox = lit_api.inbox
        freeze_heap()  # the engines and their libraries
        lit_api.loaded.set()
        send_or_exit(transport, lit_api.ready)
        for outbox in (notes, *[images] * ENCODERS):
            start_thread("output", partial(_output, outbox, transport, loop.inbox))
        loop.run()


def prepare_worker(gpu: int | None) -> None:
    """What a process must do before it loads an engine. gpu: the number of the only one it may see."""
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible and gpu >= len(visible.split(",")):
            print(f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES={visible} hides it", file=sys.stderr, flush=True)
            sys.exit(EXIT_BAD_ENGINE)
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)


def start_thread(name: str, work: Callable[[], None]) -> None:
    """Run `work` in a daemon thread. If it raises, the worker ends with code 1, and another one takes its place.

    A worker without one of its threads would lose answers while it still looks alive.
    """

    def guarded() -> None:
        try:
            work()
        except BaseException:
            try:
                logger.exception("the %s thread failed; the engine worker ends", name)
            finally:
                os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def send_or_exit(answers: AnswerPipe, answer: Answer) -> None:
    """Send; when the HTTP process is gone, the server is stopping, and this worker ends with code 0."""
    try:
        answers.send(answer)
    except OSError:
        sys.exit(0)


def _output(
    outbox: "queue.SimpleQueue[Delivery]", answers: AnswerPipe, inbox: "queue.SimpleQueue[Message | None]"
) -> None:
    while True:
        result = outbox.get()
        try:
            answers.send(encoded(result) if isinstance(result, Finished) else result)
        except OSError:  # the HTTP process is gone, and with it every client
            inbox.put(None)
            return


def encoded(result: Finished) -> Done | Failed:
    """The answer with its images as bytes; Failed for whatever an encoder raises, MemoryError included."""
    started_s = time.monotonic()
    try:
        images = tuple(encode(pixels, result.request.format) for pixels in result.pixels)
    except Exception:
        logger.exception("encoding request %s failed", result.id)
        return Failed(result.id, "encode_error", f"the image could not be written as {result.request.format}")
    return Done(result.id, images, result.queue_s, result.engine_s, time.monotonic() - started_s)
