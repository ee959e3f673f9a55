"""Every kernel compiles for GPUs that are not here, in another process: this one may interpret Triton."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ptx.report import CAPABILITIES, variants

ROOT = Path(__file__).parents[2]
COMPILED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("report") / "kernels.json"
    command = [sys.executable, "-m", "tests.ptx.report", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=COMPILED, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())["kernels"]


def test_every_kernel_compiles_for_every_capability_and_spills_nothing(report: list[dict]):
    wanted = {(variant.name, variant.dtype, sm) for sm in CAPABILITIES for variant in variants()}
    assert {(row["kernel"], row["dtype"], row["sm"]) for row in report} == wanted
    for row in report:
        assert (row["spilled_bytes"], row["stack_bytes"]) == (0, 0), row
        assert 0 < row["registers"] <= 96, row


def test_the_step_of_a_plain_student_moves_whole_vectors_and_leaves_room_for_many_warps(report: list[dict]):
    rows = [row for row in report if row["kernel"] == "step, NCHW"]
    assert rows
    for row in rows:
        assert row["vector_accesses"] >= 4, "x and F in, x and the next input out"
        assert row["registers"] <= 48, "more than 40 warps fit on a multiprocessor"
        assert row["sector_requests"] == 1, "every access is of whole sectors"


def test_three_channels_side_by_side_stay_in_registers(report: list[dict]):
    names = {"step, channels_last": 12, "step, channels_last, inpainting": 12, "initial noise, channels_last": 6}
    rows = [row for row in report if row["kernel"] in names]
    assert {row["kernel"] for row in rows} == names.keys()
    apart, together = (
        next(row for row in report if row["kernel"] == name and row["dtype"] == "bf16" and row["sm"] == 90)
        for name in ("step, channels_last, as if not RGB", "step, channels_last")
    )
    assert together["instructions"] / 12 < apart["instructions"] / 3 / 2, "elements a thread"
    for row in rows:
        assert row["shared_bytes"] == 0, "a warp's threads exchange registers"
        assert row["vector_accesses"] >= names[row["kernel"]], "three accesses of four elements to every buffer"
        assert row["sector_requests"] == 1, "every access of a warp is of 384 neighbours' whole sectors"
        assert row["registers"] <= 64, "32 warps fit on a multiprocessor, each with six vectors a thread under way"


def test_a_group_norm_asks_for_a_map_that_fits_a_tile_once_and_for_others_twice(report: list[dict]):
    rows = [row for row in report if row["kernel"].startswith("group norm")]
    in_tiles = [row["sector_requests"] for row in rows if "tiles" in row["kernel"]]
    at_once = [row["sector_requests"] for row in rows if "tiles" not in row["kernel"]]
    assert at_once and set(at_once) == {1}
    assert in_tiles and max(in_tiles) < 1.6, "1.5: reads are asked for twice, writes once"


def test_where_triton_interprets_nothing_is_compiled():
    done = subprocess.run(
        [sys.executable, "-m", "tests.ptx.report"], cwd=ROOT, env={**COMPILED, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode and "unset it" in done.stderr
