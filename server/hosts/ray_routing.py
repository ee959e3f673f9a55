"""What runs of ours in Ray Serve's own processes: how many replicas there should be, and which one gets a request.

Ray pickles this module by value and loads it in its controller and its proxies. They need not find our packages, so
nothing of ours is imported here.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext  # pyright: ignore[reportMissingImports]
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica  # pyright: ignore[reportMissingImports]

# What a replica says of itself, to the controller (numbers only) and to the proxies.
IMAGES, SLOTS, REQUESTS, MODELS = "images", "slots", "requests", "models"
ROUNDING = 1e-9


def wanted_replicas(images: float, slots: float, images_per_slot: float) -> int:
    """How many replicas of so many slots hold the images with at most images_per_slot in each slot; at least 1.

    images: accepted and not yet answered, of all replicas. slots, images_per_slot: above 0.
    """
    return max(1, math.ceil(images / (slots * images_per_slot) - ROUNDING))


class ImagesPerSlot:
    """Ray Serve's autoscaling policy: as many replicas as the accepted images need. Ray adds its delays and bounds."""

    def __init__(self, images_per_slot: float) -> None:
        self.images_per_slot = images_per_slot

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state. Without a report of any replica, the number stays."""
        reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        slots = list(reported.get(SLOTS, {}).values())
        if not any(slots):
            return context.target_num_replicas, {}
        images = sum(reported.get(IMAGES, {}).values())
        return wanted_replicas(images, sum(slots) / len(slots), self.images_per_slot), {}


@dataclass(frozen=True)
class Candidate:
    """A replica as a proxy knows it. stats: what it said of itself, up to a second ago; empty at first."""

    stats: Mapping[str, Any]
    queue: int | None  # its requests now, where the proxy knows them

    def fill(self) -> float:
        """Images for each slot: the requests of now, each with as many images as in the last report."""
        images, requests = self.stats.get(IMAGES, 0), self.stats.get(REQUESTS, 0)
        if self.queue is not None:
            images = self.queue * (images / requests if requests else 1.0)
        return images / max(1, self.stats.get(SLOTS, 1))

    def lacks(self, model: str) -> bool:
        """Whether it said that it does not serve this model, or that the model's network calls fail. "": any model."""
        return bool(model) and model not in self.stats.get(MODELS, (model,))


def preference(candidates: Sequence[Candidate], model: str) -> list[int]:
    """Places of the candidates, best first: those that have the model, then by free slots; ties in random order."""
    ranked = [(each.lacks(model), each.fill(), random.random(), place) for place, each in enumerate(candidates)]
    return [place for *_, place in sorted(ranked)]


class FreeSlotsRouter(FIFOMixin, RequestRouter):
    """Ray Serve's request router: the replica with the most room that has the model. Ray itself asks two at random."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica is a rank of its own: Ray takes the first one that accepts the request."""
        model = ""
        if pending_request:
            model = pending_request.metadata.multiplexed_model_id
            pending_request.routing_context.should_backoff = True  # else Ray asks again and again, without a pause
        queue = self._replica_queue_len_cache.get  # of this proxy: there is no public one
        known = [Candidate(replica.routing_stats, queue(replica.replica_id)) for replica in candidate_replicas]
        return [[candidate_replicas[place]] for place in preference(known, model)]
