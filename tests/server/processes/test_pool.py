"""Several workers and models behind the route: who gets a request, and what becomes of it when a worker dies."""

import asyncio
import gc
from collections import Counter

import pytest

from server.processes.control import GaveUp
from server.scheduler.events import Failed, Health
from server.scheduler.refusal import Refusal
from server.scheduler.stats import ModelStats, Stats
from tests.server.stage import Stage, done, play

LOST = ("unavailable", "worker_lost")


async def refusal(task: asyncio.Task) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        await task
    return caught.value.kind, caught.value.code


def test_a_request_goes_to_the_worker_with_the_least_to_do():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(b'{"seed": 0, "steps": 8}')]
        first = await stage.taken(0)
        tasks += [stage.post(b'{"seed": 1, "steps": 2}'), stage.post(b'{"seed": 2, "steps": 2}')]
        assert [(await stage.taken(1)).request.seeds[0] for _ in range(2)] == [1, 2]
        stage.workers[0].send(done(first))
        assert (await tasks[0]).status_code == 200
        tasks.append(stage.post(b'{"seed": 3}'))
        assert (await stage.taken(0)).request.seeds == (3,)
        stage.left.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [worker.backlog_s for worker in stage.pool.workers.values()] == [0, 0]

    play(scenario, workers=2)


def test_the_requests_of_a_worker_that_dies_are_made_by_another_with_the_same_number_seed_and_deadline():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 7}')
        submit = await stage.taken(0)
        await stage.die(0)
        assert await stage.taken(1) == submit
        stage.workers[1].send(done(submit))
        assert (await task).body == b"image of 7"
        assert (stage.pool.pending, stage.admission.images) == ({}, 0)

    play(scenario, workers=2)


def test_without_another_worker_they_wait_for_the_next_life_while_newcomers_get_503():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(b'{"seed": 1}'), stage.post(b'{"seed": 2}')]
        before = [await stage.taken(), await stage.taken()]
        await stage.die(0)
        assert await refusal(stage.post()) == LOST
        await stage.start(0)
        assert await refusal(stage.post()) == LOST
        await stage.warm(0)
        assert [await stage.taken(), await stage.taken()] == before
        for submit in before:
            stage.workers[0].send(done(submit))
        assert [(await task).body for task in tasks] == [b"image of 1", b"image of 2"]
        assert (stage.pool.restarts, stage.announced) == (1, 1)

    play(scenario)


def test_a_request_that_sees_two_workers_die_gets_503_at_once():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken(0)
        await stage.die(0)
        await stage.taken(1)
        await stage.die(1)
        assert await refusal(task) == LOST
        assert (stage.pool.pending, stage.admission.images) == ({}, 0)

    play(scenario, workers=2)


def test_one_that_nobody_took_yet_when_it_is_cancelled_is_not_made_later():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken()
        await stage.die(0)
        stage.left.set()
        await asyncio.wait([task])
        await stage.start(0)
        await stage.warm(0)
        stage.left.clear()
        last = stage.post(b'{"seed": 9}')
        assert (await stage.taken()).request.seeds == (9,)
        stage.left.set()
        await asyncio.wait([last])

    play(scenario)


def test_when_the_parent_gives_up_everyone_gets_503():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        running, waiting = stage.post(), stage.post()
        await stage.taken(1)
        await stage.taken(0)
        await stage.die(0)
        await stage.taken(1)
        await stage.die(1)
        await stage.pool.control(GaveUp())
        for task in (running, waiting, stage.post()):
            assert await refusal(task) == LOST

    play(scenario, workers=2)


def test_a_failing_model_is_left_to_the_workers_where_it_works_and_turned_away_when_there_is_none():
    async def scenario(stage: Stage) -> None:
        await stage.ready()

        async def health(worker: int, model: str, ok: bool) -> None:
            stage.workers[worker].send(Health(model, ok))
            await stage.until(lambda: (model not in stage.pool.workers[worker].failing) == ok)

        await health(0, "a", ok=False)
        task = stage.post(b'{"model": "a"}')
        await stage.taken(1)
        await health(1, "a", ok=False)
        assert await refusal(stage.post(b'{"model": "a"}')) == ("unavailable", "model_failing")
        stage.pool.check_ready()  # the other model is served
        other = stage.post(b'{"model": "b"}')
        await stage.taken(0)
        for worker in range(2):
            await health(worker, "b", ok=False)
        with pytest.raises(Refusal, match="the network of a and b has failed"):
            stage.pool.check_ready()
        await health(0, "a", ok=True)
        stage.pool.check_ready()
        stage.left.set()
        await asyncio.gather(task, other, return_exceptions=True)

    play(scenario, workers=2, models=("a", "b"))


