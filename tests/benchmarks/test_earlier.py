"""--beside: rows of an earlier run stand in for cells that this one has not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.earlier import pooled, with_earlier
from fewstep.card import CheckpointError

SETTINGS = {"images": 100, "stored": 10, "backend": "torch", "neighbours": 3, "threads": 2}
FACTS = {"extractors": {"net": {"sha256": "e"}}, "data": {"train": "t", "held_out": "h"}}
CELLS = {
    ("student", 1): ("new", [2.5]), ("rival", 1): ("r", [80.0]),
    ("heun", 1): ("t", [80.0, 0.0]), ("heun", 3): ("t", [80.0, 1.0, 0.0]),
}  # fmt: skip


def row(method: str, nfe: int, sigmas: list[float], repeats: int = 3, distance: float = 1.0, first: int = 0):
    """As quality.py writes it, of ranges of 100 seeds from the first-th on; accuracy is unknown."""
    distances = [distance + 0.1 * (first + index) for index in range(repeats)]
    return {
        "method": method, "nfe": nfe, "extractor": "net", "sigmas": sigmas, "repeats": repeats,
        "seeds": [[100 * index, 100 * (index + 1)] for index in range(first, first + repeats)], "distances": distances,
        "accuracy": None, "accuracy_std": None, "sampling_seconds": 1.0 * repeats,
        **{name: float(np.mean(distances)) for name in ("distance", "precision", "recall")},
        **{f"{name}_std": spread(distances) for name in ("distance", "precision", "recall")},
    }  # fmt: skip


def spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


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
    assert [(one["method"], one["nfe"], one["repeats"], one["distances"][0]) for one in merged] == [
        ("student", 1, 3, 0.5), ("rival", 1, 3, 1.0), ("heun", 1, 3, 0.6), ("heun", 3, 3, 1.0),
    ]  # fmt: skip
    assert ["from" in one for one in merged] == [False, True, False, True]
    seeds = [[0, 100], [100, 200], [200, 300]]
    assert merged[1]["from"] == {"file": "old.json", "commit": "c", "machine": {"cpu": "x"}, "seeds": seeds}


def test_a_row_that_came_from_an_earlier_run_still_says_from_which(tmp_path):
    first = {"file": "first.json", "commit": "a", "machine": {}, "seeds": [[0, 100]]}
    taken = {**row("rival", 1, [80.0]), "from": first}
    merged = with_earlier([], written(tmp_path, rows=[taken, EARLIER[3]]), SETTINGS, FACTS, CELLS)
    assert [one["from"]["file"] for one in merged] == ["first.json", "old.json"]


@pytest.mark.parametrize(("theirs", "ours"), [((0, 2), (2, 1)), ((2, 1), (0, 2)), ((0, 1), (1, 1)), ((3, 2), (0, 3))])
def test_rows_over_other_seeds_are_one_row_over_all_of_them(theirs, ours):
    earlier, newer = (row("heun", 1, [80.0, 0.0], count, 1.0, first) for first, count in (theirs, ours))
    joined = pooled({**earlier, "from": "there"}, newer)
    together = row("heun", 1, [80.0, 0.0], theirs[1] + ours[1], 1.0)
    assert joined["repeats"] == together["repeats"] and joined["from"] == "there"
    assert joined["seeds"] == together["seeds"] and joined["sampling_seconds"] == together["sampling_seconds"]
    for name in ("distances", "distance", "distance_std", "recall", "recall_std"):
        assert joined[name] == pytest.approx(together[name], rel=1e-12)
    assert joined["accuracy"] is None and joined["accuracy_std"] is None


def test_rows_with_a_range_in_common_are_not_joined():
    two, three = row("heun", 1, [80.0, 0.0], 2, 1.0, 1), row("heun", 1, [80.0, 0.0], 3, 2.0)
    assert pooled(two, three) is three and pooled(three, two) is three
    assert pooled(three, row("heun", 1, [80.0, 0.0], 3, 4.0))["distances"][0] == 4.0


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
