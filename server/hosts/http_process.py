"""An HTTP process: uvicorn with server.http.app in front of the worker pool, and its line to the parent."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import uvicorn

from export.manifest import Manifest, engine_of
from server.hosts.site import every_route, facts
from server.http.app import App
from server.http.bodies import AT_ONCE, Bodies
from server.http.draining import DrainingServer
from server.http.edits import body_limit
from server.http.kept_images import KeptImages
from server.http.limits import BoundedHttp
from server.http.metrics import Metrics
from server.processes.admission import Admission
from server.processes.control import Control
from server.processes.pool import Worker, WorkerPool
from server.processes.supervisor import STOP_SIGNALS
from server.processes.watchdog import Watchdog
from server.processes.worker import freeze_heap
from server.settings.settings import Settings

logger = logging.getLogger(__name__)


class HttpProcess:
    """Where there are several, __init__ runs before the fork, because they share the memory of counts and metrics."""

    control: Control  # once it runs

    def __init__(self, settings: Settings, models: Mapping[str, Manifest], workers: int) -> None:
        self.settings = settings
        names, processes = tuple(dict.fromkeys(map(engine_of, models))), settings.api_processes
        self.admission = Admission(settings.max_queue, names, processes)
        self.pool = WorkerPool(names, workers, self.admission, self._ready, self._replace)
        # The memory of one HTTP process does not reach another, to which a url may lead.
        kept = KeptImages(settings.url_bytes, settings.url_s) if settings.url_bytes and processes == 1 else None
        self.bodies = Bodies(AT_ONCE * body_limit(settings, models), settings.body_share)
        self.routes = every_route(models, settings, self.pool, kept, lambda accept: self.metrics.render(accept))
        paths = [route.path for route in self.routes]
        self.metrics = Metrics(models, paths, self.pool, lambda: facts(models, self.pool, settings), processes)

    def run(self, number: int, control: Control, listener: socket.socket) -> None:
        """Serve as process `number` until the parent or a signal says stop."""
        self.control = control
        self.admission.use_row(number)
        self.metrics.use_row(number)
        self.pool.use_ids(number, self.settings.api_processes)
        freeze_heap()  # the web framework, which this process may have loaded itself
        # uvicorn takes these over while it runs and raises them again at its end, when all is done. They stay blocked
        # until then (see `_lifespan`): these handlers would lose a signal.
        for stop in STOP_SIGNALS:
            signal.signal(stop, lambda *_: None)
        settings = self.settings
        app = App(self.routes, settings, self.metrics, self.bodies, self._lifespan(control))
        config = uvicorn.Config(
            app,
            http=BoundedHttp,
            lifespan="on",
            ws="none",
            log_config=None,  # server.logs has set it up
            log_level=settings.log_level,
            access_log=False,  # server.http.access writes it
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_keep_alive=settings.keep_alive_s,  # pyright: ignore[reportArgumentType] - BoundedHttp takes fractions
        )
        DrainingServer(config, self.pool, settings.drain_s, settings.grace_s).run(sockets=[listener])

    def _ready(self) -> None:
        self.control.ready()

    def _replace(self, worker: Worker) -> None:
        """Ask the parent to kill a worker, unless it is dead already, and to start another one."""
        self.control.worker_stalled(worker.pid)

    @asynccontextmanager
    async def _lifespan(self, control: Control) -> AsyncIterator[None]:
        """While the HTTP process serves: read the parent's messages, and watch the workers."""
        loop = asyncio.get_running_loop()
        connecting: set[asyncio.Task[None]] = set()

        def on_message() -> None:
            try:
                message = control.receive()
            except OSError:
                logger.exception("a worker cannot be reached")
                return
            if message is None:  # the parent is gone
                loop.remove_reader(control.http)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            task = loop.create_task(self.pool.control(message))
            connecting.add(task)
            task.add_done_callback(connecting.discard)
            task.add_done_callback(_end_if_failed)

        loop.add_reader(control.http, on_message)
        settings = self.settings
        watchdog = Watchdog(self.pool, settings.stall_s, settings.load_timeout_s, self._replace)
        watching = loop.create_task(watchdog.run())
        watching.add_done_callback(_end_if_failed)
        # uvicorn's handlers are there by now; what was signalled earlier is delivered here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        yield
        watching.cancel()
        loop.remove_reader(control.http)


def _end_if_failed(task: asyncio.Task[None]) -> None:
    """An HTTP process that no longer watches or reaches its workers ends, because it would wait for them for ever."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("the HTTP process cannot go on; the server stops", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
