"""Finds workers that hang: they owe answers and live, but say nothing, as when a driver is stuck."""

import asyncio
import logging
from collections.abc import Callable

from server.engine_client import EngineClient, Worker

logger = logging.getLogger(__name__)

CHECKS = 4  # within the limit; a worker is found after the limit and a quarter of it at the latest


class Watchdog:
    """Lives on the event loop. Calls `kill` once with every life that has been silent for `stall_s` seconds in debt.

    Silence is counted in checks, not read off a clock: an HTTP process that stood still itself has not listened, and
    a single check is all it makes of that time. A worker sends statistics between network calls
    (server.engine_loop.STATS_EVERY_S), so its silence is a call that does not end, or a process that does not run.
    """

    def __init__(self, client: EngineClient, stall_s: float, kill: Callable[[Worker], None]) -> None:
        self.client = client
        self.stall_s = stall_s
        self.kill = kill

    async def run(self) -> None:
        """For ever; cancel it to end it."""
        while True:
            await asyncio.sleep(self.stall_s / CHECKS)
            self.check()

    def check(self) -> None:
        """Call CHECKS times in `stall_s` seconds."""
        owed = self.client.owed()
        for worker in self.client.workers.values():
            worker.silent_checks = worker.silent_checks + 1 if owed.get(worker) else 0
            if worker.silent_checks == CHECKS + 1:  # the first of them came right after the last word, or later
                logger.error(
                    "engine worker %d owes %d answers and has said nothing for %g s: it is killed",
                    *(worker.number, owed[worker], self.stall_s),
                )
                self.kill(worker)
