"""What /metrics shows: counts against requests that ended, and workers' own words against what they said."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.http.dialects.native import GenerateRequest
from server.http.metrics import BUCKETS_S, Metrics
from server.http.request_record import CLIENT_GONE, OUTCOMES, Record, outcome_of
from server.http.worker_metrics import OCCUPANCIES, WorkerMetrics, occupancy_histogram, resident_bytes
from server.processes.admission import Admission
from server.processes.messages import Done, ModelStats, Ready, Stats
from server.processes.pipes import Link
from server.processes.pool import EngineClient, Worker

ROOT = Path(__file__).parents[3]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics) -> Samples:
    page = metrics.render("")[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"fewstep_{name}", tuple(sorted(labels.items()))]


def metrics_of(*models: str) -> Metrics:
    return Metrics(models or ("tiny",), ["/v1/generate"])


def ended(status: int, images: int = 1, **changes: Any) -> Record:
    wanted = GenerateRequest(4, images, 0, (0,) * images, "png", "tiny", 60.0)
    done = Done(0, (b"",) * images, queue_s=0.004, engine_s=0.02, encode_s=0.001) if status == 200 else None
    return Record(status=status, **{"wanted": wanted, "done": done, **changes})


def generate(metrics: Metrics, record: Record, elapsed_s: float = 0.03) -> None:
    metrics.observe("POST", "/v1/generate", record, elapsed_s)


def test_an_answered_request_is_counted_with_its_images_and_times():
    metrics = metrics_of()
    generate(metrics, ended(200, images=3))
    assert value(metrics, "requests_total", model="tiny", outcome="ok") == 1
    assert value(metrics, "images_total", model="tiny", steps="4") == 3
    times = {"request_duration": 0.03, "queue_wait": 0.004, "time_in_engine": 0.02, "encode_duration": 0.001}
    for name, seconds in times.items():
        assert value(metrics, f"{name}_seconds_sum", model="tiny") == pytest.approx(seconds)
        assert value(metrics, f"{name}_seconds_bucket", model="tiny", le="+Inf") == 1
    assert value(metrics, "queue_wait_seconds_bucket", model="tiny", le="0.003") == 0
    assert value(metrics, "queue_wait_seconds_bucket", model="tiny", le="0.005") == 1


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
    generate(metrics, ended(status, code=code, wanted=None))
    assert value(metrics, "requests_total", model="", outcome=outcome) == 1
    assert value(metrics, "rejected_total", reason=code) == 1
    assert value(metrics, "request_duration_seconds_count", model="tiny") == 0


@pytest.mark.parametrize("stage", ["body", "images"])
def test_a_client_that_left_is_a_cancel_and_not_a_refusal(stage: str):
    metrics = metrics_of()
    generate(metrics, ended(CLIENT_GONE, stage=stage))
    assert value(metrics, "cancelled_total", stage=stage) == 1
    assert value(metrics, "requests_total", model="tiny", outcome="cancelled") == 1
    assert not [name for name, _ in samples(metrics) if name == "fewstep_rejected_total"]


@settings(max_examples=25)
@given(st.lists(st.sampled_from([200, 400, 401, 413, 429, CLIENT_GONE, 500, 503, 504]), max_size=20))
def test_every_request_has_exactly_one_outcome(statuses: list[int]):
    metrics = metrics_of()
    for status in statuses:
        generate(metrics, ended(status))
    shown = samples(metrics)
    counts = {o: shown["fewstep_requests_total", (("model", "tiny"), ("outcome", o))] for o in OUTCOMES}
    assert sum(counts.values()) == len(statuses)
    assert counts == {o: sum(outcome_of(status) == o for status in statuses) for o in OUTCOMES}


def test_other_routes_and_invented_paths_make_no_labels_of_their_own():
    metrics = metrics_of()
    for number in range(50):
        metrics.observe("GET", f"/made/up/{number}", Record(status=404), 0.0)
    assert value(metrics, "http_requests_total", route="other", status="404") == 50
    with metrics.in_flight():
        assert value(metrics, "requests_in_flight") == 1
    assert value(metrics, "requests_in_flight") == 0


def test_the_buckets_tell_milliseconds_apart():
    assert list(BUCKETS_S) == sorted(BUCKETS_S) and BUCKETS_S[0] == 0.001 and BUCKETS_S[-1] == 60
    assert all(b / a <= 3 for a, b in pairwise(BUCKETS_S))


def said(scale: int = 1) -> ModelStats:
    """Two calls of one image in a batch of 1, three of three images in a batch of 4, times scale."""
    return ModelStats(
        calls_by_bucket={1: 2 * scale, 4: 3 * scale},
        calls_by_fill={(1, 1): 2 * scale, (3, 4): 3 * scale},
        call_s_by_bucket={1: 0.01 * scale, 4: 0.03 * scale},
        failed_calls=scale,
        rows=11 * scale,
        padded_rows=3 * scale,
        evicted={"waiting": 5 * scale},
        active_slots=2,
        waiting_images=7,
        capacity=4,
    )


def client_of(stats: Mapping[int, Stats]) -> EngineClient:
    client = EngineClient(["tiny"], 1, Admission(4), lambda: None)
    client.stats.update(stats)
    client.restarts = 3
    client.workers[0] = Worker(0, cast(Link, None), pid=0, ready=Ready({}, warm_up_s=1.5))
    return client


def worker_metrics(stats: Mapping[int, Stats]) -> Metrics:
    metrics = metrics_of()
    metrics.add(WorkerMetrics(client_of(stats), lambda: {"tiny": {"backend": "fake", "odd-fact": "x"}}))
    return metrics


def test_what_the_workers_say_is_shown_by_model_and_worker():
    metrics = worker_metrics({0: Stats({"tiny": said()}, 1_000), 1: Stats({"tiny": said(2)}, 2_000)})
    first, second = {"model": "tiny", "worker": "0"}, {"model": "tiny", "worker": "1"}
    assert value(metrics, "denoiser_calls_total", **first, bucket="4") == 3
    assert value(metrics, "denoiser_calls_total", **second, bucket="1") == 4
    assert value(metrics, "denoiser_call_duration_seconds_sum", **second, bucket="4") == pytest.approx(0.06)
    assert value(metrics, "denoiser_call_duration_seconds_count", **second, bucket="4") == 6
    assert (value(metrics, "image_rows_total", **first), value(metrics, "padded_rows_total", **first)) == (11, 3)
    assert value(metrics, "evicted_images_total", **second, stage="waiting") == 10
    assert value(metrics, "active_slots", **first) == 2 and value(metrics, "slots", **first) == 4
    assert value(metrics, "waiting_images", **first) == 7
    assert value(metrics, "batch_occupancy_count", **first) == 5
    assert value(metrics, "batch_occupancy_sum", **first) == pytest.approx(2 + 3 * 0.75)
    assert value(metrics, "process_memory_bytes", process="worker-1") == 2_000
    assert value(metrics, "process_memory_bytes", process="http") > 1e6
    assert value(metrics, "ready") == 0 and value(metrics, "warmup_seconds", worker="0") == 1.5
    assert value(metrics, "worker_restarts_total") == 3
    assert value(metrics, "model_info", model="tiny", backend="fake", odd_fact="x") == 1
    assert any(name == "fewstep_build_info" for name, _ in samples(metrics))


def test_a_process_that_is_gone_has_no_memory():
    assert resident_bytes(2**22 + 1) == 0


@given(st.dictionaries(st.tuples(st.integers(0, 8), st.sampled_from([8, 16])), st.integers(0, 100)))
def test_the_occupancy_histogram_is_cumulative_and_complete(calls: dict[tuple[int, int], int]):
    buckets, total = occupancy_histogram(calls)
    counts = [count for _, count in buckets]
    assert [bound for bound, _ in buckets] == [*OCCUPANCIES, "+Inf"]
    assert counts == sorted(counts) and counts[-1] == counts[-2] == sum(calls.values())
    assert total == pytest.approx(sum(rows / batch * count for (rows, batch), count in calls.items()))
    half = sum(count for (rows, batch), count in calls.items() if 2 * rows <= batch)
    assert dict(buckets)["0.5"] == half


def test_openmetrics_is_served_to_those_who_ask():
    page, media_type = worker_metrics({0: Stats({"tiny": said()}, 1)}).render("application/openmetrics-text")
    assert page.endswith(b"# EOF\n") and "openmetrics" in media_type


def test_the_dashboard_asks_only_for_what_is_exported():
    metrics = worker_metrics({0: Stats({"tiny": said()}, 1_000)})
    generate(metrics, ended(200))
    generate(metrics, ended(429, code="queue_full"))
    exported: dict[str, set[str]] = {}
    for name, labels in samples(metrics):
        exported.setdefault(name, set()).update(label for label, _ in labels)
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) >= 15
    used: set[str] = set()
    for expression in expressions:
        selectors = re.findall(r"(fewstep_\w+)(?:\{([^}]*)\})?", expression)
        assert selectors, f"{expression} asks for nothing of ours"
        known = set().union(*(exported.get(name, set()) for name, _ in selectors))
        for name, selector in selectors:
            assert name in exported, f"{expression}: nothing is called {name}"
            assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= exported[name], expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in labels.split(",")} <= known, expression
        used.update(name for name, _ in selectors)
    families = {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in exported}
    shown = {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in used}
    assert families - shown <= {
        "fewstep_warmup",
        "fewstep_warmup_seconds",
        "fewstep_http_requests",
        "fewstep_image_rows",
    }


def test_the_manual_lists_every_metric():
    metrics = worker_metrics({0: Stats({"tiny": said()}, 1_000)})
    page = metrics.render("")[0].decode()
    names = {family.name for family in text_string_to_metric_families(page)}
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert {name for name in names if f"`{name}" not in manual} == set()
