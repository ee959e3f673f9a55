"""The slot table: every image in flight is one row, and one network call steps them all.

No threads, no clock, no HTTP. Rows differ in level, step count, seed and label; arrays carry the difference.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fewstep.blend import Blend, blend
from fewstep.conditions import Condition, Conditions
from fewstep.noise import STREAM_LATENT, normals
from fewstep.pixels import Pixels, to_pixels
from fewstep.schedule import MAX_STEPS
from fewstep.step import (
    Levels,
    Rows,
    begin,
    denoise,
    latent,
    levels_of,
    renoise,
    step_log_weight,
    write_network_input,
)

FEW_NORMALS = 2**15  # of all steps of all images in flight; beyond, those of each call are drawn before it


class ImageKey(NamedTuple):
    """Which image of which request a slot holds."""

    request: int
    image: int


@dataclass(frozen=True, eq=False)
class Start:
    """What an image begins at, under the noise of its first level, and what it keeps."""

    image: NDArray[np.float32]  # [C, H, W] in [-1, 1]
    known: NDArray[np.bool_] | None = None  # [1, H, W]; True: the pixel ends as it is in `image`


class Image(Struct, frozen=True, eq=False):
    """One image to be made."""

    key: ImageKey
    seed: int
    label: int  # -1: no class
    sigmas: tuple[float, ...]  # one network call per level
    start: Start | None = None  # None: it begins at noise alone
    previews: Sequence[int] = ()  # calls, from 1, after which its denoised image is handed out; never the last
    blend: Blend | None = None  # mixes the noise of another seed into its own
    adapter: int = 0  # its number in a network that takes adapters by row; 0: the backbone
    given: Mapping[str, NDArray[np.float32]] | None = None  # its rows of the network's conditions; absent: their fill
    # Calls, from 1, that are reported without an image; none of `previews`, and never the last.
    reported: Sequence[int] = ()
    last_adapter: int | None = None  # that of its last call; None: `adapter`
    # Whether its log weight is computed: the sum over its steps of log p_backbone - log p_adapter. It takes two slots,
    # as every call but the last has a second row for it: the backbone at the same state.
    weighed: bool = False

    @property
    def adapters(self) -> tuple[int, int]:
        """Of all calls but the last, and of the last."""
        return self.adapter, self.adapter if self.last_adapter is None else self.last_adapter

    @property
    def slots(self) -> int:
        return 2 if self.weighed else 1


class Tick(Struct, frozen=True):
    """The result of one network call."""

    finished: tuple[tuple[ImageKey, Pixels], ...] = ()  # uint8 [H, W, C] each
    broken: tuple[ImageKey, ...] = ()  # the network returned non-finite values for these
    active: int = 0  # rows that were images, or the backbone's for their log weights
    batch: int = 0  # rows the network saw; batch - active were padding
    # Of the images that asked for it after this call and go on: which, the number of the call from 1, and the denoised
    # image uint8 [H, W, C]; None where the call alone is reported.
    previews: tuple[tuple[ImageKey, int, Pixels | None], ...] = ()
    log_weights: tuple[tuple[ImageKey, float], ...] = ()  # of the images in `finished` that asked for it


def nothing() -> None:
    """The default of `meanwhile`: does nothing."""


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
    """`capacity` slots and the arithmetic that moves them. The images in flight are the first rows, oldest first; of
    those that are weighed, the second rows come behind all of them.

    buckets: batch sizes the network is called with, ascending, the last one being the capacity. Exact mode has a
    single bucket: the shape, and with it every row's bytes, never depends on the rest of the batch.
    extra: channels of latent noise that the network takes behind the image; 0 for a marginal student. adapters: whether
    the network takes the number of each row's adapter, [B] int64, behind its other inputs. conditions: what it takes
    behind `onehot`; rows differ in them as in all else.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        shape: tuple[int, int, int],
        classes: int,
        sigma_data: float,
        buckets: Sequence[int],
        extra: int = 0,
        adapters: bool = False,
        conditions: Conditions = (),
    ) -> None:
        self.network = network
        self.shape = shape
        self.latent_shape = (extra, *shape[1:])
        self.classes = classes
        self.sigma_data = sigma_data
        self.buckets = tuple(buckets)
        self.capacity = capacity = self.buckets[-1]
        self.images: list[Image] = []  # in flight
        self.ahead: list[Rows | None] = []  # their normals of steps 1, 2 and so on; None: drawn call by call
        # Whether some of them may begin at an image, mix two noises, have calls reported, or be weighed.
        self.edited = self.mixed = self.watched = self.weighed = False
        self.begun = 0  # images whose row of x is set; those behind have been admitted since the last tick
        # By row.
        self.rows = np.arange(capacity)
        self.x = np.zeros((capacity, *shape), np.float32)
        self.levels = np.zeros((capacity, MAX_STEPS, len(Levels._fields)), np.float32)
        self.step = np.zeros(capacity, np.int64)  # index of the next network call
        self.seeds = np.zeros(capacity, np.uint64)
        self.drawn = np.zeros(capacity, np.bool_)  # where `ahead` is not None
        self.adapters = np.zeros((capacity, 2), np.int64)  # Image.adapters
        self.log_weight = np.zeros(capacity, np.float64)  # of the steps made
        # What the network sees. Before a call, rows behind the images are zero: a batch is padded by taking more.
        self.input = np.zeros((capacity, shape[0] + extra, *shape[1:]), np.float32)
        self.c_noise = np.zeros(capacity, np.float32)
        self.onehot = np.zeros((capacity, classes), np.float32)
        self.conditions = conditions
        self.given = [np.zeros((capacity, *condition.shape), np.float32) for condition in conditions]
        self.adapter = np.zeros(capacity, np.int64) if adapters else None
        self.used = 0  # rows that may not be zero

    @property
    def free(self) -> int:
        return self.capacity - (sum(image.slots for image in self.images) if self.weighed else len(self.images))

    def requests(self) -> set[int]:
        """The requests that hold a slot."""
        return {image.key.request for image in self.images}

    def admit(self, images: Sequence[Image]) -> None:
        """Give each image a slot; its initial noise comes with the next tick. There must be enough free slots."""
        assert sum(image.slots for image in images) <= self.free, "the policy admitted more than there are free slots"
        first = len(self.images)
        slots = slice(first, first + len(images))
        self.images += images
        self.ahead += [None] * len(images)
        self.edited |= any(image.start for image in images)
        self.mixed |= any(image.blend for image in images)
        self.watched |= any(image.previews or image.reported for image in images)
        self.weighed |= any(image.weighed for image in images)
        for sigmas in {image.sigmas for image in images}:  # nearly always one list
            same = [slot for slot, image in enumerate(images, start=first) if image.sigmas == sigmas]
            self.levels[same, : len(sigmas)] = levels_of(sigmas, self.sigma_data)
        self.step[slots] = 0
        self.seeds[slots] = np.array([image.seed for image in images], np.uint64)
        self.drawn[slots] = False
        labels = np.array([image.label for image in images])
        self.onehot[slots] = labels[:, None] == np.arange(self.classes)  # a row of zeros for -1, no class
        for condition, rows in zip(self.conditions, self.given, strict=True):
            for slot, image in enumerate(images, start=first):
                rows[slot] = row_of(condition, image)
        if self.adapter is not None:
            self.adapters[slots] = [image.adapters for image in images]
        self.log_weight[slots] = 0
        self.used = max(self.used, len(self.images))

    def evict(self, request: int) -> int:
        """Free the slots of a request; returns how many it held."""
        stays = np.array([image.key.request != request for image in self.images], dtype=bool)
        self._keep(stays)
        return int(np.count_nonzero(~stays))

    def tick(self, meanwhile: Callable[[], None] = nothing) -> Tick:
        """See `Slots.tick`."""
        count = len(self.images)
        if not count:
            return Tick()
        level = self.levels[self.rows[:count], self.step[:count]]
        levels = Levels(*level.T)
        more = levels.sigma_next > 0
        noise = self._noise(levels.sigma, more)
        second = self._weighed(more)
        active = count + len(second)
        batch = self.buckets[bisect_left(self.buckets, active)]
        arguments = self._arguments(count, batch, levels, second)
        meanwhile()
        output = self.network(*arguments)[:active]
        broken: tuple[ImageKey, ...] = ()
        finite = bool(np.isfinite(output).all())
        if len(second):
            self._weigh(second, output[second] - output[count:], levels, noise[np.cumsum(more)[second] - 1])
            output = output[:count]
        if not finite:
            sound = np.isfinite(output).all(axis=(1, 2, 3)) & np.isfinite(self.log_weight[:count])
            broken = self._keys(~sound)
            self._keep(sound)
            noise, output, more, levels = noise[sound[more]], output[sound], more[sound], Levels(*level[sound].T)

        x = self.x[: len(self.images)]
        # The input serves as memory: the network has read it.
        denoise(x, output, levels.c_skip, levels.c_out, self.input[: len(x), : self.shape[0]])
        self.step[: len(x)] += 1
        if self.edited:
            self._put_back()
        previews = self._previews(more) if self.watched else ()
        finished: tuple[tuple[ImageKey, Pixels], ...] = ()
        log_weights: tuple[tuple[ImageKey, float], ...] = ()
        sigma_next = levels.sigma_next
        if not more.all():
            finished = tuple(zip(self._keys(~more), to_pixels(x[~more]), strict=True))
            log_weights = self._log_weights(~more) if self.weighed else ()
            self._keep(more)
            sigma_next = sigma_next[more]
        if self.images:
            renoise(self.x[: len(self.images)], noise, sigma_next)
        return Tick(finished, broken, active, batch, previews, log_weights)

    def _weighed(self, more: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows of images whose next step has a log-ratio that is asked for."""
        if not self.weighed:
            return self.rows[:0]
        return np.flatnonzero(more & [image.weighed for image in self.images])

    def _weigh(self, rows: NDArray[np.int64], change: Rows, levels: Levels, noise: Rows) -> None:
        """Add the log-ratios of steps. change: what the network returned for these rows less what the backbone did."""
        moved = levels.c_out[rows, None, None, None] * change
        self.log_weight[rows] += step_log_weight(moved, noise, levels.sigma_next[rows])

    def _log_weights(self, which: NDArray[np.bool_]) -> tuple[tuple[ImageKey, float], ...]:
        pairs = zip(compress(self.images, which), self.log_weight[: len(which)][which].tolist(), strict=True)
        return tuple((image.key, log_weight) for image, log_weight in pairs if image.weighed)

    def _keys(self, which: NDArray[np.bool_]) -> tuple[ImageKey, ...]:
        return tuple(image.key for image in compress(self.images, which))

    def _noise(self, sigma: NDArray[np.float32], more: NDArray[np.bool_]) -> Rows:
        """Begin new images; return the unit normals for the rows `more`, which have another level below sigma.

        All at once, and before the network call, whose weights push whatever makes noise out of the caches. A draw
        has a fixed cost, that of thousands of normals: where few images are in flight, new ones get those of all their
        steps. Where there are many, every call draws for some of them anyway, and to keep normals costs more.
        """
        new, calls = range(self.begun, len(sigma)), [len(image.sigmas) for image in self.images[self.begun :]]
        few = bool(new) and len(sigma) * max(calls) * math.prod(self.shape) <= FEW_NORMALS
        going = more.nonzero()[0]
        waiting = ~self.drawn[going]  # for normals that are drawn now
        if not new and not waiting.any():
            return self._kept(going)
        if few:
            waiting &= going < new.start
        now = going[waiting]
        first = self.rows[new.start : new.stop]
        later = np.repeat(first, [count - 1 for count in calls]) if few else first[:0]
        rows = np.concatenate([first, later, now])
        steps = self.step[rows] + 1
        steps[: len(new)] = 0
        if len(later):
            steps[len(new) : len(new) + len(later)] = [step for count in calls for step in range(1, count)]
        drawn = normals(self.seeds[rows], steps, self.shape)
        if self.mixed:
            blend(drawn, [self.images[row].blend for row in rows], steps)
        if new:
            self._begin(new, drawn[: len(new)], sigma)
            drawn = drawn[len(new) :]
        if len(later):
            for row, count in zip(new, calls, strict=True):
                self.ahead[row] = drawn[: count - 1].copy()  # a view would keep all of what was drawn
                drawn = drawn[count - 1 :]
            self.drawn[new.start : new.stop] = True
        if len(now) == len(going):
            return drawn
        noise = np.empty((len(going), *self.shape), np.float32)
        noise[waiting] = drawn
        noise[~waiting] = self._kept(going[~waiting])
        return noise

    def _kept(self, rows: NDArray[np.int64]) -> Rows:
        """The normals of rows that have drawn theirs ahead, for what follows the next network call."""
        kept = np.empty((len(rows), *self.shape), np.float32)
        for place, (row, step) in enumerate(zip(rows.tolist(), self.step[rows].tolist(), strict=True)):
            ahead = self.ahead[row]
            assert ahead is not None
            kept[place] = ahead[step]
        return kept

    def _begin(self, new: range, noise: Rows, sigma: NDArray[np.float32]) -> None:
        """Set the rows of new images: their initial noise, on the image that an edit begins at."""
        rows, image = slice(new.start, new.stop), None
        if self.edited:
            starts = [image.start for image in self.images[rows]]
            image = np.stack([np.zeros(self.shape, np.float32) if s is None else s.image for s in starts])
        self.x[rows] = begin(self.seeds[rows], sigma[rows], self.shape, noise=noise, image=image)
        self.begun = new.stop

    def _arguments(self, count: int, batch: int, levels: Levels, second: NDArray[np.int64]) -> list[NDArray]:
        """What F is called with, of the images in flight, in a batch padded with zeros. second: rows that come once
        more behind all of them, without an adapter."""
        z = None
        if self.latent_shape[0]:
            z = latent(self.seeds[:count], self.step[:count], self.latent_shape)
            if self.mixed:
                blend(z, [image.blend for image in self.images], self.step[:count], STREAM_LATENT)
        write_network_input(self.x[:count], levels.c_in, z, out=self.input[:count])
        self.c_noise[:count] = levels.c_noise
        arrays = [self.input, self.c_noise, self.onehot, *self.given]
        active = count + len(second)
        if len(second):
            for array in arrays:
                array[count:active] = array[second]
        if self.adapter is not None:
            self.adapter[:count] = self.adapters[self.rows[:count], (levels.sigma_next == 0).astype(np.int64)]
            self.adapter[count:active] = 0
            arrays.append(self.adapter)
        if self.used > active:
            for array in arrays:
                array[active : self.used] = 0
        self.used = active
        return [array[:batch] for array in arrays]

    def _put_back(self) -> None:
        """Put back the pixels that images keep, as `fewstep.editing.inpaint` does."""
        for row, image in enumerate(self.images):
            if image.start and image.start.known is not None:
                np.copyto(self.x[row], image.start.image, where=image.start.known)

    def _previews(self, more: NDArray[np.bool_]) -> tuple[tuple[ImageKey, int, Pixels | None], ...]:
        """What is asked for now of images that go on: see Tick.previews. `step` counts the call just made already."""
        made = self.step[: len(self.images)].tolist()
        going = [(row, self.images[row]) for row in more.nonzero()[0].tolist()]
        reported = tuple((image.key, made[row], None) for row, image in going if made[row] in image.reported)
        rows = [row for row, image in going if made[row] in image.previews]
        if not rows:
            return reported
        keys, calls = [self.images[row].key for row in rows], [made[row] for row in rows]
        return (*reported, *zip(keys, calls, to_pixels(self.x[rows]), strict=True))

    def _keep(self, stays: NDArray[np.bool_]) -> None:
        """Free the slots where `stays` [images in flight] is False, and close the gaps, in order."""
        self.images, self.ahead = list(compress(self.images, stays)), list(compress(self.ahead, stays))
        if not self.images:
            self.edited = self.mixed = self.watched = self.weighed = False
        self.begun = int(np.count_nonzero(stays[: self.begun]))
        rows = stays.nonzero()[0]
        first = int(np.count_nonzero(rows == self.rows[: len(rows)]))  # that is moved
        if first < len(rows):
            arrays = [self.x, self.levels, self.step, self.seeds, self.drawn, self.onehot, *self.given]
            for array in (*arrays, self.adapters, self.log_weight):
                array[first : len(rows)] = array[rows[first:]]


def row_of(condition: Condition, image: Image) -> NDArray[np.float32] | float:
    """An image's row of a condition [*shape], or the condition's fill value if the request gives none."""
    return (image.given or {}).get(condition.name, condition.fill)


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
