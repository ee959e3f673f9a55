"""The two pipes between the HTTP process and one engine worker, and how the parent hands them over.

Each pipe has one reader and one writer, so it needs no lock that a killed process would hold for ever, and its
end of file says that the other side is gone. No process may keep an end it does not use, or the end of file never
comes (docs/adr/0004 and 0010).
"""

import errno
import fcntl
import logging
import os
import queue
import select
import socket
import struct
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from litserve.transport.base import MessageTransport

from server.processes.messages import Answer, Message, Submit

logger = logging.getLogger(__name__)

ANNOUNCED = 0  # in place of a process id
MAX_UNSENT_BYTES = 2**26  # of messages that a worker has not taken yet; beyond, it has stopped reading
MESSAGE_BYTES = 4_096  # PIPE_BUF; more than any message without an image takes


class WorkerGoneError(Exception):
    """The worker has exited, or has not emptied its request pipe for a long time."""


class RequestPipe:
    """HTTP process -> worker. LitServe knows it as the request queue of its API.

    A message with an image may be longer than a pipe, and to write it would wait for the worker. A thread does that;
    messages that come meanwhile go the same way, so that all arrive in order.
    """

    def __init__(self, reader: Connection | None, writer: Connection | None) -> None:
        self.reader = reader
        self.writer = writer
        self.unsent: queue.SimpleQueue[Message | None] = queue.SimpleQueue()  # for the thread; None: close the pipe
        self.unsent_bytes = 0  # in that queue and in the thread's hands
        self.counting = threading.Lock()
        self.sender: threading.Thread | None = None
        self.broken = False  # the thread found nobody reading
        self.room = select.poll()  # not select(): it refuses descriptors beyond 1023, as many connections bring
        if writer is not None:
            self.room.register(writer, select.POLLOUT)

    def put(self, message: Message) -> None:
        """Never blocks: a pipe is writable while it has room for PIPE_BUF bytes, and without an image they are enough.

        Raises WorkerGoneError when the pipe is full (the worker has stopped reading) or has no reader.
        """
        assert self.writer is not None
        with self.counting:
            if self.unsent_bytes or _image_bytes(message):
                self._hand_over(message)
                return
        if not self.room.poll(0):
            raise WorkerGoneError("the engine worker has stopped taking requests")
        try:
            self.writer.send(message)
        except OSError as error:
            raise WorkerGoneError("the engine worker is gone") from error

    def close(self) -> None:
        """Close this process's ends; what the thread still has is for a worker that is gone."""
        _close(self.reader)
        if self.sender is None:
            _close(self.writer)
        else:
            self.unsent.put(None)

    def _hand_over(self, message: Message) -> None:
        size = MESSAGE_BYTES + _image_bytes(message)
        if self.broken:
            raise WorkerGoneError("the engine worker is gone")
        if self.unsent_bytes + size > MAX_UNSENT_BYTES:
            raise WorkerGoneError("the engine worker has stopped taking requests")
        if self.sender is None:
            self.sender = threading.Thread(target=self._send, name="requests", daemon=True)
            self.sender.start()
        self.unsent_bytes += size
        self.unsent.put(message)

    def _send(self) -> None:
        assert self.writer is not None
        while (message := self.unsent.get()) is not None:
            try:
                self.writer.send(message)
            except Exception as error:  # closed, so that the worker ends and the request goes to another one
                if not isinstance(error, OSError):
                    logger.exception("a request could not be written; its worker is given up")
                self.broken = True
                _close(self.writer)
            with self.counting:
                self.unsent_bytes -= MESSAGE_BYTES + _image_bytes(message)
        _close(self.writer)

    def get(self) -> Message | None:
        """The next message; None once the HTTP process is gone, even in the middle of a message."""
        assert self.reader is not None
        try:
            return self.reader.recv()
        except (EOFError, OSError):
            return None


class AnswerPipe(MessageTransport):
    """Worker -> HTTP process. LitServe knows it as the transport."""

    def __init__(self, reader: Connection | None, writer: Connection | None) -> None:
        self.reader = reader
        self.writer = writer
        self.sending = threading.Lock()  # between the encoder threads of one process

    def send(self, item: Answer, consumer_id: int = 0) -> None:
        """Blocks while the HTTP process is busy, which is why the engine thread never sends."""
        assert self.writer is not None
        with self.sending:
            self.writer.send(item)

    def receive(self) -> Answer | None:
        """The next answer; None once the worker is gone, even in the middle of a message."""
        assert self.reader is not None
        try:
            return self.reader.recv()
        except (EOFError, OSError):
            return None

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        """Unused: LitServe would poll with this; EngineClient's reader threads hand answers over instead."""
        raise NotImplementedError("answers are read by server.processes.pool.EngineClient")


