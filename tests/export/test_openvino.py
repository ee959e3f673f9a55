"""What only OpenVINO does: two streams, bfloat16 where the CPU has it, and a stack of its own for signal handlers."""

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.backends import openvino as backend
from export.engine import load_engine
from fewstep import cores
from fewstep.card import CheckpointError
from tests.export.conftest import example_rows

openvino = pytest.importorskip("openvino")
ROOT = Path(__file__).resolve().parents[2]


def test_two_openvino_streams_are_one_network(checkpoint):
    folder = checkpoint("patch") / "engine"
    one = load_engine(folder, backend="openvino-f32", threads=1, buckets=(2, 5, 8))
    two = load_engine(folder, backend="openvino-f32", threads=2, buckets=(2, 5, 8))
    assert (one.facts["streams"], two.facts["streams"]) == ("1", "2")
    for batch in (2, 5, 8):
        rows = example_rows(one, batch)
        np.testing.assert_allclose(two.network(*rows), one.network(*rows), atol=2e-5)


@pytest.mark.parametrize("name", ["openvino-f32", "openvino"])
def test_a_kept_model_gives_the_same_bytes_without_being_compiled(name, tmp_path, monkeypatch, caplog):
    """In bfloat16 the sines of the shipped student's embedding are a model of their own."""
    if name == "openvino" and "BF16" not in backend._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    made, real = [], backend._Compiled._made
    monkeypatch.setattr(backend._Compiled, "_made", lambda *arguments: made.append(1) or real(*arguments))
    outputs = []
    for _ in range(3):
        folder = ROOT / "models" / "fashion" / "engine"
        engine = load_engine(folder, backend=name, threads=1, buckets=(2,), compiled=tmp_path / "new")
        outputs.append(engine.network(*example_rows(engine, 2)))
        if len(outputs) == 2:
            assert len(made) == 1, "the second one was read"
            (path,) = (tmp_path / "new").iterdir()
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert len(made) == 2 and "it is damaged" in caplog.text, "the third one found a damaged file"
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])


# In a process of its own: what it guards against is a segmentation fault.
SIGNAL_AFTER_ENGINES = """
import faulthandler, signal, sys
from export.engine import load_engine
faulthandler.enable()  # it has Python's signal handlers run on a stack of their own, which OpenVINO replaces
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(True))
first, second = (load_engine(sys.argv[1], backend="openvino-f32", threads=1) for _ in range(2))
del first
del second
signal.raise_signal(signal.SIGUSR1)
assert heard
"""


def test_signals_are_handled_after_openvino_engines_are_gone(checkpoint):
    command = [sys.executable, "-c", SIGNAL_AFTER_ENGINES, str(checkpoint("patch") / "engine")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_cpu_without_bfloat16_is_told_what_to_choose(checkpoint, monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(CheckpointError, match=r"no bfloat16 arithmetic.*--backend openvino-f32"):
        load_engine(checkpoint("patch") / "engine", backend="openvino")


MASKS = """
import os, sys
from pathlib import Path
from typing import Any
from server.scheduler.calibration import SharedTimes
from server.scheduler.loading import LoadOptions, load_model, tick_of

def threads():
    return set(map(int, os.listdir("/proc/self/task")))

before = threads()
options = LoadOptions("openvino-f32", capacity=4, threads=1, processes=2, process=int(sys.argv[2]))
model = load_model("tiny", Path(sys.argv[1]), options, SharedTimes())
for images in (1, 4):
    tick_of(model.table, images)
print(*set.union(*(os.sched_getaffinity(thread) for thread in threads() - before)), "|", *os.sched_getaffinity(0))
"""


@pytest.mark.skipif(len(cores.groups(cores.usable())) < 2, reason="two workers need a core each")
def test_two_workers_compute_on_cores_of_their_own(checkpoint):
    """Left alone, OpenVINO pins the thread of each to the machine's first core."""
    own, rest = [], []
    for process in range(2):
        command = [sys.executable, "-c", MASKS, str(checkpoint("patch") / "engine"), str(process)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
        masks = [set(map(int, part.split())) for part in done.stdout.split("|")]
        own.append(masks[0])
        rest.append(masks[1])
    assert own[0] and own[1] and not own[0] & own[1]
    assert rest == [set(cores.usable())] * 2, "what is not OpenVINO's runs anywhere"


class SlowModels:
    """Of `_Compiled`: rows that say which bucket's model ran; a model is not made before `go`."""

    def __init__(self) -> None:
        self.models: dict[int, int] = {}
        self.go = threading.Event()
        self.made = threading.Event()

    def model(self, bucket: int) -> None:
        self.go.wait(60)
        if bucket == 3:
            raise CheckpointError("no memory")
        self.models[bucket] = bucket
        self.made.set()

    def __call__(self, rows: np.ndarray, bucket: int) -> np.ndarray:
        self.models.setdefault(bucket, bucket)
        assert len(rows) == bucket
        return rows + 100 * bucket


def test_rows_are_padded_to_a_size_that_is_ready_while_their_own_is_prepared(caplog: pytest.LogCaptureFixture):
    models: Any = SlowModels()
    rows = np.arange(1.0, 5.0)
    network = backend.InBackground(models)
    assert list(network(rows, 4)) == [401.0, 402.0, 403.0, 404.0], "no larger size is ready: it waits for its own"
    for _ in range(2):
        assert list(network(rows[:2], 2)) == [401.0, 402.0]
        assert list(network(rows[:3], 3)) == [401.0, 402.0, 403.0]
    models.go.set()
    assert models.made.wait(60)
    assert list(network(rows[:2], 2)) == [201.0, 202.0]
    for thread in [each for each in threading.enumerate() if each.name == "batches of 3"]:
        thread.join()
    assert list(network(rows[:3], 3)) == [401.0, 402.0, 403.0]
    assert [record.getMessage() for record in caplog.records] == ["batches of 3 stay padded: no memory"]


def test_a_deferred_engine_runs_at_once_and_openvino_takes_over(checkpoint, tmp_path, caplog):
    folder = checkpoint("patch") / "engine"
    options = {"backend": "openvino-f32", "threads": 1, "buckets": (1, 4), "deferred": True}
    engine = load_engine(folder, compiled=tmp_path, **options)
    rows = example_rows(engine, 3)
    first = engine.network(*rows)
    assert engine.deferred and not list(tmp_path.iterdir()), "nothing of OpenVINO has been made"
    assert engine.facts["buckets"] == "1,4" and engine.facts["until_prepared"].startswith("onnxruntime ")
    np.testing.assert_array_equal(first, load_engine(folder, threads=1).network(*rows))
    with caplog.at_level(logging.INFO):
        prepared = threading.Thread(target=engine.prepare)
        prepared.start()
        prepared.join()
    assert len(list(tmp_path.iterdir())) == 2 and "runs with OpenVINO" in caplog.text
    own = load_engine(folder, **{**options, "deferred": False})
    assert not own.deferred
    np.testing.assert_array_equal(engine.network(*rows), own.network(*rows))


def test_what_openvino_cannot_run_stays_with_the_first_backend(checkpoint, monkeypatch, caplog):
    engine = load_engine(checkpoint("patch") / "engine", backend="openvino-f32", threads=1, buckets=(1,), deferred=True)
    rows = example_rows(engine, 1)
    before = engine.network(*rows)

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(backend._Compiled, "_made", refuse)
    engine.prepare()
    assert "stays with ONNX Runtime: OpenVINO cannot run" in caplog.text
    np.testing.assert_array_equal(engine.network(*rows), before)
