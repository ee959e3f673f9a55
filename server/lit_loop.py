"""The engine worker as LitServe sees it: a LitAPI that loads the engine and a LitLoop that runs ours.

Three threads: intake (request pipe -> inbox), engine (the main thread), output (encode -> answer pipe).
"""

import logging
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec

from fewstep.card import CheckpointError
from fewstep.pixels import encode
from fewstep.schedule import SIGMA_MAX
from server.engine_loop import EngineLoop, Finished
from server.exact import check_rows_independent
from server.messages import Done, Failed, Ready
from server.settings import Settings
from server.slots import Image, ImageKey, SlotTable, Tick, buckets_for
from server.transport import AnswerPipe, RequestPipe

if TYPE_CHECKING:
    from export.engine import Engine

logger = logging.getLogger(__name__)

EXIT_BAD_ENGINE = 2


class StudentAPI(LitAPI):
    """Loads the engine in the worker; requests never pass through LitAPI's own methods."""

    engine: "Engine"
    table: SlotTable
    tick_s: float

    def __init__(self, settings: Settings, loop: LitLoop, spec: LitSpec) -> None:
        super().__init__(loop=loop, spec=spec)
        self.settings = settings

    def setup(self, device: str) -> None:
        """Exits with a sentence when the engine is unusable: nobody could be served by this process."""
        started_s = time.monotonic()
        # Only here: ONNX Runtime belongs to the worker, and the other processes import this module too.
        from export.engine import load_engine

        settings = self.settings
        try:
            self.engine = load_engine(settings.engine, threads=settings.threads)
            manifest, exact = self.engine.manifest, settings.mode == "exact"
            network, shape = self.engine.network, manifest.image_shape
            if exact:
                check_rows_independent(network, manifest.input_shape, manifest.classes, settings.capacity)
            buckets = buckets_for(settings.capacity, exact)
            self.table = SlotTable(network, shape, manifest.classes, manifest.sigma_data, buckets, manifest.extra)
            self.tick_s = warm_up(self.table)
        except CheckpointError as error:
            print(error, file=sys.stderr, flush=True)
            sys.exit(EXIT_BAD_ENGINE)
        logger.debug("engine loaded and warm after %.3f s", time.monotonic() - started_s)


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
        outbox: queue.SimpleQueue[Finished | Failed] = queue.SimpleQueue()
        loop = EngineLoop(lit_api.table, lit_api.engine.manifest.levels, deliver=outbox.put)
        transport.send(Ready(lit_api.tick_s))
        threading.Thread(target=_intake, args=(request_queue, loop), name="intake", daemon=True).start()
        threading.Thread(target=_output, args=(outbox, transport), name="output", daemon=True).start()
        loop.run()


def warm_up(table: SlotTable) -> float:
    """Make a few one-step images; returns the seconds of a tick with all slots in use.

    The smallest and the largest batch are enough: ONNX Runtime compiles nothing per size on a CPU.
    """
    elapsed_s, tick = 0.0, Tick()
    for batch in (1, table.capacity, table.capacity):  # twice, because the first call grows its memory
        table.admit([Image(ImageKey(0, i), seed=i, label=-1, sigmas=(SIGMA_MAX,)) for i in range(batch)])
        started_s = time.monotonic()
        tick = table.tick()
        elapsed_s = time.monotonic() - started_s
        if tick.broken:
            raise CheckpointError("the network returns values that are not finite; export it again")
    encode(tick.finished[0][1], "png")  # Pillow loads its plugins at the first image
    return elapsed_s


def ignore_stop_signals() -> None:
    """A terminal or service manager signals every process; the worker stops after its last request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _intake(requests: RequestPipe, loop: EngineLoop) -> None:
    while (message := requests.get()) is not None:
        loop.inbox.put(message)
    loop.inbox.put(None)


def _output(outbox: "queue.SimpleQueue[Finished | Failed]", answers: AnswerPipe) -> None:
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
    except (ValueError, OSError) as error:  # Pillow's ways to say that it cannot
        logger.exception("encoding request %s failed", result.id)
        return Failed(result.id, "encode_error", f"the image could not be written as {result.request.format} ({error})")
    return Done(result.id, images, result.queue_s, result.engine_s, time.monotonic() - started_s)
