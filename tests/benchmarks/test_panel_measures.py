"""The bars of a release: which metrics of a panel are hits and which are misses."""

from typing import Any

from benchmarks.markdown import panel_bars
from benchmarks.panel_measures import Measure, measures

BETTER = {
    "frechet fashion128-b": "lower", "frechet effl0-pca64": "lower", "frechet pixels-pca64": "lower",
    "auc cnn 8 bits": "lower", "recall": "higher", "close pixels": None,
}  # fmt: skip


def row(sampler: str, *means: float | None) -> dict[str, Any]:
    """A column of a panel; means in the order of BETTER, the last metric at 0.5."""
    calls = None if sampler == "real" else int(sampler.split(":")[1])
    found = {
        name: {"better": way, "mean": mean} for (name, way), mean in zip(BETTER.items(), (*means, 0.5), strict=True)
    }
    return {"sampler": sampler, "label": sampler.split(":")[0], "calls": calls, "metrics": found}


ROWS = [
    row("real", 0.0, 0.0, 0.0, 0.5, 1.0),
    row("student:1", 0.4, None, 1.3, 0.66, 0.8),
    row("student:4", 0.2, None, 1.5, 0.60, 0.9),
    row("sa:35", 0.3, None, 1.0, 0.60, 0.9),
    row("euler:4", 1.0, None, 5.0, 0.90, 0.5),
    row("sa:4", 0.7, None, 6.1, 0.90, 0.5),
]


def pair(first: str, second: str, worse: str | None) -> dict[str, Any]:
    return {"first": first, "second": second, "metrics": [
        {"metric": name, "outcome": "worse" if name == worse else "better"} for name in BETTER
    ]}  # fmt: skip


def test_each_metric_of_a_bar_is_a_hit_or_a_miss_and_one_without_a_figure_is_neither():
    four, features, pixels, auc, solvers = measures(ROWS, [])
    assert four == Measure(
        "4 calls beside sa, 35", "no metric worse",
        ("frechet fashion128-b (0.2, 0.3)", "auc cnn 8 bits (0.6, 0.6)", "recall (0.9, 0.9)"),
        ("frechet pixels-pca64 (1.5, 1)",),
    )  # fmt: skip
    assert features.what == "1 call beside sa, 35" and features.misses == ("frechet fashion128-b (0.4, 0.3)",)
    assert not features.hits
    assert pixels.hits == ("frechet pixels-pca64 (1.3, 1)",)
    assert auc.misses == ("auc cnn 8 bits (0.66, 0.6)",)
    assert solvers.what == "4 calls beside the best solver at 4"  # under each metric another one
    assert solvers.misses == ("frechet fashion128-b (0.2, 0.7)", "frechet pixels-pca64 (1.5, 5)")


def test_a_step_to_more_calls_misses_when_a_metric_is_worse_beyond_noise():
    compared = [
        pair("student:2", "student:1", None), pair("student:3", "student:2", "recall"), pair("student:4", "sa:35", None)
    ]  # fmt: skip
    *_, last = measures(ROWS, compared)
    assert last == Measure("one call more", "no metric worse beyond noise", ("1 to 2",), ("2 to 3: recall",))
    text = panel_bars({"rows": ROWS, "comparisons": compared})
    assert text.splitlines()[-1] == "| one call more | no metric worse beyond noise | 1 to 2 | 2 to 3: recall |"


def test_a_panel_without_other_columns_has_no_bars_but_those_of_more_calls():
    assert measures(ROWS[:3], []) == []
    assert [one.what for one in measures(ROWS[:3], [pair("student:4", "student:1", None)])] == ["one call more"]
