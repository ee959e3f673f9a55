"""The examples outside of fewstep make its images: ONNX Runtime and numpy alone, and JavaScript in a browser.

npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
ONNXRUNTIME_WEB=$PWD/package/dist python -m pytest tests/examples
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.engine import Engine, load_engine
from fewstep.noise import noise_for, normals, random_labels
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from tests.server.page.browser import NEEDS_BROWSER, Browser, browsing

ROOT = Path(__file__).resolve().parents[2]
BROWSER = ROOT / "server" / "http" / "page" / "local"
ENGINE = ROOT / "models" / "fashion" / "engine"
NODE = shutil.which("node")
NEEDS_NODE = pytest.mark.skipif(not NODE, reason="node is not installed")
RUNTIME = os.environ.get("ONNXRUNTIME_WEB", "")
SEEDS = (0, 7, 2**32 + 5, 2**63 - 1)


@functools.cache
def engine() -> Engine:
    return load_engine(ENGINE, threads=1)


def ours(seed: int, label: int, steps: int) -> np.ndarray:
    """Pixels [H, W] of fewstep itself."""
    denoise = partial(engine().denoiser, labels=np.array([label]))
    levels = engine().manifest.levels[steps]
    return to_pixels(np.asarray(sample_dpdm(denoise, noise_for([seed], (1, 32, 32)), levels).images))[0, ..., 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_onnx_runtime_and_numpy_alone_make_the_image(tmp_path: Path, seed: int) -> None:
    out = tmp_path / "image.png"
    command = [
        sys.executable,
        ROOT / "examples" / "onnx_only.py",
        ENGINE,
        f"--seed={seed}",
        "--label=9",
        f"--out={out}",
    ]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    with Image.open(out) as made:
        np.testing.assert_allclose(np.asarray(made, int), ours(seed, 9, 4), atol=1)


@pytest.mark.parametrize("option", ["--steps=9", "--label=10"])
def test_steps_and_classes_that_the_student_lacks_are_named(option: str) -> None:
    command = [sys.executable, ROOT / "examples" / "onnx_only.py", ENGINE, option]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr == "--steps: 1, 2, 3, 4, 5, 6, 7, 8; --label: 0 to 9\n"


def in_node(script: str) -> Any:
    """What a module that imports the page's files prints, as JSON."""
    assert NODE
    imports = f'import * as noise from "{BROWSER}/philox.mjs"; import * as student from "{BROWSER}/student.mjs";'
    command = [NODE, "--input-type=module", "--eval", imports + script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@NEEDS_NODE
def test_philox_in_javascript_gives_the_published_words() -> None:
    ones = "0xffffffff"  # known answers of Random123 (Salmon et al. 2011)
    words = in_node(f"""
        const all = [[[0, 0], [0, 0, 0, 0]], [[{ones}, {ones}], [{ones}, {ones}, {ones}, {ones}]]];
        console.log(JSON.stringify(all.map(([key, counter]) => noise.philox(key, counter))));""")
    assert words == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ]


@NEEDS_NODE
@pytest.mark.parametrize("seed", SEEDS)
def test_normals_in_javascript_are_those_of_numpy(seed: int) -> None:
    made = in_node(f"console.log(JSON.stringify([...noise.normals({seed}n, 3, 1001)]))")
    expected = normals(np.array([seed], np.uint64), np.array([3]), (1001,))[0]
    np.testing.assert_allclose(made, expected, atol=1e-6)


@NEEDS_NODE
def test_random_classes_in_javascript_are_those_of_the_server() -> None:
    made = in_node(f"console.log(JSON.stringify({[*SEEDS]}.map((each) => noise.randomLabel(BigInt(each), 10))))")
    assert made[:3] == random_labels(SEEDS[:3], 10).tolist()  # the last seed is no number of JavaScript
    last = in_node("console.log(JSON.stringify(noise.randomLabel(2n ** 63n - 1n, 1000)))")
    assert last == random_labels(SEEDS[3:], 1000).tolist()[0]


@NEEDS_NODE
def test_the_sampler_in_javascript_is_dpdm() -> None:
    levels, data = [2.5, 0.8, 0.1], 0.6
    facts = {"levels": {"3": levels}, "classes": 0, "channels": 1, "resolution": 8, "sigma_data": data}
    made = in_node(f"""
        const network = async ({{ x, c_noise }}) => x.map((value) => Math.tanh(value) + c_noise[0]);
        student.sample({json.dumps(facts)}, network, 5n, 0, 3).then((image) => console.log(JSON.stringify([...image])));
    """)

    def denoise(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        total = sigma[0] ** 2 + data**2
        output = np.tanh(x / total**0.5) + np.log(sigma[0]) / 4
        return data**2 / total * x + sigma[0] * data / total**0.5 * output

    expected = sample_dpdm(denoise, noise_for([5], (1, 8, 8)), levels).images
    np.testing.assert_allclose(made, np.asarray(expected).ravel(), atol=1e-5)


class _Files(SimpleHTTPRequestHandler):
    """The repository's files, and those of the runtime below /runtime."""

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return "text/javascript" if str(path).endswith(("js", ".mjs")) else super().guess_type(path)

    def translate_path(self, path: str) -> str:
        if path.startswith("/runtime/"):
            return str(Path(RUNTIME) / path.removeprefix("/runtime/").split("?")[0])
        return super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(ROOT))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@NEEDS_BROWSER
@pytest.mark.skipif(not RUNTIME, reason="ONNXRUNTIME_WEB names no folder of the package onnxruntime-web of npm")
def test_a_browser_makes_the_image_of_a_seed(files: str, browser: Browser) -> None:
    browser.open(f"{files}/examples/browser/index.html?runtime=/runtime&engine=/models/fashion/engine")
    browser.until("!document.querySelector('button').disabled")
    for seed, label, steps in ((7, 9, 4), (2**32 + 5, 3, 1)):
        browser.run(
            """const form = document.querySelector('form');
            [form.seed.value, form.label.value, form.steps.value] = [...arguments].map(String);
            document.querySelector('[role=status]').textContent = '';
            form.requestSubmit();""",
            seed, label, steps,
        )  # fmt: skip
        browser.until("document.querySelector('[role=status]').textContent.includes('ms with')")
        rgba = browser.run(
            """const canvas = document.querySelector('canvas');
            return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];"""
        )
        made = np.array(rgba).reshape(32, 32, 4)[..., 0]
        assert np.abs(made - ours(seed, label, steps).astype(int)).mean() <= 0.05, "levels of 255"
    assert browser.errors() == []


@NEEDS_BROWSER
def test_a_page_without_its_runtime_says_so(files: str, browser: Browser) -> None:
    browser.open(f"{files}/examples/browser/index.html?runtime=/none&engine=/models/fashion/engine")
    browser.until("document.querySelector('[role=status]').textContent.includes('did not load')")
    assert browser.run("return document.querySelector('button').disabled")
