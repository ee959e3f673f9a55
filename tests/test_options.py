"""Every option that argparse reads has a help text, and every number of the benchmarks and the server has a range.

Read from the source, so that modules of missing extras are covered, too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "export", "fewstep", "kernels", "server", "trainer")
FILES = [
    file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "argparse" in file.read_text()
]  # fmt: skip
RANGED = [file for file in FILES if file.relative_to(ROOT).parts[0] in ("benchmarks", "server")]


def options(file: Path) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """The name and the keywords of each call of `add_argument`, or of `add`, its short name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if isinstance(first, str) and (name == "add_argument" or (name == "add" and first.startswith("--"))):
            yield first, {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}


def test_the_options_are_found():
    assert {"--student", "--rounds", "--smoke"} <= {name for name, _ in options(ROOT / "benchmarks" / "latency.py")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_option_has_a_help_text(file: Path):
    assert [name for name, keywords in options(file) if "help" not in keywords] == []


@pytest.mark.parametrize("file", RANGED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_number_has_a_range(file: Path):
    types = [(name, keywords["type"]) for name, keywords in options(file) if "type" in keywords]
    assert [name for name, type_ in types if isinstance(type_, ast.Name) and type_.id in ("int", "float")] == []
