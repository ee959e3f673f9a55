"""kill -9 at any moment of `fewstep generate`: the same command goes on, to the bytes of a run that was not killed."""

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.server.bulk.conftest import Generate, contents, write_pictures
from tests.server.conftest import ROOT, wait_until

SCRIPT = ROOT / "tests" / "server" / "bulk" / "dying_generate.py"
SEEDS, IMAGES = "0-299,1000-1299", 600
KILLS = 4


def command(engine: Path, out: Path, options: Sequence[str], die_at: int = 0) -> list[str]:
    return [
        sys.executable, str(SCRIPT), str(die_at), "--model", str(engine), "--seeds", SEEDS, "--label", "balanced",
        "--out", str(out), *options,
    ]  # fmt: skip


def ran(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("name", "options", "most", "model"),
    [
        ("s.zip", (), 12, "tiny"),
        ("images", (), 150, "tiny"),
        ("shards", ("--format", "webdataset", "--per-file", "160"), 15, "enlarging"),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    generate: Generate, engine_dir: Path, enlarging: Path, tmp_path: Path, name: str, options: Sequence[str], most: int,
    model: str,
):  # fmt: skip
    if model == "enlarging":
        write_pictures(tmp_path / "small", IMAGES)
        options = (*options, "--model", str(enlarging), "--inputs", str(tmp_path / "small"))
    straight, killed = tmp_path / "straight" / name, tmp_path / "killed" / name
    assert generate(straight, "--label", "balanced", *options, seeds=SEEDS).code == 0
    moments = random.Random(name)
    for _ in range(KILLS):
        done = ran(command(engine_dir, killed, options, moments.randrange(2, most)))
        assert done.returncode == -signal.SIGKILL, f"the run has ended before it was killed: {done.stderr}"
    ended = ran(command(engine_dir, killed, options))
    assert ended.returncode == 0, ended.stderr
    assert f"{IMAGES} images of {model}; " in ended.stdout, "a part of them had been made before"
    assert contents(killed) == contents(straight)
    assert [path.name for path in killed.parent.iterdir()] == [name], "nothing but the output is left"


def test_processes_end_with_the_one_that_started_them_and_another_number_of_them_goes_on(
    generate: Generate, engine_dir: Path, tmp_path: Path
):
    straight, killed = tmp_path / "straight.npz", tmp_path / "killed.npz"
    seeds = "0-7999"
    assert generate(straight, seeds=seeds).code == 0
    argv = [sys.executable, "-m", "fewstep", "generate", "--model", engine_dir, "--seeds", seeds, "--out", killed]
    run = subprocess.Popen(
        [*map(str, argv), "--workers", "2"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: any(Path(f"{killed}.part").glob("chunk-*.npy")))
    run.kill()
    run.communicate()  # returns when the last process that holds the pipes has ended
    assert not killed.exists()
    ended = generate(killed, seeds=seeds)
    assert ended.code == 0 and "8,000 images of tiny; " in ended.said
    assert killed.read_bytes() == straight.read_bytes()
