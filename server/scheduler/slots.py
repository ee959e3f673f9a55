"""The slot table: every image in flight is one row, and one network call steps them all.

No threads, no clock, no HTTP. Rows differ in level, step count, seed and label; arrays carry the difference.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.noise import normals
from fewstep.pixels import Pixels, to_pixels
from fewstep.precond import Network, onehot
from fewstep.schedule import MAX_STEPS
from fewstep.step import advance, begin, latent, network_input


class ImageKey(NamedTuple):
    """Which image of which request a slot holds."""

    request: int
    image: int


@dataclass(frozen=True, eq=False)
class Start:
    """What an image begins at, under the noise of its first level, and what it keeps."""

    image: NDArray[np.float32]  # [C, H, W] in [-1, 1]
    known: NDArray[np.bool_] | None = None  # [1, H, W]; True: the pixel ends as it is in `image`


@dataclass(frozen=True)
class Image:
    """One image to be made."""

    key: ImageKey
    seed: int
    label: int  # -1: no class
    sigmas: tuple[float, ...]  # one network call per level
    start: Start | None = None  # None: it begins at noise alone


@dataclass(frozen=True)
class Tick:
    """What one network call brought."""

    finished: tuple[tuple[ImageKey, Pixels], ...] = ()  # uint8 [H, W, C] each
    broken: tuple[ImageKey, ...] = ()  # the network returned non-finite values for these
    active: int = 0  # rows that were images
    batch: int = 0  # rows the network saw; batch - active were padding


def nothing() -> None:
    """What there is to do while the network works, unless somebody knows better."""


class Slots(Protocol):
    """What the engine loop needs of a slot table; `SlotTable` in numpy, `server.scheduler.device_slots` on a GPU."""

    capacity: int
    buckets: tuple[int, ...]

    @property
    def free(self) -> int: ...

    def requests(self) -> set[int]: ...

    def admit(self, images: Sequence[Image]) -> None: ...

    def evict(self, request: int) -> int: ...

    def tick(self, meanwhile: Callable[[], None] = nothing) -> Tick:
        """One network call for all images in flight. If it raises, so does this, and no slot has moved.

        meanwhile: called once the network is busy or about to be, from when on this thread has nothing to do.
        """
        ...


class SlotTable:
    """`capacity` slots and the arithmetic that moves them. The images in flight are always the first rows.

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
        self.buckets = tuple(buckets)
        self.capacity = capacity = self.buckets[-1]
        self.keys: list[ImageKey] = []
        self.starts: list[Start | None] = []
        self.x = np.zeros((capacity, *shape), np.float32)
        self.sigmas = np.zeros((capacity, MAX_STEPS + 1), np.float32)  # zero behind the last level
        self.step = np.zeros(capacity, np.int64)  # index of the next network call
        self.seeds = np.zeros(capacity, np.uint64)
        self.fresh = np.zeros(capacity, bool)  # admitted since the last tick: x holds no noise yet
        # What the network sees. Rows behind the images are zero: a batch is padded by taking more of them.
        self.input = np.zeros((capacity, shape[0] + extra, *shape[1:]), np.float32)
        self.c_noise = np.zeros(capacity, np.float32)
        self.onehot = np.zeros((capacity, classes), np.float32)

    @property
    def free(self) -> int:
        return self.capacity - len(self.keys)

    def requests(self) -> set[int]:
        """The requests that hold a slot."""
        return {key.request for key in self.keys}

    def admit(self, images: Sequence[Image]) -> None:
        """Give each image a slot; its initial noise comes with the next tick. There must be enough free slots."""
        assert len(images) <= self.free, "the policy admitted more images than there are free slots"
        first = len(self.keys)
        slots = slice(first, first + len(images))
        self.keys += [image.key for image in images]
        self.starts += [image.start for image in images]
        self.sigmas[slots] = 0
        for slot, image in enumerate(images, start=first):
            self.sigmas[slot, : len(image.sigmas)] = image.sigmas
        self.seeds[slots] = [image.seed for image in images]
        self.step[slots] = 0
        self.onehot[slots] = onehot(np.array([image.label for image in images]), self.classes, self.onehot)
        self.fresh[slots] = True

    def evict(self, request: int) -> int:
        """Free the slots of a request; returns how many it held."""
        stays = np.array([key.request != request for key in self.keys], dtype=bool)
        self._keep(stays)
        return int(np.count_nonzero(~stays))

    def tick(self, meanwhile: Callable[[], None] = nothing) -> Tick:
        """See `Slots.tick`."""
        count = len(self.keys)
        if not count:
            return Tick()
        step = self.step[:count]
        every = np.arange(count)
        sigma, sigma_next = self.sigmas[every, step], self.sigmas[every, step + 1]
        more = np.flatnonzero(sigma_next > 0)
        noise = self._noise(sigma, more)
        batch = self.buckets[bisect_left(self.buckets, count)]
        arguments = self._arguments(count, batch, sigma)
        meanwhile()
        output = self.network(*arguments)[:count]
        sound = np.logical_and.reduce(np.isfinite(output), axis=(1, 2, 3))
        broken: tuple[ImageKey, ...] = ()
        if not sound.all():
            broken = tuple(self.keys[slot] for slot in np.flatnonzero(~sound))
            self._keep(sound)
            sigma, sigma_next, output = sigma[sound], sigma_next[sound], output[sound]
            noise = noise[sound[more]]
            step = self.step[: len(self.keys)]

        rows = slice(len(self.keys))
        x = advance(
            self.x[rows], output, sigma, sigma_next, self.seeds[rows], step, self.sigma_data,
            noise=noise, known=self._known(),
        )  # fmt: skip
        self.x[rows] = x
        self.step[rows] += 1
        last = sigma_next == 0
        if not last.any():
            return Tick((), broken, count, batch)
        keys = [self.keys[slot] for slot in np.flatnonzero(last)]
        self._keep(~last)
        return Tick(tuple(zip(keys, to_pixels(x[last]), strict=True)), broken, count, batch)

    def _noise(self, sigma: NDArray[np.float32], more: NDArray[np.intp]) -> NDArray[np.float32]:
        """Begin newcomers; return the unit normals for the rows `more`, which have another level below sigma.

        All at once, and before the network call, whose weights push whatever makes noise out of the caches.
        """
        new = np.flatnonzero(self.fresh[: len(sigma)])
        rows = np.concatenate([new, more])
        steps = np.concatenate([np.zeros(len(new), np.int64), self.step[more] + 1])
        drawn = normals(self.seeds[rows], steps, self.shape)
        image = self._images(new)
        self.x[new] = begin(self.seeds[new], sigma[new], self.shape, noise=drawn[: len(new)], image=image)
        self.fresh[new] = False
        return drawn[len(new) :]

    def _images(self, rows: NDArray[np.intp]) -> NDArray[np.float32] | None:
        """What these rows begin at, zero for noise alone; None when that is all of them."""
        starts = [self.starts[row] for row in rows]
        if not any(starts):
            return None
        return np.stack([np.zeros(self.shape, np.float32) if start is None else start.image for start in starts])

    def _known(self) -> tuple[NDArray[np.bool_], NDArray[np.float32]] | None:
        """Mask [images in flight, 1, H, W] and image of the pixels that stay; None when nothing does."""
        kept = [(row, start) for row, start in enumerate(self.starts) if start and start.known is not None]
        if not kept:
            return None
        mask = np.zeros((len(self.starts), 1, *self.shape[1:]), np.bool_)
        image = np.zeros((len(self.starts), *self.shape), np.float32)
        for row, start in kept:
            mask[row], image[row] = start.known, start.image
        return mask, image

    def _arguments(self, count: int, batch: int, sigma: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """What F is called with, of the images in flight, in a batch padded with zeros."""
        z = latent(self.seeds[:count], self.step[:count], self.latent_shape) if self.latent_shape[0] else None
        self.input[:count], self.c_noise[:count] = network_input(self.x[:count], sigma, self.sigma_data, z)
        return self.input[:batch], self.c_noise[:batch], self.onehot[:batch]

    def _keep(self, stays: NDArray[np.bool_]) -> None:
        """Free the slots where `stays` [images in flight] is False, and close the gaps, in order."""
        before = len(self.keys)
        rows = np.flatnonzero(stays)
        self.keys = [self.keys[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]
        for array in (self.x, self.sigmas, self.step, self.seeds, self.fresh, self.onehot):
            array[: len(rows)] = array[rows]
        for array in (self.input, self.c_noise, self.onehot):
            array[len(rows) : before] = 0


def buckets_for(capacity: int, exact: bool, any_size: bool = False) -> tuple[int, ...]:
    """Batch sizes to call the network with: the capacity alone, or about four per doubling up to it.

    On a CPU the time of a call grows with every row beyond a few, so coarse buckets would pay for padding. any_size:
    the network runs whatever it is given, nothing is prepared, and every size is a bucket.
    """
    if exact:
        return (capacity,)
    if any_size:
        return tuple(range(1, capacity + 1))
    sizes = [size for size in range(1, capacity) if size <= 8 or size % 2 ** (size.bit_length() - 3) == 0]
    return (*sizes, capacity)
