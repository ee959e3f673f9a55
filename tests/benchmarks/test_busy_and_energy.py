"""What a table says of other work on the machine, and joules where the machine counts them."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.busy import Busy, Watch, busy_s
from benchmarks.energy import cpu_meters, gpu_meters, readings, used_j


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (Busy(2, 0.0, 0.1, 1.1), None),
        (Busy(2, 9.0, 0.1, None), None),  # the load came before the run; what counts is what happened during it
        (Busy(2, 0.0, 1.0, 1.1), "1.0 of 2 cores"),
        (Busy(2, 1.5, None, 1.1), "load was 1.5"),
        (Busy(16, 0.0, 1.0, 1.5), "1.50 times their median"),
    ],
)
def test_a_table_says_when_the_machine_was_busy(seen: Busy, says: str | None):
    warning = seen.warning()
    assert warning is None if says is None else warning is not None and says in warning


def test_only_the_work_of_others_counts(tmp_path: Path):
    stat = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {tick} 0 {tick} 900 50 0 0 0 0 0\ncpu0 1 1 1 1\n")
    assert busy_s(stat) == 2.0
    watch = Watch(stat)
    stat.write_text(f"cpu  {500 * tick} 0 {tick} 900 50 0 0 0 0 0\n")
    others = watch.seen().others
    assert others is not None and others > 10
    assert Watch(tmp_path / "absent").seen().others is None


def test_servers_that_a_benchmark_starts_are_not_the_work_of_others(tmp_path: Path):
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu 0 0 0 0 0 0 0 0\n")
    watch = Watch(stat)
    watch.began = (watch.began[0] - 10.0, *watch.began[1:])  # ten seconds ago
    stat.write_text(f"cpu {10 * tick} 0 0 0 0 0 0 0\n")
    worker: Any = SimpleNamespace(ppid=lambda: 1, cpu_times=lambda: (4.0, 2.0, 0.5, 0.5, 99.0))
    child: Any = SimpleNamespace(ppid=os.getpid, cpu_times=lambda: (9.0, 9.0, 9.0, 9.0, 9.0))
    watch.count([child, worker])
    assert watch.seen().others == pytest.approx(0.3, abs=0.1)


def test_packages_of_a_cpu_count_once_and_a_counter_may_wrap(tmp_path: Path):
    for name in ("intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("9000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    found = cpu_meters(tmp_path)
    assert [meter.name for meter in found] == ["cpu 0", "cpu 1"]
    before = readings(found)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")  # 1.5 J later, past 10 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("9250000\n")
    assert used_j(found, before) == pytest.approx(1.75)
    assert used_j([], []) is None


def test_gpus_that_count_their_energy_are_read():
    counted = {1: 5_000}

    def put(value: int) -> Any:
        def call(*arguments: Any) -> int:
            arguments[-1]._obj.value = value
            return 0

        return call

    def energy(handle: Any, used: Any) -> int:
        if handle.value not in counted:
            return 3  # not supported
        used._obj.value = counted[handle.value]
        return 0

    def handle_of(index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0, nvmlDeviceGetCount_v2=put(2), nvmlDeviceGetHandleByIndex_v2=handle_of,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )  # fmt: skip
    found = gpu_meters(library)
    assert [meter.name for meter in found] == ["gpu 0"]
    before = readings(found)
    counted[1] = 7_500
    assert used_j(found, before) == pytest.approx(2.5)
    assert gpu_meters(None) == []
