"""A LocalService on the Gaussian student, whose network calls a test can hold."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from server.scheduler.local import LocalService
from server.scheduler.request import ImageRequest
from server.scheduler.slots import SlotTable
from server.scheduler.stats import ModelStats
from server.scheduler.validate import image_request
from tests.server.conftest import DEADLINE_S
from tests.server.fakes import (
    CLASSES,
    SHAPE,
    SIGMA_DATA,
    GaussianNetwork,
    fake_model,
    manifest,
)

MODEL = manifest()
SLOTS = 4


def explode(x: np.ndarray, c_noise: np.ndarray) -> None:
    raise RuntimeError("out of memory in /srv/secret")


class Gate:
    """A network that waits in every call until the test lets it go."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, x: np.ndarray, c_noise: np.ndarray) -> None:
        self.entered.release()
        assert self.open.acquire(timeout=DEADLINE_S)

    def wait(self) -> None:
        """Until a call has begun."""
        assert self.entered.acquire(timeout=DEADLINE_S)

    def go(self, calls: int = 1) -> None:
        self.open.release(calls)


class Fake(LocalService):
    """One model on the Gaussian student."""

    def __init__(self) -> None:
        self.network = GaussianNetwork()
        self.table = SlotTable(self.network, SHAPE, CLASSES, SIGMA_DATA, (1, 2, SLOTS))
        super().__init__({"tiny": fake_model(self.table)}, {"tiny": MODEL})

    def counts(self) -> ModelStats:
        return ModelStats() if self.stats is None else self.stats.models["tiny"]


@contextmanager
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before, "a thread is left"


@contextmanager
def gated(service: Fake) -> Iterator[Gate]:
    gate = Gate()
    service.network.before = gate
    yield gate
    gate.go(1_000)


def request(seed: int = 7, steps: int = 4, images: int = 1, label: int = 1, **fields: Any) -> ImageRequest:
    return image_request(MODEL, seed=seed, steps=steps, images=images, label=label, format="pixels", **fields)
