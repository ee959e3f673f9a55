"""kill -9 in every stage of `python -m fewstep train`: the same command goes on, to the student of a run that was not
killed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fewstep.card import read_card

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "command" / "tiny_command.py"
KILLED = -9
Run = Callable[..., tuple[int, str]]
DONE = ["data", "teacher", "dpdm", "export", "report"]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """(photos, out, where it is killed) -> exit code and stderr of the command."""
    with subprocess.Popen(
        [sys.executable, SCRIPT], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout

        def attempt(photos: Path, out: Path, die_at: str = "-") -> tuple[int, str]:
            print(
                json.dumps([die_at, "train", str(photos), "--out", str(out), "--budget", "2s"]), file=stdin, flush=True
            )
            code, said = json.loads(stdout.readline())
            return code, said

        yield attempt


def complete(out: Path) -> list[str]:
    path = out / "stages.json"
    return list(json.loads(path.read_text())["stages"]) if path.exists() else []


@pytest.fixture(scope="module")
def early(run: Run, mixed_pictures, tmp_path_factory) -> Path:
    """A run that was killed while it wrote its data, and then while it wrote its teacher."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert run(mixed_pictures, out, "run/data.zip:1")[0] == KILLED and complete(out) == []
    assert run(mixed_pictures, out, "teacher/model.safetensors:1")[0] == KILLED and complete(out) == ["data"]
    return out


def test_a_run_that_was_killed_in_every_stage_makes_the_student_of_one_that_was_not(
    run: Run, early, mixed_pictures, tmp_path
):
    straight, killed = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    for out in (straight, killed):
        shutil.copytree(early, out)
    for place, before in (
        ("dpdm/state.safetensors:1", DONE[:2]),  # the weights are there, the state is not
        ("student/model.safetensors:1", DONE[:3]),
        ("run/report.html:1", DONE[:4]),
    ):
        assert run(mixed_pictures, killed, place)[0] == KILLED and complete(killed) == before
    for out in (straight, killed):
        code, said = run(mixed_pictures, out)
        assert code == 0, said
        assert complete(out) == DONE and (out / "report.html").exists()
    assert read_card(killed / "student").weights == read_card(straight / "student").weights
