"""A link between an HTTP process and a worker that breaks: no request is lost, and the worker is replaced."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.conftest import DEADLINE_S, serving
from tests.server.processes.faulty_server import FAULTS
from tests.server.test_faults import metric, post

Until = Callable[[Callable[[], bool]], None]
PROGRAM = "tests.server.processes.faulty_server"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_whatever_breaks_a_link_its_requests_are_made_again_and_the_worker_is_replaced(
    engine_dir: Path, tmp_path: Path, until: Until, processes: str
):
    file = tmp_path / "fault"
    flags = ("--mode", "exact", "--api-processes", processes, "--restart-limit", "99")
    with serving(engine_dir, *flags, program=(PROGRAM, str(file))) as server, ThreadPoolExecutor(8) as pool:
        expected = post(server, seed=3, steps=8).content
        for restarts, fault in enumerate(FAULTS, start=1):
            file.write_text(fault, "utf-8")
            answers = [pool.submit(post, server, seed=3, steps=8) for _ in range(8)]
            for answer in [each.result(DEADLINE_S) for each in answers]:
                # One that came while no worker was there was told so at once; all others have their image.
                assert answer.content == expected or answer.json()["error"]["code"] == "worker_lost", fault
            assert not file.exists(), fault
            until(lambda restarts=restarts: metric(server, "fewstep_worker_restarts_total") == restarts)
            until(lambda: all(post(server, seed=3, steps=8).content == expected for _ in range(4)))  # by either one
        assert metric(server, "fewstep_admitted_images") == 0
        assert server.stop() == 0
