"""The benchmark of image sizes: its networks are the published ones, and its shares are of one image."""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import sizes
from benchmarks.report import tables
from benchmarks.sizes import (
    FORMS,
    OURS,
    Shape,
    cpu_times,
    form_rows,
    parameters,
    photographs,
    shapes,
    shares,
    shown,
    slot_memory,
    stops_mattering,
)
from fewstep.card import read_card
from fewstep.checkpoint import network_config
from fewstep.pixels import encode
from fewstep.unet_config import UNetConfig

ROOT = Path(__file__).resolve().parents[2]
# Millions, as published: Karras et al. 2022 (EDM), Table 7; Dhariwal & Nichol 2021, Table 4 (421 and 554).
PUBLISHED = {
    (32, "DDPM++ of EDM's CIFAR-10"): 55.7, (64, "DDPM++ of EDM's FFHQ"): 61.8, (64, "ADM of EDM's ImageNet-64"): 295.9,
    (128, "ADM, 128 pixels"): 421.5, (256, "ADM, 256 pixels"): 553.8,
}  # fmt: skip


@pytest.mark.parametrize("pixels", [32, 64, 128, 256])
def test_networks_of_published_shapes_have_the_published_numbers_of_parameters(pixels: int):
    ours, *others = shapes(pixels)
    assert not ours.published and parameters(ours.config) < 10e6
    for shape in others:
        assert parameters(shape.config) / 1e6 == pytest.approx(PUBLISHED[pixels, shape.name], rel=0.01)
        assert (shape.config.resolution, shape.config.channels) == (pixels, 3)


def test_forms_of_photographs_hold_the_photographs():
    photos = photographs(64)
    assert len({photo.tobytes() for photo in photos}) == 6 and photos[0].shape == (64, 64, 3)
    rows = {row["form"]: row for row in form_rows(64, 0.01)}
    assert set(rows) == set(FORMS) and all(row["ms"] > 0 < row["base64_ms"] for row in rows.values())
    assert rows["array (.npy)"]["kb"] == pytest.approx((64 * 64 * 3 + 128) / 1000)
    mean = np.mean([len(encode(photo, "png")) for photo in photos]) / 1000
    assert rows["PNG"]["kb"] == pytest.approx(mean)
    assert rows["PNG"]["base64_kb"] == pytest.approx(mean * 4 / 3, rel=0.001)
    assert rows["array (.npy)"]["read_ms"] is None and rows["PNG"]["read_ms"] > 0
    text = base64.b64encode(encode(photos[0], "webp")).decode()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), photos[0])


@pytest.mark.parametrize("pixels", [32, 64])
def test_a_slot_holds_an_image_the_networks_input_and_its_share_of_the_output(pixels: int):
    found = slot_memory(pixels)
    assert found["held_mb"] == pytest.approx(3 * found["image_mb"], rel=0.05)
    assert found["peak_mb"] > found["held_mb"]


def test_a_slow_call_is_made_once_and_a_quick_one_at_least_twice(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.sizes.time.process_time", lambda: now[0])

    def call(seconds: float) -> None:
        now[0] += seconds

    assert cpu_times(lambda: call(9.0), 2.0) == [9.0]
    assert cpu_times(lambda: call(3.0), 2.0) == [3.0, 3.0]
    assert cpu_times(lambda: call(0.5), 2.0) == pytest.approx([0.5] * 4)


def test_shares_are_of_one_image_and_say_where_a_part_stops_mattering():
    networks = [
        {"pixels": pixels, "network": network, "runtime": "r", "batch": batch, "cpu_ms": ms, "step_ms": 0.5}
        for pixels, network, ms in ((32, "ours", 10.0), (64, "ours", 100.0), (64, "large", 1000.0))
        for batch in (1, 4)
    ]
    forms = [
        {"pixels": pixels, "form": form, "ms": ms, "base64_ms": 0.1}
        for pixels in (32, 64)
        for form, ms in (("PNG", 2.0), ("WebP, lossless", 8.0))
    ]
    rows = shares(networks, forms)
    assert len(rows) == 3 and rows[0]["total_ms"] == pytest.approx(4 * 10.5 + 2.1)
    for row in rows:
        assert row["network_share"] + row["step_share"] + row["png_share"] + row["base64_share"] == pytest.approx(100)
    assert rows[0]["webp_share"] == pytest.approx(100 * 8 / (4 * 10.5 + 8.1))
    ours, published = stops_mattering(rows)
    assert (ours["networks"], ours["sizes"], ours["step"], ours["png"]) == ("ours", [32, 64], [64], [64])
    assert (ours["webp"], ours["base64"]) == ([], [32, 64]) and published["webp"] == [64]


def test_a_smoke_run_prints_tables_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With the shipped student in place of our network at this size, for to export one takes half a minute."""
    student, out = ROOT / "models" / "fashion", tmp_path / "sizes.json"
    config = network_config(read_card(student))
    assert isinstance(config, UNetConfig)
    _, published = shapes(32)
    monkeypatch.setattr(sizes, "shapes", lambda pixels: [Shape(OURS, config, False), published])
    exported = (student / "engine" / "network.onnx").read_bytes()
    monkeypatch.setattr(sizes, "network_to_onnx", lambda network, *, weights_dtype: exported)
    monkeypatch.setattr(sys, "argv", ["sizes.py", "--smoke", "--out", str(out)])
    sizes.main()
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert {row["runtime"] for row in result["rows"]} == {"eager PyTorch", "ONNX Runtime"}
    assert all(row["cpu_ms"] > 0 and 0 < row["step_share"] < 100 for row in result["rows"])
    assert [row["network"] for row in result["left_out"]] == ["DDPM++ of EDM's CIFAR-10"]
    assert result["settings"]["weights"] == "random" and len(result["shares"]) == 2
    text = shown(result["rows"], result["forms"], result["memory"], result["left_out"])
    assert "Networks of random weights:" in said and text in said
    for text in tables(result):
        assert len({line.count("|") for line in text.splitlines()}) == 1
