"""What users of other image servers have reported, each tried on ours: a real server, HTTP, signals and /metrics.

Each docstring begins with the report: a repository of GitHub and the number of its issue.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.conftest import DEADLINE_S, wait_until
from tests.server.invalid_requests import INVALID, huge_png, square
from tests.server.live import Live, decoded, failed, live, loading, of, refused

SLOTS = 8


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("plan"), "--capacity", str(SLOTS)) as server:
        yield server


@pytest.fixture
def shared(running: Live) -> Iterator[Live]:
    """The server of most tests, idle before and after each."""
    running.plan()
    running.idle()
    yield running
    running.plan()
    running.idle()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Live]:
    """A server for one test, whose counters are at zero."""
    with live(tmp_path, "--capacity", str(SLOTS)) as server:
        yield server


def test_two_calls_at_once_are_both_answered(shared: Live):
    """vllm-omni#1080: two image calls at once, one is never answered (they had the same id)."""
    alone = [shared.image(of(seed)) for seed in (1, 2)]
    answers = shared.at_once([of(1), of(2)], headers={"x-request-id": "the-same-id"})
    assert [answer.content for answer in answers] == alone
    assert alone[0] != alone[1]


def test_aborted_requests_leave_no_memory_behind(shared: Live):
    """vllm-omni#6462: every aborted request leaves host memory behind."""

    def abort(requests: int) -> None:
        """Four at a time, which are all images that one worker holds; their bodies are nearly as large as allowed."""
        for first in range(0, requests, 4):
            shared.plan(calls=0)
            clients = [shared.send(of(seed, 8, n=64), padding=60_000) for seed in range(first, first + 4)]
            shared.admitted(4 * 64)
            for client in clients:
                client.close()
            shared.admitted(0)
            shared.plan()
            shared.image(of(1, 1))  # so that the worker has seen to the aborts

    abort(40)  # what is allocated once
    before = shared.resident_bytes()
    abort(200)
    assert shared.resident_bytes() - before < 200 * 8 * 1024  # a body is 60 kB, the pixels of 64 images are as much


def test_an_abort_aborts_no_later_request(shared: Live):
    """vllm-omni#3167: after one abort, all later requests were aborted."""
    alone = {seed: shared.image(of(seed)) for seed in range(4)}
    for _ in range(10):
        shared.plan(calls=0)
        clients = [shared.send(of(seed)) for seed in alone]
        shared.admitted(len(clients))
        for client in clients:
            client.close()
        shared.admitted(0)
        answers = shared.at_once([of(seed) for seed in alone])
        assert [answer.content for answer in answers] == list(alone.values())


def test_clients_are_answered_when_memory_runs_out(shared: Live):
    """vllm-omni#2327: out of memory, then clients that wait for ever and a state that stays corrupt."""
    alone = shared.image(of(1))
    answers = shared.at_once([of(seed) for seed in range(2 * SLOTS)], then={"network": "MemoryError"})
    assert all(map(failed, answers)), [answer.text for answer in answers]
    shared.plan()
    wait_until(shared.ready)
    assert shared.image(of(1)) == alone


def test_a_worker_told_to_end_leaves_no_zombie(fresh: Live):
    """vllm-omni#4526: after a worker's SIGTERM, ten minutes of a server that lives and does not serve."""
    alone = fresh.image(of(1))
    fresh.plan(calls=0)
    begun = len(fresh.calls())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fresh.image, of(1))
        wait_until(lambda: len(fresh.calls()) > begun)
        psutil.Process(fresh.calls()[-1]).terminate()
        fresh.plan()
        assert answer.result(DEADLINE_S) == alone
    wait_until(fresh.ready)
    assert fresh.image(of(1)) == alone
    family = fresh.processes()
    assert psutil.STATUS_ZOMBIE not in [process.status() for process in family]
    assert fresh.server.stop() == 0
    wait_until(lambda: not any(process.is_running() for process in family))


def test_ready_means_that_the_next_request_is_served(tmp_path: Path):
    """vllm-omni#3824: "startup complete" while the warm-up hangs."""
    with loading(tmp_path) as server:
        assert [server.get(path).status_code for path in ("/livez", "/readyz")] == [200, 503]
        assert failed(server.post(of(1)))
        assert server.server.lines.empty()
        server.plan()
        wait_until(server.ready)
        server.plan(calls=1)  # no further warming up: the request's own call is all there is
        assert server.post(of(1, 1)).status_code == 200


