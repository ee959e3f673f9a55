"""--beside: rows of an earlier run stand in for cells that this one has not."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.earlier import with_earlier
from fewstep.card import CheckpointError

SETTINGS = {"images": 100, "stored": 10, "backend": "torch", "neighbours": 3, "threads": 2}
FACTS = {"extractors": {"net": {"sha256": "e"}}, "data": {"train": "t", "held_out": "h"}}
CELLS = {
    ("student", 1): ("new", [2.5]), ("rival", 1): ("r", [80.0]),
    ("heun", 1): ("t", [80.0, 0.0]), ("heun", 3): ("t", [80.0, 1.0, 0.0]),
}  # fmt: skip


def row(method: str, nfe: int, sigmas: list[float], repeats: int = 3, distance: float = 1.0) -> dict[str, Any]:
    return {
        "method": method,
        "nfe": nfe,
        "extractor": "net",
        "sigmas": sigmas,
        "repeats": repeats,
        "distance": distance,
    }


EARLIER = [
    row("student", 1, [2.5]), row("rival", 1, [80.0]), row("heun", 1, [80.0, 0.0], 2), row("heun", 3, [80.0, 1.0, 0.0]),
]  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    result = {
        "settings": {**SETTINGS, "threads": 1}, "checkpoints": {"student": "old", "rival": "r", "teacher": "t"},
        "commit": "c", "machine": {"cpu": "x"}, "rows": EARLIER, **FACTS, **changes,
    }  # fmt: skip
    path = folder / "old.json"
    path.write_text(json.dumps(result))
    return path


def test_missing_and_shorter_rows_are_taken_in_the_tables_order_and_say_whence(tmp_path):
    new = [row("student", 1, [2.5], 3, 0.5), row("heun", 1, [80.0, 0.0], 3, 0.6), row("heun", 3, [80.0, 1.0, 0.0], 1)]
    merged = with_earlier(new, written(tmp_path), SETTINGS, FACTS, CELLS)
    assert [(one["method"], one["nfe"], one["repeats"], one["distance"]) for one in merged] == [
        ("student", 1, 3, 0.5), ("rival", 1, 3, 1.0), ("heun", 1, 3, 0.6), ("heun", 3, 3, 1.0),
    ]  # fmt: skip
    assert ["from" in one for one in merged] == [False, True, False, True]
    assert merged[1]["from"] == {"file": "old.json", "commit": "c", "machine": {"cpu": "x"}}


def test_a_row_of_another_network_or_of_other_levels_stays_out(tmp_path):
    cells = CELLS | {("rival", 1): ("r", [40.0])}
    merged = with_earlier([], written(tmp_path), SETTINGS, FACTS, cells)
    assert [(one["method"], one["nfe"]) for one in merged] == [("heun", 1), ("heun", 3)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": {**SETTINGS, "images": 50}}, "its images is 50, not 100"),
        ({"data": {"train": "other"}}, "its data are others"),
        ({"extractors": {}}, "its extractors are others"),
        ({"rows": None}, "not what quality.py writes"),
    ],
)
def test_a_run_that_measured_something_else_is_refused(tmp_path, changes, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        with_earlier([], written(tmp_path, **changes), SETTINGS, FACTS, CELLS)


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text("[")
    for name in ("broken.json", "absent.json"):
        with pytest.raises(CheckpointError, match=r"not what quality\.py writes"):
            with_earlier([], tmp_path / name, SETTINGS, FACTS, CELLS)
