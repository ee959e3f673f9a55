"""engine_speed.py and row_independence.py: what they measure on canned networks, and that the commands run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import engine_speed, harness, kernel_speed, row_independence
from benchmarks.engine_variants import Rows, eager_variants, example_rows
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
        (name, batch) for batch in (1, 2) for name in ("eager", "eager channels_last", "onnxruntime-cpu")
    ]
    times = {(row["variant"], row["batch"]): row["ms"] for row in result["rows"]}
    for row in result["rows"]:
        assert row["ms_per_image"] == pytest.approx(row["ms"] / row["batch"]) and row["gflops"] > 0
        assert row["vs_eager"] * row["ms"] == pytest.approx(times["eager", row["batch"]])
        assert row["vs_channels_last"] * row["ms"] == pytest.approx(times["eager channels_last", row["batch"]])
    assert result["facts"]["onnxruntime-cpu"]["threads"] == "1"
    printed = capsys.readouterr().out
    assert "x eager" in printed and "x channels_last" in printed


def test_a_run_that_ends_early_leaves_the_batch_sizes_it_has_measured(tmp_path, monkeypatch):
    out, measure = tmp_path / "speed.json", engine_speed.measure

    def once(variants, batch, *arguments):
        if batch == 2:
            raise KeyboardInterrupt
        return measure(variants, batch, *arguments)

    arguments = ["--batches", "1", "2", "--rounds", "2", "--threads", "1", "--backends", "onnxruntime-cpu"]
    monkeypatch.setattr(sys, "argv", ["engine_speed.py", *arguments, "--out", str(out)])
    monkeypatch.setattr(engine_speed, "GEMM", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(engine_speed, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        engine_speed.main()
    assert {row["batch"] for row in json.loads(out.read_text())["rows"]} == {1}


def test_kernels_measured_before_a_run_ends_early_are_kept(tmp_path, monkeypatch):
    def rows(args):
        yield {"operation": "copy", "us": 1.0}
        raise KeyboardInterrupt

    out = tmp_path / "kernels.json"
    monkeypatch.setattr(kernel_speed, "measure_gpu", rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(sys, "argv", ["kernel_speed.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        kernel_speed.main()
    result = json.loads(out.read_text())
    assert [row["operation"] for row in result["rows"]] == ["copy"] and result["gpu"] == "a GPU"


def test_backends_proved_before_a_run_ends_early_are_kept(tmp_path, monkeypatch):
    def measure(name, engine, buckets):
        if name == "second":
            raise KeyboardInterrupt
        return {"variant": name}

    out = tmp_path / "rows.json"
    monkeypatch.setattr(row_independence, "open_engines", lambda *_: {"first": None, "second": None})
    monkeypatch.setattr(row_independence, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["row_independence.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        row_independence.main()
    assert json.loads(out.read_text())["rows"] == [{"variant": "first"}]


def test_eager_layouts_are_what_their_names_say():
    variants = {variant.name: variant for variant in eager_variants(ROOT / "models" / "fashion", 2)}
    assert {name: variant.facts["layout"] for name, variant in variants.items()} == {
        "eager": "contiguous", "eager channels_last": "channels_last",
    }  # fmt: skip


def test_independence_command(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    arguments = ["--quick", "--threads", "1", "--backends", "onnxruntime-cpu"]
    monkeypatch.setattr(sys, "argv", ["row_independence.py", *arguments, "--out", str(out)])
    monkeypatch.setattr(row_independence, "QUICK", (1, 2))
    row_independence.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_shape"] == "identical" and row["within"] and 0 <= row["pixel"] <= row["bound"] == 3.0
