"""A budget of time as a number of images: measured once, at the start of a run, and kept.

What a run does then depends on images alone, so that an interrupted run that goes on ends where an uninterrupted one
does, however fast the machine is at the time.
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

SHARE = 0.05  # of the budget that measuring may take, after a first update
STAGES = 8  # places in the run where updates are timed: some methods do other things early than late


class Updating(Protocol):
    """What is timed: the update of a trainer.run.loop.Method."""

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws, /) -> Any: ...


def images_within(
    budget_s: float, method: Updating, stream: Iterator[tuple[Tensor, Tensor]], batch: int, parts: Parts, rng: Draws
) -> int:
    """The images that the method can train on in `budget_s` seconds, from one batch up; the same in all processes.

    Some updates are made, timed and undone. The first ones, in which networks are compiled, do not count.
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
            if timed or untimed == STAGES or (untimed and late):
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
    """While open, training may go on; at the end everything is as it was."""
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
