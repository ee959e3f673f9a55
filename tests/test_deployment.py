"""The files of docs/deploy are valid for the programs that read them, and agree with the server's settings."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings.settings import Settings
from server.settings.sources import resolve

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
DEFAULTS = Settings({"fashion": ROOT})


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def checked(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def seconds(pattern: str, name: str) -> float:
    (found,) = re.findall(pattern, text_of(name))
    return float(found)


def test_the_settings_file_is_one():
    settings = resolve(["--config", str(DEPLOY / "fewstep.toml")], {}).settings
    assert settings.capacity == 0 and settings.trusted_proxies == ("127.0.0.1",)


@needs("systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path):
    unit = tmp_path / "fewstep.service"
    # systemd asks whether the program is there.
    unit.write_text(text_of("fewstep.service").replace("/opt/fewstep/bin/fewstep", "/usr/bin/env"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "fewstep.service" not in done.stderr, done.stderr


def test_systemd_waits_for_a_server_that_drains():
    assert seconds(r"TimeoutStopSec=(\d+)", "fewstep.service") == max(DEFAULTS.drain_s, DEFAULTS.grace_s) + 10


@needs("nginx")
def test_nginx_reads_its_file(tmp_path: Path):
    main = tmp_path / "nginx.conf"
    log = f"pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}"
    main.write_text(f"{log}\nhttp {{ access_log off; include {DEPLOY}/nginx.conf; }}\n")
    checked("nginx", "-t", "-e", tmp_path / "early.log", "-c", main, "-p", tmp_path)


@needs("caddy")
def test_caddy_reads_its_file(tmp_path: Path):
    checked("caddy", "adapt", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile")


@pytest.mark.parametrize(
    ("name", "idle", "answer"),
    [
        ("nginx.conf", r"keepalive_timeout (\d+)s", r"proxy_read_timeout (\d+)s"),
        ("Caddyfile", r"keepalive (\d+)s", r"response_header_timeout (\d+)s"),
    ],
)
def test_a_proxy_closes_idle_connections_before_the_server_and_waits_longer_for_answers(
    name: str, idle: str, answer: str
):
    assert seconds(idle, name) < DEFAULTS.keep_alive_s and seconds(answer, name) > DEFAULTS.timeout_s


@needs("hadolint")
def test_hadolint_finds_nothing_in_the_containerfile():
    checked("hadolint", DEPLOY / "Containerfile")


def test_the_container_runs_the_command_and_leaves_out_what_git_ignores():
    text = text_of("Containerfile")
    assert 'ENTRYPOINT ["fewstep"]' in text and 'CMD ["serve"]' in text
    assert {".git", ".venv", "build", "dist", "runs"} <= set(text_of("Containerfile.dockerignore").split())
