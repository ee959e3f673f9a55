"""Batches of a data set. Their order is the same for every number of processes.

Images in memory are shuffled as a whole. Images in shards are shuffled in windows of neighbouring parts, so that a
process reads pieces of files and not images from everywhere; over an epoch every image is still seen once. On a GPU,
and from shards, batches are made in a thread ahead of the updates; on a GPU they lie in pinned memory.
"""

import functools
import math
from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.format import ImageSet
from trainer.data.prefetch import prefetched
from trainer.data.shards import PART, ShardedImages
from trainer.run.distributed import rank, ranks
from trainer.run.loop import LoopConfig

AHEAD = 4  # batches made before they are asked for
STREAMS = 64  # places in the shards that are read at the same time, by all processes together
WINDOW = 16 * PART  # images of a stream that are shuffled with each other


class Rows(NamedTuple):
    """One process's rows of a batch, on the host."""

    pixels: Tensor  # uint8 [B, H, W, C]
    labels: Tensor  # int64 [B]
    mirrored: Tensor | None  # bool [B, 1, 1, 1]


def batches(
    data: ImageSet, config: LoopConfig, images_seen: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor]]:
    """Endless batches. The images that follow `images_seen` depend only on the seed.

    Each process gets its own rows of every batch. Raises DataError for an image of a shard that cannot be read.
    """
    on_gpu = device.type == "cuda"
    rows = _rows(data, config, images_seen, device if on_gpu else None)
    if on_gpu or isinstance(data.images, ShardedImages):
        rows = prefetched(rows, AHEAD)
    with closing(rows):
        for pixels, labels, mirrored in rows:
            images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
            if mirrored is not None:
                images = torch.where(mirrored.to(device, non_blocking=True), images.flip(3), images)
            yield images, labels.to(device, non_blocking=True)


def order_facts(data: ImageSet) -> dict[str, Any]:
    """What the identity of a run says of the order of its images: nothing where they are in memory."""
    return {"shards": True} if isinstance(data.images, ShardedImages) else {}


def _rows(data: ImageSet, config: LoopConfig, start: int, gpu: torch.device | None) -> Generator[Rows]:
    """This process's rows of every batch, in pinned memory for a GPU."""
    if gpu is not None:
        torch.cuda.set_device(gpu)  # of this thread: pinning memory belongs to a device
    count, own_rows = len(data.images), config.batch // ranks()
    own = slice(rank() * own_rows, (rank() + 1) * own_rows)
    sharded = isinstance(data.images, ShardedImages)
    read = data.images.with_neighbours if isinstance(data.images, ShardedImages) else data.images.__getitem__
    streams = math.gcd(config.batch, STREAMS) if sharded else 1
    # Neighbouring rows belong to one stream, so that a process has its own streams and so its own parts of the shards.
    places = np.arange(config.batch).reshape(-1, streams).T.ravel()[own]
    while True:
        epochs, within = np.divmod(start + places, count)
        index = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            order = shard_order(config.seed, int(epoch), count, streams) if sharded else _order(
                config.seed, int(epoch), count
            )  # fmt: skip
            index[epochs == epoch] = order[within[epochs == epoch]]
        pixels = torch.from_numpy(np.ascontiguousarray(read(index)))
        labels = torch.from_numpy(data.labels[index].astype(np.int64))
        mirrored = None
        if config.flip:
            drawn = np.random.default_rng([config.seed, 1, start]).random(config.batch)[own] < 0.5
            mirrored = torch.from_numpy(drawn)[:, None, None, None]
        rows = Rows(pixels, labels, mirrored)
        yield rows if gpu is None else _pinned(rows)
        start += config.batch


def _pinned(rows: Rows) -> Rows:
    """In memory that a GPU copies from by itself, while the host goes on."""
    mirrored = None if rows.mirrored is None else rows.mirrored.pin_memory()
    return Rows(rows.pixels.pin_memory(), rows.labels.pin_memory(), mirrored)


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it is larger than the data
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


@functools.lru_cache(maxsize=2)
def shard_order(seed: int, epoch: int, count: int, streams: int) -> NDArray[np.int64]:
    """The images [count] of an epoch, each once. Entry i belongs to stream i % streams.

    The parts of the data, PART neighbouring images each, are put into a random order and cut into `streams` pieces of
    equal length; a stream goes through its piece. Within WINDOW images of a piece the images are shuffled.
    """
    rng = np.random.default_rng([seed, 2, epoch])
    parts = rng.permutation(-(-count // PART))
    images = (parts[:, None] * PART + np.arange(PART)).ravel()
    images = images[images < count]
    length = count // streams
    pieces, rest = images[: length * streams].reshape(streams, length), images[length * streams :]
    for piece in pieces:
        for start in range(0, length, WINDOW):
            rng.shuffle(piece[start : start + WINDOW])
    return np.concatenate([pieces.T.ravel(), rest])
