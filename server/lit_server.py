"""Our LitServer: two forked children with two pipes between them, no manager process, and an orderly end.

    parent   binds the port, forks, waits for signals and children; computes nothing
    worker   the engine (server.lit_loop), started through LitServe's inference_worker
    http     uvicorn with LitServe's FastAPI app (server.lit_spec)

LitServe 0.2.19 spawns its worker (which imports everything again), adds a manager process that every message
passes through twice, dies of SIGTERM leaving its children behind, and restricts host and port. This class
keeps its app, its LitAPI, LitSpec and LitLoop hooks and its worker entry point, and replaces the rest. The
parent has a single thread, so forking is safe; it must never load ONNX Runtime or touch a GPU.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.context import ForkProcess

import uvicorn
from fastapi import FastAPI
from litserve import LitServer
from litserve.loops import inference_worker

from export.manifest import Manifest
from server.engine_client import EngineClient
from server.errors import install_error_handlers
from server.lit_loop import EXIT_BAD_ENGINE, StepLoop, StudentAPI, ignore_stop_signals
from server.lit_spec import GenerateSpec
from server.request_ids import RequestIds
from server.settings import Settings
from server.transport import Link

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
KILL_AFTER_S = 5.0  # beyond the grace period, for a child that does not end by itself


class StudentServer(LitServer):
    """Serves one engine until it is told to stop."""

    def __init__(self, settings: Settings, model: Manifest, listener: socket.socket) -> None:
        self.settings = settings
        self.listener = listener
        self.link = Link()
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        # Said by the HTTP process when the worker is warm: from here on a request gets an image.
        self.client = EngineClient(self.link, lambda: print(f"serving {model.name} on {url}", flush=True))
        api = StudentAPI(settings, StepLoop(), GenerateSpec(model, settings, self.client))
        super().__init__(
            api,
            accelerator="cpu",
            devices=1,
            timeout=False,
            disable_openapi_url=True,
            middlewares=[RequestIds],
        )
        install_error_handlers(self.app)

    def _register_internal_endpoints(self) -> None:
        """None: LitServe's /, /health and /info know neither our readiness nor our error shape."""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Replaces LitServe's once-a-second poll of the transport by the client's reader thread."""
        loop = asyncio.get_running_loop()
        self.client.start(loop)
        parent = multiprocessing.parent_process()
        assert parent is not None, "the app runs in a child of the parent that owns the port"

        def parent_died() -> None:
            loop.remove_reader(parent.sentinel)
            signal.raise_signal(signal.SIGTERM)

        loop.add_reader(parent.sentinel, parent_died)
        yield
        loop.remove_reader(parent.sentinel)

    def serve(self) -> int:
        """Fork, wait for a stop signal or the end of a child, and clean up. Returns the exit code."""
        watched = {*STOP_SIGNALS, signal.SIGCHLD}
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal whose default is to be ignored is never waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        fork = multiprocessing.get_context("fork")
        worker = fork.Process(target=self._run_worker, name="engine-worker")
        worker.start()
        http = fork.Process(target=self._run_http, name="http")
        http.start()
        # The parent keeps no end of any pipe, so that each child sees when the other is gone.
        self.link.keep_worker_ends()
        self.link.keep_http_ends()
        self.listener.close()

        stopped = False
        while worker.exitcode is None and http.exitcode is None and not stopped:
            stopped = signal.sigwait(watched) in STOP_SIGNALS
        cause = worker if worker.exitcode is not None else http
        code = 0 if stopped else _report(cause)
        self._end(http, worker)
        return code

    def _end(self, http: ForkProcess, worker: ForkProcess) -> None:
        """The HTTP process finishes its requests and exits; that closes the pipe the worker waits on."""
        http.terminate()
        http.join(self.settings.grace_s + KILL_AFTER_S)
        if http.exitcode is None:
            http.kill()
            http.join()
        worker.join(KILL_AFTER_S)
        if worker.exitcode is None:
            worker.kill()
            worker.join()

    def _run_worker(self) -> None:
        ignore_stop_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        self.link.keep_worker_ends()
        self.listener.close()
        pipes = (self.link.requests, self.link.answers)
        inference_worker(self.lit_api, "cpu", 0, *pipes, {}, self._callback_runner, restart_workers=False)  # pyright: ignore[reportArgumentType]

    def _run_http(self) -> None:
        # uvicorn takes these over while it runs and raises them again at its end, when all is done.
        for stop in STOP_SIGNALS:
            signal.signal(stop, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
        self.link.keep_http_ends()
        config = uvicorn.Config(
            self.app,
            lifespan="on",
            ws="none",
            log_level=self.settings.log_level,
            access_log=self.settings.log_level in ("debug", "info"),
            server_header=False,
            timeout_graceful_shutdown=max(1, round(self.settings.grace_s)),
        )
        uvicorn.Server(config).run(sockets=[self.listener])


def _report(child: ForkProcess) -> int:
    """What the parent says and returns when a child has ended by itself."""
    if child.exitcode == EXIT_BAD_ENGINE:  # the worker has said why
        return EXIT_BAD_ENGINE
    code = child.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    os.write(2, f"the {child.name} process {how}; the server stops\n".encode())
    return 1
