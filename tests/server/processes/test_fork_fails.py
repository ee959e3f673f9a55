"""The system gives no process or no socket for a worker: said, tried again later, and nothing is left behind."""

import errno
import logging
import os
import socket
from pathlib import Path

import pytest

from server.processes import supervisor
from server.processes.supervisor import Supervisor


@pytest.fixture
def parent() -> Supervisor:
    """Of two workers that are to be started."""
    return Supervisor([socket.socket()], 2, 5, 0.0, nothing, nothing, nothing)


def nothing(*_: object) -> None: ...


def no_process(*_: object) -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def sockets() -> int:
    """Open in this process. (multiprocessing itself leaves the pipes of a fork that failed.)"""
    return sum(str(link.readlink()).startswith("socket:") for link in Path("/proc/self/fd").iterdir() if link.exists())


def test_a_worker_that_cannot_be_forked_is_tried_again_after_growing_delays(
    parent: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now_s = 100.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(os, "fork", no_process)
    held = sockets()
    with caplog.at_level(logging.ERROR):
        parent._try_start(1)
        for delay_s in (1.0, 2.0, 4.0):
            assert parent.retry_at_s == {1: now_s + delay_s} and parent.workers == {} and parent.code is None
            now_s += delay_s
            parent._retry()
    assert sockets() == held
    said = [record.message for record in caplog.records]
    assert (
        "engine-worker-1 could not be started (Resource temporarily unavailable); it is tried again in 1 s" in said[0]
    )
    assert "in 2 s, and the other workers go on" in said[1] and len(said) == 4

    monkeypatch.undo()
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now_s)
    now_s += 8.0
    parent._retry()
    assert parent.retry_at_s == {} and sockets() == held
    parent.workers[1].join()
    assert parent.workers[1].exitcode == 0


def test_no_descriptors_are_left_of_an_attempt_that_found_too_few(parent: Supervisor, monkeypatch: pytest.MonkeyPatch):
    parent.controls *= 2  # two HTTP processes, so two pairs
    pairs = [socket.socketpair()]

    def one_pair() -> tuple[socket.socket, socket.socket]:
        if pairs:
            return pairs.pop()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    held = sockets() - 2
    monkeypatch.setattr(socket, "socketpair", one_pair)
    parent._try_start(0)
    assert list(parent.retry_at_s) == [0] and sockets() == held


def test_a_server_that_ends_tries_no_more(parent: Supervisor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fork", no_process)
    parent.code = 0
    parent._try_start(0)
    assert parent.retry_at_s == {}
