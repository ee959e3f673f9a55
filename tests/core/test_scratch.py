"""Folders for a while: gone at the end, and after a process that was killed, but not while another one works."""

import subprocess
import sys
from pathlib import Path

from fewstep.scratch import scratch

HOLDS = """
import sys
from pathlib import Path
from fewstep.scratch import scratch
with scratch(Path(sys.argv[1]), "work-") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path: Path):
    (tmp_path / "work").mkdir()  # another name
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch(tmp_path, "work-") as ours:
            assert theirs.is_dir() and ours.is_dir() and ours != theirs
        assert not ours.exists()
        other.kill()
        other.wait()
        assert (theirs / "file").exists()
    with scratch(tmp_path, "work-") as ours:
        assert not theirs.exists()
        ours.rename(tmp_path / "moved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "work"]
