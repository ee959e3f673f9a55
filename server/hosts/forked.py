"""`python -m server`: a parent, HTTP processes and engine workers around one port, all forked.

parent   binds the port, forks the others, replaces workers that die or hang (server.processes.supervisor)
http     uvicorn with server.http.app; one or more, which share the port, the admission count and the metrics
worker   the engines and their loop, through LitServe's hooks (server.hosts.litserve); one or more
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from litserve.callbacks.base import CallbackRunner
from litserve.loops import inference_worker

from export.manifest import Manifest
from server.hosts.litserve import DialectSpec, StepAPI
from server.http.app import App
from server.http.dialects.native import NativeDialect
from server.http.dialects.native_schema import schemas
from server.http.draining import DrainingServer
from server.http.gate import KeyRing
from server.http.limits import BoundedHttp
from server.http.metrics import Metrics
from server.http.openapi import document_routes
from server.http.system import SystemRoutes
from server.processes import worker
from server.processes.admission import Admission
from server.processes.control import Control
from server.processes.pipes import HttpLinks
from server.processes.pool import Worker, WorkerPool
from server.processes.supervisor import STOP_SIGNALS, Supervisor
from server.processes.watchdog import Watchdog
from server.processes.worker import WorkerConfig
from server.settings.settings import Settings

logger = logging.getLogger(__name__)

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # of the addresses that stand for all; no browser opens those
BACKLOG = 2048  # connections that may wait to be accepted


class ForkedServer:
    """Serves engines until a stop signal. Everything in __init__ is there before the fork."""

    def __init__(self, settings: Settings, models: Mapping[str, Manifest], listener: socket.socket) -> None:
        self.settings = settings
        self.models = models
        self.listeners = share_port(listener, settings.api_processes)
        self.address = listener.getsockname()[:2]
        self.workers = settings.workers * max(1, len(settings.devices))
        names = tuple(models)
        processes = settings.api_processes
        self.admission = Admission(settings.max_queue, names, processes)
        self.pool = WorkerPool(names, self.workers, self.admission, self._ready, self._replace)
        dialect = NativeDialect(models, settings, self.pool)
        self.spec = DialectSpec(dialect.routes())
        system = SystemRoutes(settings, self.pool, lambda accept: self.metrics.render(accept))
        described = [*self.spec.routes, *system.routes()]
        self.routes = [*described, *document_routes(described, schemas(models, settings), settings)]
        paths = [route.path for route in self.routes]
        self.metrics = Metrics(models, paths, self.pool, lambda: facts(models, self.pool, settings), processes)
        self.config = WorkerConfig.of(settings, models)
        self.control: Control | None = None  # in an HTTP process

    def serve(self) -> int:
        """Until a stop signal. Returns the exit code."""
        settings = self.settings
        return Supervisor(
            listeners=self.listeners,
            workers=self.workers,
            restart_limit=settings.restart_limit,
            stop_s=max(settings.drain_s, settings.grace_s),
            on_ready=self._announce,
            run_http=self._run_http,
            run_worker=self._run_worker,
        ).run()

    def _announce(self) -> None:
        """From here on a request gets an image."""
        try:
            print(f"serving {', '.join(self.models)} on {place(*self.address)}", flush=True)
        except OSError as error:  # a full disk, or a pipe that is not read; what is left would be tried again at exit
            logger.warning("stdout cannot be written: %s", error.strerror)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def _ready(self) -> None:
        assert self.control is not None
        self.control.ready()

    def _replace(self, worker: Worker) -> None:
        """The parent kills it, unless it is dead already, and starts another one."""
        assert self.control is not None
        self.control.worker_stalled(worker.pid)

    def _run_worker(self, number: int, ends: Sequence[socket.socket]) -> None:
        devices, links = self.settings.devices, HttpLinks(ends)
        if devices:
            worker.use_gpu(devices[number % len(devices)])
        api = StepAPI(
            partial(worker.load, links, self.config), self.config.policy, KeyRing(()), self.pool.check_ready, self.spec
        )
        inference_worker(api, "cpu", number, links, links, {}, CallbackRunner(), restart_workers=False)  # pyright: ignore[reportArgumentType]

    def _run_http(self, number: int, control: Control) -> None:
        self.control = control
        self.admission.use_row(number)
        self.metrics.use_row(number)
        self.pool.use_ids(number, self.settings.api_processes)
        # uvicorn takes these over while it runs and raises them again at its end, when all is done. They stay blocked
        # until then (see `_lifespan`): these handlers would lose a signal.
        for stop in STOP_SIGNALS:
            signal.signal(stop, lambda *_: None)
        settings = self.settings
        app = App(self.routes, settings, self.metrics, self._lifespan(control))
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
        DrainingServer(config, self.pool, settings.drain_s, settings.grace_s).run(sockets=[self.listeners[number]])

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
    """An HTTP process that does not watch or reach its workers any more would wait for them for ever."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("the HTTP process cannot go on; the server stops", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


def place(host: str, port: int) -> str:
    """Where a client on this machine reaches a socket that listens on this address."""
    every = "all addresses, here " if host in LOOPBACK else ""
    host = LOOPBACK.get(host, host)
    return f"{every}http://{f'[{host}]' if ':' in host else host}:{port}"


def share_port(listener: socket.socket, count: int) -> list[socket.socket]:
    """The listener and others on its port, `count` in all, over which the system spreads the connections evenly.

    Processes that accept from one listener race for it, and one of them may get nearly every connection.
    """
    if count == 1:
        return [listener]
    # Only now: while the first one was bound without it, no other server's port was shared.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    address, family = listener.getsockname(), listener.family
    ipv6 = family == socket.AF_INET6
    dual = ipv6 and not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    more = [
        socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True, dualstack_ipv6=dual)
        for _ in range(count - 1)
    ]
    return [listener, *more]


def facts(models: Mapping[str, Manifest], pool: WorkerPool, settings: Settings) -> dict[str, dict[str, str]]:
    """What runs each model, as short texts, for the metrics."""
    return {
        name: {
            "backend": settings.backend or model.backend,
            "dtype": model.dtype,
            "mode": settings.mode,
            "noise_version": str(model.noise_version),
            "checkpoint": model.checkpoint[:12],
            **(pool.models[name].facts if name in pool.models else {}),
        }
        for name, model in models.items()
    }
