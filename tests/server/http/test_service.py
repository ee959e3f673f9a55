"""Image requests, with workers that the test plays: deadlines, departures, admission, and what is left behind."""

import asyncio
import base64
import gc
import json
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from server.http.access import RECORD
from server.http.dialects import native
from server.http.errors import CLIENT_GONE
from server.http.routes import IMAGE_HEADERS
from server.scheduler.events import Failed, Finished
from tests.server.fakes import png
from tests.server.in_process import Site, code_of, play

PICTURE = png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def idle(site: Site) -> bool:
    """Whether nothing is held for any request."""
    return (site.pool.admission.images, site.pool.pending, site.pool.workers[0].backlog_s) == (0, {}, 0)


def test_an_answer_becomes_an_image_and_the_count_returns_to_zero():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = site.generate(b'{"seed": 5}')
        submit = await worker.taken()
        assert submit.request.seeds == (5,) and site.pool.admission.images == 1
        await worker.send(Finished(submit.id, "png", (b"PNG",), 0.001, 0.002, 0.0005))
        response = await task
        assert (response.status_code, response.content, response.headers["x-seed"]) == (200, b"PNG", "5")
        assert response.headers["server-timing"] == "queue;dur=1.000, engine;dur=2.000, encode;dur=0.500"
        unsent = set(IMAGE_HEADERS) - {name.title() for name in response.headers}
        assert unsent == {"X-Log-Weight"} and idle(site)  # which is sent where the request asks for it

    play(scenario)


@pytest.mark.parametrize("left_in", ["body", "images"])
def test_a_client_that_leaves_cancels_its_request_and_is_counted_where_it_left(left_in: str):
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        if left_in == "body":
            site.left.set()
            scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": [(b"host", b"localhost")]}
            await site.app(scope, _half_a_body(), _nowhere)
        else:
            task = site.generate()
            submit = await worker.taken()
            site.left.set()
            assert (await task).status_code == CLIENT_GONE
            assert await worker.cancelled() == submit.id
        assert idle(site)
        page = site.metrics.render("")[0].decode()
        assert f'fewstep_cancelled_total{{stage="{left_in}"}} 1.0' in page

    play(scenario)


def _half_a_body() -> Any:
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return messages.pop()

    return receive


async def _nowhere(message: Any) -> None: ...


def test_504_comes_at_the_deadline_and_the_worker_learns_it():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        answer = await site.ask("POST", "/v1/generate", b'{"timeout_s": 0.01}')
        assert (answer.status_code, code_of(answer)) == (504, "timeout")
        submit = await worker.taken()
        assert await worker.cancelled() == submit.id
        assert submit.deadline_s - submit.accepted_s == pytest.approx(0.01) and idle(site)
        task = site.generate()
        submit = await worker.taken()
        assert submit.deadline_s - submit.accepted_s == pytest.approx(60)
        site.left.set()
        await task

    play(scenario)


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [("failed", "network_error", 500), ("timeout", "timeout", 504), ("unavailable", "model_failing", 503)],
)
def test_a_failure_in_the_worker_says_what_it_was(kind: Any, code: str, status: int):
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = site.generate()
        submit = await worker.taken()
        await worker.send(Failed(submit.id, kind, code, "what went wrong"))
        response = await task
        assert (response.status_code, code_of(response)) == (status, code) and idle(site)
        assert response.json()["error"]["message"] == "what went wrong"

    play(scenario)


def test_before_the_workers_are_warm_the_answer_is_503():
    async def scenario(site: Site) -> None:
        async def codes() -> list[str]:
            return [code_of(await site.ask("POST", "/v1/generate")), code_of(await site.ask("GET", "/readyz"))]

        assert await codes() == ["not_ready"] * 2
        await site.start(0)
        await site.start(1)
        assert await codes() == ["not_ready"] * 2
        await site.warm(0)
        assert await codes() == ["not_ready"] * 2
        await site.warm(1)
        assert (await site.ask("GET", "/readyz")).status_code == 200

    play(scenario, workers=2)


def test_ready_is_a_server_of_which_some_model_works():
    async def scenario(site: Site) -> None:
        await site.warm()
        life = site.pool.workers[0]
        life.failing.add("tiny")
        assert (await site.ask("GET", "/readyz")).status_code == 200
        assert code_of(await site.ask("POST", "/v1/generate", b'{"model": "tiny"}')) == "model_failing"
        life.failing.add("other")
        assert code_of(await site.ask("GET", "/readyz")) == "model_failing"

    play(scenario, models=("tiny", "other"))


def test_a_server_that_was_told_to_stop_takes_no_newcomers_and_answers_those_it_has():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = site.generate()
        submit = await worker.taken()
        site.pool.draining = True
        assert code_of(await site.ask("POST", "/v1/generate")) == "draining"
        assert (await site.ask("GET", "/readyz")).status_code == 503
        await worker.send(Finished(submit.id, "png", (b"PNG",), 0.0, 0.0, 0.0))
        assert (await task).status_code == 200

    play(scenario)


