"""No thread of a worker ends while the worker goes on: it answers Failed, or the process ends and is replaced."""

import socket
import subprocess
import sys

import pytest

from server.processes import worker
from server.processes.messages import MessageReader, Ready, encode
from server.processes.pipes import HttpLinks
from server.scheduler import encoding
from server.scheduler.encoding import encoded
from server.scheduler.events import Failed, Finished
from server.scheduler.policy import fifo
from server.scheduler.request import Cancel
from tests.server.conftest import DEADLINE_S, ROOT
from tests.server.processes.forks import exit_code, fork


@pytest.fixture
def running() -> tuple[socket.socket, int]:
    """The HTTP end of a worker without models, warm, and its process id."""
    http_end, worker_end = socket.socketpair()

    def serve() -> None:
        http_end.close()
        worker.serve(HttpLinks([worker_end]), {}, fifo, 0.0)

    pid = fork(serve)
    worker_end.close()
    assert MessageReader().feed(http_end.recv(4096)) == [Ready({}, 0.0)]
    return http_end, pid


@pytest.mark.parametrize("error", [MemoryError(), ValueError(), SystemError(), KeyError("/srv/secret")])
def test_whatever_an_encoder_raises_the_request_is_answered_and_the_client_sees_no_internals(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def encode(pixels, format, quality) -> bytes:
        raise error

    monkeypatch.setattr(encoding, "encode", encode)
    message = "the image could not be written as png; the server's log says why"
    assert encoded(Finished(3, "png", (None,), 0.0, 0.0)) == Failed(3, "failed", "encode_error", message)


def test_half_a_message_ends_the_worker_as_if_the_other_side_were_gone(running: tuple[socket.socket, int]):
    http_end, pid = running
    http_end.sendall(encode(Cancel(1))[:-1])
    http_end.close()
    assert exit_code(pid) == 0


@pytest.mark.parametrize(
    "message", [b"\xff" * 9, b"\x00\x00\x00\x01\x63\x00", b"\x00\x00\x00\x01\x00\xc1", encode(Ready({}, 0.0))]
)
def test_a_message_that_cannot_be_read_ends_the_worker_with_an_error(
    running: tuple[socket.socket, int], message: bytes
):
    http_end, pid = running
    http_end.sendall(message)
    assert exit_code(pid) == 9, "it has raised"
    http_end.close()


# An encoding thread whose work or whose way out raises, or the thread that sends what a busy HTTP process leaves.
THREAD = """
import socket, threading
import numpy as np
from server.processes.pipes import HttpLinks
from server.processes.worker import _end_process
from server.scheduler import encoding
from server.scheduler.events import Failed, Finished

def fail(*arguments):
    raise {error}

links = HttpLinks(socket.socketpair())
{broken} = fail
encoders = encoding.Encoders(links.send, _end_process)
encoders.start()
encoders.deliver(Finished(0, "webp", (np.zeros((8, 8, 1), np.uint8),), 0.0, 0.0))
encoders.flush()
if links.send is not fail:
    links.send([Failed(0, "failed", "network_error", "x" * 10_000_000)])
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("broken", "error", "thread"),
    [
        ("links.send", "MemoryError", "encode-0"),
        ("links.send", "SystemExit(0)", "encode-0"),
        ("encoding.encode", "SystemExit(0)", "encode-0"),
        ("links._send_rest", "RuntimeError('lost')", "send"),
        ("links._send_rest", "SystemExit(0)", "send"),
    ],
)
def test_a_thread_that_ends_ends_its_process_and_says_so(broken: str, error: str, thread: str):
    script = THREAD.format(error=error, broken=broken)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert f"the {thread} thread failed; the engine worker ends" in done.stderr
