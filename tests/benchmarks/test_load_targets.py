"""The verdicts on a campaign, from rows whose answer is known."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.load.capacity import BESIDE, points
from benchmarks.load.load_plot import draw_capacity
from benchmarks.load.targets import BASELINE, OURS, check_targets, latency_limit_s


def row(server: str, kind: str, load: float | None, rate: float, **more: Any) -> dict[str, Any]:
    steady = {"p50_ms": 40.0, "p99_ms": 150.0, "sustained": True, "valid": True, "rejects": 0, "reject_p99_ms": None}
    return {
        "network": "fixed", "server": server, "kind": kind, "load": load, "images": 1, "draw": 0,
        "limit_per_s": 100.0, "latency_limit_ms": 210.0, "images_per_s": rate, "goodput_per_s": rate, **steady, **more,
    }  # fmt: skip


def campaign() -> list[dict[str, Any]]:
    return [
        row(OURS, "open", 0.3, 30.0),
        row(BASELINE, "open", 0.3, 30.0, p50_ms=120.0, p99_ms=400.0),
        row(OURS, "open", 0.8, 80.0, p99_ms=189.0),
        row(BASELINE, "open", 0.8, 46.0, p50_ms=9000.0, p99_ms=20000.0, sustained=False),
        row(OURS, "open", 0.95, 93.0),
        row(OURS, "closed", None, 96.0),
        row(BASELINE, "closed", None, 48.0),
        row(OURS, "overload", 5.0, 94.0, reject_p99_ms=12.0, sustained=False),
        row(OURS, "open", 0.8, 500.0, images=8),  # other rows that must not be mistaken for the ones above
        row(OURS, "closed", None, 700.0, network="real"),
    ]


def verdicts(rows: list[dict[str, Any]]) -> dict[str, tuple[float | None, bool | None]]:
    return {target.name: (target.measured, target.hit) for target in check_targets("fixed", rows, 0.98, [0.9, 1.4])}


def test_every_promise_is_checked_on_its_own_rows():
    found = verdicts(campaign())
    assert found["engine alone / back to back"] == (0.98, True)
    assert found["sustained without rejects / R*"] == (pytest.approx(0.93), True)
    assert found["p99 at load 0.8 / ((S_max + 2) t(cap) + 10 ms)"] == (pytest.approx(0.9), True)
    assert found["p50 / stock batching's"] == (pytest.approx(40 / 120), True)
    assert found["p99 / stock batching's"] == (pytest.approx(150 / 400), True)
    assert found["capacity / stock batching's"] == (pytest.approx(2.0), True)
    assert found["goodput in overload / peak"] == (pytest.approx(94 / 96), True)
    assert found["rejects answered, p99 ms"] == (12.0, True)
    assert found["start to ready, s, slowest"] == (1.4, True)


@pytest.mark.parametrize(
    ("index", "change", "target"),
    [
        (4, {"sustained": False}, "sustained without rejects / R*"),
        (4, {"valid": False}, "sustained without rejects / R*"),
        (2, {"p99_ms": 211.0}, "p99 at load 0.8 / ((S_max + 2) t(cap) + 10 ms)"),
        (0, {"p50_ms": 49.0}, "p50 / stock batching's"),
        (0, {"p99_ms": 201.0}, "p99 / stock batching's"),
        (6, {"images_per_s": 51.0}, "capacity / stock batching's"),
        (7, {"goodput_per_s": 90.0}, "goodput in overload / peak"),
        (7, {"reject_p99_ms": 51.0}, "rejects answered, p99 ms"),
    ],
)
def test_a_promise_that_is_not_kept_is_a_miss(index: int, change: dict[str, Any], target: str):
    rows = campaign()
    rows[index] |= change
    missed = {name for name, (_, hit) in verdicts(rows).items() if not hit}
    assert missed == {target}


def test_latency_is_checked_over_all_draws_of_the_arrivals_and_each_is_named():
    rows = [*campaign(), row(OURS, "open", 0.8, 80.0, draw=1, p99_ms=252.0)]
    (target,) = [t for t in check_targets("fixed", rows, 0.98, [1.0]) if t.name.startswith("p99 at load 0.8")]
    assert (target.measured, target.hit) == (pytest.approx(1.05), False)
    assert target.note == "189 of 210 ms; 252 of 210 ms"


def test_the_peak_is_what_the_server_gave_before_and_after_the_overload():
    rows = [*campaign(), row(OURS, "closed", None, 100.0, draw=1)]
    found = verdicts(rows)
    assert found["goodput in overload / peak"] == (pytest.approx(94 / 98), True)
    assert found["capacity / stock batching's"] == (pytest.approx(98 / 48), True)
    turns = [(point.server, point.kind) for point in points(smoke=False, beside=False) if point.images == 1]
    overload = turns.index((OURS, "overload"))
    assert turns[overload - 2] == (BASELINE, "closed")
    assert turns[overload - 1] == turns[overload + 1] == (OURS, "closed")


def test_what_was_not_measured_is_not_a_hit():
    found = verdicts(campaign()[:1])
    assert found["capacity / stock batching's"] == (None, None)
    assert found["p50 / stock batching's"] == (None, None)


def test_an_invalid_run_is_said_to_be_one():
    rows = campaign()
    rows[7]["valid"] = False
    (target,) = [t for t in check_targets("fixed", rows, 0.98, [1.0]) if t.name.startswith("rejects")]
    assert "INVALID" in target.row()["note"] and target.row()["verdict"] == "hit"


def test_the_latency_limit():
    assert latency_limit_s(8, 0.020) == pytest.approx(0.210)


def test_ours_and_the_baseline_take_turns_at_every_load():
    turns = [
        (point.load, point.server)
        for point in points(smoke=False, beside=False)
        if point.kind == "open" and point.images == 1
    ]
    assert turns[:12] == [(load, server) for load in (0.3, 0.4, 0.6, 0.8, 0.9, 0.95) for server in (OURS, BASELINE)]


def test_the_picture_is_drawn(tmp_path):
    rows = [*campaign(), *({**r, "network": "real"} for r in campaign())]
    draw_capacity(rows, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 20_000


def test_an_older_server_and_ours_take_turns_at_everything():
    turns = points(smoke=False, beside=True)
    assert {point.kind for point in turns} == {"open", "closed", "overload"}
    assert [point.server for point in turns] == [OURS, BESIDE] * (len(turns) // 2)
    assert all(replace(ours, server=BESIDE) == theirs for ours, theirs in zip(turns[::2], turns[1::2], strict=True))
