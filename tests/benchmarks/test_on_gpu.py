"""on_gpu.sh without a GPU: its limits, its command lines, and what it leaves when a part fails."""

import argparse
import os
import runpy
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

import export.__main__
import export.plans
from benchmarks.harness import ROOT

SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
LIMIT_S = 530

# In place of Python: everything is installed, one part fails, the others write what they were told to write.
STAND_IN = """#!/usr/bin/env bash
case "$1" in -c) exit 0;; -) cat >/dev/null; echo Python; exit 0;; esac
echo "ran $*"
[[ "$*" == *kernel_speed.py* ]] && { echo "out of registers"; exit 3; }
while [ $# -gt 1 ]; do [ "$1" = --out ] && echo "{}" >"$2"; shift; done
exit 0
"""


class Part(NamedTuple):
    name: str
    limit_s: int
    command: list[str]


def parts() -> list[Part]:
    """What the script would run if everything were installed."""
    printed = subprocess.run(["bash", str(SCRIPT), "--dry-run"], capture_output=True, text=True, check=True).stdout
    words = [shlex.split(line) for line in printed.splitlines()]
    return [Part(name, int(limit), command[1:]) for name, limit, *command in words]  # without Python itself


def of_scripts() -> list[Part]:
    return [part for part in parts() if part.command[0].endswith(".py")]


def test_what_is_most_worth_knowing_comes_first_and_fits_into_one_run():
    assert f"LIMIT=${{LIMIT:-{LIMIT_S}}}" in SCRIPT.read_text("utf-8")
    names = [part.name for part in parts()]
    first = ["served", "engine_speed", "kernel_speed", "cold_start", "engine_speed_64px", "engine_speed_256px"]
    assert names[: len(first)] == first
    assert sum(part.limit_s for part in parts()[: len(first)]) <= LIMIT_S
    assert sum(part.limit_s for part in parts()) <= 3 * LIMIT_S, "three runs, at most, do everything"
    assert len(set(names)) == len(names), "a log would be overwritten"


class Parsed(Exception):  # noqa: N818 - no error
    """A script has understood its command line."""


