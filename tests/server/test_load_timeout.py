"""Workers that hang while they load, on a real server: at start-up, and in place of one that died."""

import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil

from tests.server.conftest import DEADLINE_S, ROOT

# A server whose workers wait for ever in place of loading, as long as a file of this name is there to be taken away.
HANGING = """
import pathlib, signal, sys
import server.processes.worker
from server.__main__ import main

load, hang = server.processes.worker.load_model, pathlib.Path(sys.argv.pop(1))

def load_model(*arguments):
    if hang.exists():
        hang.unlink()
        signal.pause()
    return load(*arguments)

server.processes.worker.load_model = load_model
sys.exit(main())
"""


def test_a_worker_that_hangs_while_it_loads_is_replaced_at_start_up_and_later(engine_dir: Path, tmp_path: Path, until):
    hang = tmp_path / "hang"
    hang.touch()
    flags = [
        "--engine",
        str(engine_dir),
        "--port",
        "0",
        "--threads",
        "1",
        "--load-timeout-s",
        "3",
        "--restart-limit",
        "99",
        "--drain-s",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(hang), *flags], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None and process.stderr is not None
    read = process.stdout.readline
    threading.Thread(target=lambda: lines.put(read()), daemon=True).start()
    try:
        said = lines.get(timeout=DEADLINE_S)
        assert said.startswith("serving tiny") and not hang.exists(), said
        url = said.split()[-1]
        hang.touch()
        for child in psutil.Process(process.pid).children():  # HTTP, and the worker, which has loaded a library
            if any("onnxruntime" in mapped.path for mapped in child.memory_maps()):
                child.kill()
        answer = httpx.post(f"{url}/v1/generate", json={"seed": 1}, timeout=DEADLINE_S)
        until(lambda: not hang.exists() and httpx.get(f"{url}/readyz").status_code == 200)
        restarts = re.search(r"^fewstep_worker_restarts_total (\d+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        assert answer.status_code in (200, 503)
        assert restarts and int(restarts[1]) >= 3, "one at start-up, the one killed here, and the one in its place"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        log = process.stderr.read()
        assert log.count("engine worker 0 has been loading tiny for 3 s: it is killed") >= 2
        assert log.count("was killed by signal 9; another one takes its place") >= 3
    finally:
        family = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.communicate()
        for child in family:  # one that hangs does not notice
            child.kill()
