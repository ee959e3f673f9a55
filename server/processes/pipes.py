"""The socket between one HTTP process and one worker. Its end of file says that the other side is gone.

No process may keep an end that it does not use, or the end of file never comes (docs/adr/0004 and 0010).
"""

import asyncio
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from server.processes.messages import Answer, MessageReader, encode
from server.scheduler.request import Message

logger = logging.getLogger(__name__)

READ_BYTES = 2**18
CLOSED_CHECK_MS = 200  # while a worker loads
MAX_UNSENT_BYTES = 2**26  # of messages that a worker has not taken yet; beyond, it has stopped reading


class WorkerGoneError(Exception):
    """The worker does not read its requests any more, or has not read them for a long time."""


class WorkerLink(asyncio.Protocol):
    """The HTTP process's end, on its event loop."""

    def __init__(self, receive: Callable[[Answer], None], gone: Callable[[], None]) -> None:
        """receive: called with every answer. gone: called once, when the worker has closed its end."""
        self.receive = receive
        self.gone = gone
        self.reader = MessageReader()
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self.reader.feed(data):
                self.receive(answer)
        except Exception:  # what comes after it cannot be trusted; the requests are made again by another worker
            logger.exception("an engine worker's answers cannot be read; it is given up")
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone()

    def send(self, message: Message) -> None:
        """Never blocks. Raises WorkerGoneError when the worker is gone or has stopped reading."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise WorkerGoneError("the engine worker is gone")
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise WorkerGoneError("the engine worker has stopped taking requests")
        transport.write(encode(message))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class HttpLinks:
    """The worker's ends, one per HTTP process. `take` is for the engine thread, `send` for any thread.

    A request belongs to the HTTP process whose number its id leaves over: id % number of processes.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = tuple(sockets)
        self.readers = {end.fileno(): (end, MessageReader()) for end in sockets}  # of those that are open
        self.locks = tuple(threading.Lock() for _ in sockets)
        self.unsent = tuple(bytearray() for _ in sockets)  # what an HTTP process has not taken yet
        self.sender: threading.Thread | None = None
        self.blocked = threading.Event()  # there is something unsent
        self.poll = select.poll()  # not select(): it refuses descriptors beyond 1023
        for end in sockets:
            end.setblocking(True)
            self.poll.register(end, select.POLLIN)

    def take(self, patience_s: float | None) -> list[Any] | None:
        """See server.scheduler.loop.Inbox. None once every HTTP process is gone."""
        messages: list[Any] = []
        for descriptor, _ in self.poll.poll(None if patience_s is None else 1000 * patience_s):
            end, reader = self.readers[descriptor]
            try:
                data = end.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:  # reset: the process was killed with messages in flight
                data = b""
            if data:
                messages += reader.feed(data)
            else:
                self.poll.unregister(descriptor)
                del self.readers[descriptor]
        return messages if self.readers else None

    @contextmanager
    def exit_when_closed(self) -> Iterator[None]:
        """While this worker is busy elsewhere: end it, with code 0, when every HTTP process has closed its socket."""
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), name="watch", daemon=True).start()
        try:
            yield
        finally:
            done.set()  # the thread ends at its next check

    def _watch(self, done: threading.Event) -> None:
        ends = {end.fileno() for end in self.sockets}
        poll = select.poll()
        for descriptor in ends:
            poll.register(descriptor, select.POLLRDHUP)
        while ends and not done.is_set():
            for descriptor, _ in poll.poll(CLOSED_CHECK_MS):
                poll.unregister(descriptor)
                ends.discard(descriptor)
        if not done.is_set():  # nothing to finish, and loading may take minutes
            os._exit(0)

    def send(self, answers: Sequence[Answer]) -> None:
        """Never blocks: what a busy HTTP process does not take at once is sent by a thread."""
        processes = len(self.sockets)
        parts: list[list[bytes]] = [[] for _ in range(processes)]
        for answer in answers:
            number = getattr(answer, "id", None)
            data = encode(answer)
            for process in range(processes) if number is None else (number % processes,):
                parts[process].append(data)
        for process, data in enumerate(parts):
            if data:
                self._write(process, b"".join(data))

    def _write(self, process: int, data: bytes) -> None:
        with self.locks[process]:
            unsent = self.unsent[process]
            if not unsent:
                data = data[self._sent(process, data) :]
            if data:
                unsent += data
                self.blocked.set()
                if self.sender is None:
                    self.sender = threading.Thread(target=self._run_sender, name="send", daemon=True)
                    self.sender.start()

    def _sent(self, process: int, data: bytes | bytearray) -> int:
        """How many of these bytes the socket has taken. All of them, when the HTTP process is gone."""
        try:
            return self.sockets[process].send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:  # its clients are gone with it; `take` sees its end of file
            return len(data)

    def _run_sender(self) -> None:
        try:
            self._send_rest()
        except BaseException:
            logger.exception("the send thread failed; the engine worker ends")
        finally:
            os._exit(1)

    def _send_rest(self) -> None:
        """Runs until the process ends: sends what was left over, whenever an HTTP process takes more."""
        while self.blocked.wait():
            self.blocked.clear()
            while waiting := [process for process, unsent in enumerate(self.unsent) if unsent]:
                poll = select.poll()
                for process in waiting:
                    poll.register(self.sockets[process], select.POLLOUT)
                poll.poll()
                for process in waiting:
                    with self.locks[process]:
                        unsent = self.unsent[process]
                        del unsent[: self._sent(process, unsent)]
