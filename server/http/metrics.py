"""Prometheus metrics (docs/operations.md lists them): requests of all HTTP processes, and what the workers report.

Each HTTP process counts in its own row of a shared table, which has a cell for every combination of labels. All of
them are known before the fork: models, step counts, paths, statuses, codes; never a text of a client.
"""

import os
import platform
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from export.manifest import BETWEEN, Manifest, engine_of
from fewstep import __version__
from server.http.access import OUTCOMES, STAGES, Record
from server.http.errors import CLIENT_GONE, STATUS
from server.http.negotiation import preferred
from server.http.routes import Route
from server.http.service import is_ready
from server.processes.shared import SharedTable
from server.scheduler.stats import ModelStats, Stats, resident_bytes

# Seconds. A step takes milliseconds, a request at most its timeout; steps of 1.3 to 2.5 between.
BUCKETS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
BOUNDS = (*map(str, BUCKETS_S), "+Inf")
TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text"
OTHER = "other"  # a path without a route, a status or code that is not listed here
STATUSES = (200, 204, *sorted({*STATUS.values(), CLIENT_GONE}))
REASONS = (  # the codes of all refusals; a test reads them from the source
    "bodies_full", "body_timeout", "body_too_large", "cancelled", "closed", "conflict", "draining", "encode_error",
    "header_not_allowed",
    "headers_too_large", "host_not_allowed", "internal_error", "invalid_api_key", "invalid_image", "malformed_form",
    "malformed_http", "malformed_json", "method_not_allowed", "missing_api_key", "missing_image", "missing_input",
    "missing_seed", "missing_stream", "model_failing", "model_not_found", "network_error", "network_not_finite",
    "not_acceptable",
    "not_found", "not_ready", "origin_not_allowed", "out_of_range", "queue_full", "timeout", "unknown_background",
    "unknown_field", "unknown_format", "unknown_input", "unknown_label", "unknown_moderation", "unknown_output",
    "unknown_output_format", "unknown_priority", "unknown_prompt", "unknown_quality", "unknown_response_format",
    "unsupported_condition", "unsupported_encoding", "unsupported_format", "unsupported_log_weight",
    "unsupported_media_type", "unsupported_response_format", "unsupported_size", "unsupported_steps",
    "url_dropped", "url_expired", "version_not_found", "worker_lost", "wrong_signature", "wrong_type",
)  # fmt: skip
COUNTERS = (  # name, help, labels
    ("http_requests", "Answers by route and status.", ("route", "status")),
    ("requests", "Generate requests by how they ended.", ("model", "outcome")),
    ("rejected", "Generate requests refused or failed, by error code.", ("reason",)),
    ("cancelled", "Generate requests whose client left, by stage.", ("stage",)),
    ("images", "Images delivered.", ("model", "steps")),
)
HISTOGRAMS = (  # name, help; by model
    ("request_duration_seconds", "Whole requests that succeeded."),
    ("queue_wait_seconds", "From acceptance to the first slot."),
    ("time_in_engine_seconds", "From the first slot to the last finished image."),
    ("encode_duration_seconds", "Encoding of the images of a request."),
)
ENGINES: tuple[tuple[type[Any], str, str, Callable[[ModelStats], float]], ...] = (  # by model and worker
    (CounterMetricFamily, "denoiser_failed_calls", "Network calls that failed.", lambda model: model.failed_calls),
    (CounterMetricFamily, "image_rows", "Rows of network calls that were images.", lambda model: model.rows),
    (CounterMetricFamily, "padded_rows", "Rows of network calls that were padding.", lambda model: model.padded_rows),
    (GaugeMetricFamily, "active_slots", "Images in flight.", lambda model: model.active_slots),
    (GaugeMetricFamily, "slots", "Images that can be in flight.", lambda model: model.capacity),
    (GaugeMetricFamily, "waiting_images", "Images without a slot yet.", lambda model: model.waiting_images),
)
NOT_FROM_THE_START = ("http_requests", "rejected")  # series shown once they are above zero; most never are
PID, IN_FLIGHT, FIRST = range(3)  # columns; the series begin at FIRST
LABELS = ("model", "worker")
BY_BUCKET = (*LABELS, "bucket")
NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_]")
LABELLED = 32  # adapters of an engine that have labels of their own: about a hundred series each
OCCUPANCIES = ("0.125", "0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1.0")  # exact in binary: no rounding

Series = tuple[str | int, ...]  # name of the metric, then its label values


class Accepted(Protocol):
    """server.processes.admission.Admission: how much is accepted and not yet answered."""

    @property
    def images(self) -> int: ...

    @property
    def work_s(self) -> float: ...


class Engines(Protocol):
    """server.processes.pool.WorkerPool, or another with these attributes."""

    @property
    def admission(self) -> Accepted: ...

    @property
    def stats(self) -> Mapping[int, Stats]: ...  # by worker number

    @property
    def warm_up_s(self) -> Mapping[int, float]: ...  # likewise

    @property
    def restarts(self) -> int: ...

    def check_ready(self, model: str | None = None) -> None: ...


