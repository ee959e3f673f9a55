"""A real server with keys, JSON logs, CORS and its metrics, from its first line to its last."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import DEADLINE_S, ROOT, serving

KEY = "0123456789abcdef-guarded"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def counted(page: str) -> dict[tuple[str, str], float]:
    """fewstep_requests_total by model and outcome, those that are not zero."""
    return {
        (sample.labels["model"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "fewstep_requests_total" and sample.value
    }


def test_what_was_asked_is_what_is_logged_and_counted(engine_dir: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(f"# for the test\n{KEY}\n")
    arguments = ("--log-format", "json", "--api-keys-file", str(keys), "--cors-origins", "https://a.org")
    with serving(engine_dir, *arguments) as server:
        with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
            refused = client.post("/v1/generate", json={"n": 2})
            client.headers["authorization"] = f"Bearer {KEY}"
            made = client.post("/v1/generate", json={"n": 2, "steps": 3, "seed": 5}, headers={"traceparent": TRACE})
            wrong = client.post("/v1/generate", json={"steps": 9}, headers={"x-request-id": "mine"})
            late = client.post("/v1/generate", json={"n": 64, "steps": 8, "timeout_s": 0.001})
            other = client.get("/v1/models", headers={"host": "evil.example"})
            assert client.get("/livez").text == "ok\n"
            page = client.get("/metrics").text
        codes = [answer.status_code for answer in (refused, made, wrong, late, other)]
        assert codes == [401, 200, 400, 504, 421]
        assert server.stop() == 0
        assert server.process.stderr is not None
        written = server.process.stderr.read()

    assert counted(page) == {("", "invalid"): 2, ("tiny", "ok"): 1, ("tiny", "timeout"): 1}
    assert re.search(r'fewstep_images_total\{model="tiny",steps="3"\} 2\.0', page)
    for reason in ("missing_api_key", "out_of_range", "timeout"):
        assert f'fewstep_rejected_total{{reason="{reason}"}} 1.0' in page
    assert "fewstep_ready 1.0" in page and "fewstep_denoiser_calls_total{bucket=" in page

    assert KEY not in written and KEY not in page
    lines = [json.loads(line) for line in written.splitlines()]
    asked = [line for line in lines if line["logger"] == "fewstep.access"]
    assert [line["status"] for line in asked] == codes, "one line per request, none for probes that succeed"
    assert asked[1]["trace_id"] == TRACE[3:35] and asked[1]["parent_id"] == TRACE[36:52]
    assert made.headers["traceparent"] == f"00-{asked[1]['trace_id']}-{asked[1]['span_id']}-01"
    first = {name: asked[1][name] for name in ("model", "steps", "images", "seed", "outcome", "code")}
    assert first == {"model": "tiny", "steps": 3, "images": 2, "seed": 5, "outcome": "ok", "code": None}
    assert made.headers["server-timing"] == ", ".join(
        f"{name};dur={asked[1][f'{name}_ms']:.3f}" for name in ("queue", "engine", "encode")
    )
    assert (asked[2]["request_id"], asked[2]["code"]) == ("mine", "out_of_range")
    assert all(line["time"].endswith("Z") and line["process"] for line in lines)


def test_a_server_leaves_nothing_on_the_disk(engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even the identifier and the queue of events that ONNX Runtime keeps for its maker unless told not to."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for variable in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with serving(engine_dir) as server:
        assert httpx.post(f"{server.url}/v1/generate", json={}, timeout=DEADLINE_S).status_code == 200
        assert server.stop() == 0
    assert list(tmp_path.rglob("*")) == []


# A server for which every file system is read-only. The hook is inherited by every process that is forked.
READ_ONLY = """
import errno, os, runpy, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def refuse(event, arguments):
    path = arguments[0] if arguments else None
    written = event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "tempfile.mkstemp") or (
        event == "open" and isinstance(path, (str, bytes)) and arguments[2] & WRITING and path != os.devnull
    )
    if written:
        raise OSError(errno.EROFS, "Read-only file system", path)

sys.addaudithook(refuse)
sys.argv[0] = "server"
runpy.run_module("server", run_name="__main__")
"""


def test_a_server_needs_no_writable_directory(engine_dir: Path):
    flags = ["--engine", str(engine_dir), "--port", "0", "--threads", "1", "--drain-s", "0", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", READ_ONLY, *flags], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving "), process.communicate()[1]
        answer = httpx.post(f"{said.split()[-1]}/v1/generate", json={"n": 2}, timeout=DEADLINE_S)
        assert answer.status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()


def test_check_needs_no_writable_directory_and_says_what_the_server_would_do(engine_dir: Path):
    """Its exit code is the answer, and what it prints is a settings file."""
    command = [sys.executable, "-c", READ_ONLY, "--check", "--engine", str(engine_dir), "--port", "0"]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=DEADLINE_S)
    assert (process.returncode, process.stderr) == (0, "")
    assert tomllib.loads(process.stdout)["engine"] == {"tiny": str(engine_dir)}
