"""Finds workers that hang, as when a driver is stuck: they owe answers, or load a model, and say nothing."""

import asyncio
import logging
from collections.abc import Callable

from server.processes.pool import Worker, WorkerPool

logger = logging.getLogger(__name__)

CHECKS = 4  # within the limit; a worker is found after the limit and a quarter of it at the latest


class Watchdog:
    """Runs on the event loop. Calls `kill` once with every worker process that has been silent beyond its limit.

    stall_s: for a worker that owes answers. It sends statistics between network calls
    (server.scheduler.loop.STATS_EVERY_S), so its silence is a call that does not end, or a process that does not run.
    load_timeout_s: for a worker that is not yet warm. It says when it begins to load a model, so its silence is one
    model. 0: no limit.

    Silence is counted in checks, not read off a clock: an HTTP process that stood still itself has not listened, and
    a single check is all it makes of that time.
    """

    def __init__(self, pool: WorkerPool, stall_s: float, load_timeout_s: float, kill: Callable[[Worker], None]) -> None:
        self.pool = pool
        self.stall_s = stall_s
        self.load_timeout_s = load_timeout_s
        self.kill = kill

    async def run(self) -> None:
        """For ever; cancel it to end it."""
        await asyncio.gather(
            _repeat(self.check_answers, self.stall_s), _repeat(self.check_loading, self.load_timeout_s)
        )

    def check_answers(self) -> None:
        """Call CHECKS times in `stall_s` seconds."""
        owed = self.pool.owed()
        for worker in self.pool.workers.values():
            if worker.ready and _hangs(worker, worker in owed):
                logger.error(
                    "engine worker %d owes %d answers and has said nothing for %g s: it is killed",
                    *(worker.number, owed[worker], self.stall_s),
                )
                self.kill(worker)

    def check_loading(self) -> None:
        """Call CHECKS times in `load_timeout_s` seconds."""
        for worker in self.pool.workers.values():
            if not worker.ready and _hangs(worker, not worker.dead):
                logger.error(
                    "engine worker %d has been loading %s for %g s: it is killed; raise --load-timeout-s if that is "
                    "how long it takes",
                    *(worker.number, worker.loading or "its libraries", self.load_timeout_s),
                )
                self.kill(worker)


async def _repeat(check: Callable[[], None], limit_s: float) -> None:
    while limit_s:
        await asyncio.sleep(limit_s / CHECKS)
        check()


def _hangs(worker: Worker, waited_for: bool) -> bool:
    """Count a check of a worker; True once. The first of them came right after its last word, or later."""
    worker.silent_checks = worker.silent_checks + 1 if waited_for else 0
    return worker.silent_checks == CHECKS + 1
