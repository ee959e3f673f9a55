"""What a request's stream tells its reader, whatever workers and clients do, and that nothing stays counted."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.http.dialects.native import NativeDialect
from server.processes.admission import Ticket
from server.processes.control import GaveUp
from server.processes.stream import PoolStream
from server.scheduler.events import Accepted, Event, Failed, Health, Progress, is_last
from server.scheduler.refusal import Refusal
from server.scheduler.request import ImageRequest
from tests.server.stage import Stage, done, play


def asked(dialect: NativeDialect, body: bytes = b"{}") -> ImageRequest:
    return dialect.read(body).request


def progress(number: int, image: int, step: int) -> Progress:
    return Progress(number, image, step, of=4, format="png", preview=b"noisy image")


def test_a_replay_repeats_no_event():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        stream = stage.pool.submit(asked(stage.dialect, b'{"n": 2, "seed": 5}'), 60.0)
        submit = await stage.taken(0)
        first = [progress(0, 0, 1), progress(0, 1, 1), progress(0, 0, 2)]
        stage.workers[0].send(*first)
        events = aiter(stream)
        seen: list[Event] = [await anext(events) for _ in range(4)]
        await stage.die(0)
        assert await stage.taken(1) == submit
        again = [progress(0, image, step) for step in (1, 2, 3) for image in (0, 1)]
        stage.workers[1].send(*again, done(submit))
        seen += [event async for event in events]
        new = [progress(0, 1, 2), progress(0, 0, 3), progress(0, 1, 3)]
        assert seen == [Accepted(0), *first, *new, done(submit)]

    play(scenario, workers=2)


def test_a_cancelled_request_ends_its_stream_and_its_worker_is_told_and_late_events_are_dropped():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        stream = stage.pool.submit(asked(stage.dialect), 60.0)
        submit = await stage.taken()
        waiting = asyncio.create_task(events_of(stream))
        await asyncio.sleep(0)
        stream.cancel()
        assert await waiting in ([], [Accepted(0)])
        assert await stage.cancelled() == submit.id
        stage.workers[0].send(progress(submit.id, 0, 1), done(submit), Health("tiny", False))
        await stage.until(lambda: bool(stage.pool.workers[0].failing))
        assert stage.pool.pending == {} and stage.pool.workers[0].backlog_s == 0

    play(scenario)


async def events_of(stream: PoolStream) -> list[Event]:
    return [event async for event in stream]


def test_a_worker_that_recovers_is_asked_again_whatever_a_slow_thread_of_it_says_later():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        submit = await stage.taken()
        late = Failed(submit.id, "unavailable", "model_failing", "the network of tiny has failed")
        # Each of a worker's two encoding threads says how the model is, in order with the events that it passes on.
        stage.workers[0].send(
            Health("tiny", False), Health("tiny", True), Health("tiny", False), late, Health("tiny", True)
        )
        with pytest.raises(Refusal, match="the network of tiny has failed"):
            await task
        await stage.until(lambda: not stage.pool.workers[0].failing)
        again = stage.post()
        stage.workers[0].send(done(await stage.taken()))
        assert (await again).status_code == 200

    play(scenario)


def test_ids_of_two_http_processes_never_meet():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        numbers: list[int] = []
        for process in range(3):
            stage.pool.use_ids(process, 3)
            for _ in range(5):
                stage.pool.submit(asked(stage.dialect), 60.0)
                numbers.append((await stage.taken()).id)
                assert numbers[-1] % 3 == process, "by which the worker finds the way back"
        assert len(set(numbers)) == 15

    play(scenario)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["cancel", "finish", "fail"]), st.integers(0, 99)),
        st.tuples(st.sampled_from(["die", "live"]), st.integers(0, 1)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_whatever_happens_each_request_ends_once_and_nothing_stays_counted(actions: list[tuple[str, int]]):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        requests: list[tuple[PoolStream, list[Event]]] = []
        cancelled: set[PoolStream] = set()
        readers: list[asyncio.Task[None]] = []
        pool = stage.pool

        async def read(stream: PoolStream, ticket: Ticket, seen: list[Event]) -> None:
            try:
                async for event in stream:
                    seen.append(event)
            finally:
                pool.release(ticket)

        async def act(action: str, number: int) -> None:
            waiting = list(pool.pending.values())
            if action == "post":
                request = asked(stage.dialect, b'{"n": %d}' % number)
                try:
                    ticket = pool.admit("tiny", request.images, request.calls)
                except Refusal:
                    return
                stream, seen = pool.submit(request, 60.0), []
                requests.append((stream, seen))
                readers.append(asyncio.create_task(read(stream, ticket, seen)))
            elif action == "cancel" and requests:
                stream, _ = requests[number % len(requests)]
                stream.cancel()
                cancelled.add(stream)
            elif action in ("finish", "fail") and waiting:
                entry = waiting[number % len(waiting)]
                if worker := entry.worker:
                    failed = Failed(entry.submit.id, "failed", "network_error", "it failed")
                    stage.workers[worker.number].send(done(entry.submit) if action == "finish" else failed)
                    await stage.until(lambda: entry.submit.id not in pool.pending)
            elif action == "die" and not pool.workers[number].dead:
                await stage.die(number)
            elif action == "live" and pool.workers[number].dead:
                await stage.start(number)
                await stage.warm(number)
            for worker in pool.workers.values():
                given = [entry.work_s for entry in pool.pending.values() if entry.worker is worker]
                assert worker.backlog_s == pytest.approx(sum(given))
            assert not any(entry.worker.dead for entry in pool.pending.values() if entry.worker)

        for action in actions:
            await act(*action)
        await pool.control(GaveUp())  # ends all that is left
        await asyncio.gather(*readers)
        for stream, seen in requests:
            ends = sum(map(is_last, seen))
            assert ends == 1 or (stream in cancelled and ends == 0)
        assert (pool.pending, stage.admission.images, stage.admission.work_s) == ({}, 0, 0.0)
        assert [worker.backlog_s for worker in pool.workers.values()] == pytest.approx([0, 0])

    play(scenario, workers=2, capacity=2, max_queue=6, max_images=3)
