"""One-call recovery: closed forms on Gaussian data, and the command from a user's shell."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cells import fill
from benchmarks.recovery import compose, make_plan, noised, recovered, tables
from fewstep.metrics.cache import Cache
from fewstep.noise import noise_for
from fewstep.pixels import from_pixels
from tests.benchmarks.worlds import PAIR, SHAPE, generator, image_set, reference

ROOT = Path(__file__).resolve().parents[2]


def test_noise_has_its_level_and_every_repeat_sees_the_same_images():
    images = image_set(500, 1)
    quiet = noised(images, 1e-6, range(500), 500)
    np.testing.assert_allclose(noised(images, 1e-6, range(500, 1000), 500), quiet, atol=1e-4)
    assert sorted(map(float, quiet.sum(axis=(1, 2, 3)))) == pytest.approx(
        sorted(map(float, from_pixels(images.images).sum(axis=(1, 2, 3)))), abs=1e-3
    )
    loud = noised(images, 7.0, range(500), 500)
    np.testing.assert_allclose(loud - quiet, 7.0 * noise_for(range(500), SHAPE)(0), atol=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_a_perfect_student_recovers_the_distribution_and_a_teacher_shrinks_it(sigma):
    images = image_set(2000, 1)
    stds = {}
    for name, denoise in (("student", PAIR.student), ("teacher", PAIR.teacher)):
        batches = recovered(generator(denoise), images, sigma, 2000, 500, range(2000))
        pixels = np.concatenate([batch.pixels for batch in batches])
        stds[name] = ((pixels.astype(float) + 0.5) / 127.5).std()
    assert stds["student"] == pytest.approx(PAIR.std, rel=0.02)
    # The conditional mean's deviation: std^2 / sqrt(std^2 + sigma^2).
    assert stds["teacher"] == pytest.approx(PAIR.std**2 / np.hypot(PAIR.std, sigma), rel=0.03)


def test_rows_are_distances_of_all_images_per_network_and_level(tmp_path):
    cache, held_out = Cache(tmp_path), image_set(200, 1)
    net = reference(cache)
    args = Namespace(images=150, repeats=2, sigmas=[0.3, 10.0], batch=64)
    plan = make_plan({"teacher": generator(PAIR.teacher), "student": generator(PAIR.student)}, held_out, args)
    assert len(plan) == 8 and all(task.calls == 150 for task in plan.values())
    np.testing.assert_array_equal(plan["student", 0.3, 1].labels, plan["student", 0.3, 0].labels)  # pyright: ignore
    for task in plan.values():
        fill(cache, task, [net], stored=8)
    rows = compose(cache, plan, [net])
    found = {(row["network"], row["sigma"]): row for row in rows}
    (floor, *_) = net.floor(150)
    assert found["student", 10.0]["distance"] == pytest.approx(floor, rel=0.5)
    assert found["teacher", 10.0]["distance"] > 5 * floor
    assert all(len(row["distances"]) == 2 and row["distance_std"] > 0 for row in rows)
    text = tables(rows, {"pixels": floor}, 150)
    assert "N = 150" in text and len(text.splitlines()) == 6


def test_smoke_run_prints_a_table_and_writes_json_and_pictures(tmp_path, zips):
    out = tmp_path / "recovery.json"
    command = [sys.executable, "benchmarks/recovery.py", "--smoke", "--out", out, *zips]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    found = {(row["network"], row["sigma"]): row for row in result["rows"]}
    # From pure noise a teacher sees the average of the class; little noise leaves both the images they had.
    assert found["student", 80.0]["distance"] < 0.6 * found["teacher", 80.0]["distance"]
    assert found["teacher", 0.5]["distance"] < 2 * result["floors"]["fashion128"]
    assert "before the noise" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert (tmp_path / "recovery-images.png").stat().st_size > 10_000