def test_every_script_knows_its_flags(monkeypatch: pytest.MonkeyPatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    assert len(of_scripts()) >= 7
    for part in of_scripts():
        script = ROOT / part.command[0]
        monkeypatch.setattr(sys, "argv", part.command)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def test_plans_are_built_with_the_batch_sizes_that_their_table_has(monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(export.plans, "make_plan", lambda *arguments: made.append(arguments) or SCRIPT)
    for part in parts():
        if part.command[:2] == ["-m", "export"]:
            assert export.__main__.main(part.command[2:]) == 0
    (table,) = (part.command for part in parts() if part.name == "engine_speed_tensorrt")
    batches = tuple(int(word) for word in table[table.index("--batches") + 1 : table.index("--out")])
    assert made == [(Path("models/fashion/engine"), name, batches, None) for name in ("tensorrt", "tensorrt-rtx")]
    assert (ROOT / made[0][0]).is_dir()


def test_tests_it_names_are_there():
    named = [part.command for part in parts() if part.command[:2] == ["-m", "pytest"]]
    paths = [[ROOT / word for word in command if word.startswith("tests/")] for command in named]
    assert paths and all(mine and all(path.exists() for path in mine) for mine in paths)


def test_a_part_that_fails_costs_only_itself_and_everything_else_is_kept(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    run = subprocess.run(["bash", str(SCRIPT), str(tmp_path / "out")], env=environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.tar.gz", "summary.txt"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "FAILED   kernel_speed (exit 3" in summary and "out of registers" in summary
    assert summary.count("\nok ") == len(parts()) - 1 and "1 parts failed" in summary
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        kept = {Path(name).name for name in archive.getnames()}
    tables = {Path(part.command[-1]).name for part in of_scripts() if "--out" in part.command}
    assert kept >= {f"{part.name}.log" for part in parts()} | tables - {"kernel_speed.json"} | {"summary.txt"}
    assert "kernel_speed.json" not in kept


def test_named_parts_run_alone():
    command = ["bash", str(SCRIPT), "--dry-run", "build/gpu", "served", "kernel_tests"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in printed.splitlines()] == ["served", "kernel_tests"]


def test_a_misspelt_name_among_right_ones_is_refused_before_anything_runs(tmp_path: Path):
    command = ["bash", str(SCRIPT), str(tmp_path / "out"), "served", "kernel_test"]
    refused = subprocess.run(command, env={**os.environ, "PYTHON": "false"}, capture_output=True, text=True)
    assert refused.returncode == 1 and not (tmp_path / "out").exists()
    said, names = refused.stderr.split("; the parts are:")
    assert said == "no part is called kernel_test"
    assert sorted(names.split()) == sorted(part.name for part in parts())


def test_a_run_that_is_killed_leaves_the_parts_before(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STAND_IN.replace("exit 3", "kill -9 $PARENT"))
    python.chmod(0o755)
    command = f"export PARENT=$$; exec bash {shlex.quote(str(SCRIPT))} {shlex.quote(str(tmp_path / 'out'))}"
    environment = {**os.environ, "PYTHON": str(python), "TMPDIR": str(tmp_path)}
    run = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert run.returncode == -9
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        kept = {Path(name).name for name in archive.getnames()}
    assert {"served.log", "engine_speed.log", "summary.txt"} <= kept


def test_the_same_command_goes_on_and_at_another_commit_begins_again(tmp_path: Path):
    python, git = tmp_path / "python", tmp_path / "git"
    git.write_text("#!/bin/sh\necho $COMMIT_HERE\n")
    python.write_text(STAND_IN)
    for script in (python, git):
        script.chmod(0o755)

    def run(commit: str, *names: str) -> dict[str, list[str]]:
        """Parts by what the summary says of them."""
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, "PYTHON": str(python), "PATH": path, "COMMIT_HERE": commit}
        command = ["bash", str(SCRIPT), str(tmp_path / "out"), *names]
        subprocess.run(command, env=environment, capture_output=True)
        lines = [line.split() for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()]
        found = [
            (words[0], words[1].rstrip(":")) for words in lines if words[:1] and words[0] in ("ok", "kept", "FAILED")
        ]
        return {word: [name for first, name in found if first == word] for word in ("ok", "kept", "FAILED")}

    every = [part.name for part in parts()]
    others = [name for name in every if name != "kernel_speed"]
    assert run("a") == {"ok": others, "kept": [], "FAILED": ["kernel_speed"]}
    python.write_text(STAND_IN.replace("exit 3", "exit 0"))
    plans = ["plan_tensorrt", "plan_tensorrt_rtx"]  # which nothing needs any more
    assert run("a") == {"ok": ["kernel_speed"], "kept": [name for name in others if name not in plans], "FAILED": []}
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert {f"./{name}.log" for name in every} <= set(archive.getnames()), "of both runs"
    assert run("a", "served")["ok"] == ["served"], "a named part runs again"
    assert run("b")["ok"] == every


def test_without_tensorrt_its_parts_are_skipped_with_a_sentence(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STAND_IN.replace("-c) exit 0;;", '-c) [[ "$*" != *tensorrt* ]]; exit;;'))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    subprocess.run(["bash", str(SCRIPT), str(tmp_path / "out")], env=environment, capture_output=True)
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "skipped  engine_speed_tensorrt, tensorrt_tests: no plan" in summary
    assert "ok       plan_tensorrt" not in summary and "ok       served" in summary
    subprocess.run(["bash", str(SCRIPT), str(tmp_path / "some"), "served"], env=environment, capture_output=True)
    assert "skipped" not in (tmp_path / "some" / "summary.txt").read_text(), "nobody asked for TensorRT's parts"
    command = ["bash", str(SCRIPT), str(tmp_path / "none"), "tensorrt_tests"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    assert "skipped  tensorrt_tests: no plan" in (summary := (tmp_path / "none" / "summary.txt").read_text())
    assert "nothing ran" in summary
