"""What the engine workers report, as Prometheus metrics: read from their last messages when /metrics is asked."""

import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fewstep import __version__
from server.http.errors import ApiError
from server.processes.messages import ModelStats, Stats
from server.processes.pool import EngineClient

LABELS = ("model", "worker")
NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_]")
OCCUPANCIES = ("0.125", "0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1.0")  # exact in binary: no rounding
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerMetrics(Collector):
    """Counters stay monotonic over restarts because the client that collects the messages sees to it."""

    def __init__(self, client: EngineClient, facts: Callable[[], Mapping[str, Mapping[str, str]]]) -> None:
        """facts: what runs each model, as short texts."""
        self.client = client
        self.facts = facts

    def describe(self) -> Iterator[Metric]:
        """None: registering must not ask for values before there are any."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._families(self.client.stats)
        yield from self._now()
        yield self._build()
        yield self._models()

    def _now(self) -> Iterator[Metric]:
        client = self.client
        yield GaugeMetricFamily("fewstep_ready", "1 when a request would be served.", float(is_ready(client)))
        yield GaugeMetricFamily("fewstep_admitted_images", "Accepted and not yet answered.", client.admission.images)
        yield GaugeMetricFamily("fewstep_backlog_seconds", "Engine time that these need.", client.admission.work_s)
        yield CounterMetricFamily("fewstep_worker_restarts", "Workers that died and were replaced.", client.restarts)
        warm_up = GaugeMetricFamily("fewstep_warmup_seconds", "Loading and warming up.", labels=("worker",))
        for number, worker in client.workers.items():
            if worker.ready:
                warm_up.add_metric((str(number),), worker.ready.warm_up_s)
        yield warm_up

    def _families(self, stats: Mapping[int, Stats]) -> Iterator[Metric]:
        held = [(name, str(worker), model) for worker, s in stats.items() for name, model in s.models.items()]
        yield from _calls(held)
        yield from _rows(held)
        yield from _moment(held)
        memory = GaugeMetricFamily("fewstep_process_memory_bytes", "Resident memory.", labels=("process",))
        for worker, s in stats.items():
            memory.add_metric((f"worker-{worker}",), s.rss_bytes)
        for process, pid in (("http", os.getpid()), ("parent", os.getppid())):
            memory.add_metric((process,), resident_bytes(pid))
        yield memory

    def _build(self) -> Metric:
        versions = {"version": __version__, "python": platform.python_version()}
        return InfoMetricFamily("fewstep_build", "What is running.", versions)

    def _models(self) -> Metric:
        info = InfoMetricFamily("fewstep_model", "The models that are served.", labels=("model",))
        for name, facts in self.facts().items():
            info.add_metric((name,), {NOT_IN_LABELS.sub("_", fact): text for fact, text in facts.items()})
        return info


Held = list[tuple[str, str, ModelStats]]  # model, worker, and what it did


def _calls(held: Held) -> Iterator[Metric]:
    labels = (*LABELS, "bucket")
    calls = CounterMetricFamily("fewstep_denoiser_calls", "Network calls by batch size.", labels=labels)
    spent = SummaryMetricFamily(
        "fewstep_denoiser_call_duration_seconds", "Network calls with the step around them.", labels=labels
    )
    failed = CounterMetricFamily("fewstep_denoiser_failed_calls", "Network calls that failed.", labels=LABELS)
    for name, worker, model in held:
        for bucket, count in model.calls_by_bucket.items():
            calls.add_metric((name, worker, str(bucket)), count)
            spent.add_metric((name, worker, str(bucket)), count, model.call_s_by_bucket.get(bucket, 0.0))
        failed.add_metric((name, worker), model.failed_calls)
    yield from (calls, spent, failed)


def _rows(held: Held) -> Iterator[Metric]:
    """Rows of network calls, and the share of them that were images."""
    rows = CounterMetricFamily("fewstep_image_rows", "Rows of network calls that were images.", labels=LABELS)
    padded = CounterMetricFamily("fewstep_padded_rows", "Rows of network calls that were padding.", labels=LABELS)
    evicted = CounterMetricFamily(
        "fewstep_evicted_images", "Images given up before they were finished.", labels=(*LABELS, "stage")
    )
    occupancy = HistogramMetricFamily(
        "fewstep_batch_occupancy", "Images over batch size, of each network call.", labels=LABELS
    )
    for name, worker, model in held:
        rows.add_metric((name, worker), model.rows)
        padded.add_metric((name, worker), model.padded_rows)
        for stage, images in model.evicted.items():
            evicted.add_metric((name, worker, stage), images)
        buckets, total = occupancy_histogram(model.calls_by_fill)
        occupancy.add_metric((name, worker), buckets, total)
    yield from (rows, padded, evicted, occupancy)


def occupancy_histogram(calls_by_fill: Mapping[tuple[int, int], int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, as Prometheus wants them, and the sum of all occupancies."""
    buckets = [
        (bound, float(sum(count for (rows, batch), count in calls_by_fill.items() if rows <= float(bound) * batch)))
        for bound in OCCUPANCIES
    ]
    calls = sum(calls_by_fill.values())
    total = sum(count * rows / batch for (rows, batch), count in calls_by_fill.items())
    return [*buckets, ("+Inf", float(calls))], total


def _moment(held: Held) -> Iterator[Metric]:
    active = GaugeMetricFamily("fewstep_active_slots", "Images in flight.", labels=LABELS)
    slots = GaugeMetricFamily("fewstep_slots", "Images that can be in flight.", labels=LABELS)
    waiting = GaugeMetricFamily("fewstep_waiting_images", "Images without a slot yet.", labels=LABELS)
    for name, worker, model in held:
        active.add_metric((name, worker), model.active_slots)
        slots.add_metric((name, worker), model.capacity)
        waiting.add_metric((name, worker), model.waiting_images)
    yield from (active, slots, waiting)


def is_ready(client: EngineClient) -> bool:
    """What /readyz would say."""
    try:
        client.check_ready()
    except ApiError:
        return False
    return True


def resident_bytes(pid: int) -> int:
    """Resident set of a process; 0 where the system does not say (/proc is Linux)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
