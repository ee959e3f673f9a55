"""The wheel in an environment that has never seen the checkout. Needs a package index: `make wheel-test` runs it."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 800  # of pip on a busy machine; a quiet one takes 30 s
pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("FEWSTEP_")}


def ran(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [str(word) for word in words]
    return subprocess.run(argv, cwd=cwd, env=ALONE, capture_output=True, text=True, timeout=TIMEOUT_S)


def block(words: str) -> str:
    """The first block of the deployment page that holds these words."""
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    return next(
        each for each in re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL) if words in each
    )


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the deployment page have been run, as they are written."""
    folder = tmp_path_factory.mktemp("fresh")
    built = ran(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", ".", cwd=ROOT
    )
    assert built.returncode == 0, built.stderr
    (folder / "constraints.txt").symlink_to(ROOT / "constraints.txt")
    installed = ran("bash", "-euo", "pipefail", "-c", block("fewstep-env/bin/pip install"), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture(scope="session")
def fewstep(place: Path) -> Path:
    return place / "fewstep-env" / "bin" / "fewstep"


def test_the_commands_of_the_page_have_made_an_image(place: Path):
    assert (place / "first.png").read_bytes().startswith(b"\x89PNG")


def test_the_wheel_installs_fewstep_and_no_other_module(place: Path):
    files = json.loads(
        ran(
            place / "fewstep-env" / "bin" / "python", "-c",
            "import json; from importlib.metadata import files; print(json.dumps([str(f) for f in files('fewstep')]))",
            cwd=place,
        ).stdout
    )  # fmt: skip
    tops = {name.split("/")[0] for name in files if not name.startswith("..")}
    assert {re.sub("-.*", "", top) for top in tops} == {"fewstep"} and "../../../bin/fewstep" in files
    rooms = ("kernels", "server", "export", "trainer", "benchmarks", "models", "tests")
    code = f"from importlib.util import find_spec; import fewstep; print([n for n in {rooms} if find_spec(n)])"
    assert ran(place / "fewstep-env" / "bin" / "python", "-c", code, cwd=place).stdout == "[]\n"


@contextmanager
def serving(fewstep: Path, cwd: Path) -> Iterator[str]:
    argv = [fewstep, "serve", "--port", "0", "--mode", "exact", "--drain-s", "0"]
    process = subprocess.Popen(argv, cwd=cwd, env=ALONE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        yield line.split()[-1]
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_server_answers_with_the_images_that_generate_makes(place: Path, fewstep: Path):
    made = ran(fewstep, "generate", "--seeds", "3-5", "--label", "Bag", "--out", "bags", cwd=place)
    assert made.returncode == 0, made.stderr
    with serving(fewstep, place) as url:
        request = urllib.request.Request(f"{url}/v1/generate", data=b'{"seed": 4, "label": "bag"}')
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read() == (place / "bags" / "000004.png").read_bytes()
        with urllib.request.urlopen(f"{url}/", timeout=60) as page:
            assert b"<html" in page.read()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(place: Path, fewstep: Path, command: str):
    done = ran(fewstep, command, "--help", cwd=place)
    assert done.returncode == 0 and f"fewstep {command}" in done.stdout.splitlines()[0], done.stdout + done.stderr


def test_what_needs_an_extra_says_how_to_install_it_here(place: Path, fewstep: Path):
    done = ran(fewstep, "train", "fashion", "--out", "mine", cwd=place)
    assert (
        done.returncode == 2 and "-m pip install 'fewstep[train]'" in done.stderr and len(done.stderr.splitlines()) == 1
    )


def test_an_unknown_engine_names_the_command_that_exists_here(place: Path, fewstep: Path):
    done = ran(fewstep, "serve", "--engine", "dist", cwd=place)
    assert done.returncode == 2 and "Make one with: fewstep export --model MODEL --out ENGINE" in done.stderr


def test_the_command_for_a_gpu_leaves_a_fewstep_that_makes_images(place: Path, fewstep: Path):
    """The last test: it replaces a package of the environment."""
    replaced = ran("bash", "-euo", "pipefail", "-c", block("onnxruntime-gpu"), cwd=place)
    assert replaced.returncode == 0, replaced.stderr
    code = "import onnxruntime; print(onnxruntime.get_available_providers())"
    assert "CUDAExecutionProvider" in ran(place / "fewstep-env" / "bin" / "python", "-c", code, cwd=place).stdout
    made = ran(fewstep, "generate", "--seeds", "0-15", "--out", "second.png", cwd=place)
    assert made.returncode == 0, made.stderr
    first, second = (np.asarray(Image.open(place / f"{name}.png")).astype(int) for name in ("first", "second"))
    assert np.abs(first - second).max() <= 1, "two builds of one runtime round differently at most"