class Metrics(Collector):
    """Counts requests where they begin and end, and writes the page of /metrics."""

    def __init__(
        self,
        models: Mapping[str, Manifest],
        routes: Collection[str],
        pool: Engines,
        facts: Callable[[], Mapping[str, Mapping[str, str]]],
        processes: int = 1,
    ) -> None:
        """Create it before the HTTP processes are forked, and call `use_row` in each of them.

        routes: paths that are counted by name. pool: of the HTTP process that renders. facts: what runs each model,
        as short texts.
        """
        self.models = models
        self.labels = labels_of(models)
        self.routes = dict.fromkeys(routes)
        self.pool = pool
        self.facts = facts
        self.processes = processes
        self.columns = {
            series: column for column, series in enumerate(_series(models, self.labels, self.routes), start=FIRST)
        }
        self.table = SharedTable(processes, FIRST + len(self.columns))
        self.own = self.table.row(0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def use_row(self, process: int) -> None:
        """Say in each HTTP process which one it is, from 0."""
        self.own = self.table.row(process)
        self.own[PID] = os.getpid()
        self.own[IN_FLIGHT] = 0  # a process that died in this row may have left some

    def began(self) -> None:
        """A request of any route has arrived."""
        self.own[IN_FLIGHT] += 1

    def ended(self, route: Route | None, record: Record, elapsed_s: float) -> None:
        """Count a request that `began` has counted in. Image requests that were not understood have the empty model."""
        self.own[IN_FLIGHT] -= 1
        path = route.path if route is not None and route.path in self.routes else OTHER
        self._add(("http_requests", path, record.status), ("http_requests", path, OTHER))
        if route is None or not route.makes_images or record.method not in route.methods:
            return
        outcome, request = record.outcome, record.request
        model = self.labels[request.model] if request else ""
        self._add(("requests", model, outcome))
        if outcome == "cancelled":
            self._add(("cancelled", record.stage))
        elif outcome != "ok":
            self._add(("rejected", record.code or OTHER), ("rejected", OTHER))
        elif request and (finished := record.finished):
            self._add(("images", model, request.steps), ("images", model, OTHER), amount=request.images)
            self._observe("request_duration_seconds", model, elapsed_s)
            self._observe("queue_wait_seconds", model, finished.queue_s)
            self._observe("time_in_engine_seconds", model, finished.engine_s)
            self._observe("encode_duration_seconds", model, finished.encode_s)

    def _add(self, series: Series, otherwise: Series = (), amount: int = 1) -> None:
        """otherwise: counted where there is no such series."""
        column = self.columns.get(series)
        self.own[self.columns[otherwise or series] if column is None else column] += amount

    def _observe(self, name: str, model: str, seconds: float) -> None:
        first = self.columns[name, model, BOUNDS[0]]
        self.own[first + bisect_left(BUCKETS_S, seconds)] += 1
        self.own[first + len(BOUNDS)] += seconds

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page of /metrics and its media type: Prometheus text, or OpenMetrics where it is accepted."""
        # prometheus_client's own reading of Accept fails on a version that is no number
        encode, media_type = choose_encoder(preferred(accept, (TEXT, OPENMETRICS)) or TEXT)
        return encode(self.registry), media_type

    def collect(self) -> Iterator[Metric]:
        """All metrics. Raises nothing while no worker is there."""
        rows = [self.table.row(process) for process in range(self.processes)]
        totals = [sum(cells, 0.0) for cells in zip(*rows, strict=True)]
        yield from self._counters(totals)
        yield from self._histograms(totals)
        yield GaugeMetricFamily("fewstep_requests_in_flight", "Requests of any route now.", totals[IN_FLIGHT])
        yield from _engines(self.pool.stats)
        yield self._memory([int(row[PID]) for row in rows])
        yield from self._now()
        yield from self._running()

    def _counters(self, totals: list[float]) -> Iterator[Metric]:
        families = {name: CounterMetricFamily(f"fewstep_{name}", help, labels=names) for name, help, names in COUNTERS}
        for (name, *labels), column in self.columns.items():
            known = name not in NOT_FROM_THE_START and "" not in labels
            if name in families and (known or totals[column]):
                families[str(name)].add_metric([str(label) for label in labels], totals[column])
        yield from families.values()

    def _histograms(self, totals: list[float]) -> Iterator[Metric]:
        for name, help in HISTOGRAMS:
            family = HistogramMetricFamily(f"fewstep_{name}", help, labels=("model",))
            for model in dict.fromkeys(self.labels.values()):
                first = self.columns[name, model, BOUNDS[0]]
                end = first + len(BOUNDS)
                family.add_metric((model,), list(zip(BOUNDS, accumulate(totals[first:end]), strict=True)), totals[end])
            yield family

    def _memory(self, pids: list[int]) -> Metric:
        memory = GaugeMetricFamily("fewstep_process_memory_bytes", "Resident memory.", labels=("process",))
        for worker, stats in self.pool.stats.items():
            memory.add_metric((f"worker-{worker}",), stats.rss_bytes)
        for process, pid in enumerate(pids):
            if pid:
                memory.add_metric(("http" if len(pids) == 1 else f"http-{process}",), resident_bytes(pid))
        memory.add_metric(("parent",), resident_bytes(os.getppid()))
        return memory

    def _now(self) -> Iterator[Metric]:
        pool = self.pool
        yield GaugeMetricFamily("fewstep_ready", "1 when a request would be served.", float(is_ready(pool.check_ready)))
        yield GaugeMetricFamily("fewstep_admitted_images", "Accepted and not yet answered.", pool.admission.images)
        yield GaugeMetricFamily("fewstep_backlog_seconds", "Engine time that these need.", pool.admission.work_s)
        yield CounterMetricFamily("fewstep_worker_restarts", "Workers that died and were replaced.", pool.restarts)
        warm_up = GaugeMetricFamily("fewstep_warmup_seconds", "Loading and warming up.", labels=("worker",))
        for worker, seconds in pool.warm_up_s.items():
            warm_up.add_metric((str(worker),), seconds)
        yield warm_up

    def _running(self) -> Iterator[Metric]:
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("fewstep_build", "What is running.", versions)
        models = InfoMetricFamily("fewstep_model", "The models that are served.", labels=("model",))
        for name, facts in self.facts().items():
            models.add_metric((name,), {NOT_IN_LABELS.sub("_", fact): text for fact, text in facts.items()})
        yield models


def labels_of(models: Collection[str]) -> dict[str, str]:
    """What each served model is called in the labels: adapters of an engine beyond the first LABELLED share one."""
    labels: dict[str, str] = {}
    adapters: Counter[str] = Counter()
    for name in models:
        engine = engine_of(name)
        adapters[engine] += name != engine
        labels[name] = name if name == engine or adapters[engine] <= LABELLED else f"{engine}{BETWEEN}*"
    return labels


def _series(models: Mapping[str, Manifest], labels: Mapping[str, str], routes: Collection[str]) -> Iterator[Series]:
    """Every cell of a process, in the order of the columns."""
    steps: dict[str, set[int]] = {label: set() for label in labels.values()}
    for model, manifest in models.items():
        steps[labels[model]].update(manifest.levels)
    for path in (*routes, OTHER):
        for status in (*STATUSES, OTHER):
            yield "http_requests", path, status
    for model in ("", *steps):
        for outcome in OUTCOMES:
            yield "requests", model, outcome
    for reason in (*REASONS, OTHER):
        yield "rejected", reason
    for stage in STAGES:
        yield "cancelled", stage
    for model, counts in steps.items():
        for count in (*sorted(counts), OTHER):  # a request may bring levels of its own
            yield "images", model, count
        for name, _ in HISTOGRAMS:
            for bound in (*BOUNDS, "sum"):  # each observation is counted once, in its own bucket
                yield name, model, bound


def _engines(stats: Mapping[int, Stats]) -> Iterator[Metric]:
    """What the workers have reported. Their counters never fall: the pool adds those of earlier processes."""
    held = [((name, str(worker)), model) for worker, each in stats.items() for name, model in each.models.items()]
    for kind, name, help, value in ENGINES:
        family = kind(f"fewstep_{name}", help, labels=LABELS)
        for labels, model in held:
            family.add_metric(labels, value(model))
        yield family
    calls = CounterMetricFamily("fewstep_denoiser_calls", "Network calls by batch size.", labels=BY_BUCKET)
    text = "Network calls with the step around them."
    spent = SummaryMetricFamily("fewstep_denoiser_call_duration_seconds", text, labels=BY_BUCKET)
    text = "Images given up before they were finished."
    evicted = CounterMetricFamily("fewstep_evicted_images", text, labels=(*LABELS, "stage"))
    text = "Images over batch size, of each network call."
    occupancy = HistogramMetricFamily("fewstep_batch_occupancy", text, labels=LABELS)
    for labels, model in held:
        for bucket, count in model.calls_by_bucket.items():
            calls.add_metric((*labels, str(bucket)), count)
            spent.add_metric((*labels, str(bucket)), count, model.call_s_by_bucket.get(bucket, 0.0))
        for stage, images in model.evicted.items():
            evicted.add_metric((*labels, stage), images)
        occupancy.add_metric(labels, *occupancy_histogram(model.calls_by_fill))
    yield from (calls, spent, evicted, occupancy)


def occupancy_histogram(calls_by_fill: Mapping[tuple[int, int], int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, as Prometheus wants them, and the sum of all occupancies."""
    buckets = [
        (bound, float(sum(count for (rows, batch), count in calls_by_fill.items() if rows <= float(bound) * batch)))
        for bound in OCCUPANCIES
    ]
    calls = sum(calls_by_fill.values())
    total = sum(count * rows / batch for (rows, batch), count in calls_by_fill.items())
    return [*buckets, ("+Inf", float(calls))], total