def test_a_full_queue_answers_429_until_there_is_room():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        first = site.generate(b'{"n": 5, "steps": 8}')
        await worker.taken()
        refused = await site.ask("POST", "/v1/generate", b'{"n": 2}')
        # One image too many, 8 rows each, 4 rows per tick of 2 s.
        assert (refused.status_code, code_of(refused), refused.headers["retry-after"]) == (429, "queue_full", "4")
        fits = site.generate(b'{"n": 1}')
        await worker.taken()
        site.left.set()
        await asyncio.gather(first, fits)
        assert idle(site)

    play(scenario, capacity=4, max_queue=2, max_images=5)


def test_a_full_loading_or_stopping_server_decodes_no_picture(monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    monkeypatch.setattr(native, "decode_edit", lambda image, mask, manifest: decoded.append(image))

    async def scenario(site: Site) -> None:
        body = json.dumps({"image": PICTURE, "mask": PICTURE}).encode()
        assert code_of(await site.ask("POST", "/v1/generate", body)) == "not_ready"
        worker = await site.warm()
        first = site.generate(b'{"n": 5}')
        await worker.taken()
        assert code_of(await site.ask("POST", "/v1/generate", body)) == "queue_full"
        site.pool.draining = True
        assert code_of(await site.ask("POST", "/v1/generate", body)) == "draining"
        assert not decoded
        site.left.set()
        await first
        site.pool.draining = False
        await site.ask("POST", "/v1/generate", body)
        assert decoded == [PICTURE]

    play(scenario, capacity=4, max_queue=1, max_images=5)


def test_many_large_images_become_json_off_the_event_loop_and_one_small_one_on_it(monkeypatch: pytest.MonkeyPatch):
    threads: list[bool] = []
    encode = msgspec.json.encode

    def watched(body: Any) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(body)

    monkeypatch.setattr(native.msgspec.json, "encode", watched)
    large = bytes(range(256)) * 4_096

    async def scenario(site: Site) -> None:
        worker = await site.warm()
        for images in ((large,) * 64, (b"small", b"image")):
            task = site.generate(json.dumps({"n": len(images)}).encode())
            submit = await worker.taken()
            await worker.send(Finished(submit.id, "png", images, 0.0, 0.0, 0.0))
            data = (await task).json()["data"]
            assert [base64.b64decode(entry["b64_json"]) for entry in data] == list(images)

    play(scenario)
    assert threads == [False, True]


def test_nothing_of_a_request_outlives_its_answer():
    """A server keeps the scope of a connection's last request for as long as the connection is idle."""

    async def scenario(site: Site) -> None:
        worker = await site.warm()
        scopes: list[Any] = []
        app = site.app

        async def keeps_the_scope(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            await app(scope, receive, send)

        site.app = keeps_the_scope  # pyright: ignore[reportAttributeAccessIssue]
        task = site.generate()
        submit = await worker.taken()
        await worker.send(Finished(submit.id, "png", (b"PNG",), 0.0, 0.0, 0.0))
        assert (await task).status_code == 200 and RECORD not in scopes[0]
        del task, submit
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is Finished]

    gc.collect()
    play(scenario)


def test_a_thousand_requests_leave_no_task_and_no_timer():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        loop: Any = asyncio.get_running_loop()
        for number in range(1_000):
            task = site.generate(b'{"timeout_s": 60}')
            submit = await worker.taken()
            if number % 3:
                await worker.send(Finished(submit.id, "png", (b"PNG",), 0.0, 0.0, 0.0))
            else:
                site.left.set()
                assert await worker.cancelled() == submit.id
            await task
            site.left.clear()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2  # this and the one that waits for it
        assert sum(not timer.cancelled() for timer in loop._scheduled) <= 2 and idle(site)

    play(scenario)


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/docs"])
def test_head_is_answered_wherever_get_is_and_a_slash_at_the_end_changes_nothing(path: str):
    site = Site()
    got, head = site.get(path), site.get(path, method="HEAD")
    assert (head.status_code, head.content, got.status_code) == (
        got.status_code,
        b"",
        503 if path == "/readyz" else 200,
    )
    assert {"content-length", "content-type"} <= set(head.headers) and head.headers["content-type"] == got.headers[
        "content-type"
    ]
    if path != "/":
        slash = site.get(f"{path}/")
        assert (slash.status_code, slash.headers["content-type"]) == (got.status_code, got.headers["content-type"])
        assert code_of(site.get(f"{path}//")) == "not_found"
    wrong = site.get(path, method="DELETE")
    assert (code_of(wrong), wrong.headers["allow"]) == ("method_not_allowed", "GET, HEAD")
