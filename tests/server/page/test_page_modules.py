"""The page's modules in node: their own tests, zips that Python reads, and "copy as" programs that make images."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.pixels import KEYWORD, text_of
from server.http.page_files import FOLDER
from tests.server.conftest import DEADLINE_S, ROOT, Server, serving

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="node is not installed")
NAMED = "It's ''' a \\ \"bag\" `${x}` $HOME"  # a name with what ends strings in the three languages


def node(program: str, *arguments: str) -> bytes:
    """What a module prints that imports from the page's folder."""
    command = [str(NODE), "--input-type=module", "-", *arguments]
    source = program.replace("PAGE", FOLDER.as_uri())
    done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_modules_pass_their_tests():
    tests = Path(__file__).with_name("modules.test.mjs")
    done = subprocess.run(
        [str(NODE), "--test", str(tests)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_zip_of_the_page_is_a_zip():
    files = {"a.png": b"\x00\xff" * 700, "b b.png": b""}
    program = """
        import { zipOf } from "PAGE/zip.mjs";
        const files = JSON.parse(process.argv[2]).map(([name, hex]) => ({ name, bytes: Buffer.from(hex, "hex") }));
        process.stdout.write(zipOf(files));
    """
    content = node(program, json.dumps([(name, data.hex()) for name, data in files.items()]))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == files
        assert [entry.CRC for entry in archive.infolist()] == [zlib.crc32(data) for data in files.values()]


def snippet(language: str, fields: dict[str, Any], url: str, needs_key: bool) -> str:
    """The program that the page copies for a request; its seed is given as text."""
    program = """
        import { snippet } from "PAGE/snippets.mjs";
        const [language, fields, url, needsKey] = JSON.parse(process.argv[2]);
        process.stdout.write(snippet(language, { ...fields, seed: BigInt(fields.seed) }, url, needsKey));
    """
    return node(program, json.dumps([language, fields, url, needs_key])).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("of-sixteen-characters\n", "utf-8")
    with serving(ROOT / "models" / "fashion" / "engine", "--mode", "exact", "--api-keys-file", str(keys)) as running:
        yield running


RUN = {
    "curl": ["bash", "-euo", "pipefail"],
    "Python": [sys.executable, "-"],
    "JavaScript": [str(NODE), "--input-type=module"],
}
REQUESTS = [
    {"model": "fashion", "steps": 2, "seed": str(2**63 - 1), "label": "Ankle boot"},
    {"model": "fashion", "steps": 1, "n": 3, "seed": "7", "label": "T-shirt/top", "seed_to": 9},
]


def run(language: str, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{Path(str(NODE)).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "FEWSTEP_KEY": "of-sixteen-characters"}
    return subprocess.run(
        RUN[language], input=program, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("language", RUN)
@pytest.mark.parametrize("fields", REQUESTS, ids=["one", "several"])
def test_a_copied_program_makes_the_images(language: str, fields: dict[str, Any], server: Server, tmp_path: Path):
    if not shutil.which(RUN[language][0]) or (language == "curl" and not shutil.which("curl")):
        pytest.skip(f"{language} is not installed")
    several = "n" in fields
    done = run(language, snippet(language, fields, server.url, needs_key=True), tmp_path)
    assert done.returncode == 0, done.stderr
    if language == "JavaScript":
        assert ("application/zip" if several else "image/png") in done.stdout and fields["seed"] in done.stdout
        return
    content = (tmp_path / f"fewstep-{fields['seed']}.{'zip' if several else 'png'}").read_bytes()
    if several:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert len(archive.namelist()) == 3
        return
    assert Image.open(io.BytesIO(content)).size == (32, 32)
    assert json.loads(text_of(content, KEYWORD) or "")["seed"] == int(fields["seed"])


@pytest.mark.parametrize("language", RUN)
def test_a_name_with_quotes_reaches_the_server_whole(language: str, server: Server, tmp_path: Path):
    """The server refuses it and says it; what it says of a name is what it has received."""
    fields = {"model": "fashion", "seed": "7", "label": NAMED}
    program = snippet(language, fields, server.url, needs_key=True)
    done = run(
        language, program.replace("curl -f ", "curl --fail-with-body ").replace("-o fewstep-7.png", ""), tmp_path
    )
    assert done.returncode != 0
    if language != "Python":  # which says the status alone
        assert "has no class" in done.stdout + done.stderr and "$HOME" in done.stdout + done.stderr
    sent = json.loads(node("""
        import { toJson } from "PAGE/request.mjs";
        process.stdout.write(toJson(JSON.parse(process.argv[2])));
    """, json.dumps(fields)))  # fmt: skip
    assert sent == fields
