"""The two-sided band around a reference's distances."""

import copy

import pytest

from benchmarks.harness import ROOT
from benchmarks.quality_band import banded, read
from fewstep.card import CheckpointError

RESULTS = ROOT / "benchmarks" / "results"
FLOAT32 = read(RESULTS / "2026-11-28-2core-amx-float32-quality.json")
OPENVINO = read(RESULTS / "2026-11-28-2core-amx-openvino-quality.json")


def test_openvinos_bfloat16_is_within_the_band_as_the_page_says():
    rows = banded(FLOAT32, OPENVINO)
    assert [(row["method"], row["nfe"], row["within"]) for row in rows] == [("student", 1, True), ("student", 4, True)]
    page = (ROOT / "docs" / "engines.md").read_text()
    for row in rows:
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        assert f"{row['ratio']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f})" in page


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_smaller_distances_are_outside_as_larger_ones_are(factor: float):
    other = copy.deepcopy(FLOAT32)
    for row in other["rows"][:1]:
        row["distance"] *= factor
        row["distances"] = [distance * factor for distance in row["distances"]]
    assert [row["within"] for row in banded(FLOAT32, other)] == [False] + [True] * (len(FLOAT32["rows"]) - 1)
    assert all(row["within"] for row in banded(FLOAT32, other, band=0.04))


def test_what_does_not_compare_is_refused(tmp_path):
    few = {**OPENVINO, "settings": {**OPENVINO["settings"], "images": 1000}}
    with pytest.raises(CheckpointError, match="images is 10000 in the reference and 1000 in the other result"):
        banded(FLOAT32, few)
    with pytest.raises(CheckpointError, match="the data of the two results are others"):
        banded(FLOAT32, {**OPENVINO, "data": {}})
    weights = {**OPENVINO["checkpoints"], "student": "0" * 64}
    with pytest.raises(CheckpointError, match="no row of the two results has the same weights"):
        banded(FLOAT32, {**OPENVINO, "checkpoints": weights})
    (tmp_path / "a.json").write_text('{"benchmark": "latency"}')
    with pytest.raises(CheckpointError, match=r"is no result of benchmarks/quality\.py"):
        read(tmp_path / "a.json")
