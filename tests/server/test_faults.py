"""Worker processes that die, clients that leave and time that runs out, on a real server."""

import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from server.processes.supervisor import RestartBudget
from tests.server.conftest import DEADLINE_S, Server, serving, write_engine
from tests.server.fakes import png

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def server(engine_dir: Path) -> Iterator[Server]:
    with serving(engine_dir, "--mode", "exact", "--restart-limit", "100") as running:
        yield running


def workers(server: Server) -> list[psutil.Process]:
    """The children that have loaded ONNX Runtime."""
    return [c for c in server.children() if any("onnxruntime" in m.path for m in c.memory_maps())]


def post(server: Server, **fields) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/generate", json=fields, timeout=DEADLINE_S)


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    page = httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, flags=re.MULTILINE))


def ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/readyz", timeout=DEADLINE_S).status_code == 200


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_requests_that_a_killed_worker_held_are_made_again_with_the_same_bytes(server: Server, until: Until):
    begun = {"image": png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1)), "strength": 0.6}
    requests = [{"seed": seed, "steps": 1 + seed % 5, "n": 1 + seed % 3} for seed in range(12)]
    requests = [fields | begun if fields["seed"] % 4 == 0 else fields for fields in requests]
    expected = [post(server, **fields) for fields in requests]
    restarts = metric(server, "fewstep_worker_restarts_total")
    (worker,) = workers(server)
    worker.suspend()
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = [pool.submit(post, server, **fields) for fields in requests]
        until(lambda: metric(server, "fewstep_admitted_images") == sum(fields["n"] for fields in requests))
        worker.kill()
        for answer, first in zip(answers, expected, strict=True):
            again = answer.result(DEADLINE_S)
            assert again.status_code == 200
            assert again.headers["x-seed"] == first.headers["x-seed"]
            if first.headers["content-type"] == "image/png":
                assert again.content == first.content
            else:
                assert again.json()["data"] == first.json()["data"]
    assert metric(server, "fewstep_worker_restarts_total") == restarts + 1
    assert metric(server, "fewstep_admitted_images") == 0


def test_under_load_every_request_is_answered_whatever_happens_to_the_worker(server: Server, until: Until):
    def client(number: int) -> list[tuple[int, str]]:
        """One request after the other until the worker has died and come back."""
        answers = []
        with server.client() as http:
            while not (stop() and answers and answers[-1][0] == 200):
                answer = http.post("/v1/generate", json={"seed": number, "steps": 8, "n": 4})
                answers.append((answer.status_code, "" if answer.is_success else answer.json()["error"]["code"]))
        return answers

    restarts = metric(server, "fewstep_worker_restarts_total")
    with ThreadPoolExecutor(6) as pool:

        def stop() -> bool:
            return metric(server, "fewstep_worker_restarts_total") > restarts

        clients = [pool.submit(client, number) for number in range(6)]
        until(lambda: metric(server, "fewstep_admitted_images") > 0)
        workers(server)[0].kill()
        answers = [answer for each in clients for answer in each.result(DEADLINE_S)]
    assert set(answers) <= {(200, ""), (503, "worker_lost")}
    until(lambda: metric(server, "fewstep_admitted_images") == metric(server, "fewstep_active_slots") == 0)
    assert metric(server, "fewstep_waiting_images") == 0


def test_a_client_that_leaves_and_one_whose_time_is_up_free_their_slots(server: Server, until: Until):
    (worker,) = workers(server)
    evicted = metric(server, "fewstep_evicted_images_total")
    worker.suspend()
    with server.send({"n": 64, "steps": 8}):
        until(lambda: metric(server, "fewstep_admitted_images") == 64)
    late = post(server, n=5, timeout_s=0.1)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    until(lambda: metric(server, "fewstep_admitted_images") == 0)
    worker.resume()
    until(lambda: metric(server, "fewstep_evicted_images_total") > evicted)
    until(lambda: metric(server, "fewstep_active_slots") == metric(server, "fewstep_waiting_images") == 0)
    assert post(server).status_code == 200


def test_a_server_whose_new_worker_hangs_leaves_nothing_behind_when_a_test_ends(engine_dir: Path, until: Until):
    with serving(engine_dir) as server:
        (first,) = workers(server)
        first.kill()
        until(lambda: metric(server, "fewstep_worker_restarts_total") == 1 and ready(server))
        (second,) = workers(server)
        second.suspend()
    until(lambda: gone([second]))


def test_two_workers_share_the_load_and_one_dying_does_not_stop_the_service(engine_dir: Path, until: Until):
    with serving(engine_dir, "--workers", "2", "--mode", "exact") as server, ThreadPoolExecutor(8) as pool:
        first, second = workers(server)
        second.suspend()
        reference = post(server, seed=3).content  # the idle ones are asked in order: the first worker is as idle
        first.suspend()
        held = [pool.submit(post, server, seed=3) for _ in range(8)]
        until(lambda: metric(server, "fewstep_admitted_images") == 8)
        second.resume()
        first.kill()
        assert {answer.result(DEADLINE_S).content for answer in held} == {reference}
        assert post(server).status_code == 200, "the other worker takes newcomers at once"
        until(lambda: len(workers(server)) == 2)
        assert server.stop() == 0


