"""uvicorn, stopping the way a load balancer wants it: first unready, then idle, then gone."""

import signal
import time
from types import FrameType

import uvicorn

from server.engine_client import EngineClient

LAST_WORDS_S = 1  # at least, for answers that are already made to reach their clients


class DrainingServer(uvicorn.Server):
    """After a stop signal the port stays open until nobody waits: probes and newcomers get 503, not a reset.

    Whoever still waits after grace_s gets 503 as well. uvicorn calls `on_tick` ten times a second.
    """

    def __init__(self, config: uvicorn.Config, client: EngineClient, grace_s: float) -> None:
        super().__init__(config)
        self.client = client
        self.grace_s = grace_s
        self.until_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler: only notes the wish. A second Ctrl-C ends the grace period."""
        self._captured_signals.append(sig)
        if self.client.draining and sig == signal.SIGINT:
            self.until_s = time.monotonic()
        if not self.client.draining:
            self.until_s = time.monotonic() + self.grace_s
            self.client.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.client.draining and not self.should_exit:
            late = time.monotonic() >= self.until_s
            if late:
                self.client.fail_all("the server is stopping and could not finish in time; ask another one", "draining")
            self.should_exit = late or not self.client.pending
            remaining_s = round(self.until_s - time.monotonic())
            self.config.timeout_graceful_shutdown = max(LAST_WORDS_S, remaining_s)
        return await super().on_tick(counter)
