"""What the page of /metrics shows: the workers' reports, and that source, dashboard and manual know the same names."""

import ast
import asyncio
import importlib
import json
import re
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from server.http.metrics import (
    OCCUPANCIES,
    REASONS,
    occupancy_histogram,
)
from server.processes.messages import Answer, encode
from server.processes.pool import Worker, WorkerPool
from server.scheduler.refusal import Kind
from server.scheduler.stats import Stats, resident_bytes
from tests.server.http.counting import (
    ROOT,
    Samples,
    count,
    ended,
    metrics_of,
    reported,
    samples,
    value,
)


def codes_in(tree: ast.AST) -> Iterator[str]:
    """The codes of refusals: arguments named code, and those behind a Kind. "*" stands for what is put in later."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        behind = [
            second
            for first, second in pairwise(call.args)
            if isinstance(first, ast.Constant) and first.value in get_args(Kind)
        ]
        for each in [*behind[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "code")]:
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each.value
            elif isinstance(each, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in each.values)


def sources() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text("utf-8")) for file in sorted((ROOT / "server").rglob("*.py"))}


def test_every_code_in_the_source_is_a_reason_and_every_reason_is_in_the_source():
    found = {code for tree in sources().values() for code in codes_in(tree)}
    fixed = {code for code in found if "*" not in code}
    assert "queue_full" in fixed and "network_error" in fixed and "unknown_label" in fixed
    assert fixed - set(REASONS) == set()
    assert found - fixed == {"unknown_*"}
    assert {code for code in set(REASONS) - fixed if not code.startswith("unknown_")} == set()


def test_a_field_with_choices_has_a_reason():
    made = set[str]()
    for file, tree in sources().items():
        if any(isinstance(each, ast.ClassDef) and "BaseModel" in map(ast.unparse, each.bases) for each in tree.body):
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            bodies = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, BaseModel)]
            fields = [field for each in bodies for field in each.model_fields.items()]
            made.update(f"unknown_{name}" for name, field in fields if "Literal[" in str(field.annotation))
    assert "unknown_format" in made and made - set(REASONS) == set()


def test_what_the_workers_report_is_shown_by_model_and_worker():
    metrics = metrics_of(stats={0: Stats({"tiny": reported()}, 1_000), 1: Stats({"tiny": reported(2)}, 2_000)})
    metrics.use_row(0)
    first, second = {"model": "tiny", "worker": "0"}, {"model": "tiny", "worker": "1"}
    assert value(metrics, "denoiser_calls_total", **first, bucket="4") == 3
    assert value(metrics, "denoiser_calls_total", **second, bucket="1") == 4
    assert value(metrics, "denoiser_call_duration_seconds_sum", **second, bucket="4") == pytest.approx(0.06)
    assert value(metrics, "denoiser_call_duration_seconds_count", **second, bucket="4") == 6
    assert value(metrics, "denoiser_failed_calls_total", **second) == 2
    assert (value(metrics, "image_rows_total", **first), value(metrics, "padded_rows_total", **first)) == (11, 3)
    assert value(metrics, "evicted_images_total", **second, stage="waiting") == 10
    assert value(metrics, "active_slots", **first) == 2 and value(metrics, "slots", **first) == 4
    assert value(metrics, "waiting_images", **first) == 7
    assert value(metrics, "batch_occupancy_count", **first) == 5
    assert value(metrics, "batch_occupancy_sum", **first) == pytest.approx(2 + 3 * 0.75)
    assert value(metrics, "process_memory_bytes", process="worker-1") == 2_000
    assert value(metrics, "process_memory_bytes", process="http") > 1e6
    assert value(metrics, "process_memory_bytes", process="parent") > 1e6
    assert value(metrics, "ready") == 0 and value(metrics, "warmup_seconds", worker="0") == 1.5
    assert value(metrics, "worker_restarts_total") == 3
    assert value(metrics, "admitted_images") == 0 and value(metrics, "backlog_seconds") == 0
    assert value(metrics, "model_info", model="tiny", backend="fake", odd_fact="x") == 1
    assert any(name == "fewstep_build_info" for name, _ in samples(metrics))


def test_counters_of_a_worker_do_not_fall_when_it_is_replaced():
    metrics = metrics_of()
    assert isinstance(metrics.pool, WorkerPool)
    pool = metrics.pool
    pool.workers.clear()
    pages: list[Samples] = []

    def report(worker: Worker, answer: Answer) -> None:
        worker.link.data_received(encode(answer))
        pages.append(samples(metrics))

    async def life(scales: list[int]) -> None:
        ours, workers = socket.socketpair()
        worker = await pool.connect(1, 0, ours)
        for scale in scales:
            report(worker, Stats({"tiny": reported(scale)}, 1_000))
        workers.close()
        async with asyncio.timeout(60):
            while not worker.dead:
                await asyncio.sleep(0)
        pages.append(samples(metrics))

    async def lives() -> None:
        await life([1, 5])
        await life([1, 2])

    asyncio.run(lives())
    for before, after in pairwise(pages):
        for key, total in before.items():
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                assert after[key] >= total - 1e-9, key
    first = {"model": "tiny", "worker": "1"}
    assert value(metrics, "image_rows_total", **first) == 11 * (5 + 2)
    assert value(metrics, "active_slots", **first) == 0
    assert value(metrics, "worker_restarts_total") == 3 + 1


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


def test_openmetrics_is_served_to_clients_that_ask_for_it():
    page, media_type = metrics_of(stats={0: Stats({"tiny": reported()}, 1)}).render("application/openmetrics-text")
    assert page.endswith(b"# EOF\n") and "openmetrics" in media_type


def test_the_dashboard_asks_only_for_what_is_exported():
    metrics = metrics_of(stats={0: Stats({"tiny": reported()}, 1_000)})
    count(metrics, ended(200))
    count(metrics, ended(429, code="queue_full"))
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
    metrics = metrics_of(stats={0: Stats({"tiny": reported()}, 1_000)})
    page = metrics.render("")[0].decode()
    names = {family.name for family in text_string_to_metric_families(page)}
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert {name for name in names if f"`{name}" not in manual} == set()
