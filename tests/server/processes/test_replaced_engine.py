"""An engine folder that changes under a running server: no worker serves what the server did not announce."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from export.manifest import Manifest, read_manifest, write_manifest
from fewstep.card import CheckpointError
from server.scheduler.loading import check_announced
from tests.server.conftest import DEADLINE_S, Server, serving, write_engine
from tests.server.fakes import LEVELS, manifest
from tests.server.test_faults import metric, post, workers

Until = Callable[[Callable[[], bool]], None]
SEEDS = range(6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_engine(tmp_path / "tiny" / "engine")
    return tmp_path / "tiny" / "engine"


def other_checkpoint(folder: Path) -> None:
    write_manifest(folder, replace(read_manifest(folder), checkpoint="d" * 64))


def other_levels(folder: Path) -> None:
    manifest = read_manifest(folder)
    levels = {steps: tuple(0.9 * sigma for sigma in sigmas) for steps, sigmas in manifest.levels.items()}
    write_manifest(folder, replace(manifest, levels=levels))


def fewer_steps(folder: Path) -> None:
    write_manifest(folder, replace(read_manifest(folder), levels={1: LEVELS[1]}))


def other_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    write_engine(folder, extra=1)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def broken_network(folder: Path) -> None:
    (folder / "network.onnx").write_bytes(b"half of a fi")


def images(server: Server) -> list[bytes]:
    answers = [post(server, seed=seed, steps=3) for seed in SEEDS]
    assert [answer.status_code for answer in answers] == [200] * len(SEEDS)
    return [answer.content for answer in answers]


def left_over(server: Server) -> str:
    assert server.process.stderr is not None
    return server.process.stderr.read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_checkpoint, f"announced checkpoint {'c' * 64}, and the folder now holds checkpoint {'d' * 64}"),
        (no_folder, "it is not a fewstep engine"),
        (broken_network, "is not the file its manifest describes"),
    ],
)
def test_a_worker_that_finds_another_engine_is_refused_and_the_others_go_on(
    folder: Path, until: Until, change: Callable[[Path], None], words: str
):
    with serving(folder, "--workers", "2", "--mode", "exact", "--restart-limit", "1") as server:
        before = images(server)
        change(folder)
        workers(server)[0].kill()
        until(lambda: metric(server, "fewstep_worker_restarts_total") >= 3)  # after a second, and after two more
        assert images(server) == before, "by the one that still has the engine of the start"
        assert httpx.get(f"{server.url}/readyz", timeout=DEADLINE_S).status_code == 200
        assert server.stop() == 0
        said = left_over(server)
    assert str(folder) in said and words in said
    assert "engine-worker-0 could not load; it is tried again in 1 s" in said
    assert "tried again in 2 s" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "words"), [(other_levels, "levels differ"), (fewer_steps, "levels differ"), (other_shape, "extra")]
)
def test_a_manifest_that_has_changed_is_refused_as_another_checkpoint_is(
    folder: Path, change: Callable[[Path], None], words: str
):
    announced = read_manifest(folder)
    change(folder)
    with pytest.raises(CheckpointError, match=words):
        check_announced(folder, announced, read_manifest(folder))


def test_a_worker_that_finds_the_announced_engine_again_serves_it(folder: Path, until: Until):
    announced = read_manifest(folder)
    with serving(folder, "--workers", "2", "--mode", "exact") as server:
        before = images(server)
        first, second = workers(server)
        other_checkpoint(folder)
        first.kill()
        until(lambda: metric(server, "fewstep_worker_restarts_total") >= 2)
        write_manifest(folder, announced)
        until(lambda: len(workers(server)) == 2)
        second.kill()  # what it leaves goes to the first, or waits for it
        until(lambda: httpx.get(f"{server.url}/readyz", timeout=DEADLINE_S).status_code == 200)
        assert images(server) == before
        assert server.stop() == 0
        assert 1 <= left_over(server).count("has changed since the server started") <= 2


def test_when_no_worker_is_left_the_server_says_so_and_ends_with_an_error(folder: Path, until: Until):
    with serving(folder, "--workers", "2") as server:
        family = server.children()
        other_checkpoint(folder)
        for worker in workers(server):
            worker.kill()
        assert server.process.wait(DEADLINE_S) == 1
        until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
        said = left_over(server)
    assert re.search(r"no engine worker is left.* could not load what this server announced: the server stops", said)


@pytest.mark.parametrize("field", ["checkpoint", "network_sha256", "levels", "classes", "resolution", "noise_version"])
def test_whatever_changes_an_image_is_named(field: str):
    changed: dict[str, Any] = {
        field: {1: (1.0,)} if field == "levels" else "x" if field in ("checkpoint", "network_sha256") else 2
    }
    announced, found = manifest(), replace(manifest(), **changed)
    with pytest.raises(CheckpointError, match=rf"^/there has changed .* \({field} differ\)"):
        check_announced(Path("/there"), announced, found)


def test_a_proof_or_a_name_that_was_added_changes_no_image():
    found: Manifest = replace(manifest("other"), proofs={"torch": {}}, versions={"onnx": "9"}, parity={"1": {}})
    check_announced(Path("/there"), manifest(), found)
