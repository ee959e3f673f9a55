"""What /metrics shows: counts against requests that ended, and what the workers report against what they sent."""

import os
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.http.access import OUTCOMES, STAGES, Record, outcome_of
from server.http.errors import CLIENT_GONE
from server.http.metrics import (
    BUCKETS_S,
    OTHER,
    REASONS,
    STATUSES,
)
from server.http.routes import Route
from tests.server.http.counting import (
    GENERATE,
    LIVE,
    MODELS,
    count,
    counted,
    ended,
    metrics_of,
    route_of,
    samples,
    value,
)

MADE_UP = route_of("/not/in/the/table")


def test_an_answered_request_is_counted_with_its_images_and_times():
    metrics = metrics_of()
    count(metrics, ended(200, images=3))
    assert value(metrics, "requests_total", model="tiny", outcome="ok") == 1
    assert value(metrics, "images_total", model="tiny", steps="4") == 3
    assert value(metrics, "http_requests_total", route="/v1/generate", status="200") == 1
    times = {"request_duration": 0.03, "queue_wait": 0.004, "time_in_engine": 0.02, "encode_duration": 0.001}
    for name, seconds in times.items():
        assert value(metrics, f"{name}_seconds_sum", model="tiny") == pytest.approx(seconds)
        assert value(metrics, f"{name}_seconds_bucket", model="tiny", le="+Inf") == 1
    assert value(metrics, "queue_wait_seconds_bucket", model="tiny", le="0.003") == 0
    assert value(metrics, "queue_wait_seconds_bucket", model="tiny", le="0.005") == 1
    assert value(metrics, "encode_duration_seconds_bucket", model="tiny", le="0.001") == 1  # a bound is in its bucket


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (400, "out_of_range", "invalid"),
        (413, "body_too_large", "invalid"),
        (429, "queue_full", "rejected"),
        (500, "network_error", "error"),
        (503, "draining", "unavailable"),
        (504, "timeout", "timeout"),
    ],
)
def test_a_refusal_is_counted_by_outcome_and_reason(status: int, code: str, outcome: str):
    metrics = metrics_of()
    count(metrics, ended(status, code=code, request=None))
    assert value(metrics, "requests_total", model="", outcome=outcome) == 1
    assert value(metrics, "rejected_total", reason=code) == 1
    assert value(metrics, "request_duration_seconds_count", model="tiny") == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_left_is_a_cancel_and_not_a_refusal(stage: str):
    metrics = metrics_of()
    count(metrics, ended(CLIENT_GONE, stage=stage))
    assert value(metrics, "cancelled_total", stage=stage) == 1
    assert value(metrics, "requests_total", model="tiny", outcome="cancelled") == 1
    assert not [name for name, _ in samples(metrics) if name == "fewstep_rejected_total"]


def test_known_series_are_there_before_their_first_event():
    shown = samples(metrics_of())
    for model in MODELS:
        for outcome in OUTCOMES:
            assert shown["fewstep_requests_total", (("model", model), ("outcome", outcome))] == 0
        assert shown["fewstep_queue_wait_seconds_count", (("model", model),)] == 0
        assert shown["fewstep_images_total", (("model", model), ("steps", "4"))] == 0
    assert [shown["fewstep_cancelled_total", (("stage", stage),)] for stage in STAGES] == [0, 0]


Event = tuple[int, Route | None, Record, float]  # process, route, record, elapsed_s

RECORDS = st.one_of(
    st.builds(ended, st.just(200), st.integers(1, 4), st.sampled_from(MODELS), st.sampled_from([1, 4, 8])),
    st.builds(
        ended,
        st.sampled_from([200, *(status for status in STATUSES if status >= 400), 301, 599]),
        code=st.sampled_from([*REASONS, None]) | st.text(max_size=3),
        stage=st.sampled_from(STAGES),
        request=st.none(),
        finished=st.none(),
    ),
)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([GENERATE, GENERATE, LIVE, MADE_UP, None]),
        RECORDS,
        st.sampled_from([0.0, 0.001, 0.0011, 0.5, 60.0, 61.0]),
    ),
    max_size=30,
)


def expected(events: list[Event]) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
    """The counters beside, without cells or columns."""
    counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(name: str, amount: int = 1, **labels: str) -> None:
        counts[f"fewstep_{name}", tuple(sorted(labels.items()))] += amount

    for _, route, record, elapsed_s in events:
        path = route.path if route in (GENERATE, LIVE) else OTHER
        add("http_requests_total", route=path, status=str(record.status) if record.status in STATUSES else OTHER)
        if route is not GENERATE:
            continue
        outcome, model = outcome_of(record.status), record.request.model if record.request else ""
        add("requests_total", model=model, outcome=outcome)
        if outcome == "cancelled":
            add("cancelled_total", stage=record.stage)
        elif outcome != "ok":
            add("rejected_total", reason=record.code if record.code in REASONS else OTHER)
        elif record.request:
            add("images_total", record.request.images, model=model, steps=str(record.request.steps))
            add("request_duration_seconds_count", model=model)
            for bound in (*BUCKETS_S, float("inf")):
                if elapsed_s <= bound:
                    le = "+Inf" if bound == float("inf") else str(bound)
                    add("request_duration_seconds_bucket", model=model, le=le)
    return counts


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_the_totals_of_all_processes_are_those_of_one_counter_and_no_label_is_made_up(events: list[Event]):
    metrics = metrics_of(processes=3)
    for process, route, record, elapsed_s in events:
        metrics.use_row(process)
        count(metrics, record, route, elapsed_s)
    assert counted(metrics) == expected(events)
    assert value(metrics, "requests_in_flight") == 0


def test_forked_processes_are_counted_together_by_each_of_them():
    metrics = metrics_of(processes=3)
    children: list[int] = []
    for process in range(3):
        if child := os.fork():
            children.append(child)
            continue
        metrics.use_row(process)
        for _ in range(100 * (process + 1)):
            count(metrics, ended(200, images=2))
        metrics.began()
        os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert value(metrics, "requests_total", model="tiny", outcome="ok") == 600
    assert value(metrics, "images_total", model="tiny", steps="4") == 1200
    assert value(metrics, "queue_wait_seconds_sum", model="tiny") == pytest.approx(600 * 0.004)
    assert value(metrics, "requests_in_flight") == 3
    metrics.use_row(1)  # a process in place of the second: what that one had begun has ended with it
    assert value(metrics, "requests_in_flight") == 2
    assert value(metrics, "requests_total", model="tiny", outcome="ok") == 600
    assert value(metrics, "process_memory_bytes", process="http-0") == 0  # gone
    assert value(metrics, "process_memory_bytes", process="http-1") > 1e6


def test_the_buckets_tell_milliseconds_apart():
    assert list(BUCKETS_S) == sorted(BUCKETS_S) and BUCKETS_S[0] == 0.001 and BUCKETS_S[-1] == 60
    assert all(b / a <= 3 for a, b in pairwise(BUCKETS_S))
