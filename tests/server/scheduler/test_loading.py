"""What becomes of an engine directory: slots, batch sizes, cores, and what is refused."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from export.engine import Engine, load_engine
from export.manifest import read_manifest
from fewstep.card import CheckpointError
from server.processes.worker import use_gpu
from server.scheduler import loading
from server.scheduler.calibration import SharedTimes, call_time, doubling
from server.scheduler.loading import LoadOptions
from server.scheduler.model import Model
from server.scheduler.slots import SlotTable

FLAT = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 2.0}  # seconds: up to 8 rows cost nothing


def load_model(folder: Path, times: SharedTimes, **changes) -> Model:
    """From a folder that holds what was announced."""
    return loading.load_model("tiny", folder, LoadOptions(threads=1, **changes), times, read_manifest(folder))


def measured(times: dict[int, float]) -> SharedTimes:
    shared = SharedTimes()
    if times:
        shared.get("tiny", lambda: times)
    return shared


def test_slots_and_buckets_follow_from_the_measured_times(engine_dir: Path):
    for changes, capacity, buckets in (
        ({"capacity": 0}, 8, (8,)),
        ({"capacity": 0, "mode": "exact"}, 8, (8,)),
        ({"capacity": 16}, 16, tuple(range(8, 17))),
        ({"capacity": 16, "mode": "exact"}, 16, (16,)),
    ):
        model = load_model(engine_dir, measured(FLAT), **changes)
        table, info = model.table, model.info
        assert (info.capacity, info.buckets) == (capacity, buckets)
        assert (table.capacity, table.buckets, table.free) == (capacity, buckets, capacity)
        assert info.tick_s > 0 and info.facts["backend"] == "onnxruntime-cpu"


def test_without_known_times_they_are_measured_once_and_shared(engine_dir: Path):
    shared = SharedTimes()
    first = load_model(engine_dir, shared, capacity=0).info
    again = load_model(engine_dir, shared, capacity=0).info
    assert first.capacity == again.capacity >= 16
    assert {1} <= set(shared.get("tiny", dict)) <= {1, 2, 4, 8, 16, 32, 64, 128}


class Counted(Engine):
    """An engine that is counted while it is in memory. It makes images on the CPU, whatever its device."""

    live: ClassVar[int] = 0
    most: ClassVar[int] = 0
    sizes: ClassVar[list[tuple[int, ...]]] = []

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        backend: str | None,
        threads: int,
        buckets: Sequence[int],
        **others: Any,
    ) -> "Counted":
        engine = load_engine(folder, backend=backend, threads=threads)
        cls.sizes.append(tuple(buckets))
        cls.live += 1
        cls.most = max(cls.most, cls.live)
        facts = {**engine.opened.facts, "buckets": ",".join(map(str, buckets))}
        return cls(engine.manifest, engine.backend, replace(engine.opened, device="cuda", facts=facts))

    def __del__(self) -> None:
        type(self).live -= 1


@pytest.mark.parametrize(
    ("capacity", "known", "opened"),
    [
        (0, {}, [doubling(128), (24,)]),  # measured, then opened for what was chosen
        (0, {1: 1.0, 4: 1.0}, [(24,)]),  # another worker has measured
        (8, {}, [tuple(range(1, 9))]),  # measured and kept
        (8, {1: 1.0, 8: 1.0}, [tuple(range(1, 9))]),  # as the worker that measured has it
    ],
)
def test_one_engine_is_in_memory_at_a_time(engine_dir: Path, monkeypatch: pytest.MonkeyPatch, capacity, known, opened):
    for name, value in (("live", 0), ("most", 0), ("sizes", [])):
        monkeypatch.setattr(Counted, name, value)
    emptied: list[int] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(Counted.live))
    monkeypatch.setattr("export.engine.load_engine", Counted.load)
    monkeypatch.setattr(loading, "measure_ticks", lambda table, sizes, enough: {1: 1.0, 4: 1.0})

    def on_the_cpu(engine: Counted, buckets: Sequence[int]) -> SlotTable:
        manifest = engine.manifest
        return SlotTable(engine.network, manifest.image_shape, manifest.classes, manifest.sigma_data, buckets)

    monkeypatch.setattr(loading, "slot_table", on_the_cpu)
    model = load_model(engine_dir, measured(known), capacity=capacity)
    assert Counted.sizes == opened
    assert (Counted.most, Counted.live) == (1, 1), "the last one is being served"
    assert emptied == [0] * (len(opened) - 1)
    assert model.table.free == model.table.capacity


@pytest.mark.parametrize("known", [{}, {1: 1.0, 2: 1.9, 4: 4.0}])
def test_an_engine_that_takes_any_size_is_opened_once_and_called_with_what_there_is(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, known: dict[int, float]
):
    opened: list[Engine] = []

    def load(
        folder: Path,
        *,
        backend: str | None,
        threads: int,
        buckets: Sequence[int],
        **others: Any,
    ) -> Engine:
        opened.append(load_engine(folder, backend=backend, threads=threads, buckets=buckets))
        return opened[-1]

    monkeypatch.setattr("export.engine.load_engine", load)
    monkeypatch.setattr(loading, "measure_ticks", lambda table, sizes, enough: {size: 1.0 + size for size in sizes})
    model = load_model(engine_dir, measured(known), capacity=11)
    assert len(opened) == 1 and model.info.buckets == tuple(range(1, 12)), "9 images need not be padded to 10"
    opened.clear()
    load_model(engine_dir, measured(known), capacity=0)
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("known", "found", "warmed"),
    [
        ({}, {1: 1.0, 11: 2.0}, ((), 0)),
        ({}, {1: 1.0}, ((1, 11), 0)),  # the time for measuring was up
        ({1: 1.0, 11: 2.0}, {}, ((), 1)),  # another worker has measured, or an earlier start
        ({1: 1.0, 8: 2.0}, {}, ((), 1)),
        ({1: 1.0, 2: 2.0}, {}, ((1, 11), 0)),  # too few to say how long eleven images take
    ],
)
def test_an_engine_whose_times_are_known_is_warmed_up_by_one_image(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, known: dict[int, float], found: dict[int, float], warmed
):
    asked: list[tuple[Sequence[int], int]] = []

    def warm_up(table: object, batches: Sequence[int], last: int = 0) -> float:
        asked.append((tuple(batches), last))
        return 0.1

    monkeypatch.setattr(loading, "measure_ticks", lambda table, sizes, enough: found)
    monkeypatch.setattr(loading, "warm_up", warm_up)
    model = load_model(engine_dir, measured(known), capacity=11)
    assert asked == [warmed]
    times = known or found
    assert model.info.tick_s == (call_time(times, 11) if warmed[1] else 0.1)


@pytest.mark.parametrize("known", [{}, {1: 1.0, 8: 2.0}])
def test_only_an_engine_whose_times_are_known_is_deferred(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, known: dict[int, float]
):
    prepared: list[str] = []

    def load(folder: Path, *, deferred: bool, buckets: Sequence[int], **others: Any) -> Engine:
        engine = load_engine(folder, threads=1)
        facts = {**engine.opened.facts, "buckets": ",".join(map(str, buckets))}
        prepare = (lambda: prepared.append("fast")) if deferred else None
        return replace(engine, opened=replace(engine.opened, facts=facts, prepare=prepare))

    monkeypatch.setattr("export.engine.load_engine", load)
    monkeypatch.setattr(loading, "measure_ticks", lambda table, sizes, enough: {1: 1.0, 8: 2.0})
    model = load_model(engine_dir, measured(known), capacity=8, backend="openvino-f32", deferred=True)
    assert model.info.buckets == (1, 2, 3, 4, 5, 6, 7, 8), "those that OpenVINO prepares"
    assert model.info.tick_s == 2.0 if known else model.info.tick_s < 1.0
    model.prepare()
    assert prepared == (["fast"] if known else [])


def test_a_gpu_engine_without_triton_says_what_to_install(engine_dir: Path, monkeypatch: pytest.MonkeyPatch):
    gone = ("kernels", "triton", "server.scheduler.device_slots")
    for name in [name for name in sys.modules if name.startswith(gone)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import finds where it is not installed
    engine = load_engine(engine_dir, threads=1)
    on_gpu = replace(engine, backend="tensorrt", opened=replace(engine.opened, device="cuda"))
    with pytest.raises(CheckpointError, match=r"^backend tensorrt .* needs Triton .*pip install 'triton.*--backend$"):
        loading.slot_table(on_gpu, (1,))


def test_a_network_that_returns_no_numbers_is_refused_when_it_is_loaded(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(engine, buckets) -> SlotTable:
        shape = engine.manifest.image_shape
        return SlotTable(lambda x, c_noise, onehot: x * np.nan, shape, 3, 0.5, buckets)

    monkeypatch.setattr(loading, "slot_table", broken)
    with pytest.raises(CheckpointError, match="not finite"):
        load_model(engine_dir, SharedTimes())


def test_a_network_so_slow_that_every_call_would_look_like_a_hang_is_refused(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "warm_up", lambda table, batches, last=0: 31.0)
    for known in ({1: 1.0}, {1: 1.0, 16: 31.0}):  # a call of all slots is made; it is known from an earlier start
        with pytest.raises(CheckpointError, match=r"takes 31\.0 s.*raise --stall-s"):
            load_model(engine_dir, measured(known), stall_s=30.0, capacity=16)
        for stall_s in (40.0, 0.0):
            load_model(engine_dir, measured(known), stall_s=stall_s, capacity=16)


def test_workers_share_the_cores_of_the_machine_unless_threads_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))

    assert LoadOptions().cores == 0  # the backend's choice
    assert [LoadOptions(processes=workers).cores for workers in (2, 4, 9)] == [3, 1, 1]
    assert LoadOptions(processes=2, threads=5).cores == 5


@pytest.mark.parametrize(("before", "gpu", "after"), [(None, 1, "1"), ("3,5", 1, "5"), ("3,5,", 0, "3")])
def test_a_worker_sees_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch, before: str | None, gpu: int, after: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is as before after the test, whatever is set in it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    use_gpu(gpu)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


@pytest.mark.parametrize(("visible", "gpu"), [("3,5", 2), ("", 0)])
def test_a_gpu_that_is_hidden_is_not_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], visible: str, gpu: int
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SystemExit):
        use_gpu(gpu)
    assert f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES={visible} hides it" in capsys.readouterr().err


def test_a_folder_that_holds_another_engine_than_was_announced_is_refused(engine_dir: Path):
    announced = replace(read_manifest(engine_dir), name="served as", checkpoint="d" * 64)
    with pytest.raises(
        CheckpointError, match=rf"{engine_dir} has changed.*checkpoint {'d' * 64}.*checkpoint {'c' * 64}"
    ):
        loading.load_model("tiny", engine_dir, LoadOptions(threads=1), SharedTimes(), announced)
