"""What lives as long as a process does not keep the garbage collector busy while requests wait."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.processes.gc_freeze import freeze_heap
from server.processes.messages import Ready
from server.processes.pipes import Link
from server.processes.worker import StepLoop, StudentAPI
from server.scheduler.calibration import SharedTimes
from server.settings.settings import Settings


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
    loop, link = StepLoop(), Link.create()
    api = StudentAPI(Settings(engines={"none": Path()}), {}, SharedTimes(), loop)
    api.models, api.ready = {}, Ready({}, 0.0)
    api.inbox.put(None)  # the loop ends
    loop(api, "cpu", 0, link.requests, link.answers, {}, None)
    assert gc.get_freeze_count() > 10_000


PARENT = """
import gc, socket
from server.processes.supervisor import Supervisor

Supervisor(socket.socket(), 0, 1, 1.0, lambda control: print(gc.get_freeze_count()), lambda number, link: None).run()
"""


def test_the_parent_freezes_the_modules_before_it_forks():
    """Every process has them from it, and so has one that replaces a dead worker."""
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 10_000, done.stderr
