"""A soak's books on synthetic logs: what must balance does, and every way of not balancing is named."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.load.arrivals import poisson
from benchmarks.load.ledger import NO_ANSWER, OUTCOMES, Ending, Scrape, balance, outcome
from benchmarks.load.memory import Sample, growth
from benchmarks.load.soak import problems
from benchmarks.load.visits import Visit, bad_requests, plan
from server.http.access import OUTCOMES as SERVER_OUTCOMES
from server.http.access import outcome_of


def metrics(active: int = 0, waiting: int = 0, failed: int = 0, **outcomes: int) -> Scrape:
    counts = {**dict.fromkeys(OUTCOMES, 0), **outcomes}
    lines = ["# TYPE fewstep_requests_total counter"]
    for model in ("fashion", ""):  # requests that were not understood have no model
        for name, count in counts.items():
            lines.append(f'fewstep_requests_total{{model="{model}",outcome="{name}"}} {count / 2}')
    for worker in "01":
        lines.append(f'fewstep_active_slots{{model="fashion",worker="{worker}"}} {active / 2}')
        lines.append(f'fewstep_waiting_images{{model="fashion",worker="{worker}"}} {waiting / 2}')
    lines.append(f'fewstep_denoiser_failed_calls_total{{model="fashion",worker="0"}} {failed}')
    return Scrape.parse("\n".join([*lines, ""]))


def ending(status: int, count: int, left: bool = False, code: str = "", **fields: Any) -> list[Ending]:
    expected = fields.pop("expected", (200, 429, 503))
    return [Ending(Visit(0.0, "stays", "generate", b"", expected, **fields), status, code, left)] * count


ENDINGS = [
    *ending(200, 70), *ending(429, 3), *ending(503, 5), *ending(NO_ANSWER, 20, left=True),
    *ending(400, 10, expected=(400,)), *ending(404, 4, expected=(404,), generates=False),
]  # fmt: skip
BEFORE = metrics(ok=7)
AFTER = metrics(ok=7 + 72, rejected=3, unavailable=5, invalid=10, cancelled=18)  # two left too late


def test_books_that_balance_have_no_problems():
    books = balance(ENDINGS, BEFORE, AFTER)
    assert books.problems == ()
    assert books.seen == {"ok": 70, "rejected": 3, "unavailable": 5, "left": 20, "invalid": 10}
    assert books.counted["ok"] == 72 and books.counted["cancelled"] == 18


@pytest.mark.parametrize(
    ("endings", "after", "words"),
    [
        ([], metrics(ok=7 + 72, rejected=3, unavailable=5, invalid=10, cancelled=17), "counted 107 requests"),
        (ending(NO_ANSWER, 2, code="timeout"), AFTER, "2 visitors who stayed got no answer (timeout)"),
        (ending(500, 1, code="encode_error"), AFTER, "1 times 'generate' was answered 500 encode_error"),
        ([], metrics(ok=7 + 69, rejected=3, unavailable=5, invalid=10, cancelled=21), "counted 69 ok"),
        ([], metrics(ok=7 + 50, error=22, rejected=3, unavailable=5, invalid=10, cancelled=18), "counted 50 ok"),
        ([], metrics(1, ok=7 + 72, rejected=3, unavailable=5, invalid=10, cancelled=18), "1 slots and 0 places"),
        ([], metrics(0, 2, ok=7 + 72, rejected=3, unavailable=5, invalid=10, cancelled=18), "0 slots and 2 places"),
        ([], metrics(failed=1, ok=7 + 72, rejected=3, unavailable=5, invalid=10, cancelled=18), "1 network calls"),
    ],
)
def test_what_does_not_balance_is_named(endings: list[Ending], after: Scrape, words: str):
    found = balance([*ENDINGS, *endings], BEFORE, after).problems
    assert any(words in sentence for sentence in found), found


def test_a_metric_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no fewstep_no_such"):
        BEFORE.total("fewstep_no_such")
    assert BEFORE.total("fewstep_requests_total", outcome="nothing") == 0


def test_outcomes_are_the_servers_words():
    assert OUTCOMES == SERVER_OUTCOMES
    for status in (200, 400, 404, 413, 421, 429, 499, 500, 503, 504):
        assert outcome(status) == outcome_of(status)


def test_visits_come_in_the_shares_asked_for():
    schedule = poisson(100, 60)
    visits = plan(schedule, leaving=0.2, bad=0.1, call_s=0.02, seed=1)
    kinds = Counter(visit.kind for visit in visits)
    assert [visit.due_s for visit in visits] == [arrival.due_s for arrival in schedule]
    assert kinds["leaves"] / 6000 == pytest.approx(0.2, abs=0.02) and kinds["bad"] / 6000 == pytest.approx(
        0.1, abs=0.02
    )
    assert {visit.what for visit in visits if visit.kind == "bad"} == set(bad_requests())
    assert all((visit.patience_s is not None) == (visit.kind == "leaves") for visit in visits if visit.kind != "bad")
    assert plan(schedule, leaving=0.2, bad=0.1, call_s=0.02, seed=1) == visits
    hurried = [visit for visit in visits if b"timeout_s" in visit.payload and visit.what == "generate"]
    assert {visit.kind for visit in hurried} == {"stays"} and all(504 in visit.expected for visit in hurried)
    assert len(hurried) / kinds["stays"] == pytest.approx(0.1, abs=0.02)


def test_half_a_body_is_shorter_than_it_says():
    payload, expected, _ = bad_requests()["half a body"]
    head, _, body = payload.partition(b"\r\n\r\n")
    assert int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]) > len(body) and expected == ()


def samples(sizes: "np.ndarray[Any, Any]", pid: int = 9) -> list[Sample]:
    return [Sample(10.0 * i, "worker", pid, float(size), float(size) - 30) for i, size in enumerate(sizes)]


def test_growth_is_the_slope_after_settling():
    settling = np.concatenate([np.linspace(50, 90, 30), 90 + np.arange(70) * 0.1])  # then 0.1 MB in 10 s
    (found,) = growth(samples(settling))
    assert found.mb_per_hour == pytest.approx(36) and found.grown_mb == pytest.approx(6.9)
    assert (found.samples, found.first_mb, found.peak_mb) == (70, 50, pytest.approx(96.9))


def test_each_process_is_judged_by_itself_and_short_lives_are_not():
    mixed = [*samples(np.full(20, 80.0), 1), *samples(np.full(20, 60.0), 2), *samples(np.array([1.0, 99.0]), 3)]
    assert [(g.pid, g.grown_mb) for g in growth(mixed)] == [(1, pytest.approx(0)), (2, pytest.approx(0))]


def test_a_soak_names_everything_that_is_wrong():
    books = balance(ENDINGS, BEFORE, AFTER)
    good = {"books": books, "rested": True, "same_bytes": True}
    flat = growth(samples(np.full(20, 80.0)))
    assert problems(good, flat, 0, 0) == []
    bad = {"books": books, "rested": False, "same_bytes": False}
    found = problems(bad, growth(samples(np.arange(20.0))), None, 2)
    assert len(found) == 5 and any("worker 9 grew by" in sentence for sentence in found)
