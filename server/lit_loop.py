"""An engine worker as LitServe sees it: a LitAPI that loads the models and a LitLoop that runs our loop.

Threads: intake (request pipe -> inbox), engine (the main thread), and a few for output (encode -> answer pipe).
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec

from fewstep.card import CheckpointError
from fewstep.pixels import encode
from server.calibration import SharedTimes
from server.engine_loop import Delivery, EngineLoop, Finished
from server.heap import freeze_heap
from server.loading import load_model
from server.messages import Done, Failed, Loading, Ready
from server.policy import earliest_deadline, fifo
from server.served import Served
from server.settings import Settings
from server.transport import AnswerPipe, RequestPipe

logger = logging.getLogger(__name__)

EXIT_BAD_ENGINE = 2
ENCODERS = 2  # threads; Pillow and zlib work outside the interpreter's lock
# The engine thread needs the interpreter for a moment after each network call; another thread lets go of it
# within this time, not within Python's 5 ms.
SWITCH_INTERVAL_S = 0.0005


class StudentAPI(LitAPI):
    """Loads the engines in the worker; requests never pass through LitAPI's own methods."""

    models: dict[str, Served]
    ready: Ready
    tell: Callable[[Loading], None]  # the HTTP process; set in the worker, whose pipe it is

    def __init__(self, settings: Settings, times: SharedTimes, loop: LitLoop, spec: LitSpec) -> None:
        super().__init__(loop=loop, spec=spec)
        self.settings = settings
        self.times = times

    async def authorize(self) -> None:
        """Nothing: server.edge checks keys. LitServe's default takes a thread per request, and LIT_SERVER_API_KEY."""

    def setup(self, device: str) -> None:
        """Ends the process when an engine is unusable, with a sentence: nobody could be served by it."""
        started_s = time.monotonic()
        self.models, served = {}, {}
        try:
            for name, folder in self.settings.engines.items():
                self.tell(Loading(name))
                self.models[name], served[name] = load_model(name, folder, self.settings, self.times)
        except CheckpointError as error:
            print(error, file=sys.stderr, flush=True)
            sys.exit(EXIT_BAD_ENGINE)
        except Exception:  # LitServe would go on without an engine
            logger.exception("the engine worker cannot start")
            sys.exit(1)
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
        freeze_heap()  # the engines and their libraries
        transport.send(lit_api.ready)
        threading.Thread(target=_intake, args=(request_queue, loop), name="intake", daemon=True).start()
        for outbox in (notes, *[images] * ENCODERS):
            threading.Thread(target=_output, args=(outbox, transport), name="output", daemon=True).start()
        loop.run()


def prepare_worker(gpu: int | None) -> None:
    """What a process must do before it loads an engine. gpu: the number of the only one it may see."""
    # A terminal or service manager signals every process; the worker stops after its last request.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible and gpu >= len(visible.split(",")):
            print(f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES={visible} hides it", file=sys.stderr, flush=True)
            sys.exit(EXIT_BAD_ENGINE)
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)


def _intake(requests: RequestPipe, loop: EngineLoop) -> None:
    while (message := requests.get()) is not None:
        loop.inbox.put(message)
    loop.inbox.put(None)


def _output(outbox: "queue.SimpleQueue[Delivery]", answers: AnswerPipe) -> None:
    while True:
        result = outbox.get()
        try:
            answers.send(encoded(result) if isinstance(result, Finished) else result)
        except OSError:  # the HTTP process is gone, and with it everyone who waits; the intake thread stops the loop
            return


def encoded(result: Finished) -> Done | Failed:
    started_s = time.monotonic()
    try:
        images = tuple(encode(pixels, result.request.format) for pixels in result.pixels)
    except (ValueError, OSError):  # Pillow's ways to say that it cannot
        logger.exception("encoding request %s failed", result.id)
        return Failed(result.id, "encode_error", f"the image could not be written as {result.request.format}")
    return Done(result.id, images, result.queue_s, result.engine_s, time.monotonic() - started_s)
