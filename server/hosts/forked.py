"""`python -m server`: a parent, HTTP processes and engine workers around one port, all forked.

parent   binds the port, forks the others, replaces workers that die or hang (server.processes.supervisor)
http     uvicorn with server.http.app; one or more, which share the port, the admission count and the metrics
worker   the engines and their loop (server.processes.worker); one or more
"""

import gc
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from export.manifest import Manifest, all_served
from server.processes import worker
from server.processes.control import Control
from server.processes.pipes import HttpLinks
from server.processes.supervisor import Supervisor
from server.processes.worker import WorkerConfig
from server.scheduler.calibration import SharedTimes
from server.settings.settings import Settings

if TYPE_CHECKING:
    from server.hosts.http_process import HttpProcess

logger = logging.getLogger(__name__)

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # of the addresses that stand for all; no browser opens those
BACKLOG = 2048  # connections that may wait to be accepted


class ForkedServer:
    """Serves engines until a stop signal.

    The parent loads neither the web framework nor an engine's libraries: a single HTTP process and the workers load
    them side by side, after the fork.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, Manifest],
        listener: socket.socket,
        times: SharedTimes | None = None,
        deferred: bool = False,
    ) -> None:
        """models: the manifests of the engines, under the names they are served by. times: call times, with those that
        are known. deferred: as of LoadOptions. Raises CheckpointError when an adapter of theirs cannot be read."""
        self.settings = settings
        self.models = all_served(models.values())
        self.listeners = share_port(listener, settings.api_processes)
        self.address = listener.getsockname()[:2]
        self.workers = settings.workers * max(1, len(settings.devices))
        self.config = WorkerConfig.of(settings, models, times, deferred)
        self.shared = self._http_process() if settings.api_processes > 1 else None

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

    def _http_process(self) -> "HttpProcess":
        # To look for plugins, pydantic reads the metadata of every installed package.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        from server.hosts.http_process import HttpProcess

        return HttpProcess(self.settings, self.models, self.workers)

    def _run_http(self, number: int, control: Control) -> None:
        gc.disable()  # until freeze_heap
        http = self.shared or self._http_process()
        http.run(number, control, self.listeners[number])

    def _run_worker(self, number: int, ends: Sequence[socket.socket]) -> None:
        gc.disable()  # until freeze_heap
        devices, links = self.settings.devices, HttpLinks(ends)
        if devices:
            worker.use_gpu(devices[number % len(devices)])
        started_s = time.monotonic()
        models = worker.load(links, self.config, number)
        worker.serve(links, models, self.config.policy, time.monotonic() - started_s)


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
