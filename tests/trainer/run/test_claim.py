"""One run per folder: the second is refused at once, and a killed one blocks nothing."""

import signal
import subprocess
import sys

import pytest

from fewstep.card import CheckpointError
from tests.trainer.tiny import run_options
from trainer.commands import train_teacher
from trainer.run.claim import claim

HOLD = "import sys, time; from pathlib import Path; from trainer.run.claim import claim\n" + (
    "with claim(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_second_run_is_refused_and_changes_nothing(thumbnails, tmp_path):
    with claim(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=r"another run \(process \d+\) is working"):
                train_teacher(run_options(tmp_path, resume=resume), thumbnails)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert train_teacher(run_options(tmp_path, images=8), thumbnails)


def test_a_killed_run_does_not_block_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"process {holder.pid}"), claim(tmp_path / "run"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with claim(tmp_path / "run"):
            pass


def test_a_refused_run_leaves_no_folder(tmp_path):
    with claim(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a folder"), claim(tmp_path / "file"):
        pass
