"""The guard against becoming slower: what it counts is the work, and what it prints is the distance to its baseline."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.guard import Figure, beside, other_machine, paired, read_baseline
from benchmarks.harness import machine
from benchmarks.instructions import counted, dumped, opcodes

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_beside_itself_has_no_drift():
    """`.ci/run` runs the whole."""
    figures = [Figure.of("step over network call, 8 rows", "ratio", [0.2, 0.3]), Figure.of("a path", "opcodes", [7.0])]
    result = {"rows": [asdict(figure) for figure in figures]}
    assert {row["drift"] for row in beside(figures, result)} == {"+0.0%"}


def test_drift_is_marked_where_it_is_more_than_noise():
    baseline = {"rows": [asdict(Figure.of(name, "ratio", [1.8, 2.0, 2.2])) for name in ("a", "b", "c", "wide")]}
    seen = {"a": [2.1], "b": [2.9, 3.0, 3.1], "c": [1.0], "wide": [1.0, 3.0, 9.0], "new": [1.0]}
    figures = [Figure.of(name, "ratio", values) for name, values in seen.items()]
    rows = {row["name"]: (row["drift"], row["mark"]) for row in beside(figures, baseline)}
    assert rows == {
        "a": ("+5.0%", ""), "b": ("+50.0%", "more"), "c": ("-50.0%", "less"), "wide": ("+50.0%", ""), "new": (None, ""),
    }  # fmt: skip
    assert beside(figures, None)[0]["drift"] is None


def test_opcodes_count_work_and_nothing_else():
    def work(times: int) -> int:
        return sum([number * number for number in range(times)])

    once = opcodes(lambda: work(100))
    assert opcodes(lambda: work(100)) == once
    assert opcodes(lambda: work(200)) > 1.8 * once
    kind, found = counted(bytecode=True)
    again = counted(bytecode=True)[1]
    assert kind == "opcodes" and found.keys() == again.keys()
    for (
        name,
        count,
    ) in found.items():  # of the engine loop, turns differ by a few: a garbage collection, a dict that grows
        assert again[name] == pytest.approx(count, rel=0.01), name
    assert 0 < found["PNG of one image"] < found["step of 8 rows"]


def test_a_slow_valgrind_is_said_and_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def slow(bytecode: bool) -> tuple[str, dict[str, float]]:
        if not bytecode:
            raise TimeoutError("valgrind took more than 180 s")
        return "opcodes", {"a path": 7.0}

    monkeypatch.setattr(guard, "no_valgrind", lambda: None)
    monkeypatch.setattr(guard, "counted", slow)
    assert [(figure.kind, figure.value) for figure in guard.counts(smoke=False)] == [("opcodes", 7.0)]
    assert capsys.readouterr().err == "without machine instructions: valgrind took more than 180 s\n"


def test_counts_of_callgrind_are_read_by_path(tmp_path: Path):
    (tmp_path / "out.1").write_text("desc: Trigger: Client Request: the step\n\nsummary: 2000\n\ntotals: 2000\n")
    (tmp_path / "out.2").write_text("desc: Trigger: Client Request: between\n\nsummary: 7\n")
    (tmp_path / "out.3").write_text("desc: Trigger: Program termination\n\nsummary: 5\n")
    assert dumped(tmp_path) == {"the step": 100.0}


def test_a_ratio_is_of_work_done_in_turns():
    def work(times: int) -> int:
        return sum(number * number for number in range(times))

    found = paired(lambda: work(30_000), lambda: work(3_000), seconds=0.0)
    assert len(found) == 5 and 3 < sorted(found)[2] < 30


def test_a_baseline_of_another_machine_is_named_and_another_file_refused(tmp_path: Path):
    here = machine()
    assert other_machine({"machine": here}) is None
    there = here | {"cpu": "another", "packages": here["packages"] | {"numpy": "0.1"}}
    text = other_machine({"machine": there})
    assert text is not None and "cpu another (here" in text and "numpy 0.1" in text
    (tmp_path / "x.json").write_text(json.dumps({"benchmark": "load"}))
    with pytest.raises(SystemExit, match="no result of"):
        read_baseline(tmp_path / "x.json")