@pytest.mark.parametrize("network", ["RuntimeError", "nan"])
def test_a_network_that_fails_in_warm_up_is_never_ready(tmp_path: Path, network: str):
    """vllm-omni#3824: "startup complete" after a warm-up that failed."""
    with loading(tmp_path, "--restart-limit", "1") as server:
        server.plan(network=network)
        statuses = {503}
        while server.server.process.poll() is None and statuses == {503}:
            with suppress(httpx.TransportError):  # it ends
                statuses.add(server.get("/readyz").status_code)
        assert statuses == {503}
        assert server.server.process.wait(DEADLINE_S) in (1, 2)
        assert server.server.lines.get(timeout=DEADLINE_S) == "", "nothing was announced"


@pytest.mark.parametrize(
    "plan", [{"network": "RuntimeError"}, {"network": "nan"}, {"decoder": "RuntimeError"}, {"encoder": "RuntimeError"}]
)
def test_an_error_of_a_stage_is_an_answer(fresh: Live, plan: dict[str, str]):
    """vllm-omni#322, vllm-omni#901: an error in one stage of the pipeline, and the request hangs."""
    body = of(1, image=square())
    alone = fresh.image(body)
    fresh.plan(**plan)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(fresh.post, [body] * 4))
    assert all(map(failed, answers)), [answer.text for answer in answers]
    fresh.plan()
    wait_until(fresh.ready)
    assert fresh.image(body) == alone


@pytest.mark.parametrize("param", INVALID)
def test_an_invalid_parameter_is_refused_by_name(shared: Live, param: str):
    """vllm-omni#3649: a table of invalid parameters answered 200 or 500."""
    for body in INVALID[param]:
        answer = shared.post_text(body)
        assert refused(answer, param), (body[-80:], answer.status_code, answer.text[:200])
    assert shared.post({"image": square(), "strength": 0.5, "mask": square()}).status_code == 200


@pytest.mark.parametrize("body", ['{"\\ud800": 1}', '{"seed": 9223372036854775807, "n": 2}'])
def test_an_invalid_request_is_refused(shared: Live, body: str):
    """vllm-omni#3649, where a field's name is half a character, or the second seed 2**63."""
    answer = shared.post_text(body)
    assert 400 <= answer.status_code < 500 and answer.json()["error"]["param"], answer.text[:200]


def test_another_model_is_refused(shared: Live):
    """vllm-omni#2804: a request for a model that is not there is answered by the one that is."""
    name = shared.post({}).headers["x-model"]
    assert shared.post({"model": name}).headers["x-model"] == name
    others = ["other", "", f" {name}", f"{name}\0", name.upper(), f"{name}/../{name}", f"x/{name}", 0, True, [name], {}]
    for other in others:
        answer = shared.post({"model": other})
        assert refused(answer, "model"), (other, answer.status_code, answer.text[:200])


def test_a_picture_of_enormous_size_is_refused_at_no_cost(tmp_path: Path):
    """vllm-omni#3274: a size of 100000x10000 ends the server."""
    picture = huge_png(100_000, 10_000)
    with live(tmp_path, "--max-body-bytes", str(2**20)) as own:
        alone = own.image(of(1, image=square()))
        peak = own.peak_bytes()
        asked = {"size": "100000x10000", "width": 100_000, "height": 10_000, "resolution": 100_000, "n": 10**9}
        for name, value in asked.items():
            assert refused(own.post({name: value}), name)
        assert refused(own.post({"image": picture}), "image")
        assert refused(own.post({"image": square(), "mask": picture}), "mask")
        assert own.peak_bytes() - peak < 50 * 2**20  # its pixels are 125 MB, and 1 GB as bytes
        assert own.image(of(1, image=square())) == alone


@pytest.mark.parametrize("fields", [{}, {"label": 3}, {"image": square(), "strength": 0.7}])
def test_n_images_are_n_different_images_each_of_its_own_seed(shared: Live, fields: dict[str, Any]):
    """vllm-omni#1969, dynamo#12970: n is ignored, or all but the first image are lost."""
    images = decoded(shared.post(of(40, n=SLOTS + 3, **fields)))
    assert len(set(images)) == len(images) == SLOTS + 3
    assert images == [shared.image(of(40 + index, **fields)) for index in range(len(images))]


