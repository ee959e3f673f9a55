"""docs/api.md and docs/quick-start.md: their examples run against a real server, and api.md names every field."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from server.http.dialects.native_schema import GenerateBody
from server.http.dialects.openai_schema import ImagesBody
from server.http.routes import EXTRA_HEADERS
from tests.server.conftest import DEADLINE_S, ROOT, Server, serving

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("api", "quick-start")}
WRITTEN = "127.0.0.1:8000"  # the server's address on the page


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "models" / "fashion" / "engine", "--mode", "exact") as running:
        yield running


def blocks(name: str, language: str, server: Server) -> list[str]:
    """The examples of a page in a language, with the address of a server that runs."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    assert len(found) >= 2 and PAGES[name].count(WRITTEN) > 5
    return [block.replace(WRITTEN, server.url.removeprefix("http://")) for block in found]


def run(command: list[str], program: str, folder: Path) -> str:
    python = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        command, input=program, cwd=folder, env={"PATH": python, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_work_in_a_shell(server: Server, tmp_path: Path):
    said = run(["bash", "-euo", "pipefail"], "\n".join(blocks("api", "sh", server)), tmp_path)
    assert Image.open(tmp_path / "boot.png").size == (32, 32) and Image.open(tmp_path / "sheet.png").size == (64, 64)
    assert (tmp_path / "sandals.zip").read_bytes().startswith(b"PK")
    assert Image.open(tmp_path / "sandals.png").size == (64, 32)
    assert '"b64_json"' in (tmp_path / "edited.json").read_text("utf-8")
    assert Image.open(tmp_path / "bag.png").size == Image.open(tmp_path / "kept.png").size == (32, 32)
    assert said.count("event: preview") == 3 + 2 and said.count("event: progress") == 5
    assert said.count("event: images") == 2
    assert "'total_tokens': 4" in said and "boot.remade.png: the same" in said


def test_the_python_examples_work(server: Server, tmp_path: Path):
    said = "".join(run([sys.executable, "-"], block, tmp_path) for block in blocks("api", "python", server))
    assert Image.open(tmp_path / "sandal.png").size == (32, 32)
    assert said.count("image_generation.partial_image") == 3 and "(3, 32, 32, 1)" in said


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_javascript_examples_work(server: Server, tmp_path: Path):
    for block in blocks("api", "javascript", server):
        assert "image/png" in run(["node", "--input-type=module"], block, tmp_path)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_quick_start_works_in_a_shell(server: Server, tmp_path: Path):
    said = run(["bash", "-euo", "pipefail"], "\n".join(blocks("quick-start", "sh", server)), tmp_path)
    assert Image.open(tmp_path / "boot.png").size == Image.open(tmp_path / "sandal.png").size == (32, 32)
    assert Image.open(tmp_path / "sheet.png").size == (128, 128)
    assert said.startswith("ok\n") and '"Ankle boot"' in said and said.count("event: preview") == 3
    assert "from 1 to 8, not 9" in said


def test_the_quick_start_works_in_python(server: Server, tmp_path: Path):
    said = "".join(run([sys.executable, "-"], block, tmp_path) for block in blocks("quick-start", "python", server))
    assert Image.open(tmp_path / "boot.png").size == (32, 32)
    for words in ("True fashion 32", "(32, 32, 1) uint8 seed 7 of Ankle boot", "(3, 32, 32, 1) ['Bag'", "call 3 of 4"):
        assert words in said, words
    assert "\nTrue\n" in said and "400 unknown_label label" in said


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_quick_start_works_in_javascript(server: Server, tmp_path: Path):
    found = blocks("quick-start", "javascript", server)
    said = "".join(run(["node", "--input-type=module"], block, tmp_path) for block in found)
    assert Image.open(tmp_path / "boot.png").size == (32, 32)
    for words in (
        "fashion T-shirt/top",
        "image/png seed 7",
        "seed 3 ",
        "200 3 network calls",
        "event: images",
        "400 steps",
    ):
        assert words in said, words
    assert said.count("event: preview") == 3


def test_every_language_has_its_example_in_each_section_of_the_quick_start():
    sections = [section for section in PAGES["quick-start"].split("\n## ")[1:] if "```" in section]
    assert len(sections) == 6
    for section in sections:
        assert re.findall(r"^```(\w+)$", section, flags=re.MULTILINE) == ["sh", "python", "javascript"], section[:40]


def test_every_field_and_header_is_named():
    for name in (*GenerateBody.model_fields, *ImagesBody.model_fields, *EXTRA_HEADERS):
        assert f"`{name}`" in PAGES["api"], name
