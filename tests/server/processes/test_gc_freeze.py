"""What lives as long as a process does not keep the garbage collector busy while requests wait."""

import gc
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from server.processes import worker
from server.processes.pipes import HttpLinks
from server.processes.worker import freeze_heap
from server.scheduler.policy import fifo


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    gc.unfreeze()
    sys.setswitchinterval(interval)


class Cycle:
    """Only a garbage collection frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_there_is_is_exempt_and_what_comes_later_is_not():
    earlier = Cycle()
    freeze_heap()
    assert gc.get_freeze_count() > 10_000 > len(gc.get_objects())
    later = Cycle()
    seen = [weakref.ref(earlier), weakref.ref(later)]
    del earlier, later
    gc.collect()
    assert [one() is not None for one in seen] == [True, False]


def test_a_worker_freezes_its_engines_before_the_first_request():
    http_end, worker_end = socket.socketpair()
    http_end.close()  # the loop ends
    worker.serve(HttpLinks([worker_end]), {}, fifo, 0.0)
    worker_end.close()
    assert gc.get_freeze_count() > 10_000


PARENT = """
import gc, socket
from server.processes.supervisor import Supervisor

def http(number, control):
    print(gc.get_freeze_count())

Supervisor([socket.socket()], 0, 1, 1.0, print, http, print).run()
"""


def test_the_parent_freezes_the_modules_before_it_forks():
    """Every process has them from it, and so has one that replaces a dead worker."""
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 10_000, done.stderr
