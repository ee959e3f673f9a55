"""Several HTTP processes on one port: one admission count, one set of metrics, one end."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.hosts.forked import share_port
from server.processes.control import Control
from tests.server.conftest import DEADLINE_S, Server, launch, serving
from tests.server.test_faults import gone, metric, post, workers

Until = Callable[[Callable[[], bool]], None]
COUNT = 2
FLAGS = ("--api-processes", str(COUNT), "--mode", "exact")
BY_PROCESS = ("fewstep_process_memory_bytes", "fewstep_requests_in_flight")  # moves while it is read


def http_processes(server: Server) -> list[psutil.Process]:
    engines = workers(server)
    return [child for child in server.children() if child not in engines]


@contextmanager
def one_client_each(server: Server) -> Iterator[dict[int, httpx.Client]]:
    """A client with a kept connection to each HTTP process, by its process id."""
    clients: dict[int, httpx.Client] = {}
    with ExitStack() as stack:
        while len(clients) < COUNT:
            client = stack.enter_context(server.client())
            with client.stream("GET", "/livez") as answer:
                answer.read()
                port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
            (pid,) = [
                process.pid
                for process in http_processes(server)
                if any(each.raddr and each.raddr.port == port for each in process.net_connections("tcp"))
            ]
            clients[pid] = client
        yield clients


def generate(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/v1/generate", json=fields)


def sample(page: str) -> dict[tuple[Any, ...], float]:
    """Every number of a metrics page that both processes must agree on."""
    return {
        (each.name, *sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
        if each.name not in BY_PROCESS and not each.name.endswith("_created")
    }


def test_one_bound_holds_over_all_and_whoever_answers_shows_the_totals(engine_dir: Path, until: Until):
    limits = ("--capacity", "4", "--max-queue", "6", "--max-images", "4")
    with (
        serving(engine_dir, *FLAGS, *limits) as server,
        one_client_each(server) as clients,
        ThreadPoolExecutor(40) as pool,
    ):
        (worker,) = workers(server)
        worker.suspend()
        answers = [pool.submit(post, server, seed=seed) for seed in range(30)]
        until(lambda: sum(answer.done() for answer in answers) == 20)
        for client in clients.values():
            refused = generate(client)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert "10 images are being made" in refused.text
        assert metric(server, "fewstep_admitted_images") == 10
        worker.resume()
        statuses = sorted(answer.result(DEADLINE_S).status_code for answer in answers)
        assert statuses == [200] * 10 + [429] * 20
        until(lambda: metric(server, "fewstep_active_slots") == 0)

        pages = [client.get("/metrics").text for client in clients.values()]
        first, second = map(sample, pages)
        shared = {key for key in first if key[0] not in ("fewstep_http_requests_total",)}
        assert {key: second.get(key) for key in shared} == {key: first[key] for key in shared}
        requests = [(key, value) for key, value in first.items() if key[0] == "fewstep_requests_total" and value]
        assert {dict(key[1:])["outcome"]: value for key, value in requests} == {"ok": 10, "rejected": 22}
        assert first["fewstep_images_total", ("model", "tiny"), ("steps", "4")] == 10
        assert server.stop() == 0


def test_a_stop_drains_all_of_them_and_every_accepted_request_is_answered(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, *FLAGS, "--drain-s", "3600") as server,
        one_client_each(server) as clients,
        one_client_each(server) as others,
        ThreadPoolExecutor(COUNT) as pool,
    ):
        family = server.children()
        (worker,) = workers(server)
        worker.suspend()
        held = [pool.submit(generate, client, seed=7) for client in clients.values()]
        until(lambda: metric(server, "fewstep_admitted_images") == COUNT)
        server.process.send_signal(signal.SIGTERM)
        for client in others.values():
            until(lambda client=client: client.get("/readyz").status_code == 503)
            late = generate(client)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        worker.kill()  # another one takes its place and makes the images of both
        assert [answer.result(DEADLINE_S).status_code for answer in held] == [200] * COUNT
        assert server.stop(signal.SIGINT) == 0
        until(lambda: gone(family))


def test_while_one_still_drains_its_workers_are_replaced_although_the_other_has_ended(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, *FLAGS) as server,
        one_client_each(server) as clients,
        ThreadPoolExecutor(1) as pool,
    ):
        (worker,) = workers(server)
        worker.suspend()
        busy, idle = clients
        other = psutil.Process(idle)
        held = pool.submit(generate, clients[busy], seed=7)
        until(lambda: metric(server, "fewstep_admitted_images") == 1)
        clients[idle].close()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: gone([other]))
        worker.kill()
        assert held.result(DEADLINE_S).status_code == 200
        assert server.process.wait(DEADLINE_S) == 0


def test_the_death_of_one_ends_the_server_with_an_error_and_no_request_hangs(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, *FLAGS) as server,
        one_client_each(server) as clients,
        ThreadPoolExecutor(8) as pool,
    ):
        family = server.children()
        (worker,) = workers(server)
        worker.suspend()
        victim, survivor = clients
        lost, kept = [pool.submit(generate, clients[pid], seed=7) for pid in (victim, survivor)]
        until(lambda: metric(server, "fewstep_admitted_images") == COUNT)
        psutil.Process(victim).kill()
        with pytest.raises(httpx.RemoteProtocolError):
            lost.result(DEADLINE_S)
        worker.resume()
        assert kept.result(DEADLINE_S).status_code == 200, "the other one finishes what it has accepted"
        assert server.process.wait(DEADLINE_S) == 1
        until(lambda: gone(family))
        assert server.process.stderr is not None
        assert "was killed by signal 9; the server stops" in server.process.stderr.read()


def test_one_that_dies_while_it_drains_is_no_orderly_stop(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, *FLAGS) as server,
        one_client_each(server) as clients,
        ThreadPoolExecutor(1) as pool,
    ):
        (worker,) = workers(server)
        worker.suspend()
        busy, idle = clients
        other = psutil.Process(idle)
        lost = pool.submit(generate, clients[busy], seed=7)
        until(lambda: metric(server, "fewstep_admitted_images") == 1)
        clients[idle].close()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: gone([other]))  # it had nothing to finish
        psutil.Process(busy).kill()
        with pytest.raises(httpx.RemoteProtocolError):
            lost.result(DEADLINE_S)
        worker.resume()
        assert server.process.wait(DEADLINE_S) == 1
        assert server.process.stderr is not None
        assert "was killed by signal 9; its requests were lost" in server.process.stderr.read()


def test_the_requests_of_all_survive_the_death_of_a_worker(engine_dir: Path, until: Until):
    with (
        serving(engine_dir, *FLAGS) as server,
        one_client_each(server) as clients,
        one_client_each(server) as others,
        ThreadPoolExecutor(2 * COUNT) as pool,
    ):
        expected = post(server, seed=7, n=3, steps=8).json()["data"]
        (worker,) = workers(server)
        worker.suspend()
        held: list[Future[httpx.Response]] = [
            pool.submit(generate, client, seed=7, n=3, steps=8) for client in (*clients.values(), *others.values())
        ]
        until(lambda: metric(server, "fewstep_admitted_images") == 3 * len(held))
        worker.kill()
        assert [answer.result(DEADLINE_S).json()["data"] for answer in held] == [expected] * len(held)
        assert metric(server, "fewstep_worker_restarts_total") == 1
        assert metric(server, "fewstep_admitted_images") == 0
        assert server.stop() == 0


def test_connections_are_spread_over_all_of_them(engine_dir: Path):
    """Processes that share a listener race for it: one of two used to get all of 64 connections."""
    with serving(engine_dir, *FLAGS) as server, ExitStack() as stack:
        for client in [stack.enter_context(server.client()) for _ in range(64)]:
            assert client.get("/livez").status_code == 200
        held = [
            sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))
            for process in http_processes(server)
        ]
        assert sum(held) == 64
        assert min(held) >= 10, "fewer happen once in 10^8 times"
        assert server.stop() == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_listeners_of_a_port_take_both_kinds_of_address():
    first = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    listeners = share_port(first, 3)
    port = first.getsockname()[1]
    clients = [socket.create_connection((host, port)) for host in ("127.0.0.1", "::1") for _ in range(60)]
    taken: list[list[str]] = []
    for listener in listeners:
        listener.setblocking(False)
        peers = []
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, peer = listener.accept()
                clients.append(connection)
                peers.append(peer[0])
        taken.append(peers)
    for each in (*listeners, *clients):
        each.close()
    assert all({"::ffff:127.0.0.1", "::1"} == set(peers) for peers in taken)
    assert sum(map(len, taken)) == 120


def test_a_port_that_several_processes_share_is_shared_with_no_other_server(engine_dir: Path):
    with serving(engine_dir, *FLAGS) as server:
        port = server.url.rsplit(":", 1)[1]
        second = launch(["--engine", str(engine_dir), *FLAGS, "--port", port])
        assert f"port {port}: Address already in use" in second.communicate(timeout=DEADLINE_S)[1]
        assert second.returncode == 2
        assert server.stop() == 0


def test_a_worker_that_cannot_be_handed_over_for_want_of_descriptors_is_replaced(monkeypatch: pytest.MonkeyPatch):
    control = Control()
    control.worker_started(3, 77, control.parent)
    monkeypatch.setattr("socket.recv_fds", lambda end, size, fds: (end.recv(size), [], 0, None))
    with pytest.raises(OSError, match="no file descriptors left for the socket of worker 3; raise ulimit -n"):
        control.receive()
    assert control.reports() == [77]
    control.http.close()
    control.parent.close()
