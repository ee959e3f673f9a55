"""Which workers the watchdog takes for hanging, check by check."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.processes.admission import Admission
from server.processes.control import Control
from server.processes.messages import Loading
from server.processes.pool import WorkerPool
from server.processes.watchdog import CHECKS, Watchdog
from server.scheduler.stats import Stats
from server.settings.settings import Settings, SettingsError
from tests.server.stage import FakeClockLoop, Stage, done, play


class Watched:
    """A stage, and the numbers of the workers that were killed."""

    def __init__(self, stage: Stage) -> None:
        self.killed: list[int] = []
        self.watchdog = Watchdog(stage.pool, 30.0, 600.0, lambda worker: self.killed.append(worker.number))

    def check(self, times: int) -> list[int]:
        for _ in range(times):
            self.watchdog.check_answers()
        return self.killed

    def check_loading(self, times: int) -> list[int]:
        for _ in range(times):
            self.watchdog.check_loading()
        return self.killed


def test_a_worker_that_owes_answers_and_is_silent_for_all_checks_is_killed_once():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        tasks = [stage.post(), stage.post()]
        for worker in range(2):
            await stage.taken(worker)
        assert watched.check(CHECKS) == []
        stage.workers[0].send(Stats({}, rss_bytes=0))
        await stage.until(lambda: 0 in stage.pool.stats)
        assert watched.check(1) == [1], "the other one has spoken"
        assert watched.check(CHECKS - 1) == [1]
        assert watched.check(1) == [1, 0]
        assert watched.check(3 * CHECKS) == [1, 0]
        stage.left.set()
        await asyncio.wait(tasks)

    play(scenario, workers=2)


def test_a_worker_that_owes_nothing_may_be_silent():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        assert watched.check(3 * CHECKS) == []
        task = stage.post()
        submit = await stage.taken()
        watched.check(CHECKS)
        stage.workers[0].send(done(submit))
        await task
        assert watched.check(3 * CHECKS) == []
        last = stage.post()
        await stage.taken()
        assert watched.check(CHECKS) == [], "the silence before it does not count"
        stage.left.set()
        await asyncio.wait([last])

    play(scenario)


def test_a_worker_that_is_dead_or_still_loading_owes_nothing():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        task = stage.post()
        await stage.taken()
        watched.check(CHECKS)
        await stage.die(0)
        assert watched.check(3 * CHECKS) == []
        await stage.start(0)
        assert watched.check(3 * CHECKS) == [], "the request waits, nobody owes it"
        stage.left.set()
        await asyncio.wait([task])

    play(scenario)


def test_a_worker_that_does_not_come_to_the_end_of_loading_is_killed_once(caplog: pytest.LogCaptureFixture):
    async def scenario(stage: Stage) -> None:
        watched = Watched(stage)
        for worker in range(3):
            await stage.start(worker)
        await stage.warm(2)
        stage.workers[1].send(Loading("tiny"))
        await stage.until(lambda: stage.pool.workers[1].loading == "tiny")
        assert watched.check_loading(CHECKS) == []
        stage.workers[1].send(Loading("other"))  # the first model is done
        await stage.until(lambda: stage.pool.workers[1].loading == "other")
        watched.check(3 * CHECKS)
        assert watched.check_loading(1) == [0], "it has never spoken, and the checks of the other kind do not count"
        assert watched.check_loading(CHECKS) == [0, 1]
        assert watched.check_loading(3 * CHECKS) == [0, 1]
        await stage.die(1)
        await stage.start(1)
        assert watched.check_loading(CHECKS) == [0, 1], "its next life begins anew"
        assert watched.check_loading(1) == [0, 1, 1]

    play(scenario, workers=3, models=("tiny", "other"))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("engine worker 0 has been loading its libraries for 600 s: it is killed")
    assert said[1].startswith("engine worker 1 has been loading other for 600 s: it is killed; raise --load-timeout-s")


def test_a_worker_that_has_died_while_it_loaded_or_is_warm_is_not_loading():
    async def scenario(stage: Stage) -> None:
        watched = Watched(stage)
        for worker in range(2):
            await stage.start(worker)
        watched.check_loading(CHECKS)
        await stage.die(0)
        await stage.warm(1)
        assert watched.check_loading(3 * CHECKS) == []

    play(scenario, workers=2)


@pytest.mark.parametrize(("load_timeout_s", "checks"), [(40.0, (20, 4)), (0.0, (20, 0))])
def test_each_limit_has_checks_of_its_own_and_zero_has_none(
    monkeypatch: pytest.MonkeyPatch, load_timeout_s: float, checks: tuple[int, int]
):
    """41 seconds, on a clock that jumps."""
    counts = {"check_answers": 0, "check_loading": 0}
    for name in counts:
        monkeypatch.setattr(Watchdog, name, lambda self, name=name: counts.update({name: counts[name] + 1}))
    watchdog = Watchdog(WorkerPool(("tiny",), 1, Admission(1, ("tiny",)), print), 8.0, load_timeout_s, print)
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner, pytest.raises(TimeoutError):
        runner.run(asyncio.wait_for(forever(watchdog), 41))
    assert tuple(counts.values()) == checks


async def forever(watchdog: Watchdog) -> None:
    await watchdog.run()
    await asyncio.Event().wait()


def test_the_parent_hears_at_once_who_hangs_and_does_not_wait_for_more(until: Callable[[Callable[[], bool]], None]):
    control, heard = Control(), []
    before = signal.signal(signal.SIGIO, lambda *_: heard.append(True))
    try:
        control.signal_parent()
        assert control.reports() == []
        for pid in (os.getpid(), 7):
            control.worker_stalled(pid)
        control.ready()
        until(lambda: bool(heard))
        assert control.reports() == [os.getpid(), 7, Control.READY]
        control.http.close()
        assert control.reports() == []
    finally:
        control.parent.close()
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("limit_s", [-1.0, 0.5, 1e9, float("nan")])
@pytest.mark.parametrize("name", ["stall_s", "load_timeout_s"])
def test_a_limit_that_a_healthy_worker_could_miss_is_refused(name: str, limit_s: float):
    limits: dict[str, Any] = {name: limit_s}
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} must be 0, or from 1 to 86400"):
        Settings(engines={"tiny": Path("unused")}, **limits)
