"""Prometheus metrics (docs/operations.md lists them). Correct by construction: one process answers all of HTTP.

Requests are counted here, where each of them begins and ends; what the engine workers have done arrives in their
own words (server.processes.messages.Stats) and is shown by server.http.worker_metrics. Labels are models, step
counts and outcomes, never seeds or ids, so that their number stays small.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.http.request_record import OUTCOMES, Record

# Seconds. A step takes milliseconds, a request at most its timeout; steps of 1.3 to 2.5 between.
BUCKETS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
GENERATE = ("POST", "/v1/generate")
OTHER = "other"


class Metrics:
    """The registry and the counters of the HTTP process.

    models: names that are served. routes: paths that are counted by name; any other is "other", so that nobody can
    make labels up.
    """

    def __init__(self, models: Collection[str], routes: Collection[str]) -> None:
        disable_created_metrics()
        self.routes = frozenset(routes)
        self.registry = CollectorRegistry(auto_describe=True)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"fewstep_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str) -> Histogram:
            return Histogram(f"fewstep_{name}", help, ("model",), registry=self.registry, buckets=BUCKETS_S)

        self.http = counter("http_requests_total", "Answers by route and status.", "route", "status")
        self.requests = counter("requests_total", "Generate requests by how they ended.", "model", "outcome")
        self.rejected = counter("rejected_total", "Generate requests refused or failed, by error code.", "reason")
        self.cancelled = counter("cancelled_total", "Generate requests whose client left, by stage.", "stage")
        self.images = counter("images_total", "Images delivered.", "model", "steps")
        self.duration = histogram("request_duration_seconds", "Whole requests that succeeded.")
        self.queue = histogram("queue_wait_seconds", "From acceptance to the first slot.")
        self.engine = histogram("time_in_engine_seconds", "From the first slot to the last finished image.")
        self.encode = histogram("encode_duration_seconds", "Encoding of the images of a request.")
        self.flying = Gauge("fewstep_requests_in_flight", "Requests of any route now.", registry=self.registry)
        for model in models:  # a series that appears with its first event has no rate for it
            for outcome in OUTCOMES:
                self.requests.labels(model, outcome)
            for timing in (self.duration, self.queue, self.engine, self.encode):
                timing.labels(model)
        for stage in ("body", "images"):
            self.cancelled.labels(stage)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts one request while it lasts."""
        with self.flying.track_inprogress():
            yield

    def observe(self, method: str, path: str, record: Record, elapsed_s: float) -> None:
        """Count a request that has ended. Requests that were not understood have the empty model."""
        self.http.labels(path if path in self.routes else OTHER, record.status).inc()
        if (method, path) != GENERATE:
            return
        wanted = record.wanted
        model = wanted.model if wanted else ""
        self.requests.labels(model, record.outcome).inc()
        if record.outcome == "cancelled":
            self.cancelled.labels(record.stage).inc()
        elif record.outcome != "ok":
            self.rejected.labels(record.code or "unknown").inc()
        elif wanted and record.done:
            self.images.labels(model, wanted.steps).inc(wanted.images)
            self.duration.labels(model).observe(elapsed_s)
            self.queue.labels(model).observe(record.done.queue_s)
            self.engine.labels(model).observe(record.done.engine_s)
            self.encode.labels(model).observe(record.done.encode_s)

    def add(self, collector: Collector) -> None:
        """Something else to show."""
        self.registry.register(collector)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page of /metrics and its media type: Prometheus text, or OpenMetrics where it is accepted."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
