"""No thread of a worker ends while the worker goes on: it answers Failed, or the process ends and is replaced."""

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.http.dialects.native import GenerateRequest
from server.processes import worker as lit_loop
from server.processes.messages import Cancel, Failed, Ready, Submit
from server.processes.pipes import Link, WorkerGoneError
from server.processes.worker import StepLoop, StudentAPI, encoded
from server.scheduler.calibration import SharedTimes
from server.scheduler.loop import Finished
from server.settings.settings import Settings
from tests.server.conftest import DEADLINE_S, ROOT
from tests.server.stage import Stage, play

Until = Callable[[Callable[[], bool]], None]


def finished(number: int) -> Finished:
    return Finished(number, GenerateRequest(1, 1, 0, (0,), "png", "tiny", 60.0), (), 0.0, 0.0)


class Unreadable:
    """Its pickle raises where it is read."""

    def __reduce__(self):
        return int, ("not a number",)


def worker(link: Link) -> int:
    """The process id of a worker without models at the far end of a link, which this process closes."""
    pid = os.fork()
    if pid == 0:
        try:
            link.keep_worker_ends()
            loop = StepLoop()
            api = StudentAPI(Settings(engines={"none": Path()}), {}, SharedTimes(), loop)
            api.models, api.ready = {}, Ready({}, 0.0)
            api.connect(link)
            loop(api, "cpu", 0, link.requests, link.answers, {}, None)
            os._exit(0)
        finally:
            os._exit(9)
    assert link.requests.reader is not None and link.answers.writer is not None
    link.requests.reader.close()
    link.answers.writer.close()
    assert link.answers.receive() == Ready({}, 0.0)
    return pid


def code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("error", [MemoryError(), ValueError(), SystemError(), KeyError("/srv/secret")])
def test_whatever_an_encoder_raises_the_request_is_answered_and_the_client_sees_no_internals(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def encode(pixels, format) -> bytes:
        raise error

    monkeypatch.setattr(lit_loop, "encode", encode)
    images = Finished(3, finished(3).request, (None,), 0.0, 0.0)  # pyright: ignore[reportArgumentType]
    assert encoded(images) == Failed(3, "encode_error", "the image could not be written as png")


def test_half_a_message_ends_the_worker_as_if_the_other_side_were_gone():
    link = Link.create()
    pid = worker(link)
    assert link.requests.writer is not None
    os.write(link.requests.writer.fileno(), struct.pack("!i", 100) + b"half")
    link.requests.writer.close()
    assert code(pid) == 0


@pytest.mark.parametrize("message", [b"no pickle", pickle.dumps(Unreadable())])
def test_a_message_that_cannot_be_read_ends_the_worker_with_an_error(message: bytes):
    link = Link.create()
    pid = worker(link)
    assert link.requests.writer is not None
    link.requests.writer.send_bytes(message)
    assert code(pid) == 1


def test_an_output_thread_that_finds_nobody_stops_the_loop_although_requests_could_still_come():
    link = Link.create()
    pid = worker(link)
    assert link.answers.reader is not None
    link.answers.reader.close()
    link.requests.put(Cancel(0))  # a turn, and so statistics to send
    assert code(pid) == 0


THREAD = """
import sys, threading
from server.processes.worker import start_thread

def work():
    raise {error}

start_thread("output", work)
threading.Event().wait()
"""


@pytest.mark.parametrize("error", ["MemoryError", "SystemExit(0)", "RuntimeError('lost')"])
def test_a_thread_that_raises_ends_its_process_and_says_so(error: str):
    script = THREAD.format(error=error)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert "the output thread failed; the engine worker ends" in done.stderr


def test_a_request_that_cannot_be_written_by_the_thread_closes_the_pipe_so_that_the_worker_ends(until: Until):
    link = Link.create()
    request = GenerateRequest(1, 1, 0, (0,), "png", "tiny", lambda: None)  # pyright: ignore[reportArgumentType]
    with link.requests.counting:
        link.requests._hand_over(Submit(0, request, 0.0, 1.0))
    until(lambda: link.requests.broken and not link.requests.unsent_bytes)
    assert link.requests.get() is None
    with pytest.raises(WorkerGoneError):
        link.requests.put(Cancel(0))


def test_an_answer_that_cannot_be_read_is_the_end_of_that_worker_and_its_requests_are_made_by_another():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 7}')
        submit = await stage.taken(0)
        writer = stage.links[0].answers.writer
        assert writer is not None
        writer.send_bytes(b"no pickle")
        assert await stage.taken(1) == submit
        stage.left.set()
        await task

    play(scenario, workers=2)
