"""The two pipes between the HTTP process and the engine worker.

Each pipe has one reader and one writer, so it needs no lock that a killed process could take to its grave,
and its end of file says that the other side is gone. Both processes are forked from one parent and must close
the ends they do not use, or the end of file never comes.
"""

import select
from multiprocessing import Pipe
from typing import Any

from litserve.transport.base import MessageTransport

from server.messages import Answer, Message


class WorkerGoneError(Exception):
    """Nobody reads the request pipe any more, or nobody has for a long time."""


class RequestPipe:
    """HTTP process -> worker. LitServe knows it as the request queue of its API."""

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)

    def put(self, message: Message) -> None:
        """Never blocks: a pipe is writable while it has room for PIPE_BUF bytes, and messages are shorter.

        Raises WorkerGoneError when the pipe is full (the worker has stopped reading) or has no reader.
        """
        if not select.select([], [self.writer], [], 0)[1]:
            raise WorkerGoneError("the engine worker has stopped taking requests")
        try:
            self.writer.send(message)
        except OSError as error:
            raise WorkerGoneError("the engine worker is gone") from error

    def get(self) -> Message | None:
        """The next message; None once the HTTP process is gone."""
        try:
            return self.reader.recv()
        except EOFError:
            return None


class AnswerPipe(MessageTransport):
    """Worker -> HTTP process. LitServe knows it as the transport."""

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)

    def send(self, item: Answer, consumer_id: int = 0) -> None:
        """Blocks while the HTTP process is busy, which is why a thread of its own sends."""
        self.writer.send(item)

    def receive(self) -> Answer | None:
        """The next answer; None once the worker is gone, even in the middle of a message."""
        try:
            return self.reader.recv()
        except (EOFError, OSError):
            return None

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:
        """Unused: LitServe would poll with this; EngineClient's reader thread hands answers over instead."""
        raise NotImplementedError("answers are read by server.engine_client.EngineClient")


class Link:
    """Both pipes of one worker."""

    def __init__(self) -> None:
        self.requests = RequestPipe()
        self.answers = AnswerPipe()

    def keep_worker_ends(self) -> None:
        self.requests.writer.close()
        self.answers.reader.close()

    def keep_http_ends(self) -> None:
        self.requests.reader.close()
        self.answers.writer.close()
