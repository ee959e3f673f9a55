"""Several workers and models behind the route: who gets a request, and what becomes of it when a worker dies."""

import asyncio

import pytest

from server.http.errors import ApiError
from server.processes.messages import MODEL_FAILING, Done, Failed, Health, ModelStats, Stats, Submit
from server.processes.pipes import GaveUp
from tests.server.stage import Stage, play


def done(submit: Submit) -> Done:
    return Done(submit.id, (f"image of {submit.request.seed}".encode(),), 0.0, 0.0, 0.0)


async def refusal(task: asyncio.Task) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        await task
    return caught.value.status, caught.value.code


def test_a_request_goes_to_the_worker_with_the_least_to_do():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(b'{"seed": 0, "steps": 8}')]
        first = await stage.taken(0)
        tasks += [stage.post(b'{"seed": 1, "steps": 2}'), stage.post(b'{"seed": 2, "steps": 2}')]
        assert [(await stage.taken(1)).request.seed for _ in range(2)] == [1, 2]
        stage.links[0].answers.send(done(first))
        assert (await tasks[0]).status_code == 200
        tasks.append(stage.post(b'{"seed": 3}'))
        assert (await stage.taken(0)).request.seed == 3
        stage.left.set()
        await asyncio.gather(*tasks)
        assert [worker.backlog_s for worker in stage.client.workers.values()] == [0, 0]

    play(scenario, workers=2)


def test_the_requests_of_a_worker_that_dies_are_made_by_another_with_the_same_number_seed_and_deadline():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post(b'{"seed": 7}')
        submit = await stage.taken(0)
        await stage.die(0)
        assert await stage.taken(1) == submit
        stage.links[1].answers.send(done(submit))
        assert (await task).body == b"image of 7"
        assert (stage.client.pending, stage.spec.admission.images) == ({}, 0)

    play(scenario, workers=2)


def test_without_another_worker_they_wait_for_the_next_life_while_newcomers_get_503():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        tasks = [stage.post(b'{"seed": 1}'), stage.post(b'{"seed": 2}')]
        before = [await stage.taken(), await stage.taken()]
        await stage.die(0)
        assert await refusal(stage.post()) == (503, "worker_lost")
        stage.start(0)
        assert await refusal(stage.post()) == (503, "worker_lost")
        await stage.warm(0)
        assert [await stage.taken(), await stage.taken()] == before
        for submit in before:
            stage.links[0].answers.send(done(submit))
        assert [(await task).body for task in tasks] == [b"image of 1", b"image of 2"]
        assert (stage.client.restarts, stage.announced) == (1, 1)

    play(scenario)


def test_a_request_that_sees_two_workers_die_gets_503_at_once():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken(0)
        await stage.die(0)
        await stage.taken(1)
        await stage.die(1)
        assert await refusal(task) == (503, "worker_lost")
        assert (stage.client.pending, stage.spec.admission.images) == ({}, 0)

    play(scenario, workers=2)


def test_one_that_nobody_took_yet_when_it_is_cancelled_is_not_made_later():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken()
        await stage.die(0)
        stage.left.set()
        await task
        stage.start(0)
        await stage.warm(0)
        stage.left.clear()
        last = stage.post(b'{"seed": 9}')
        assert (await stage.taken()).request.seed == 9
        stage.left.set()
        await last

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
        stage.client.control(GaveUp())
        for task in (running, waiting, stage.post()):
            assert await refusal(task) == (503, "worker_lost")

    play(scenario, workers=2)


def test_a_failing_model_is_left_to_the_workers_where_it_works_and_turned_away_when_there_is_none():
    async def scenario(stage: Stage) -> None:
        await stage.ready()

        async def health(worker: int, ok: bool) -> None:
            stage.links[worker].answers.send(Health("a", ok))
            await stage.until(lambda: ("a" not in stage.client.workers[worker].failing) == ok)

        await health(0, ok=False)
        task = stage.post(b'{"model": "a"}')
        await stage.taken(1)
        await health(1, ok=False)
        assert await refusal(stage.post(b'{"model": "a"}')) == (503, "model_failing")
        with pytest.raises(ApiError, match="the network of a has failed"):
            stage.client.check_ready()
        other = stage.post(b'{"model": "b"}')
        await stage.taken(0)
        await health(0, ok=True)
        stage.client.check_ready()
        stage.left.set()
        await asyncio.gather(task, other)

    play(scenario, workers=2, models=("a", "b"))


def test_requests_given_back_untried_go_to_a_worker_that_serves_or_get_503_and_stay_cancellable():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        back = [Health("tiny", False), Failed(0, MODEL_FAILING, "inner workings"), Failed(2, MODEL_FAILING, "")]
        tasks = [stage.post(b'{"seed": %d}' % seed) for seed in range(3)]
        given = [await stage.taken(0), await stage.taken(1), await stage.taken(0)]
        assert [submit.id for submit in given] == [0, 1, 2]
        for answer in back:
            stage.links[0].answers.send(answer)
        assert [await stage.taken(1), await stage.taken(1)] == [given[0], given[2]], "same seeds and deadlines"
        assert stage.client.workers[0].backlog_s == 0
        stage.links[1].answers.send(done(given[0]))
        assert (await tasks[0]).body == b"image of 0"
        stage.links[1].answers.send(Health("tiny", False))
        for number in (1, 2):
            stage.links[1].answers.send(Failed(number, MODEL_FAILING, "inner workings"))
        for task in tasks[1:]:
            with pytest.raises(ApiError) as caught:
                await task
            error = caught.value
            assert (error.status, error.code, error.headers["Retry-After"]) == (503, "model_failing", "1")
            assert "inner" not in error.message
        assert stage.spec.admission.images == 0 and stage.client.workers[1].backlog_s == 0

    play(scenario, workers=2)


def test_two_workers_hold_twice_as_many_images_and_one_that_died_holds_none():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        assert stage.spec.admission.rooms["tiny"].slots == 8
        await stage.die(1)
        assert stage.spec.admission.rooms["tiny"].slots == 4
        await stage.die(0)
        assert stage.spec.admission.rooms["tiny"].slots == 4, "nobody left: the last known room counts"

    play(scenario, workers=2, capacity=4, max_images=4)


def test_counters_of_a_worker_do_not_fall_when_another_takes_its_place():
    def stats(calls: int, active: int) -> Stats:
        model = ModelStats(
            calls_by_bucket={8: calls},
            calls_by_fill={(7, 8): calls},
            call_s_by_bucket={8: calls * 0.5},
            failed_calls=0,
            rows=calls * 7,
            padded_rows=calls,
            evicted={"running": 1},
            active_slots=active,
            waiting_images=active,
            capacity=8,
        )
        return Stats({"tiny": model}, rss_bytes=1000)

    async def scenario(stage: Stage) -> None:
        await stage.ready()
        stage.links[0].answers.send(stats(calls=10, active=5))
        await stage.die(0)
        left = stage.client.stats[0].models["tiny"]
        assert (left.calls_by_bucket, left.active_slots, left.waiting_images) == ({8: 10}, 0, 0)
        assert stage.client.stats[0].rss_bytes == 0
        stage.start(0)
        await stage.warm(0)
        for calls in (1, 2):
            stage.links[0].answers.send(stats(calls, active=3))
            await stage.until(lambda calls=calls: stage.client.stats[0].models["tiny"].rows == 70 + 7 * calls)
        both = stage.client.stats[0].models["tiny"]
        assert (both.calls_by_bucket, both.call_s, both.padded_rows) == ({8: 12}, 6.0, 12)
        assert (both.evicted, both.active_slots) == ({"running": 2}, 3)

    play(scenario)
