"""Engines whose network calls take longer, so that requests are in flight when something happens to their server."""

import time
from typing import Any

from export import engine
from export.engine import Engine


class SlowEngine(Engine):
    """The same images, later."""

    seconds = 0.0  # that each network call takes more

    def network(self, x: Any, c_noise: Any, onehot: Any, *further: Any) -> Any:
        time.sleep(self.seconds)
        return super().network(x, c_noise, onehot, *further)


def install(seconds: float) -> None:
    """From now on, every engine that this process loads is slow."""
    load = engine.load_engine
    SlowEngine.seconds = seconds

    def load_slowly(*given: Any, **named: Any) -> Engine:
        found = load(*given, **named)
        return SlowEngine(found.manifest, found.backend, found.opened)

    engine.load_engine = load_slowly
