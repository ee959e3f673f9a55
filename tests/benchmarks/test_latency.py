"""The benchmark runs from a user's shell, and what it writes is what it says."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import percentile_ms, table, time_interleaved
from benchmarks.known_distances import Key, committed, read_known
from benchmarks.latency import Model, affordable, check_shapes, engine_folder, named_folder
from benchmarks.latency_table import row_of, times_to_quality, with_ratios
from benchmarks.latency_variants import Run
from benchmarks.report import record_metrics, tables
from benchmarks.turns import take_turns
from fewstep.card import CheckpointError, read_card
from fewstep.metrics.extractors.fashion128 import load_extractor

ROOT = Path(__file__).resolve().parents[2]


RESULTS = ROOT / "benchmarks" / "results"


def test_smoke_run_prints_a_table_and_writes_json_and_png(tmp_path):
    out = tmp_path / "latency.json"
    command = [sys.executable, "benchmarks/latency.py", "--smoke", "--threads", "1", "--out", str(out)]
    command += ["--rival", "twin=models/fashion/engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    by_name = {(row["method"], row["nfe"], row["batch"]): row for row in result["rows"]}
    variants = {("dpdm", 1), ("dpdm", 4), ("twin", 1), ("twin", 4), ("heun", 3), ("euler", 2)}
    assert set(by_name) == {(*variant, batch) for variant in variants for batch in (1, 8)}
    assert {"machine", "commit", "settings", "checkpoints", "busy", "facts"} <= set(result)
    for row in result["rows"]:
        assert row["distance"] > row["floor"] > 0
        assert 0 < row["call_ms"] * row["nfe"] < row["p50_ms"] * 1.5 and 0 < row["step_share"] < 100
        assert row["cpu_ms"] > 0 and (row["peak_mb"] is None or row["peak_mb"] > 10) and row["device_mb"] is None
    assert by_name["twin", 4, 1]["distances"] == by_name["dpdm", 4, 1]["distances"]
    assert result["checkpoints"]["twin"] == result["checkpoints"]["student"]
    # What the project is for: at about equal calls the student is far closer to the data than a solver.
    assert by_name["dpdm", 4, 1]["distance"] < 0.2 * by_name["heun", 3, 1]["distance"]
    # The committed distances are found by weights and noise levels, and stand beside those of this run.
    assert {"fashion128, N = 10000", "fashion128, N = 50, here"} <= set(by_name["heun", 3, 1]["distances"])
    assert "NFE" in done.stdout and "as close as the teacher's best" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 10_000
    times, distances, quality = tables(result)
    assert all(len({line.count("|") for line in text.splitlines()}) == 1 for text in (times, distances, quality))
    assert "| **DPDM student** | 4 | 8 |" in times and "| real held-out images |" in distances
    assert quality.count("| twin | 1 |") == 2 and "EDM Heun" not in quality


def test_a_card_takes_distances_of_the_run_alone():
    row = {"method": "dpdm", "nfe": 1, "batch": 1, "distance": None, "floor": None, "accuracy": None}
    result = {"checkpoints": {"student": read_card(ROOT / "models/fashion").weights}, "rows": [row]}
    with pytest.raises(CheckpointError, match="holds no distances of its own"):
        record_metrics(result, ROOT / "models/fashion")


@pytest.fixture
def turns(monkeypatch):
    """take_turns on a clock of its own, of calls that cost what their lists say: turns by name, seconds ticked."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.turns.time.perf_counter", lambda: now[0])

    def measured(costs: dict[str, list[float]], budget_s: float, most: int) -> tuple[dict[str, int], float]:
        order, ticks = [], []

        def call(name: str) -> str:
            order.append(name)
            now[0] += costs[name].pop(0)
            return name

        runs = take_turns({name: lambda name=name: call(name) for name in costs}, budget_s, most, ticks.append)
        assert all(set(values) == {name} for name, values in runs.items())
        assert len(order) == sum(map(len, runs.values())) + len(costs) * (len(order) > len(costs))
        return {name: len(values) for name, values in runs.items()}, sum(ticks)

    return measured


