"""Our LitServer: LitServe's app and worker entry point, in processes and over pipes of our own.

    parent   binds the port, forks the others, replaces workers that die or hang (server.processes.supervisor)
    worker   the engines (server.processes.worker), started through LitServe's inference_worker; one or more
    http     uvicorn with LitServe's FastAPI app (server.http.app)

LitServe 0.2.19 spawns its worker (which imports everything again), adds a manager process that every message
passes through twice, dies of SIGTERM leaving its children behind, and restricts host and port. This class
keeps its app, its LitAPI, LitSpec and LitLoop hooks and its worker entry point, and replaces the rest.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from litserve import LitServer
from litserve.loops import inference_worker

from export.manifest import Manifest
from server.http.app import GenerateSpec
from server.http.draining import DrainingServer
from server.http.errors import install_error_handlers
from server.http.limits import BoundedHttp
from server.processes.admission import Admission
from server.processes.pipes import Control, Link
from server.processes.pool import EngineClient
from server.processes.supervisor import STOP_SIGNALS, Supervisor
from server.processes.watchdog import Watchdog
from server.processes.worker import StepLoop, StudentAPI, prepare_worker
from server.scheduler.calibration import SharedTimes
from server.settings.settings import Settings

logger = logging.getLogger(__name__)


class StudentServer(LitServer):
    """Serves engines until it is told to stop."""

    control: Control  # in the HTTP process

    def __init__(self, settings: Settings, models: Mapping[str, Manifest], listener: socket.socket) -> None:
        self.settings = settings
        self.listener = listener
        self.workers = settings.workers * max(1, len(settings.devices))
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        # Said by the HTTP process when the workers are warm: from here on a request gets an image.
        self.client = EngineClient(
            models,
            self.workers,
            Admission(settings.max_queue),
            lambda: self._announce(f"serving {', '.join(models)} on {url}"),
        )
        spec = GenerateSpec(models, settings, self.client)
        super().__init__(
            StudentAPI(settings, models, SharedTimes(), StepLoop(), spec),
            accelerator="cpu",
            devices=1,
            timeout=False,
            disable_openapi_url=True,
            middlewares=spec.middlewares,
        )
        install_error_handlers(self.app)

    def _register_internal_endpoints(self) -> None:
        """None: LitServe's /, /health and /info know neither our readiness nor our error shape."""

    def _announce(self, sentence: str) -> None:
        self.control.announced()
        print(sentence, flush=True)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Replaces LitServe's once-a-second poll of the transport: the parent says which workers there are."""
        loop = asyncio.get_running_loop()

        def on_control_message() -> None:
            try:
                message = self.control.receive()
            except OSError:
                logger.exception("a worker cannot be reached")
                return
            if message is not None:
                self.client.control(message)
                return
            loop.remove_reader(self.control.http)
            signal.raise_signal(signal.SIGTERM)  # the parent is gone

        loop.add_reader(self.control.http, on_control_message)
        settings = self.settings
        watchdog = Watchdog(
            self.client,
            settings.stall_s,
            settings.load_timeout_s,
            lambda worker: self.control.worker_stalled(worker.pid),
        )
        watching = loop.create_task(watchdog.run())
        # uvicorn's handlers are there by now; what was signalled earlier is delivered here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        yield
        watching.cancel()
        loop.remove_reader(self.control.http)

    def serve(self) -> int:
        """Until it is told to stop. Returns the exit code."""
        settings = self.settings
        stop_s = max(settings.drain_s, settings.grace_s)
        return Supervisor(
            self.listener, self.workers, settings.restart_limit, stop_s, self._run_http, self._run_worker
        ).run()

    def _run_worker(self, number: int, link: Link) -> None:
        devices = self.settings.devices
        prepare_worker(devices[number % len(devices)] if devices else None)
        assert isinstance(self.lit_api, StudentAPI)
        self.lit_api.connect(link)
        pipes = (link.requests, link.answers)
        inference_worker(self.lit_api, "cpu", number, *pipes, {}, self._callback_runner, restart_workers=False)  # pyright: ignore[reportArgumentType]

    def _run_http(self, control: Control) -> None:
        self.control = control
        # uvicorn takes these over while it runs and raises them again at its end, when all is done. They stay blocked
        # until then (see `lifespan`): these handlers would lose a signal.
        for stop in STOP_SIGNALS:
            signal.signal(stop, lambda *_: None)
        config = uvicorn.Config(
            self.app,
            http=BoundedHttp,
            lifespan="on",
            ws="none",
            log_config=None,  # server.logs has set it up
            log_level=self.settings.log_level,
            access_log=False,  # server.http.access writes it
            server_header=False,
            proxy_headers=bool(self.settings.trusted_proxies),  # uvicorn's default believes 127.0.0.1
            forwarded_allow_ips=list(self.settings.trusted_proxies),
        )
        DrainingServer(config, self.client, self.settings.drain_s, self.settings.grace_s).run(sockets=[self.listener])
