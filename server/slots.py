"""The slot table: every image in flight is one row, and one network call steps them all.

No threads, no clock, no HTTP. Rows differ in level, step count, seed and label; arrays carry the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.pixels import Pixels, to_pixels
from fewstep.precond import Network, onehot
from fewstep.schedule import MAX_STEPS
from fewstep.step import advance, begin, latent, network_input


class ImageKey(NamedTuple):
    """Which image of which request a slot holds."""

    request: int
    image: int


@dataclass(frozen=True)
class Image:
    """One image to be made."""

    key: ImageKey
    seed: int
    label: int  # -1: no class
    sigmas: tuple[float, ...]  # one network call per level


@dataclass(frozen=True)
class Tick:
    """What one network call brought."""

    finished: tuple[tuple[ImageKey, Pixels], ...] = ()  # uint8 [H, W, C] each
    broken: tuple[ImageKey, ...] = ()  # the network returned non-finite values for these
    active: int = 0  # rows that were images
    batch: int = 0  # rows the network saw; batch - active were padding


class SlotTable:
    """`capacity` slots and the arithmetic that moves them.

    buckets: batch sizes the network is called with, ascending, the last one being the capacity. Exact mode
    has a single bucket: the shape, and with it every row's bytes, never depends on the company.
    extra: channels of latent noise that the network takes behind the image; 0 for a marginal student.
    """

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        classes: int,
        sigma_data: float,
        buckets: Sequence[int],
        extra: int = 0,
    ) -> None:
        self.network = network
        self.shape = shape
        self.latent_shape = (extra, *shape[1:])
        self.classes = classes
        self.sigma_data = sigma_data
        self.buckets = np.asarray(buckets, dtype=np.int64)
        self.capacity = int(self.buckets[-1])
        self.keys: list[ImageKey | None] = [None] * self.capacity
        self.active = np.zeros(self.capacity, dtype=bool)
        self.x = np.zeros((self.capacity, *shape), dtype=np.float32)
        self.sigmas = np.zeros((self.capacity, MAX_STEPS + 1), dtype=np.float32)  # zero behind the last level
        self.step = np.zeros(self.capacity, dtype=np.int64)  # index of the next network call
        self.seeds = np.zeros(self.capacity, dtype=np.uint64)
        self.labels = np.zeros(self.capacity, dtype=np.int64)

    @property
    def free(self) -> int:
        return self.capacity - int(self.active.sum())

    def requests(self) -> set[int]:
        """The requests that hold a slot."""
        return {key.request for key in self.keys if key is not None}

    def admit(self, images: Sequence[Image]) -> None:
        """Give each image a slot and its initial noise. There must be enough free slots."""
        slots = np.flatnonzero(~self.active)[: len(images)]
        assert len(slots) == len(images), "the policy admitted more images than there are free slots"
        for slot, image in zip(slots, images, strict=True):
            self.keys[slot] = image.key
            self.sigmas[slot] = 0
            self.sigmas[slot, : len(image.sigmas)] = image.sigmas
            self.seeds[slot] = image.seed
            self.labels[slot] = image.label
        self.step[slots] = 0
        self.x[slots] = begin(self.seeds[slots], self.sigmas[slots, 0], self.shape)
        self.active[slots] = True

    def evict(self, request: int) -> int:
        """Free the slots of a request; returns how many it held."""
        return self._release([slot for slot, key in enumerate(self.keys) if key and key.request == request])

    def tick(self) -> Tick:
        """One network call for all active slots. If it raises, so does this, and no slot has moved."""
        rows = np.flatnonzero(self.active)
        if not len(rows):
            return Tick()
        sigma = self.sigmas[rows, self.step[rows]]
        output, batch = self._call(rows, sigma)
        sound = np.logical_and.reduce(np.isfinite(output), axis=(1, 2, 3))
        broken = tuple(self._key(slot) for slot in rows[~sound])
        self._release(rows[~sound])

        rows, sigma, output = rows[sound], sigma[sound], output[sound]
        step = self.step[rows]
        sigma_next = self.sigmas[rows, step + 1]
        x = advance(self.x[rows], output, sigma, sigma_next, self.seeds[rows], step, self.sigma_data)
        self.x[rows] = x
        self.step[rows] = step + 1
        last = sigma_next == 0
        keys = [self._key(slot) for slot in rows[last]]
        self._release(rows[last])
        return Tick(tuple(zip(keys, to_pixels(x[last]), strict=True)), broken, len(sound), batch)

    def _call(self, rows: NDArray[np.int64], sigma: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """F for these rows, padded up to the next bucket, and that bucket."""
        count = len(rows)
        batch = int(self.buckets[np.searchsorted(self.buckets, count)])
        z = latent(self.seeds[rows], self.step[rows], self.latent_shape) if self.latent_shape[0] else None
        scaled, c_noise = network_input(self.x[rows], sigma, self.sigma_data, z)
        classes = onehot(self.labels[rows], self.classes, scaled)
        pad = batch - count
        output = self.network(
            np.concatenate([scaled, np.zeros((pad, *scaled.shape[1:]), np.float32)]),
            np.concatenate([c_noise, np.zeros(pad, np.float32)]),
            np.concatenate([classes, np.zeros((pad, self.classes), np.float32)]),
        )
        return output[:count], batch

    def _key(self, slot: int) -> ImageKey:
        key = self.keys[slot]
        assert key is not None, "an active slot has lost its image"
        return key

    def _release(self, slots: Sequence[int] | NDArray[np.int64]) -> int:
        for slot in slots:
            self.keys[slot] = None
            self.active[slot] = False
        return len(slots)


def buckets_for(capacity: int, exact: bool) -> tuple[int, ...]:
    """Batch sizes to call the network with: the capacity alone, or about four per doubling up to it.

    On a CPU the time of a call grows with every row beyond a few, so coarse buckets would pay for padding.
    """
    if exact:
        return (capacity,)
    sizes = [size for size in range(1, capacity) if size <= 8 or size % 2 ** (size.bit_length() - 3) == 0]
    return (*sizes, capacity)