def test_all_get_equal_time_and_none_too_many_turns(turns):
    # 6 s of first calls; of the other 60 s a third each to within a turn, and what "quick" leaves goes to the others
    found, ticked = turns({"quick": [0.5] * 99, "one": [1.0] * 99, "slow": [4.5] * 99}, budget_s=66.0, most=25)
    assert found == {"quick": 25, "one": 23, "slow": 6} and ticked == pytest.approx(66.0, abs=4.5)


def test_a_slow_first_call_costs_no_turns(turns):
    found, _ = turns({"a": [9.0] + [1.0] * 99, "b": [1.0] * 99}, budget_s=30.0, most=99)
    assert found == {"a": 10, "b": 10}


def test_turns_end_with_the_time_and_a_first_call_stands_in_for_none(turns):
    assert turns({"a": [1.0, 1.0], "b": [30.0, 30.0]}, budget_s=20.0, most=99)[0] == {"a": 1, "b": 1}


def run(wall_s: float, network_s: float) -> Run:
    return Run(wall_s, network_s, 2 * wall_s, 1.5 * wall_s, None, 100.0, None)


def row(method: str, nfe: int, ms: float, **distances: float) -> dict[str, Any]:
    model: Any = SimpleNamespace(engine=SimpleNamespace(backend="ort", device="cpu"))
    variant: Any = SimpleNamespace(method=method, calls=nfe, sigmas=(1.0,), backend="ort", model=model)
    found = {space: {"mean": value, "floor": 0.01} for space, value in distances.items()}
    return row_of(variant, 1, [run(ms / 1000, ms / 2000)] * 20) | {"distances": found}


def test_a_row_says_where_the_time_goes():
    found = row("dpdm", 2, 8.0)
    assert (found["p50_ms"], found["call_ms"], found["step_ms"]) == pytest.approx((8.0, 2.0, 4.0))
    assert (found["step_share"], found["cpu_ms"], found["images_per_s"]) == pytest.approx((25.0, 16.0, 125.0))
    assert found["p95_ms"] == pytest.approx(8.0) and found["p99_ms"] is None  # of 20 runs it is only the slowest


def test_time_to_quality_is_the_quickest_row_as_close_as_the_teachers_best():
    rows = [row("dpdm", 1, 5.0, a=0.3, b=9.0), row("dpdm", 2, 9.0, a=0.1, b=8.0), row("dpdm", 4, 18.0, a=0.05, b=7.0),
            row("sa", 18, 80.0, a=0.2, b=5.0), row("sa", 35, 160.0, a=0.1, b=6.0),
            row("euler", 35, 150.0, a=0.5)]  # fmt: skip
    assert [found["ratio"] for found in with_ratios(rows)][:3] == pytest.approx([1.0, 1.8, 3.6])
    found = {(one["space"], one["method"]): one for one in times_to_quality(rows)}
    assert found["a", "dpdm"]["nfe"] == 2 and found["a", "dpdm"]["times"] == pytest.approx(160 / 9)
    assert found["a", "dpdm"]["cpu_ms"] == pytest.approx(18.0)
    assert found["a", "sa"]["times"] == 1.0 and found["a", "euler"]["ms"] is None
    assert found["b", "dpdm"]["nfe"] is None and found["b", "dpdm"]["teacher"] == "sa-18"
    assert times_to_quality([row("dpdm", 1, 5.0, a=0.3)]) == []


def test_committed_distances_belong_to_the_weights_the_sampler_and_the_levels():
    card = read_card(ROOT / "models/fashion")
    files = committed(card.weights)
    known = read_known(files)
    space = "fashion128, N = 10000"
    found = known[Key.of(card.weights, "dpdm", card.levels[4])]
    assert found[space].mean == pytest.approx(0.034754, abs=1e-6) and found[space].floor == pytest.approx(
        0.005603, abs=1e-6
    )
    assert found["panel's fashion128-b, N = 500"].source.endswith("-panel.json")
    assert Key.of(card.weights, "heun", card.levels[4]) not in known
    assert committed("0" * 64) == []
    with pytest.raises(CheckpointError, match="holds no distances"):
        read_known([RESULTS / "INDEX.json"])


