"""The README and the pages of docs/ hold: their figures are results', what they link exists, their commands parse."""

import argparse
import functools
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.markdown import markdown
from benchmarks.methods import SOLVERS
from benchmarks.report import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
QUALITY = ROOT / "docs" / "quality.md"
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/load/README.md")
PAGES = [ROOT / "README.md", *(ROOT / name for name in BESIDE), *(ROOT / "docs").rglob("*.md")]
PAGES += (ROOT / "models").rglob("*.md")
WITH_COMMANDS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *(f"docs/{name}.md" for name in (
    "training", "quality", "engines", "load", "deployment",
)))  # fmt: skip


def linked_results(text: str) -> list[Path]:
    return [RESULTS / name for name in dict.fromkeys(re.findall(r"benchmarks/results/([\w.-]+\.json)\)", text))]


def rows_of(text: str) -> list[list[str]]:
    """The cells of every table's body, without bold."""
    lines = re.findall(r"^\| *(.*?) *\|$", text.replace("**", ""), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def anchors(page: Path) -> set[str]:
    """What headings are linked by: lower case, words joined by hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_and_heading_exists(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        if not link.startswith("http"):
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 80 and len(README.split()) < 900


# The README's figures


def quality_of_the_readme() -> dict[str, Any]:
    (path,) = [path for path in linked_results(README) if json.loads(path.read_text())["benchmark"] == "quality"]
    return json.loads(path.read_text())


def distance(result: dict[str, Any], method: str, nfe: int) -> float:
    (row,) = [row for row in result["rows"] if (row["method"], row["nfe"]) == (method, nfe)]
    return row["distance"]


def test_the_readme_table_is_of_the_result_it_links():
    result = quality_of_the_readme()
    shipped = json.loads((ROOT / "models" / "fashion" / "card.json").read_text())["weights"]
    assert result["checkpoints"]["student"] == shipped
    methods = {"student": "student"} | {f"its teacher, {solver.label}": solver.name for solver in SOLVERS}
    body = [row for row in rows_of(README) if len(row) == 3][2:]
    assert len(body) == 5
    for name, nfe, shown in body:
        real = result["held_out"][0]["distance"]
        measured = distance(result, methods[name], int(nfe)) if nfe else real
        assert shown == f"{measured:.3f}", name


def test_the_sampler_that_the_readme_calls_the_teachers_best_is_it():
    assert "SA-Solver with 35 calls is the teacher's best of seven samplers with up to 35" in README
    solvers = {solver.name for solver in SOLVERS}
    rows = [row for row in quality_of_the_readme()["rows"] if row["method"] in solvers]
    best = min(rows, key=lambda row: row["distance"])
    assert (best["method"], best["nfe"]) == ("sa", 35)
    assert len({row["method"] for row in rows}) == 7 and max(row["nfe"] for row in rows) == 35


def test_every_other_number_of_the_readme_is_of_a_result_or_measures_nothing():
    """A number added to the README's text has to come from a result, and be named here."""
    by_benchmark = {result["benchmark"]: result for path in linked_results(README) for result in [read(path.name)]}
    quality, latency, engines = (by_benchmark[name] for name in ("quality", "latency", "engine_speed"))
    student = {row["nfe"]: row["p50_ms"] for row in latency["rows"] if (row["method"], row["batch"]) == ("dpdm", 1)}
    call = next(row["ms"] for row in engines["rows"] if (row["variant"], row["batch"]) == ("torch", 1))
    assert engines["facts"]["torch"]["processor"] == "NVIDIA H200"
    assert (latency["machine"]["cores"], "EPYC" in latency["machine"]["cpu"]) == (2, True)
    measured = {f"{student[1]:.1f}", f"{student[4]:.1f}", f"{call:.1f}", f"{quality['settings']['images']:,}"}
    plain = {"32", "64", "256", "0", "39", "1", "2", "4", "8", "35", "3.11", "2.0"}  # sizes, seeds, calls, versions
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|^\|[^\n]*", " ", README, flags=re.DOTALL | re.MULTILINE)
    shown = set(re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text))
    assert measured <= shown and shown - measured <= plain


# The pages of docs/


