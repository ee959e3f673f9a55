"""Stop signals at every moment of start-up: a clean end, no matter which processes receive them."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.conftest import DEADLINE_S, ROOT, launch

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Forks a server for each delay, so that the modules are imported once, and signals it when the delay is over.
STARTS = """
import json, os, runpy, select, signal, sys, time
import server.hosts.forked

scope, flags = sys.argv[1], sys.argv[3:]
for delay_ms, number in json.loads(sys.argv[2]):
    (begun, begin), (reader, writer) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writer, 2)
        os.close(reader)
        os.close(writer)
        for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # as server/__main__.py does first
            signal.signal(stop, lambda *_: os._exit(0))
        os.write(begin, b"!")
        sys.argv = ["server", *flags]
        runpy.run_module("server", run_name="__main__")
    os.close(writer)
    os.read(begun, 1)
    time.sleep(delay_ms / 1e3)
    (os.kill if scope == "parent" else os.killpg)(pid, number)
    said = b""
    while chunk := os.read(reader, 65536):  # to the end of the last process that has it
        said += chunk
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for descriptor in (begun, begin, reader):
        os.close(descriptor)
    print(json.dumps([delay_ms, code, said.decode()]), flush=True)
"""


def ends(engine: Path, scope: str, signals: list[tuple[int, signal.Signals]], *flags: str) -> list[list]:
    """[delay in ms, exit code, stderr of all processes] of servers that are signalled so long after their start."""
    asked = [scope, json.dumps([(delay_ms, int(number)) for delay_ms, number in signals])]
    server = ["--engine", str(engine), "--port", "0", "--threads", "1", *flags]
    done = subprocess.run(
        [sys.executable, "-c", STARTS, *asked, *server], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("scope", ["parent", "group"])
def test_a_signal_at_any_millisecond_of_start_up_is_a_clean_stop(engine_dir: Path, scope: str, processes: str):
    first = 2 * (scope == "group") + (processes == "2")  # the delays interleave, since each start takes half a second
    delays_ms = [*range(first, 60, 4), *range(60 + 5 * first, 200, 20)]
    signals = [*zip(delays_ms, itertools.cycle(STOPS), strict=False)]
    flags = ("--workers", "2", "--api-processes", processes, "--drain-s", "0")
    flags += ("--grace-s", "3600")  # a signal that is lost does not end in time
    assert ends(engine_dir, scope, signals, *flags) == [[ms, 0, ""] for ms in delays_ms]


# A server whose workers never finish loading; each says that it has begun.
LOADING = """
import signal, sys
import server.processes.worker
from server.__main__ import main

def load_model(*arguments):
    print("loading", flush=True)
    while True:
        signal.pause()

server.processes.worker.load_model = load_model
sys.exit(main())
"""


def test_a_check_that_is_interrupted_has_found_nothing_and_prints_nothing():
    process = launch(["--check"])
    assert process.stdout is not None and process.stdout.readline()  # the settings; the engine comes next
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (-signal.SIGINT, "")


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_while_a_model_loads_does_not_wait_for_it(engine_dir: Path, number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, "--engine", str(engine_dir), "--port", "0"],
        cwd=ROOT, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests themselves may run under nohup
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, output, errors) == (0, "", "")
    finally:
        process.kill()


def test_a_gpu_that_is_not_there_ends_the_start_without_waiting_for_drain_or_grace(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    limits = ("--drain-s", "3600", "--grace-s", "3600")
    process = launch(["--engine", str(engine_dir), "--port", "0", "--devices", "5", *limits])
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output) == (2, "")
    assert errors == "error: there is no GPU 5: CUDA_VISIBLE_DEVICES=0 hides it\n"


# A server whose HTTP process does not listen to SIGTERM.
DEAF = """
import signal, socket, sys
import server.processes.supervisor
from server.processes.supervisor import Supervisor

def http(number, control):
    print("deaf", flush=True)
    while True:
        signal.pause()

server.processes.supervisor.KILL_AFTER_S = 0.1
sys.exit(Supervisor([socket.socket()], 0, 1, 0.0, print, http, print).run())
"""


def test_a_parent_that_fails_leaves_no_process():
    failing = DEAF.replace('print("deaf", flush=True)', "control.ready()").replace("print, http", "lambda: 1 / 0, http")
    done = subprocess.run([sys.executable, "-c", failing], cwd=ROOT, text=True, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_process_that_had_to_be_killed_is_not_an_orderly_stop():
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == "deaf\n"
    process.terminate()
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert errors == "the http-0 process did not end in time and is killed\n"
