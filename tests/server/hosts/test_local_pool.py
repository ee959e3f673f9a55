"""An engine loop in the process that speaks HTTP: readiness, the bound on what is accepted, signs of life."""

import asyncio
from collections.abc import Iterator

import pytest

from server.hosts.local_pool import WORKER, LocalPool
from server.scheduler.events import Finished
from server.scheduler.policy import fifo
from server.scheduler.refusal import Refusal
from server.scheduler.slots import SlotTable
from tests.server.conftest import DEADLINE_S
from tests.server.fakes import CLASSES, SHAPE, SIGMA_DATA, GaussianNetwork, expected_pixels, fake_model
from tests.server.local_bench import MODEL, SLOTS, Gate, request

QUEUE = 2


@pytest.fixture
def network() -> GaussianNetwork:
    return GaussianNetwork()


@pytest.fixture
def pool(network: GaussianNetwork) -> Iterator[LocalPool]:
    table = SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, (1, 2, SLOTS))
    pool = LocalPool({"tiny": fake_model(table)}, {"tiny": MODEL}, fifo, QUEUE, warm_up_s=2.0)
    yield pool
    pool.close()


def test_it_makes_the_images_and_forgets_what_is_answered(pool: LocalPool):
    async def scene() -> Finished:
        asked = request(seed=7, steps=4, label=1)
        ticket = pool.admit("tiny", asked.images, asked.calls)
        assert (pool.requests, pool.admission.images, pool.slots) == (1, 1, SLOTS)
        made = await pool.submit(asked, DEADLINE_S).aresult()
        pool.release(ticket)
        return made

    made = asyncio.run(scene())
    assert (made.images[0] == expected_pixels(7, 1, 4)).all()
    assert (pool.requests, pool.admission.images) == (0, 0)
    assert pool.warm_up_s == {WORKER: 2.0} and pool.working == ["tiny"]


def test_more_than_the_slots_and_the_queue_are_refused_until_there_is_room(pool: LocalPool):
    tickets = [pool.admit("tiny", 1, 4) for _ in range(SLOTS + QUEUE)]
    with pytest.raises(Refusal) as full:
        pool.admit("tiny", 1, 4)
    assert (full.value.kind, full.value.code) == ("full", "queue_full") and pool.requests == SLOTS + QUEUE
    pool.release(tickets[0])
    pool.admit("tiny", 1, 4)


def test_a_closed_or_failing_pool_is_not_ready(pool: LocalPool):
    pool.check_ready("tiny")
    pool.service.failing.add("tiny")
    with pytest.raises(Refusal, match="failed several times"):
        pool.admit("tiny", 1, 1)
    assert pool.working == [] and pool.requests == 0
    pool.close()
    with pytest.raises(Refusal, match="closed"):
        pool.check_ready()
    with pytest.raises(RuntimeError, match="has ended"):
        pool.check_alive(0)


def test_a_loop_that_owes_images_must_not_be_silent(pool: LocalPool, network: GaussianNetwork):
    gate = Gate()
    pool.check_alive(0.001)
    pool.check_alive(0.001)  # it owes nothing
    network.before = gate
    pool.admit("tiny", 1, 1)
    stream = pool.submit(request(steps=1), DEADLINE_S)
    gate.wait()
    silent = pool.service.stats
    pool.check_alive(0.0)
    pool._heard, pool._heard_s = silent, pool._heard_s - 10
    pool.check_alive(30.0)
    pool.check_alive(0.0)  # no limit
    with pytest.raises(RuntimeError, match="silent for"):
        pool.check_alive(5.0)
    gate.go()
    stream.result()
    gate.go(1_000)
