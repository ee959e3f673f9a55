"""What training costs: totals from cards, one update of every method, and the command."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training_cost
from benchmarks.training_cost import Setting, measure, methods, totals
from fewstep.card import Card, CheckpointError, Dataset
from fewstep.unet_config import UNetConfig
from trainer.run.compute import Compute

ROOT = Path(__file__).resolve().parents[2]
TINY = UNetConfig(resolution=8, channels=1, classes=3, width=16, mult=(1,), blocks=1)
SETTING = Setting(TINY, 0.5, 4, Compute())


def card(role, weights: str, parent: str | None, **training) -> Card:
    return Card(role, {}, 0.5, weights, Dataset("d", "", "", 1), parent=parent, training=training)


def test_totals_count_from_the_teacher_and_from_nothing():
    student = card("student", "s", "t", images=300, seconds=1800.0)
    teacher = card("teacher", "t", None, images=1000, seconds=7200.0)
    assert totals(student, teacher) == [
        {"from": "its teacher", "images": 300, "hours": 0.5, "share": 0.25},
        {"from": "nothing", "images": 1300, "hours": 2.5, "share": 1.25},
    ]


def test_a_student_that_continues_another_counts_from_there_only():
    student = card("student", "s", "t", images=300, seconds=1800.0, start="0123456789abcdef")
    teacher = card("teacher", "t", None, images=1000, seconds=7200.0)
    assert totals(student, teacher) == [{"from": "checkpoint 0123456789ab", "images": 300, "hours": 0.5, "share": 0.25}]


def test_behind_a_teacher_that_continues_another_nothing_is_counted():
    student = card("student", "s", "t", images=300, seconds=1800.0)
    teacher = card("teacher", "t", None, images=1000, seconds=7200.0, start="0123456789abcdef")
    assert [row["from"] for row in totals(student, teacher)] == ["its teacher"]


def test_totals_of_strangers_and_of_silent_cards_are_refused():
    student, teacher = card("student", "s", "t", images=3, seconds=1.0), card("teacher", "t", None)
    with pytest.raises(CheckpointError, match="was not distilled from this teacher"):
        totals(replace(student, parent="other"), teacher)
    with pytest.raises(CheckpointError, match="it has no 'images'"):
        totals(student, teacher)


@pytest.mark.parametrize("name", methods())
def test_every_method_updates_its_served_network(name, monkeypatch):
    built = []
    maker = methods()[name]
    monkeypatch.setattr(training_cost, "methods", lambda: {name: lambda *a: built.append(maker(*a)) or built[-1]})
    update = SETTING.updates(name)
    network = built[0].networks[built[0].served]
    before = [parameter.clone() for parameter in network.parameters()]
    for _ in range(2):  # at the first one a student's judges still agree
        update()
    after = list(network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_ratios_refer_to_the_first_method():
    rows = measure(SETTING, ["consistency", "dpdm"], rounds=2, memory={"consistency": 50.0, "dpdm": None}.get)
    assert [row["method"] for row in rows] == ["consistency", "dpdm"]
    assert rows[0]["ratio"] == 1.0 and rows[0]["memory_ratio"] == 1.0 and rows[1]["memory_ratio"] is None
    assert rows[1]["images_per_s"] == pytest.approx(4000 / rows[1]["ms_p50"])


def test_smoke_run_prints_tables_and_writes_json(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cost.json"
    command = ["training_cost.py", "--smoke", "--device", "cpu", "--precision", "fp32", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert training_cost.main() == 0
    said = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert [row["method"] for row in written["rows"]] == ["consistency", "dpdm"]
    assert all(row["ms_p50"] > 0 for row in written["rows"])
    peaks = [row["peak_mb"] for row in written["rows"]]
    # Three networks of 2.2 M parameters and two optimisers against two networks and one optimiser.
    assert None in peaks or peaks[1] > peaks[0] > 20
    assert [row["from"] for row in written["totals"]] == ["its teacher", "nothing"]
    assert "vs consistency" in said and "hours" in said
