"""The generate route: one worker, one model."""

import asyncio

import pytest

from server.http.errors import ApiError
from server.http.request_record import CLIENT_GONE
from server.processes.messages import Cancel, Done, Failed, Submit
from server.processes.pipes import Link, WorkerGoneError
from tests.server.stage import FakeClockLoop, Stage, play


def test_an_answer_becomes_an_image_and_the_count_returns_to_zero():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 5}')
        submit = await stage.taken()
        assert submit.request.seed == 5
        assert stage.spec.admission.images == 1
        stage.links[0].answers.send(Done(submit.id, (b"PNG",), 0.001, 0.002, 0.0005))
        response = await task
        assert (response.status_code, response.body, response.headers["x-seed"]) == (200, b"PNG", "5")
        assert response.headers["server-timing"] == "queue;dur=1.000, engine;dur=2.000, encode;dur=0.500"
        assert (stage.spec.admission.images, stage.client.pending) == (0, {})
        assert stage.client.workers[0].backlog_s == 0

    play(scenario)


def test_a_client_that_leaves_cancels_its_request():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        stage.left.set()
        assert (await task).status_code == CLIENT_GONE
        assert await stage.cancelled() == submit.id
        assert (stage.spec.admission.images, stage.client.pending) == (0, {})
        assert stage.client.workers[0].backlog_s == 0

    play(scenario)


@pytest.mark.parametrize(("body", "seconds"), [(b"{}", 60.0), (b'{"timeout_s": 1.5}', 1.5)])
def test_504_comes_at_the_deadline_and_the_worker_is_told(body: bytes, seconds: float):
    async def scenario() -> None:
        stage = Stage(1, ("tiny",), {})
        await stage.ready()
        clock = asyncio.get_running_loop()
        started_s = clock.time()
        with pytest.raises(ApiError) as caught:
            await stage.post(body)
        assert (caught.value.status, caught.value.code) == (504, "timeout")
        assert clock.time() - started_s == pytest.approx(seconds, abs=1e-6)
        submit, cancel = stage.links[0].requests.get(), stage.links[0].requests.get()
        assert isinstance(submit, Submit) and cancel == Cancel(submit.id)
        assert submit.deadline_s - submit.accepted_s == pytest.approx(seconds)
        assert stage.spec.admission.images == 0
        stage.close()

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(("code", "status"), [("network_error", 500), ("timeout", 504)])
def test_a_failure_in_the_worker_says_what_it_was(code: str, status: int):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        stage.links[0].answers.send(Failed(submit.id, code, "the network call failed"))
        with pytest.raises(ApiError, match="network call failed") as caught:
            await task
        assert (caught.value.status, caught.value.code) == (status, code)

    play(scenario)


def test_before_the_workers_are_warm_the_answer_is_503():
    async def scenario(stage: Stage) -> None:
        for start in (lambda: None, lambda: stage.start(0), lambda: stage.start(1)):
            start()
            with pytest.raises(ApiError) as caught:
                await stage.post()
            assert (caught.value.status, caught.value.code) == (503, "not_ready")
        await stage.warm(0)
        with pytest.raises(ApiError, match="still loading"):
            stage.client.check_ready()
        await stage.warm(1)
        stage.client.check_ready()
        assert stage.announced == 1

    play(scenario, workers=2)


def test_a_server_that_was_told_to_stop_takes_no_newcomers_and_answers_those_it_has():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        stage.client.draining = True
        with pytest.raises(ApiError) as caught:
            await stage.post()
        assert (caught.value.status, caught.value.code) == (503, "draining")
        stage.links[0].answers.send(Done(submit.id, (b"PNG",), 0.0, 0.0, 0.0))
        assert (await task).status_code == 200

    play(scenario)


def test_a_full_queue_answers_429_until_there_is_room():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        first = stage.post(b'{"n": 5, "steps": 8}')
        await stage.taken()
        with pytest.raises(ApiError) as caught:
            await stage.post(b'{"n": 2}')
        # One image too many, 8 rows each, 4 rows per tick of 2 s.
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "4")
        fits = stage.post(b'{"n": 1}')
        await stage.taken()
        stage.left.set()
        await asyncio.gather(first, fits)
        assert stage.spec.admission.images == 0

    play(scenario, capacity=4, max_queue=2, max_images=5)


def test_a_worker_that_no_longer_reads_never_blocks_the_sender():
    link = Link.create()
    with pytest.raises(WorkerGoneError, match="stopped taking requests"):
        for number in range(100_000):
            link.requests.put(Cancel(number))
    link.close()