def test_a_worker_that_hangs_without_dying_is_replaced_and_its_requests_are_made_again(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, "--mode", "exact", "--stall-s", "1") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        expected = post(server, seed=3, steps=8).content
        (worker,) = workers(server)
        worker.suspend()
        held = [pool.submit(post, server, seed=3, steps=8) for _ in range(4)]
        assert {answer.result(DEADLINE_S).content for answer in held} == {expected}
        assert metric(server, "fewstep_worker_restarts_total") == 1
        assert gone([worker])
        assert server.stop() == 0


def test_when_no_other_worker_may_take_its_place_everyone_is_told_and_the_server_ends(engine_dir: Path, until: Until):
    with serving(engine_dir, "--restart-limit", "0") as server, ThreadPoolExecutor(1) as pool:
        family = server.children()
        (worker,) = workers(server)
        worker.suspend()
        answer = pool.submit(post, server)
        until(lambda: metric(server, "fewstep_admitted_images") == 1)
        worker.kill()
        response = answer.result(DEADLINE_S)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "worker_lost")
        assert server.process.wait(DEADLINE_S) == 1
        until(lambda: gone(family))
        assert server.process.stderr is not None
        report = server.process.stderr.read()
        assert "engine-worker-0 process was killed by signal 9; that is more than 0 in 60 s: the server stops" in report


def test_restarts_are_counted_over_a_minute():
    budget = RestartBudget(limit=2)
    assert [budget.allows(now_s) for now_s in (0.0, 30.0, 59.0, 60.0, 61.0, 90.0)] == [
        *(True, True, False),
        *(True, False, True),  # the first was forgotten, then the second
    ]


def test_sigterm_while_busy_turns_newcomers_away_and_finishes_what_was_accepted(engine_dir: Path, until: Until):
    with serving(engine_dir) as server, ThreadPoolExecutor(1) as pool:
        family = server.children()
        (worker,) = workers(server)
        worker.suspend()
        answer = pool.submit(post, server, seed=1)
        until(lambda: metric(server, "fewstep_admitted_images") == 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not ready(server))
        turned_away = post(server)
        assert (turned_away.status_code, turned_away.json()["error"]["code"]) == (503, "draining")
        worker.kill()  # even now another one takes its place, and makes the image
        assert answer.result(DEADLINE_S).status_code == 200
        assert server.process.wait(DEADLINE_S) == 0
        until(lambda: gone(family))


def test_what_cannot_be_finished_in_the_grace_period_gets_503(engine_dir: Path):
    with serving(engine_dir, "--grace-s", "0") as server, ThreadPoolExecutor(1) as pool:
        (worker,) = workers(server)
        worker.suspend()
        answer = pool.submit(post, server, seed=1)
        while metric(server, "fewstep_admitted_images") != 1:
            continue
        server.process.send_signal(signal.SIGTERM)
        response = answer.result(DEADLINE_S)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        worker.resume()
        assert server.process.wait(DEADLINE_S) == 0


def test_two_models_in_one_server_are_asked_by_name(engine_dir: Path, tmp_path: Path):
    other = tmp_path / "other" / "engine"
    write_engine(other, "other", extra=1)
    with (
        serving(engine_dir, "--engine", f"second={other}", "--mode", "exact") as server,
        ThreadPoolExecutor(16) as pool,
    ):
        listed = httpx.get(f"{server.url}/v1/models", timeout=DEADLINE_S).json()["data"]
        assert [(model["id"], model["capacity"], model["buckets"]) for model in listed] == [
            ("tiny", 8, [8]),
            ("second", 8, [8]),
        ]
        alone = {name: post(server, seed=5, steps=8, model=name).content for name in ("tiny", "second")}
        assert alone["tiny"] != alone["second"]
        assert post(server, seed=5, steps=8).content == alone["tiny"], "the first model is the default"
        names = ["tiny", "second"] * 8
        answers = pool.map(lambda name: post(server, seed=5, steps=8, model=name).content, names)
        assert list(answers) == [alone[name] for name in names]
        assert post(server, model="third").status_code == 404
        assert server.stop() == 0


def test_a_server_told_to_choose_says_how_many_slots_it_took(engine_dir: Path):
    with serving(engine_dir, "--capacity", "0") as server:
        (model,) = httpx.get(f"{server.url}/v1/models", timeout=DEADLINE_S).json()["data"]
        assert 1 <= model["capacity"] <= 128 and model["buckets"][-1] == model["capacity"]
        assert post(server, n=8).status_code == 200
        assert server.stop() == 0
