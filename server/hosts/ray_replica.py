"""A replica of the Ray Serve application: an engine loop, and the dialects of every host in front of it."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from ray.serve.metrics import Gauge  # pyright: ignore[reportMissingImports]

from export.manifest import Manifest, all_served
from server.hosts.local_pool import LocalPool
from server.hosts.ray_routing import IMAGES, MODELS, REQUESTS, SLOTS
from server.hosts.site import every_route, facts
from server.http.app import App
from server.http.bodies import AT_ONCE, Bodies
from server.http.edits import body_limit
from server.http.metrics import Metrics
from server.logs import configure
from server.processes.worker import SWITCH_INTERVAL_S, freeze_heap
from server.settings.settings import Settings


def nothing() -> None:
    """No preparation."""


@serve.ingress()
class Replica:
    """Ray makes as many as there shall be, each in a process of its own, and calls the methods below."""

    def __init__(
        self, settings: Settings, manifests: Mapping[str, Manifest], prepare: Callable[[], None] = nothing
    ) -> None:
        """Load and warm up every model. manifests: of the engines; one that differs is refused. prepare: called before
        that."""
        prepare()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        configure(settings)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.settings = settings
        self.pool = pool = LocalPool.load(settings, manifests)
        models = all_served(manifests.values())
        self.bodies = Bodies(AT_ONCE * body_limit(settings, models), settings.body_share)
        self.routes = every_route(models, settings, pool, None, lambda accept: self.metrics.render(accept))
        paths = [route.path for route in self.routes]
        self.metrics = Metrics(models, paths, pool, lambda: facts(models, pool, settings))
        self.metrics.use_row(0)
        self.images = Gauge("fewstep_replica_images", "Images accepted and not yet answered by a replica.")
        self.slots = Gauge("fewstep_replica_slots", "Images that a replica can have in flight.")
        freeze_heap()

    def __serve_build_asgi_app__(self) -> App:
        """Ray's name for it."""
        return App(
            self.routes, self.settings, self.metrics, self.bodies, self._lifespan(), cancelled_when_client_leaves=True
        )

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        """Ray ends it once the replica has answered every request, or grace_s have passed."""
        yield
        self.pool.close()

    async def check_health(self) -> None:
        """Raises RuntimeError where Ray shall replace the replica."""
        self.pool.check_alive(self.settings.stall_s)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For server.hosts.ray_routing.ImagesPerSlot."""
        return {IMAGES: float(self.pool.admission.images), SLOTS: float(self.pool.slots)}

    async def record_routing_stats(self) -> dict[str, Any]:
        """For server.hosts.ray_routing.FreeSlotsRouter, and for Ray's own metrics."""
        images, slots = self.pool.admission.images, self.pool.slots
        self.images.set(images)
        self.slots.set(slots)
        return {IMAGES: images, REQUESTS: self.pool.requests, SLOTS: slots, MODELS: self.pool.working}
