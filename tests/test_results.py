"""benchmarks/results holds what a claim rests on and nothing else, and INDEX.json says what each file is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
INDEX: list[dict[str, Any]] = json.loads((RESULTS / "INDEX.json").read_text())
LISTED = [name for entry in INDEX for name in (entry["file"], *entry.get("pictures", ()))]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
PAGES += [page for folder in ("docs", "models") for page in (ROOT / folder).rglob("*.md")]
LINKED = {
    name for page in PAGES for name in re.findall(r"\]\([^)]*benchmarks/results/([\w.-]+)\)", page.read_text("utf-8"))
}


def test_every_file_is_listed_once_and_every_listed_file_exists():
    assert sorted(LISTED) == sorted(path.name for path in RESULTS.iterdir() if path.name != "INDEX.json")


def test_pages_link_every_listed_file_and_no_other():
    assert {*LISTED, "INDEX.json"} == LINKED


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_the_index_says_what_the_file_says_of_itself(entry: dict[str, Any]):
    text = (RESULTS / entry["file"]).read_text("utf-8")
    result = json.loads(text)
    assert entry["claim"] and {"file", "claim", "command", "commit", "dirty", "machine"} <= set(entry)
    script = re.fullmatch(r"(?:python benchmarks/(?:load/)?|fewstep bench )(\w+)(?:\.py)?\b.*", entry["command"])
    assert script, entry["command"]
    names = {"capacity": "load", "training_cost": "training-cost"}  # where the result is not named as its script
    assert result["benchmark"] == names.get(script[1], script[1])
    assert (entry["commit"], entry["dirty"]) == (result["commit"], result["dirty"])
    gpu = entry["machine"].get("gpu")
    assert {name: entry["machine"][name] for name in ("cpu", "cores")} == {
        name: result["machine"][name] for name in ("cpu", "cores")
    }
    named = set(re.findall(r'"(?:gpu|processor)": "(NVIDIA [^"]+)"', text))
    assert named == ({gpu} if gpu else set())


def sources(name: str) -> set[str]:
    """The results that rows of a result were taken from, and so on."""
    taken = {row["from"]["file"] for row in json.loads((RESULTS / name).read_text("utf-8"))["rows"] if "from" in row}
    return taken.union(*map(sources, taken))


@pytest.mark.parametrize("name", [path.name for path in sorted(RESULTS.glob("*-searched-quality*.json"))])
def test_the_results_that_the_rows_of_the_quality_tables_come_from_are_kept(name: str):
    assert sources(name) and sources(name) <= set(LISTED)
