"""Which classes hold a distance: closed forms on Gaussians of known means, and the command from a user's shell."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import ROOT
from fewstep.metrics.class_shares import class_means, moved, shares
from fewstep.metrics.frechet import Moments, frechet_distance
from trainer.data.format import ImageSet

CLASSES, EACH, WIDTH = 3, 400, 5
LABELS = np.arange(CLASSES * EACH) % CLASSES


def real() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(LABELS), WIDTH)) + 3 * rng.normal(size=(CLASSES, WIDTH))[LABELS]


def test_with_all_classes_moved_only_what_is_within_them_is_left():
    data = real()
    means = class_means(data, LABELS, CLASSES)
    wrong = data + np.array([[0.3], [0.0], [-0.2]])[LABELS]
    rows = shares(wrong, LABELS, means, Moments.of(data))
    assert rows[-1]["together"] == pytest.approx(0, abs=1e-9)
    assert {row["class"]: row["off"] for row in rows} == pytest.approx({0: 0.09 * WIDTH, 1: 0, 2: 0.04 * WIDTH})


def test_the_class_that_gains_most_comes_first_and_a_right_one_gains_nothing():
    data = real()
    wrong = data + np.array([[0.0], [0.8], [0.05]])[LABELS]
    whole = frechet_distance(Moments.of(wrong), Moments.of(data))
    rows = shares(wrong, LABELS, class_means(data, LABELS, CLASSES), Moments.of(data))
    assert rows[0]["class"] == 1 and rows[0]["together"] == rows[0]["alone"] < 0.1 * whole
    assert {row["class"]: row["alone"] for row in rows}[0] == pytest.approx(whole)


def test_moving_keeps_the_spread_of_a_class_and_all_other_classes():
    data = real()
    target = np.full((CLASSES, WIDTH), 7.0)
    result = moved(data, LABELS, target, [2])
    np.testing.assert_array_equal(result[LABELS != 2], data[LABELS != 2])
    np.testing.assert_allclose(result[LABELS == 2].mean(axis=0), 7)
    np.testing.assert_allclose(np.cov(result[LABELS == 2].T), np.cov(data[LABELS == 2].T))


def test_smoke_run_prints_a_table_and_writes_json(tmp_path: Path, zips: list[str], fashion_2000: ImageSet):
    out = tmp_path / "class_shares.json"
    command = [sys.executable, "benchmarks/class_shares.py", "--smoke", "--out", out, *zips]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {row["class"] for row in rows} == set(fashion_2000.class_names)
    assert [row["alone"] for row in rows] == sorted(row["alone"] for row in rows)
    assert rows[-1]["together"] < rows[0]["distance"]
    assert "with those above" in done.stdout and "Ankle boot" in done.stdout
