"""The README and docs/quality.md tell the truth: tables are committed results, files exist, commands parse."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import tables

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
QUALITY = ROOT / "docs" / "quality.md"


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]


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


def test_the_tables_are_the_committed_result():
    name = re.search(r"benchmarks/results/[\w.-]+\.json", README)
    assert name, "the README names no result file"
    result = json.loads((ROOT / name[0]).read_text())
    assert [table for table in tables(result) if table not in README] == []


def test_every_table_of_the_quality_page_is_of_a_result_it_links():
    page = QUALITY.read_text()
    linked = dict.fromkeys(re.findall(r"\]\((\.\./benchmarks/results/[\w.-]+\.json)\)", page))
    known = [table for link in linked for table in tables(json.loads((QUALITY.parent / link).read_text()))]
    shown = [table.strip() for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)]
    assert len(shown) >= 4 and [table for table in shown if table not in known] == []
    pictures = re.findall(r"\]\(([^)#]+)\)", page)
    assert [name for name in pictures if not (QUALITY.parent / name).exists()] == []


def test_the_folder_table_lists_every_top_level_folder():
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", README, flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    assert {entry.split("/")[0] for entry in listed} >= folders


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("command", commands())
def test_commands_name_flags_that_exist(command):
    words = shlex.split(command)
    prefix = words[1:3] if words[1] == "-m" else words[1:2]
    subcommands = [word for word in words[len(prefix) + 1 :] if not word.startswith("-")]
    helps = ""
    for depth in range(3):  # python -m trainer, python -m trainer data, python -m trainer data folder
        call = [sys.executable, *prefix, *subcommands[:depth], "--help"]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120)
        helps += done.stdout if done.returncode == 0 else ""
    flags = {word for word in words if word.startswith("--")}
    assert helps and {flag for flag in flags if flag not in helps} == set()


def test_make_targets_of_the_readme_exist():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE)) <= set(targets)
