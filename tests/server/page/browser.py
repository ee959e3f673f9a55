"""Headless Chromium, driven by the WebDriver protocol (W3C) through chromedriver, without a package for it."""

import base64
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import DEADLINE_S, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="Chromium and chromedriver are not installed"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # of the protocol
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009", "Shift": "\ue008", "Tab": "\ue004",
        "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}  # fmt: skip


@dataclass
class Browser:
    """One window."""

    client: httpx.Client  # its base URL is the session's
    downloads: Path

    def command(self, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.client.post(path, json=body or {})
        value = answer.json()["value"]
        assert answer.status_code == 200, f"{path}: {value['error']}: {value['message']}"
        return value

    def open(self, url: str) -> None:
        self.command("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns; a promise is awaited. arguments: its `arguments`."""
        return self.command("execute/sync", {"script": script, "args": arguments})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.command("goog/cdp/execute", {"cmd": command, "params": parameters})

    def find(self, selector: str) -> str:
        """The id of the one element that a CSS selector finds first."""
        return self.command("element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        """As a user does: the element must be visible, and nothing may lie over it."""
        self.command(f"element/{self.find(selector)}/click")

    def fill(self, selector: str, text: str) -> None:
        found = self.find(selector)
        self.command(f"element/{found}/clear")
        self.command(f"element/{found}/value", {"text": text})

    def upload(self, selector: str, path: Path) -> None:
        """A file into a file input, which may be hidden."""
        self.command(f"element/{self.find(selector)}/value", {"text": str(path)})

    def press(self, *keys: str) -> None:
        """Keys, all held down until the last has been pressed, for whatever has the focus."""
        named = [KEYS.get(key, key) for key in keys]
        steps = [{"type": "keyDown", "value": key} for key in named]
        steps += [{"type": "keyUp", "value": key} for key in reversed(named)]
        self.command("actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def until(self, condition: str, *arguments: Any) -> None:
        """Wait until a JavaScript expression is true."""
        wait_until(lambda: bool(self.run(f"return Boolean({condition})", *arguments)))

    def done(self) -> None:
        """Wait until nothing is being made."""
        self.until("document.getElementById('cancel').hidden")

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """The colour scheme and the size of the window."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def screenshot(self) -> bytes:
        """A PNG of what the window shows."""
        return base64.b64decode(self.client.get("screenshot").json()["value"])

    def errors(self) -> list[str]:
        """What the console has said of errors since the last call."""
        return [entry["message"] for entry in self.command("se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A window of its own profile; folder: for it, and for downloads."""
    assert CHROMIUM and CHROMEDRIVER
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    command = [CHROMEDRIVER, "--port=0"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert driver.stdout is not None
        started = next(line for line in driver.stdout if "successfully on port" in line)
        port = re.findall(r"on port (\d+)", started)[-1]
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=DEADLINE_S) as client:
            opened = client.post("session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            assert "sessionId" in opened, opened
            session = f"http://127.0.0.1:{port}/session/{opened['sessionId']}"
            client.base_url = f"{session}/"
            try:
                yield Browser(client, downloads)
            finally:
                client.delete(session)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)  # with all of Chromium, where the session did not end it
        driver.wait()
