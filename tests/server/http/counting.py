"""Metrics of two models without a server, and how a test reads them."""

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response

from server.http.access import Record, continued
from server.http.metrics import (
    Metrics,
)
from server.http.routes import Method, Route
from server.processes.admission import Admission
from server.processes.messages import Ready
from server.processes.pipes import WorkerLink
from server.processes.pool import Worker, WorkerPool
from server.scheduler.events import Finished
from server.scheduler.request import ImageRequest
from server.scheduler.stats import ModelStats, Stats
from tests.server.fakes import LEVELS, manifest

ROOT = Path(__file__).parents[3]


MODELS = ("tiny", "small")


TRACE = continued(None)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def unanswered(http: Request) -> Response:
    raise AssertionError("no test asks for it")


def route_of(path: str, method: Method = "GET", answer: Callable[[Request], Awaitable[Response]] = unanswered) -> Route:
    return Route(path, method, answer, "", makes_images=path == "/v1/generate")


GENERATE = route_of("/v1/generate", "POST")


LIVE = route_of("/livez")


def samples(metrics: Metrics) -> Samples:
    page = metrics.render("")[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"fewstep_{name}", tuple(sorted(labels.items()))]


def pool_of(stats: Mapping[int, Stats]) -> WorkerPool:
    pool = WorkerPool(MODELS, 1, Admission(4, MODELS), lambda: None)
    pool.stats.update(stats)
    pool.restarts = 3
    pool.workers[0] = Worker(0, 0, cast(WorkerLink, None), ready=Ready({}, warm_up_s=1.5))
    return pool


def metrics_of(processes: int = 1, stats: Mapping[int, Stats] | None = None) -> Metrics:
    facts = {"tiny": {"backend": "fake", "odd-fact": "x"}}
    models = {name: manifest(name) for name in MODELS}
    return Metrics(models, ["/v1/generate", "/livez"], pool_of(stats or {}), lambda: facts, processes)


def ended(status: int, images: int = 1, model: str = "tiny", steps: int = 4, **changes: Any) -> Record:
    request = ImageRequest(model, steps, tuple(range(images)), (0,) * images, LEVELS[steps])
    finished = Finished(0, "png", (b"",) * images, 0.004, 0.02, 0.001) if status == 200 else None
    record = Record("id", TRACE, "POST", status=status, request=request, finished=finished)
    for name, change in changes.items():
        setattr(record, name, change)
    return record


def count(metrics: Metrics, record: Record, route: Route | None = GENERATE, elapsed_s: float = 0.03) -> None:
    metrics.began()
    metrics.ended(route, record, elapsed_s)


def reported(scale: int = 1) -> ModelStats:
    """Two calls of one image in a batch of 1, three of three images in a batch of 4, times scale."""
    return ModelStats(
        calls_by_fill={(1, 1): 2 * scale, (3, 4): 3 * scale},
        call_s_by_bucket={1: 0.01 * scale, 4: 0.03 * scale},
        evicted={"waiting": 5 * scale},
        failed_calls=scale,
        active_slots=2,
        waiting_images=7,
        capacity=4,
    )


def counted(metrics: Metrics) -> Samples:
    """What is above zero of what `expected` counts."""
    names = "http_requests_total|requests_total|cancelled_total|rejected_total|images_total"
    names += "|request_duration_seconds_(count|bucket)"
    return {
        key: total for key, total in samples(metrics).items() if re.fullmatch(f"fewstep_({names})", key[0]) and total
    }