def test_every_table_of_the_quality_page_is_of_a_result_it_links():
    page = QUALITY.read_text()
    known = [table for path in linked_results(page) for table in tables(json.loads(path.read_text()))]
    shown = [table.strip() for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)]
    known += [table for table in shown if table.startswith("| chosen | by |")]  # of words
    assert len(shown) >= 7 and [table for table in shown if table not in [*known, stages(page)]] == []


def stages(page: str) -> str:
    """The table of the student's stages, from the results that its rows link."""
    (found,) = re.findall(r"^\| after .*\n\|.*\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    lines = []
    for name in re.findall(r"^\| (.*?\)) \|", found, flags=re.MULTILINE):
        cells = {}
        for path in linked_results(name):
            extractor = "effl0-pca64" if "effl0" in path.name else "fashion128"
            rows = [row for row in read(path.name)["rows"] if row["extractor"] == extractor]
            cells |= {(extractor, row["nfe"]): f"{row['distance']:.3g}" for row in rows if row["method"] == "student"}
        wanted = [("fashion128", nfe) for nfe in (1, 2, 4, 8)] + [("effl0-pca64", nfe) for nfe in (1, 4)]
        lines.append([name, *(cells.get(cell, "") for cell in wanted)])
    return markdown(["after", "1 call", "2", "4", "8", "EfficientNet: 1", "4"], lines)


def test_the_folder_table_lists_every_top_level_folder():
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert listed == {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}


# Commands


def commands() -> Iterator[str]:
    """Every `python ...` and `fewstep ...` of a block or in backticks, without comments, variables and &&."""
    for page in WITH_COMMANDS:
        text = (ROOT / page).read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for part in (part for line in lines for part in line.split("&&")):
            words = re.sub(r"^([A-Z]+=\S+ )*(\.venv/bin/)?|\.\.\.$", "", " ".join(part.split()))
            if words.startswith("fewstep "):
                words = f"python -m {words}"
            if words.startswith("python ") and "venv" not in words:
                yield words.strip()


@functools.cache
def help_of(*words: str) -> str:
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", sorted({line for line in commands() if line.startswith("python -m ")}))
def test_module_commands_name_subcommands_and_flags_that_exist(command: str):
    words = shlex.split(command)[1:]
    module, given = words[1], words[2:]
    if not (ROOT / module).is_dir():  # pytest
        assert importlib.util.find_spec(module)
        assert [word for word in given if word.startswith("tests") and not (ROOT / word).exists()] == []
        return
    first = next((at for at, word in enumerate(given) if word.startswith("-")), len(given))
    text = help_of("-m", module, *given[:first])
    known = set(re.findall(r"--[a-z][\w-]*", text))
    assert {word for word in given if word.startswith("--")} <= known


class Parsed(Exception):  # noqa: N818 - no error
    """A script has understood its command line."""


@pytest.mark.parametrize("command", sorted({line for line in commands() if line.startswith("python benchmarks/")}))
def test_benchmark_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    words = shlex.split(command)[1:]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_the_request_of_the_readme_is_one_for_the_shipped_student():
    (body,) = re.findall(r"curl -d '([^']+)'", README)
    card = json.loads((ROOT / "models" / "fashion" / "card.json").read_text())
    request = json.loads(body)
    assert request["label"] in card["class_names"] and str(request["steps"]) in card["levels"]


def test_extras_and_make_targets_that_pages_name_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name in WITH_COMMANDS:
        page = (ROOT / name).read_text()
        extras = re.findall(r"`\[([a-z]+)\]`|'\.\[([a-z,]+)\]'", page)
        assert {extra for pair in extras for group in pair for extra in group.split(",") if extra} <= set(
            project["optional-dependencies"]
        ), name
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page, flags=re.MULTILINE)) <= set(targets), name


def test_make_train_without_pictures_says_so_before_it_installs_anything():
    done = subprocess.run(["make", "train", "PIP=false", "PHOTOS="], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "make train PHOTOS=" in done.stderr and "false" not in done.stdout


def test_make_train_takes_a_path_with_quotes_and_spaces():
    made = ["make", "PHOTOS=Mum's photos", "--old-file=.venv/training"]
    assert subprocess.run([*made, "photos-given"], cwd=ROOT, check=False).returncode == 0
    shown = subprocess.check_output([*made, "--dry-run", "train"], cwd=ROOT, text=True)
    assert 'fewstep train "$PHOTOS" --out "$OUT"' in shown  # which make puts into the environment
