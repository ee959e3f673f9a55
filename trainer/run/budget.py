"""Converts a budget of time into a number of images, once, at the start of a run.

The schedules of the run then depend on images alone, so that a resumed run ends like an uninterrupted one, even if the
speed of the machine changes.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.run.distributed import from_first
from trainer.run.draws import Draws
from trainer.run.state import Parts

SHARE = 0.05  # largest share of the budget for measuring, after a first update
STAGES = 8  # points in the run at which updates are timed: some methods differ between early and late updates


class Updating(Protocol):
    """A trainer.run.loop.Method, whose updates are timed."""

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws, /) -> Any: ...


def images_within(
    budget_s: float, method: Updating, stream: Iterator[tuple[Tensor, Tensor]], batch: int, parts: Parts, rng: Draws,
    first: int = STAGES,
) -> int:  # fmt: skip
    """The images that the method can train on in `budget_s` seconds, from one batch up; the same in all processes.

    Some updates are made, timed and undone. The first ones, in which networks are compiled or updates are recorded, are
    not timed.
    """
    start = time.monotonic()
    timed, since, untimed = 0, start, 0
    with restore_afterwards(parts):
        for images, labels in stream:
            update = untimed + timed
            method.update(images, labels, (update % STAGES + 0.5) / STAGES, rng)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            late = from_first(now - start > SHARE * budget_s)
            if timed or untimed == first or (untimed and late):
                timed += 1
                if late or timed == STAGES:
                    break
            else:
                untimed, since = untimed + 1, now
    rate = timed * batch / (time.monotonic() - since)
    left = budget_s - (time.monotonic() - start)
    return from_first(max(int(rate * left), batch))


@contextmanager
def restore_afterwards(parts: Parts) -> Iterator[None]:
    """At the end, restores the networks, optimisers and generators of the beginning."""
    networks = {name: copy.deepcopy(network.state_dict()) for name, network in parts.networks.items()}
    optimizers = {name: copy.deepcopy(optimizer.state_dict()) for name, optimizer in parts.optimizers.items()}
    generators = parts.generator.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for name, network in parts.networks.items():
            network.load_state_dict(networks[name])
        for name, optimizer in parts.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        parts.generator.set_state(generators[0])
        torch.set_rng_state(generators[1])
