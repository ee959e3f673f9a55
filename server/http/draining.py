"""uvicorn with a graceful shutdown: 503 for new requests, accepted ones are finished, then the port closes."""

import signal
from time import monotonic
from types import FrameType

import uvicorn

from server.processes.pool import WorkerPool
from server.scheduler.refusal import unavailable

MIN_FLUSH_S = 1  # at least, for answers that are already made to reach their clients
LATE = unavailable("the server is stopping and could not finish in time; ask another one", code="draining")


class DrainingServer(uvicorn.Server):
    """After a stop signal the port stays open for drain_s, and longer while accepted requests are unanswered.

    Meanwhile /readyz and new requests get 503, so that a load balancer sees it before connections are refused. A
    server that was never ready, or has no workers left, does not wait for drain_s. Requests that are unanswered after
    grace_s get 503. uvicorn calls `on_tick` ten times a second.
    """

    def __init__(self, config: uvicorn.Config, pool: WorkerPool, drain_s: float, grace_s: float) -> None:
        super().__init__(config)
        self.pool = pool
        self.drain_s = drain_s
        self.grace_s = grace_s
        self.open_until_s = 0.0
        self.grace_until_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler: only sets a flag. A second SIGINT ends the drain and the grace period."""
        self._captured_signals.append(sig)
        now = monotonic()
        if not self.pool.draining:
            self.open_until_s = now + (self.drain_s if self.pool.started else 0.0)
            self.grace_until_s = now + self.grace_s
            self.pool.draining = True
        elif sig == signal.SIGINT:
            self.open_until_s = self.grace_until_s = now

    async def on_tick(self, counter: int) -> bool:
        if self.pool.draining and not self.should_exit:
            now = monotonic()
            late = now >= self.grace_until_s
            if late:
                self.pool.fail_all(LATE)
            drained = self.pool.lost or now >= self.open_until_s
            self.should_exit = drained and (late or not self.pool.pending)
            self.config.timeout_graceful_shutdown = max(MIN_FLUSH_S, round(self.grace_until_s - now))
        return await super().on_tick(counter)
