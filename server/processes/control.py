"""Parent <-> one HTTP process: a socket that can carry file descriptors. Its end of file says that one is gone."""

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerStarted:
    """A worker was forked; `link` is the HTTP process's end of its socket."""

    worker: int
    pid: int
    link: socket.socket


@dataclass(frozen=True)
class GaveUp:
    """Workers have died too often; no other one will be started."""


class Control:
    """Create it in the parent before the fork; each side uses its own end."""

    _DOWN = struct.Struct("!?ii")  # whether a worker was started, which, and its process id
    _UP = struct.Struct("!i")  # the process id of a worker that hangs, or READY
    READY = 0

    def __init__(self) -> None:
        self.parent, self.http = socket.socketpair()

    def worker_started(self, worker: int, pid: int, link: socket.socket) -> None:
        """Hand over the HTTP process's end. The caller closes its own copy."""
        self._send(self._DOWN.pack(True, worker, pid), (link.fileno(),))

    def gave_up(self) -> None:
        self._send(self._DOWN.pack(False, 0, 0), ())

    def worker_stalled(self, pid: int) -> None:
        """HTTP process -> parent: this worker hangs."""
        self._up(pid)

    def ready(self) -> None:
        """HTTP process -> parent: all workers are warm."""
        self._up(self.READY)

    def signal_parent(self) -> None:
        """Call in the parent: from now on SIGIO says that `reports` may have something."""
        fcntl.fcntl(self.parent, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.parent, fcntl.F_SETFL, fcntl.fcntl(self.parent, fcntl.F_GETFL) | os.O_ASYNC)

    def reports(self) -> list[int]:
        """In the parent: what the HTTP process has said since the last call, as process ids or READY. Never blocks."""
        reports = []
        while data := self._pending():
            reports += self._UP.unpack(data)
        return reports

    def receive(self) -> WorkerStarted | GaveUp | None:
        """In the HTTP process: the next message; None once the parent is gone.

        Raises OSError when this process has no descriptors left, after it has asked the parent for another worker.
        """
        data, descriptors, _, _ = socket.recv_fds(self.http, self._DOWN.size, 1)
        if not data:
            return None
        started, worker, pid = self._DOWN.unpack(data)
        if not started:
            return GaveUp()
        if not descriptors:
            self.worker_stalled(pid)
            raise OSError(errno.EMFILE, f"no file descriptors left for the socket of worker {worker}; raise ulimit -n")
        return WorkerStarted(worker, pid, socket.socket(fileno=descriptors[0]))

    def _up(self, value: int) -> None:
        try:
            self.http.sendall(self._UP.pack(value))
        except ConnectionError:  # the parent is gone; the end of file says so too
            return

    def _pending(self) -> bytes:
        try:
            return self.parent.recv(self._UP.size, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):  # nothing there; or the HTTP process has died
            return b""

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        try:
            socket.send_fds(self.parent, [data], descriptors)
        except ConnectionError:  # the HTTP process has died; the parent gets SIGCHLD
            return