def test_requests_given_back_untried_go_to_a_worker_that_serves_or_get_503_and_stay_cancellable():
    async def scenario(stage: Stage) -> None:
        await stage.ready()

        def untried(number: int) -> Failed:
            return Failed(number, "unavailable", "model_failing", "the network of tiny has failed")

        back = [Health("tiny", False), untried(0), untried(2)]
        tasks = [stage.post(b'{"seed": %d}' % seed) for seed in range(3)]
        given = [await stage.taken(0), await stage.taken(1), await stage.taken(0)]
        assert [submit.id for submit in given] == [0, 1, 2]
        for answer in back:
            stage.workers[0].send(answer)
        assert [await stage.taken(1), await stage.taken(1)] == [given[0], given[2]], "same seeds and deadlines"
        assert stage.pool.workers[0].backlog_s == 0
        stage.workers[1].send(done(given[0]))
        assert (await tasks[0]).body == b"image of 0"
        stage.workers[1].send(Health("tiny", False))
        for number in (1, 2):
            stage.workers[1].send(untried(number))
        for task in tasks[1:]:
            assert await refusal(task) == ("unavailable", "model_failing")
        assert stage.admission.images == 0 and stage.pool.workers[1].backlog_s == 0

    play(scenario, workers=2)


def test_two_workers_hold_twice_as_many_images_and_one_that_died_holds_none():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        assert stage.admission.rooms["tiny"].slots == 8
        await stage.die(1)
        assert stage.admission.rooms["tiny"].slots == 4
        await stage.die(0)
        assert stage.admission.rooms["tiny"].slots == 4, "nobody left: the last known room counts"

    play(scenario, workers=2, capacity=4, max_images=4)


def test_counters_of_a_worker_do_not_fall_when_another_takes_its_place():
    def stats(calls: int, active: int) -> Stats:
        model = ModelStats({(7, 8): calls}, {8: calls * 0.5}, {"running": 1}, 0, active, active, capacity=8)
        return Stats({"tiny": model}, rss_bytes=1000)

    async def scenario(stage: Stage) -> None:
        await stage.ready()
        stage.workers[0].send(stats(calls=10, active=5))
        await stage.die(0)
        left = stage.pool.stats[0].models["tiny"]
        assert (left.calls_by_bucket, left.active_slots, left.waiting_images) == ({8: 10}, 0, 0)
        assert stage.pool.stats[0].rss_bytes == 0
        await stage.start(0)
        await stage.warm(0)
        for calls in (1, 2):
            stage.workers[0].send(stats(calls, active=3))
            await stage.until(lambda calls=calls: stage.pool.stats[0].models["tiny"].rows == 70 + 7 * calls)
        both = stage.pool.stats[0].models["tiny"]
        assert (both.calls_by_bucket, sum(both.call_s_by_bucket.values()), both.padded_rows) == ({8: 12}, 6.0, 12)
        assert (both.evicted, both.active_slots) == ({"running": 2}, 3)

    play(scenario)


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x00\x00\x00\x01\x07\xc1", b"\x00\x00\x00\x01\x63\x00"])
def test_answers_that_cannot_be_read_are_the_end_of_that_worker_and_its_requests_are_made_by_another(
    garbage: bytes, caplog: pytest.LogCaptureFixture
):
    """Not a length, not MessagePack, not a kind of message."""

    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 7}')
        submit = await stage.taken(0)
        stage.workers[0].end.sendall(garbage)
        assert await stage.taken(1) == submit
        assert stage.lost == [1000], "the parent is asked to replace it"
        stage.workers[1].send(done(submit))
        assert (await task).body == b"image of 7"

    play(scenario, workers=2)
    assert "answers cannot be read; it is given up" in caplog.text


def test_nothing_is_left_of_workers_that_have_died():
    """Of twenty deaths, each with requests in flight that another life of the worker answers."""

    def ours() -> Counter[str]:
        gc.collect()
        names = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
        return Counter(name for name in names if name.startswith("server."))

    async def scenario(stage: Stage) -> None:
        await stage.ready()
        before: Counter[str] = Counter()
        for _ in range(21):
            tasks = [stage.post(b'{"n": 2}') for _ in range(3)]
            for _ in tasks:
                await stage.taken()
            stage.workers[0].send(Stats({"tiny": ModelStats(calls_by_fill={(6, 6): 1})}, rss_bytes=1))
            await stage.until(lambda: 0 in stage.pool.stats)
            await stage.die(0)
            await stage.start(0)
            await stage.warm(0)
            for _ in tasks:
                stage.workers[0].send(done(await stage.taken()))
            await asyncio.gather(*tasks)
            del tasks
            before = before or ours()
        assert stage.pool.restarts == 21 and before["server.processes.pool.Worker"] == 1
        assert ours() == before

    play(scenario)
