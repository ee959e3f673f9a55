"""Results as Markdown: every figure where its row and column say, gaps where nothing was measured."""

from typing import Any

import pytest

from benchmarks.ablation_table import compose
from benchmarks.markdown import ablation, quality, quality_details, recovery, training_cost, training_totals
from benchmarks.report import tables


def row(method: str, nfe: int, distance: float, std: float | None = None, **more: Any) -> dict[str, Any]:
    figures = {"precision": 0.81, "recall": 0.6, "accuracy": None}
    close = {"memorisation": {"features": {"share_close": 0.004}}}
    base = {"method": method, "label": f"the {method}", "nfe": nfe, "extractor": "net", "distance": distance}
    return {**base, "distance_std": std, **figures, **close, **more}


QUALITY = {
    "benchmark": "quality",
    "settings": {"nfe": [1, 4, 35]},
    "extractors": {"net": {}},
    "rows": [
        row("student", 1, 0.3125, 0.0123),
        row("student", 4, 0.0712),
        row("euler", 4, 2.6, 0.2),
        row("euler", 35, 0.1),
        row("euler", 4, 99.0, extractor="other"),
    ],
    "held_out": [
        {"extractor": "net", "distance": 0.02, "precision": 0.9, "recall": 0.9, "accuracy": 0.93},
    ],
}  # fmt: skip


def test_methods_by_calls_with_gaps_where_a_method_has_none():
    assert quality(QUALITY, "net").splitlines() == [
        "| network calls | 1 | 4 | 35 |",
        "|---|--:|--:|--:|",
        "| **the student** | 0.312 ± 0.01 | 0.0712 |  |",
        "| the euler |  | 2.6 ± 0.2 | 0.1 |",
    ]


def test_details_of_one_count_of_calls_best_first_and_real_images_last():
    assert quality_details(QUALITY, "net", 4).splitlines()[2:] == [
        "| the student | 0.0712 | 81.0% | 60.0% | - | 0.4% |",
        "| the euler | 2.6 ± 0.2 | 81.0% | 60.0% | - | 0.4% |",
        "| real held-out images | 0.02 | 90.0% | 90.0% | 93.0% | 1.0% |",
    ]


def test_networks_by_noise_level():
    found = {("teacher", 0.5): 0.25, ("student", 0.5): 0.125, ("teacher", 80.0): 9.0, ("student", 80.0): 2.0}
    rows = [{"network": n, "sigma": s, "extractor": "net", "distance": value} for (n, s), value in found.items()]
    lines = recovery({"rows": rows, "settings": {"sigmas": [0.5, 80.0]}}, "net").splitlines()
    assert lines[0] == "| sigma | teacher | student |"
    assert lines[2:] == ["| 0.5 | 0.25 | 0.125 |", "| 80 | 9 | 2 |"]


def test_variants_with_their_spread_and_what_stands_out():
    runs = {
        "base": [{"distance": dict.fromkeys("1248", value)} for value in (1.0, 1.1)],
        "tied": [{"distance": dict.fromkeys("1248", value)} for value in (2.0, 2.2)],
        "wild": [{"distance": dict.fromkeys("1248", None)}],
    }
    rows = [
        {"variant": one.variant, "cells": {k: vars(cell) for k, cell in one.cells.items()}} for one in compose(runs)
    ]
    assert ablation({"rows": rows}).splitlines()[2:] == [
        "| base | " + " | ".join(["1.05 ± 0.07"] * 4) + " |",
        "| tied | " + " | ".join(["2.1 ± 0.1*"] * 4) + " |",
        "| wild | " + " | ".join(["diverged 1/1"] * 4) + " |",
    ]


def test_costs_and_totals():
    update = {
        "method": "dpdm",
        "ms_p50": 151.4,
        "ratio": 1.5,
        "images_per_s": 420.0,
        "peak_mb": None,
        "memory_ratio": None,
    }
    assert training_cost({"rows": [update]}).splitlines()[2] == "| dpdm | 151 | 1.50 | 420 | - | - |"
    total = {"from": "nothing", "images": 1_200_000, "hours": 3.1, "share": 2.24}
    assert training_totals({"totals": [total]}).splitlines()[2] == "| nothing | 1,200,000 | 3.10 | 2.24 |"


def test_a_report_has_all_tables_of_a_result_and_refuses_what_has_none():
    assert tables(QUALITY)[0] == quality(QUALITY, "net") and len(tables(QUALITY)) == 4
    with pytest.raises(ValueError, match="no Markdown table for 'load'"):
        tables({"benchmark": "load"})