class Link:
    """Both pipes of one worker, or the ends of them that this process keeps."""

    def __init__(self, requests: RequestPipe, answers: AnswerPipe) -> None:
        self.requests = requests
        self.answers = answers

    @classmethod
    def create(cls) -> "Link":
        return cls(RequestPipe(*Pipe(duplex=False)), AnswerPipe(*Pipe(duplex=False)))

    @classmethod
    def of_http(cls, requests: int, answers: int) -> "Link":
        """The HTTP process's side of a link, from the two file descriptors that `http_ends` named."""
        return cls(
            RequestPipe(None, Connection(requests, readable=False)),
            AnswerPipe(Connection(answers, writable=False), None),
        )

    def http_ends(self) -> tuple[int, int]:
        """File descriptors of the ends that the HTTP process needs."""
        assert self.requests.writer is not None and self.answers.reader is not None
        return self.requests.writer.fileno(), self.answers.reader.fileno()

    def keep_worker_ends(self) -> None:
        _close(self.requests.writer, self.answers.reader)

    def close(self) -> None:
        self.requests.close()
        _close(self.answers.reader, self.answers.writer)


@dataclass(frozen=True)
class WorkerStarted:
    """A worker was forked; these are the ends of its pipes for the HTTP process."""

    worker: int
    link: Link
    pid: int


@dataclass(frozen=True)
class GaveUp:
    """Workers have died too often; there will be no other one."""


class Control:
    """Parent <-> HTTP process: a socket that can carry file descriptors. Its end of file: the parent is gone."""

    _FORMAT = struct.Struct("!?ii")  # whether a worker was started, which, and its process id
    _REPORT = struct.Struct("!i")  # the process id of a worker that hangs, or ANNOUNCED

    def __init__(self) -> None:
        self.parent, self.http = socket.socketpair()

    def worker_started(self, worker: int, link: Link, pid: int) -> None:
        """Hand over the HTTP process's ends. The caller closes its own copies."""
        self._send(self._FORMAT.pack(True, worker, pid), link.http_ends())

    def gave_up(self) -> None:
        self._send(self._FORMAT.pack(False, 0, 0), ())

    def worker_stalled(self, pid: int) -> None:
        """HTTP process -> parent: this worker hangs."""
        self._tell_parent(pid)

    def announced(self) -> None:
        """HTTP process -> parent: all workers are ready; from now on the server serves what it announced."""
        self._tell_parent(ANNOUNCED)

    def signal_parent(self) -> None:
        """Call in the parent: from now on SIGIO says that `reports` may have something."""
        fcntl.fcntl(self.parent, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.parent, fcntl.F_SETFL, fcntl.fcntl(self.parent, fcntl.F_GETFL) | os.O_ASYNC)

    def reports(self) -> list[int]:
        """In the parent: the process ids named since the last call, or ANNOUNCED. Never blocks."""
        pids = []
        while data := self._pending():
            pids += self._REPORT.unpack(data)
        return pids

    def _pending(self) -> bytes:
        try:
            return self.parent.recv(self._REPORT.size, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):  # nothing there; or the HTTP process has died
            return b""

    def receive(self) -> WorkerStarted | GaveUp | None:
        """The next message; None once the parent is gone. Raises OSError when this process has no descriptors left."""
        data, descriptors, _, _ = socket.recv_fds(self.http, self._FORMAT.size, 2)
        if not data:
            return None
        started, worker, pid = self._FORMAT.unpack(data)
        if not started:
            return GaveUp()
        if len(descriptors) < 2:  # then the worker finds its pipes closed and ends, and the parent tries again
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(errno.EMFILE, f"no file descriptors left for the pipes of worker {worker}; raise ulimit -n")
        return WorkerStarted(worker, Link.of_http(*descriptors), pid)

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        try:
            socket.send_fds(self.parent, [data], descriptors)
        except ConnectionError:  # the HTTP process has died; the parent will hear of that too
            return

    def _tell_parent(self, report: int) -> None:
        try:
            self.http.sendall(self._REPORT.pack(report))
        except ConnectionError:  # the parent is gone; the end of file says so too
            return


def _image_bytes(message: Message) -> int:
    """Of the image and mask that come with a request."""
    edit = message.request.edit if isinstance(message, Submit) else None
    return 0 if edit is None else len(edit.image) + len(edit.known or b"")


def _close(*ends: Connection | None) -> None:
    for end in ends:
        if end is not None and not end.closed:
            end.close()