def test_gauges_say_what_is_held(shared: Live):
    """vllm-omni#3228: gauges of waiting and running requests that are wrong, or stay."""
    names = ("admitted_images", "active_slots", "waiting_images")

    def gauges() -> tuple[float, ...]:
        return tuple(shared.metric(f"fewstep_{name}") for name in names)

    for end in ("answered", "left", "failed"):
        shared.plan(calls=7, sleep_s=0.1)  # the first images stay in their slots until their last call
        clients = [shared.send(of(seed, 8, n=images)) for seed, images in enumerate((SLOTS, SLOTS, 3))]
        wait_until(lambda: gauges() == (2 * SLOTS + 3, SLOTS, SLOTS + 3))
        if end == "left":
            for client in clients:
                client.close()
        shared.plan(network="RuntimeError" if end == "failed" else "")
        shared.admitted(0)
        shared.plan()
        wait_until(lambda: gauges() == (0, 0, 0))
        assert shared.metric("fewstep_backlog_seconds") == 0
        for client in clients:
            client.close()
    wait_until(shared.ready)


def test_batched_images_of_a_seed_are_those_made_alone(shared: Live):
    """sglang#28502: images of one seed differ, and are worse, when they are batched."""
    bodies = [of(seed, 4, label=label) for seed, label in ((7, 0), (8, 1), (9, 2), (7, 3))]
    alone = [shared.image(body) for body in bodies]
    answers = shared.at_once(bodies + bodies)
    assert [answer.content for answer in answers] == alone + alone
    assert len(set(alone)) == len(bodies)


def test_concurrent_requests_share_network_calls(fresh: Live):
    """sglang#30634: "concurrency" that is a queue; two clients wait exactly twice as long."""
    warm = len(fresh.calls())
    answers = fresh.at_once([of(seed, 4) for seed in range(SLOTS)])
    assert {answer.status_code for answer in answers} == {200}
    wait_until(lambda: fresh.metric("fewstep_image_rows_total") == SLOTS * 4)
    calls = fresh.metric("fewstep_denoiser_calls_total")
    assert calls == len(fresh.calls()) - warm
    assert calls <= 2 * 4  # the first request may have been alone in a call; one after the other takes SLOTS * 4


def test_work_stops_when_its_client_has_left(shared: Live):
    """docker/model-runner#1041: generation goes on after the client has left, and retries add up."""
    shared.plan(calls=0)
    begun = len(shared.calls())
    clients = [shared.send(of(seed, 8, n=64)) for seed in range(3)]
    shared.admitted(3 * 64)
    for client in clients:
        client.close()
    shared.admitted(0)
    shared.plan()
    shared.image(of(1, 1))
    shared.idle()
    assert len(shared.calls()) - begun <= 4  # the one that was held, the last request's, and one between them


def test_one_of_several_requests_is_cancelled_alone(fresh: Live):
    """ComfyUI#7513: to cancel one job is to cancel whatever runs."""
    bodies = [of(seed, 4, n=3) for seed in range(5)]  # two have slots, one has slots for two images, two wait
    alone = [decoded(fresh.post(body)) for body in bodies]
    for leaving in (0, 2, 4):
        fresh.plan(calls=0)
        answers: dict[int, Future[httpx.Response]] = {}
        with ThreadPoolExecutor(len(bodies)) as pool, ExitStack() as client:
            for number, body in enumerate(bodies):  # one after the other, so that they stand in this order
                if number == leaving:
                    client.enter_context(fresh.send(body))
                else:
                    answers[number] = pool.submit(fresh.post, body)
                fresh.admitted(3 * (number + 1))
            client.close()
            fresh.admitted(3 * len(answers))
            fresh.plan()
            assert {number: decoded(answer.result(DEADLINE_S)) for number, answer in answers.items()} == {
                number: images for number, images in enumerate(alone) if number != leaving
            }
    wait_until(lambda: fresh.metric("fewstep_evicted_images_total") == 3 * 3)


def test_concurrent_requests_share_no_sampler_state(shared: Live):
    """diffusers#7851: a step index that concurrent requests share runs out of bounds."""
    bodies = [of(seed, steps) for seed, steps in enumerate((8, 1, 5, 2, 7, 3, 6, 4, 1, 8))]
    alone = [shared.image(body) for body in bodies]
    answers = shared.at_once(bodies)
    assert [answer.content for answer in answers] == alone
