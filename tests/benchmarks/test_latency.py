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
from benchmarks.latency import check_shapes, named_engine
from benchmarks.markdown import latency, rivals
from fewstep.card import CheckpointError
from fewstep.metrics.extractors.fashion128 import load_extractor

ROOT = Path(__file__).resolve().parents[2]


def test_smoke_run_prints_a_table_and_writes_json_and_png(tmp_path):
    out = tmp_path / "latency.json"
    command = [sys.executable, "benchmarks/latency.py", "--smoke", "--threads", "1", "--out", str(out)]
    command += ["--rival", "twin=models/fashion/engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    by_name = {(row["method"], row["nfe"]): row for row in result["rows"]}
    assert set(by_name) == {("dpdm", 1), ("dpdm", 4), ("twin", 1), ("twin", 4), ("heun", 3), ("euler", 2)}
    assert {"machine", "commit", "settings", "checkpoints"} <= set(result)
    assert all(row["distance"] > row["floor"] > 0 for row in result["rows"])
    assert "| **DPDM student** | 4 |" in latency(result) and "twin" not in latency(result)
    ours, twin = rivals(result).splitlines()[2:]
    assert twin == ours.replace("**DPDM student**", "twin")
    assert by_name["twin", 4]["distance"] == by_name["dpdm", 4]["distance"]
    assert result["checkpoints"]["twin"] == result["checkpoints"]["student"]
    # What the project is for: at about equal calls the student is far closer to the data than a solver.
    assert by_name["dpdm", 4]["distance"] < 0.2 * by_name["heun", 3]["distance"]
    assert "NFE" in done.stdout and out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ["dmd2", "=runs/dmd2", "dmd2=", "dpdm=runs/dmd2", "teacher=runs/dmd2"])
def test_a_rival_without_a_name_of_its_own_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="NAME=ENGINE"):
        named_engine(text)


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
        (("--out", "pyproject.toml/x.json"), "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(flags, sentence):
    done = measured(*flags)
    assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 64, 64)])
def test_a_model_of_other_images_needs_its_data(shape):
    engine = SimpleNamespace(manifest=SimpleNamespace(image_shape=shape))
    engines: Any = {"dpdm": engine, "teacher": engine}
    with pytest.raises(CheckpointError, match=r"name the images that they were trained on: --data"):
        check_shapes(engines, Namespace(data=None))
    check_shapes(engines, Namespace(data=Path("own.zip")))
    with pytest.raises(CheckpointError, match="its own teacher"):
        other: Any = SimpleNamespace(manifest=SimpleNamespace(image_shape=(1, 8, 8)))
        check_shapes(engines | {"teacher": other}, Namespace())
