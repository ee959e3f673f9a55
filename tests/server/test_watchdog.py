"""Which workers the watchdog takes for hanging, check by check."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from server.messages import Done, Stats
from server.settings import Settings, SettingsError
from server.transport import Control
from server.watchdog import CHECKS, Watchdog
from tests.server.stage import Stage, play


class Watched:
    """A stage, and the numbers of the workers that were killed."""

    def __init__(self, stage: Stage) -> None:
        self.killed: list[int] = []
        self.watchdog = Watchdog(stage.client, 30.0, lambda worker: self.killed.append(worker.number))

    def check(self, times: int) -> list[int]:
        for _ in range(times):
            self.watchdog.check()
        return self.killed


def test_a_worker_that_owes_answers_and_is_silent_for_all_checks_is_killed_once():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        tasks = [stage.post(), stage.post()]
        for worker in range(2):
            await stage.taken(worker)
        assert watched.check(CHECKS) == []
        stage.links[0].answers.send(Stats({}, rss_bytes=0))
        await stage.until(lambda: 0 in stage.client.stats)
        assert watched.check(1) == [1], "the other one has spoken"
        assert watched.check(CHECKS - 1) == [1]
        assert watched.check(1) == [1, 0]
        assert watched.check(3 * CHECKS) == [1, 0]
        stage.left.set()
        await asyncio.gather(*tasks)

    play(scenario, workers=2)


def test_a_worker_that_owes_nothing_may_be_silent():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        assert watched.check(3 * CHECKS) == []
        task = stage.post()
        submit = await stage.taken()
        watched.check(CHECKS)
        stage.links[0].answers.send(Done(submit.id, (b"image",), 0.0, 0.0, 0.0))
        await task
        assert watched.check(3 * CHECKS) == []
        last = stage.post()
        await stage.taken()
        assert watched.check(CHECKS) == [], "the silence before it does not count"
        stage.left.set()
        await last

    play(scenario)


def test_a_worker_that_is_dead_or_still_loading_is_left_alone():
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        watched = Watched(stage)
        task = stage.post()
        await stage.taken()
        watched.check(CHECKS)
        await stage.die(0)
        assert watched.check(3 * CHECKS) == []
        stage.start(0)
        assert watched.check(3 * CHECKS) == [], "the request waits, nobody owes it"
        stage.left.set()
        await task

    play(scenario)


def test_the_parent_hears_at_once_who_hangs_and_does_not_wait_for_more(until: Callable[[Callable[[], bool]], None]):
    control, heard = Control(), []
    before = signal.signal(signal.SIGIO, lambda *_: heard.append(True))
    try:
        control.signal_parent()
        assert control.stalled() == []
        for pid in (os.getpid(), 7):
            control.worker_stalled(pid)
        until(lambda: bool(heard))
        assert control.stalled() == [os.getpid(), 7]
        control.http.close()
        assert control.stalled() == []
    finally:
        control.parent.close()
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("stall_s", [-1.0, 0.5, 1e9, float("nan")])
def test_a_limit_that_a_healthy_worker_could_miss_is_refused(engine_dir, stall_s: float):
    with pytest.raises(SettingsError, match="--stall-s must be 0, or from 1 to 86400"):
        Settings(engines={"tiny": engine_dir}, stall_s=stall_s)
