"""`fewstep cluster`: what its flags and those of a serve configuration mean, without Ray."""

from pathlib import Path
from typing import Any

import pytest

from fewstep.card import CheckpointError
from server.hosts.ray import Plan, main, understood
from server.settings.settings import SettingsError


def test_flags_of_the_cluster_and_of_the_server_stand_side_by_side(engine_dir: Path):
    words = f"--engine one={engine_dir} --min-replicas 2 --capacity 3 --gpus 0.5 --address a:1 --mode exact"
    settings, manifests, plan, address = understood(words.split())
    assert (settings.capacity, settings.mode, list(manifests), address) == (3, "exact", ["one"], "a:1")
    assert plan == Plan(min_replicas=2, max_replicas=2, gpus=0.5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--min-replicas 3 --max-replicas 2", "--max-replicas 2 is below --min-replicas 3"),
        ("--gpus 1.5", "--gpus must be a whole number or at most 1, not 1.5"),
        ("--gpus -1", "argument --gpus: -1 is not a number from 0 to 16"),
        ("--min-replicas two", "'two' is not a whole number from 1 to 4,096"),
        ("--workers 2", "--workers has no effect on Ray: --min-replicas and --max-replicas say how many"),
        ("--api-processes 2", "--api-processes has no effect on Ray: Ray runs a proxy on each node"),
        ("--url-bytes 0", "--url-bytes has no effect on Ray: a url may lead to another replica"),
        ("--port 0", "--port 0 would be another port on each node"),
        ("--check", "--check is for one machine: fewstep serve --check"),
        ("--replicas 2", "there is no flag --replicas; the nearest is --min-replicas"),
        ("--xyzzy", "there is no flag --xyzzy; `fewstep cluster --help` lists the flags"),
        ("--model nothing", "there is no model"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_an_engine_that_is_none_is_refused_before_ray_is_asked(tmp_path: Path):
    with pytest.raises(CheckpointError):
        understood(["--engine", str(tmp_path)])


def test_a_serve_configuration_has_the_same_names(monkeypatch: pytest.MonkeyPatch, engine_dir: Path):
    from fewstep.commands import cluster
    from server.hosts import ray

    built: list[Any] = []
    monkeypatch.setattr(ray, "build", lambda *parts: built.extend(parts))
    cluster.application({"engine": [f"a={engine_dir}", f"b={engine_dir}"], "max_replicas": 4, "upscale_s": 2.5})
    settings, manifests, plan = built
    assert list(settings.engines) == list(manifests) == ["a", "b"]
    assert plan == Plan(max_replicas=4, upscale_s=2.5)
    with pytest.raises(SettingsError, match="there is no flag"):
        cluster.application({"replicas": 4})