def test_the_time_decides_how_many_images_are_compared():
    assert (affordable(100.0, 0.5), affordable(1e9, 0.5), affordable(20.0, 0.5), affordable(-5.0, 0.5)) == (
        200,
        1000,
        0,
        0,
    )


def test_a_rival_may_be_an_engine_or_a_checkpoint_beside_one(tmp_path):
    shipped = ROOT / "models/fashion"
    assert engine_folder(shipped) == (shipped / "engine", False)
    assert engine_folder(shipped / "engine") == (shipped / "engine", False)
    assert engine_folder(tmp_path) == (tmp_path, False)  # which load_engine refuses


@pytest.mark.parametrize("text", ["dmd2", "=runs/dmd2", "dmd2=", "dpdm=runs/dmd2", "teacher=runs/dmd2", "sa=runs/x"])
def test_a_rival_without_a_name_of_its_own_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="NAME=DIR"):
        named_folder(text)


def test_every_call_is_timed_once_per_round():
    calls = {"a": [], "b": []}
    timed = time_interleaved({name: lambda name=name: calls[name].append(1) for name in calls}, rounds=5, warmup=2)
    assert {name: len(seconds) for name, seconds in timed.items()} == {"a": 5, "b": 5}
    assert all(len(made) == 7 for made in calls.values())


def test_percentiles_are_milliseconds():
    assert percentile_ms([0.001, 0.002, 0.003], 50) == pytest.approx(2.0)


def test_table_aligns_and_shows_missing_values_as_dashes():
    text = table([{"x": 1.23456, "y": None}, {"x": 12345.6, "y": "b"}], {"x": "X", "y": "Y"})
    assert text.splitlines() == ["    X  Y", "-----  -", " 1.23  -", "12346  b"]


def test_shipped_extractor_recognises_real_images(fashion_2000):
    extractor = load_extractor(threads=1)
    features, predicted = extractor(fashion_2000.images)
    assert features.shape == (2000, 128) and np.isfinite(features).all()
    assert (predicted == fashion_2000.labels).mean() > 0.9


def test_floor_follows_one_over_n_between_measured_counts():
    extractor = load_extractor(threads=1)
    known = sorted(extractor.floors)
    assert [extractor.floor(n) for n in known] == pytest.approx([extractor.floors[n] for n in known])
    assert extractor.floors[1000] < extractor.floor(700) < extractor.floors[500]


def measured(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/latency.py", "--smoke", "--threads", "1", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_any_model_is_measured_on_its_own_images(fashion_2000_zip, tmp_path):
    done = measured("--data", fashion_2000_zip, "--extractor", "fashion128", "--out", tmp_path / "own.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "own.json").read_text())
    assert result["extractor"] == "fashion128" and all(row["distance"] > 0 < row["floor"] for row in result["rows"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--student", "models/fashion"), "is a checkpoint, not an engine. Name its engine, models/fashion/engine"),
        (("--student", "nowhere"), "nowhere holds no engine.json"),
        (("--out", "models/fashion/card.json"), "belongs to a finished model"),
        (("--quality", "models/fashion/card.json"), "card.json holds no distances"),
        (("--out", "pyproject.toml/x.json"), "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(flags, sentence):
    done = measured(*flags)
    assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 64, 64)])
def test_a_model_of_other_images_needs_its_data(shape):
    def model(shape: tuple[int, ...]) -> Model:
        found: Any = SimpleNamespace(method="one", engine=SimpleNamespace(manifest=SimpleNamespace(image_shape=shape)))
        return found

    with pytest.raises(CheckpointError, match=r"name the images that they were trained on: --data"):
        check_shapes([model(shape), model(shape)], Namespace(data=None))
    check_shapes([model(shape), model(shape)], Namespace(data=Path("own.zip")))
    with pytest.raises(CheckpointError, match="its own teacher"):
        check_shapes([model(shape), model((1, 8, 8))], Namespace())
