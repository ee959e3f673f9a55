"""The page makes images by itself: the server's within 0.05 levels of 255 in the mean, under a strict policy.

npm pack onnxruntime-web@1.30.0 && tar xzf onnxruntime-web-*.tgz package/dist
ONNXRUNTIME_WEB=$PWD/package/dist python -m pytest tests/server/page/test_local.py
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.settings.settings import RUNTIME_FILES
from tests.server.conftest import Server, serving
from tests.server.page.browser import NEEDS_BROWSER, Browser, browsing
from tests.server.page.test_page import ENGINE, pictures, pixels, visit

RUNTIME = os.environ.get("ONNXRUNTIME_WEB", "")
pytestmark = [
    NEEDS_BROWSER,
    pytest.mark.skipif(not RUNTIME, reason="ONNXRUNTIME_WEB names no folder of the package onnxruntime-web of npm"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser") / "window") as window:
        window.look()
        yield window


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ENGINE, "--capacity", "2", "--page-runtime", RUNTIME) as running:
        yield running


def press(page: Browser, batch: int) -> None:
    page.click("#go")
    page.until("document.querySelectorAll('.batch').length === arguments[0]", batch)
    page.done()
    assert page.run("return document.getElementById('error').hidden")


def loaded(page: Browser) -> list[str]:
    """What the page has loaded of its files."""
    return page.run("return performance.getEntriesByType('resource').map((each) => new URL(each.name).pathname)")


def test_the_page_makes_the_servers_images_with_any_class_and_a_given_one(browser: Browser, server: Server):
    visit(browser, server, "?seed=4294967301&keep=1&n=3&steps=4")
    assert not [path for path in loaded(browser) if re.match("/page/(local|runtime|networks)/", path)]
    browser.click("#here")
    press(browser, 2)
    assert browser.text("#status").endswith("on this computer (WebAssembly).")
    assert "on this computer (WebAssembly), of them" in browser.text(".batch .meta")
    assert {f"/page/runtime/{name}" for name in RUNTIME_FILES[:3]} < set(loaded(browser))
    compare(browser)
    browser.run("document.getElementById('label').selectedIndex = 4")
    browser.fill("#seed", str(2**63 - 3))
    press(browser, 3)
    browser.click("#here")
    press(browser, 4)
    compare(browser)
    assert browser.errors() == []


def compare(page: Browser) -> None:
    """The two newest batches: one of the server, one of the page."""
    newest, before = pictures(page, 1), pictures(page, 2)
    names = page.run(
        """return [1, 2].map((n) => [...document.querySelectorAll(`.batch:nth-child(${n}) .tile`)]
        .map((tile) => tile.innerText))"""
    )
    assert names[0] == names[1], "class and seed below each image"
    for one, other in zip(newest, before, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other).astype(int)).mean() <= 0.05, "levels of 255"


def test_the_server_is_not_asked_for_images(browser: Browser, server: Server):
    visit(browser, server, "?seed=7&keep=1&n=2&steps=1")
    browser.click("#here")
    press(browser, 2)
    asked = browser.run(
        "return performance.getEntriesByType('resource').filter((each) => each.name.endsWith('/v1/generate')).length"
    )
    assert asked == 1, "the images of the address, before the box was ticked"
    browser.click("#view-strip + span")
    assert not browser.run("return document.getElementById('here').checkVisibility()"), "a strip is the server's"
    browser.click("#view-images + span")
    browser.click(".batch:nth-child(1) .own button")
    browser.click("#vary")  # a picture is the server's, whatever the box says
    browser.until("document.querySelectorAll('.batch').length === 3")
    browser.done()
    assert "on this computer" not in browser.text(".batch .meta") and browser.errors() == []


def test_cancel_ends_what_the_page_makes(browser: Browser, server: Server):
    visit(browser, server, "?seed=7&keep=1&n=1&steps=1")
    browser.fill("#count", "64")
    browser.run("document.getElementById('steps').value = 8")
    browser.click("#here")
    browser.click("#go")
    browser.until("document.querySelectorAll('.batch:nth-child(1) .tile:not(.pending)').length >= 1")
    browser.press("Escape")
    assert browser.text("#status") == "Cancelled. What was finished stays."
    browser.until("document.querySelectorAll('.tile.pending').length === 0")
    assert 1 <= browser.count(".batch:nth-child(1) .tile") < 64 and browser.errors() == []


def test_the_policy_lets_no_text_run_as_code(browser: Browser, server: Server):
    visit(browser, server, "?seed=7&keep=1&n=1&steps=1")
    policy = browser.run("return fetch('/').then((answer) => answer.headers.get('content-security-policy'))")
    assert "script-src 'self' 'wasm-unsafe-eval';" in policy and policy.count("unsafe") == 1
    ran = browser.run(
        """setTimeout("window.ran = 'text'");
        return new Promise((resolve) => setTimeout(() => resolve(window.ran ?? null)));"""
    )
    assert ran is None
    assert any("unsafe-eval" in error for error in browser.errors()), "the browser says that it has refused"


def test_axe_finds_nothing(browser: Browser, server: Server, axe: str):
    visit(browser, server, "?seed=7&keep=1&n=1&steps=1")
    browser.click("#here")
    press(browser, 2)
    for dark in (False, True):
        browser.look(dark=dark)
        found = browser.run(f"{axe}; return axe.run()")
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]] == []
    browser.look()


def test_a_network_that_cannot_be_loaded_is_told_in_a_sentence(browser: Browser, server: Server):
    visit(browser, server, "?seed=7&keep=1&n=1&steps=1")
    browser.devtools("Network.enable")
    browser.devtools("Network.setBlockedURLs", urls=["*/page/runtime/*"])
    browser.click("#here")
    browser.click("#go")
    browser.until("!document.getElementById('error').hidden")
    said = browser.text("#error")
    assert said.startswith("This browser cannot run the network (") and said.endswith("Let the server make the images.")
    browser.devtools("Network.setBlockedURLs", urls=[])
    browser.click("#here")
    press(browser, 2)
    browser.errors()


def test_a_network_comes_with_the_key_and_each_model_has_its_own(browser: Browser, tmp_path: Path, engine_dir: Path):
    keys = tmp_path / "keys.txt"
    keys.write_text("of-sixteen-characters\n", "utf-8")
    more = ("--engine", f"other={engine_dir}", "--api-keys-file", str(keys), "--page-runtime", RUNTIME)
    with serving(ENGINE, "--capacity", "2", *more) as running:
        browser.open(f"{running.url}/?seed=7&keep=1&n=2&steps=2")
        browser.until("!document.getElementById('key-field').hidden")
        browser.errors()  # the first answer was 401
        browser.fill("#key", "of-sixteen-characters")
        for batch, model in enumerate(("fashion", "other")):
            if batch:
                browser.run(
                    """document.getElementById('model').value = arguments[0];
                    document.getElementById('model').dispatchEvent(new Event('change'));""",
                    model,
                )
            press(browser, 2 * batch + 1)
            browser.click("#here")
            press(browser, 2 * batch + 2)
            browser.click("#here")
            compare(browser)
        asked = [path for path in loaded(browser) if path.startswith("/page/networks/")]
        assert asked == ["/page/networks/fashion.onnx", "/page/networks/other.onnx"] and browser.errors() == []
        browser.open("about:blank")  # the page would ask the ended server for its metrics


def test_without_the_setting_nothing_is_offered(browser: Browser, tmp_path: Path):
    with serving(ENGINE, "--capacity", "2") as running:
        visit(browser, running, "?seed=7&keep=1&n=1&steps=1")
        assert not browser.run("return document.getElementById('here').checkVisibility()")
        assert browser.errors() == []
