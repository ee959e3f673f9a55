"""How many images a request may ask for does not depend on which workers are there at the moment."""

import pytest

from server.processes.admission import Admission
from server.processes.messages import Ready
from server.processes.pipes import WorkerLink
from server.processes.pool import Worker, WorkerPool
from server.scheduler.model import ModelInfo
from server.scheduler.refusal import Refusal

SLOTS, QUEUE, WORKERS = 4, 8, 3
MOST = WORKERS * SLOTS + QUEUE


def warm(pool: WorkerPool, number: int) -> Worker:
    link = WorkerLink(lambda answer: None, lambda: None)
    worker = pool.workers[number] = Worker(number, 0, link)
    pool._warm(worker, Ready({"tiny": ModelInfo(1.0, SLOTS, (SLOTS,), {})}, 0.1))
    return worker


def refusal(pool: WorkerPool, images: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        pool.admission.enter("tiny", images, calls=1)
    return caught.value


def test_while_a_worker_restarts_a_request_that_fits_into_all_of_them_is_asked_to_come_back():
    pool = WorkerPool(["tiny"], WORKERS, Admission(QUEUE, ["tiny"]), lambda: None)
    workers = [warm(pool, number) for number in range(WORKERS)]
    pool.admission.leave(pool.admission.enter("tiny", MOST, calls=1))
    for left in (2, 1):
        pool._gone(workers[left])
        why = refusal(pool, MOST)
        assert why.kind == "full" and why.retry_after_s is not None
        assert refusal(pool, MOST + 1).kind == "invalid"
    for number in (1, 2):
        warm(pool, number)
    pool.admission.leave(pool.admission.enter("tiny", MOST, calls=1))


def test_while_the_first_worker_is_alone_the_others_are_counted_on():
    pool = WorkerPool(["tiny"], WORKERS, Admission(QUEUE, ["tiny"]), lambda: None)
    warm(pool, 0)
    assert (refusal(pool, MOST).kind, refusal(pool, MOST + 1).kind) == ("full", "invalid")
    assert f"at most {MOST}" in refusal(pool, MOST + 1).message
