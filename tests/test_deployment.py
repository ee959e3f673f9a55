"""The files of docs/deploy are valid for the programs that read them, and agree with the server's settings; the blocks
of docs/deployment.md are run, or read by their programs."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fewstep.__main__ import main
from fewstep.conditions import low_image
from fewstep.pixels import encode
from server.hosts.ray import CALLBACK, MIDDLEWARES, Plan, understood
from server.settings.settings import Settings
from server.settings.sources import resolve
from tests.server.conftest import write_engine

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
DEFAULTS = Settings({"fashion": ROOT})
PAGE = (ROOT / "docs" / "deployment.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\w+\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
INSTALLS = ("fewstep-env/bin/pip install", "onnxruntime-gpu")  # of blocks that tests/wheel/fresh_install.py runs
HERE = ("docker run", "backend fewstep", "--seeds 0-99999", "--inputs small.zip")  # of those that tests below take


def where(program: str) -> str | None:
    """On the path, or beside this Python."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(where(program) is None, reason=f"{program} is not installed")


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def checked(*words: object) -> None:
    program, *rest = map(str, words)
    done = subprocess.run([where(program) or program, *rest], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def seconds(pattern: str, name: str) -> float:
    (found,) = re.findall(pattern, text_of(name))
    return float(found)


def block(words: str) -> str:
    """The block of the page that holds these words; where several do, the first."""
    return next(each for each in BLOCKS if words in each)


def test_no_block_of_the_page_is_left_out():
    assert len(BLOCKS) == len({block(words) for words in (*INSTALLS, *HERE)})


def test_the_container_is_given_settings_and_files_that_exist(tmp_path: Path):
    words = shlex.split(block("docker run").replace("\\\n", " "))
    flags = [*pairwise(words)]
    given = dict(word.split("=", 1) for flag, word in flags if flag == "--env")
    (volume,) = (word for flag, word in flags if flag == "--volume")
    assert volume.split(":")[1:] == [given["FEWSTEP_API_KEYS_FILE"], "ro"]
    (tmp_path / "keys").write_text("k" * 32)
    settings = resolve([], {**given, "FEWSTEP_API_KEYS_FILE": str(tmp_path / "keys")}).settings
    assert settings.api_keys and ("--cpus", str(settings.threads)) in flags
    assert ("--publish", f"127.0.0.1:8000:{DEFAULTS.port}") in flags
    assert (ROOT / words[words.index("--file") + 1]).is_file()


@needs("haproxy")
def test_haproxy_reads_the_page(tmp_path: Path):
    file = tmp_path / "haproxy.cfg"
    around = "defaults\n mode http\n timeout connect 5s\n timeout client 70s\nfrontend all\n bind 127.0.0.1:8080\n"
    file.write_text(f"{around} default_backend fewstep\n{block('backend fewstep')}")
    checked("haproxy", "-c", "-f", file)


def test_the_commands_for_many_images_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_engine(tmp_path / "build" / "earth-x4", "enlarging", conditions=(low_image(1, 4),))
    with zipfile.ZipFile("small.zip", "w") as pictures:
        pictures.writestr("a.png", encode(np.zeros((4, 4, 1), np.uint8), "png"))
    for words, name in (("--seeds 0-99999", "set.zip"), ("--inputs small.zip", "large.zip")):
        program, *arguments = shlex.split(block(words).replace("0-99999", "0-3"))  # the rest takes as long as it says
        assert (program, main(arguments)) == ("fewstep", 0)
        assert "dataset.json" in zipfile.ZipFile(name).namelist()


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


def documents(name: str) -> dict[str, Any]:
    """The documents of a YAML file, by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all(text_of(name))}


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def ray_pods() -> list[dict[str, Any]]:
    cluster = documents("rayservice.yaml")["RayService"]["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_kubernetes_would_take_the_manifests():
    """By the schemas of the package kubernetes-validate. KubeRay's own kind is in none of them; its pods are."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **pod} for pod in ray_pods()]
    for found in (*documents("kubernetes.yaml").values(), *pods):
        validate.validate(found, validate.latest_version(), strict=True)


def test_the_deployment_is_a_server_that_starts_drains_and_is_scaled_by_its_own_slots():
    found = documents("kubernetes.yaml")
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = variables(container)
    command, *flags = container["args"]
    settings = resolve(flags, given).settings
    assert command == "serve" and pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] == max(settings.drain_s, settings.grace_s) + 15
    assert container["resources"]["limits"]["cpu"] == str(settings.threads) and not settings.url_bytes
    (metric,) = [each["pods"] for each in found["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    assert metric["target"]["averageValue"] == str(settings.capacity)
    source = (ROOT / "server" / "http" / "metrics.py").read_text("utf-8")
    assert f'"{metric["metric"]["name"]}"' in source
    probed = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probed == {"/readyz", "/livez"}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == found["Service"]["spec"]["selector"]
    assert labels == found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]


def test_the_ray_service_has_flags_that_are_understood_and_pods_that_fit_its_replicas():
    spec = documents("rayservice.yaml")["RayService"]["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    (application,) = config["applications"]
    flags = [
        word for name, value in application["args"].items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    settings, _, plan, _ = understood(flags)
    assert (plan, settings.hosts) == (Plan(max_replicas=4, cpus=4), ("*",))
    http = config["http_options"]
    assert http["request_timeout_s"] > settings.timeout_s and http["keep_alive_timeout_s"] >= settings.keep_alive_s
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (plan.min_replicas, plan.max_replicas)
    for pod in ray_pods():
        (container,) = pod["spec"]["containers"]
        assert variables(container)[CALLBACK] == MIDDLEWARES and pod["spec"]["enableServiceLinks"] is False
        assert container["resources"]["limits"]["cpu"] == f"{plan.cpus:g}"
        assert pod["spec"]["terminationGracePeriodSeconds"] > settings.grace_s


def test_one_version_of_ray_is_named_everywhere():
    (pinned,) = re.findall(r"^ray==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    version = documents("rayservice.yaml")["RayService"]["spec"]["rayClusterConfig"]["rayVersion"]
    assert version == pinned and f"FROM rayproject/ray:{pinned}-" in text_of("Containerfile")
    assert f"{CALLBACK}={MIDDLEWARES}" in text_of("Containerfile")


def test_ray_takes_the_serve_configuration():
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed; it comes with [cluster]")
    config = yaml.safe_load(documents("rayservice.yaml")["RayService"]["spec"]["serveConfigV2"])
    schema.ServeDeploySchema.model_validate(config)
