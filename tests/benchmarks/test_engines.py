"""engine_speed.py and row_independence.py: what they measure on canned networks, and that the commands run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import engine_speed, harness, row_independence
from benchmarks.engine_variants import Rows, example_rows
from benchmarks.harness import ROOT
from benchmarks.row_independence import keeps_its_bytes


def fake(network):
    return SimpleNamespace(network=network)


def test_a_network_whose_rows_know_each_other_is_found_out():
    rows = example_rows((1, 4, 4), 3, 6)
    alone = fake(lambda x, c_noise, onehot: x * c_noise[:, None, None, None] + onehot.sum(1)[:, None, None, None])
    assert keeps_its_bytes(alone, rows)  # pyright: ignore[reportArgumentType]
    company = fake(lambda x, c_noise, onehot: x + np.float32(1e-6) * x.mean())
    assert not keeps_its_bytes(company, rows)  # pyright: ignore[reportArgumentType]
    position = fake(lambda x, c_noise, onehot: x + 1e-6 * np.arange(len(x), dtype=np.float32)[:, None, None, None])
    assert not keeps_its_bytes(position, rows)  # pyright: ignore[reportArgumentType]


def test_rows_cover_levels_and_classes():
    rows = example_rows((2, 4, 4), 3, 5)
    assert isinstance(rows, Rows) and rows.x.shape == (5, 2, 4, 4)
    assert rows.onehot.argmax(1).tolist() == [0, 1, 2, 0, 1]
    assert example_rows((1, 4, 4), 0, 5).onehot.shape == (5, 0)


def test_operations_of_the_shipped_student_are_counted():
    # The largest layer by far is the convolution: 3x3, on 16x16 maps of 48 and 8x8 maps of 96 channels.
    one = 2 * 9 * 48 * 48 * 16 * 16
    assert 30 * one < engine_speed.flops(ROOT / "models" / "fashion") < 60 * one


def test_without_git_a_result_says_that_its_commit_is_unknown(monkeypatch):
    assert len(harness.commit()["commit"] or "0" * 40) == 40
    monkeypatch.setenv("PATH", "")
    assert harness.commit() == {"commit": None, "dirty": None}


def test_speed_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    arguments = ["--batches", "1", "2", "--rounds", "2", "--threads", "1", "--backends", "onnxruntime-cpu"]
    monkeypatch.setattr(sys, "argv", ["engine_speed.py", *arguments, "--out", str(out)])
    monkeypatch.setattr(engine_speed, "GEMM", {"cpu": 64, "cuda": 64})
    engine_speed.main()
    result = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert [(row["variant"], row["batch"]) for row in result["rows"]] == [
        (name, batch) for batch in (1, 2) for name in ("eager", "eager, NCHW", "onnxruntime-cpu")
    ]
    for row in result["rows"]:
        assert row["ms_per_image"] == pytest.approx(row["ms"] / row["batch"]) and row["gflops"] > 0
    assert result["facts"]["onnxruntime-cpu"]["threads"] == "1"
    assert "x eager" in capsys.readouterr().out


def test_independence_command(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    arguments = ["--quick", "--threads", "1", "--backends", "onnxruntime-cpu"]
    monkeypatch.setattr(sys, "argv", ["row_independence.py", *arguments, "--out", str(out)])
    monkeypatch.setattr(row_independence, "QUICK", (1, 2))
    row_independence.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_shape"] == "identical" and row["within"] and 0 <= row["pixel"] <= row["bound"] == 3.0
