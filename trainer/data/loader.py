"""Batches of a data set. Their order is the same for every number of processes."""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trainer.data.format import ImageSet
from trainer.run.distributed import rank, ranks
from trainer.run.loop import LoopConfig


def batches(
    data: ImageSet, config: LoopConfig, images_seen: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches. The images that follow `images_seen` depend only on the seed.

    Each process gets its own rows of every batch.
    """
    count, start = len(data.images), images_seen
    rows = config.batch // ranks()
    own = slice(rank() * rows, (rank() + 1) * rows)
    while True:
        epochs, places = np.divmod(np.arange(start, start + config.batch)[own], count)
        index = np.concatenate([_order(config.seed, int(e), count)[places[epochs == e]] for e in np.unique(epochs)])
        pixels = torch.from_numpy(np.ascontiguousarray(data.images[index])).to(device)
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        if config.flip:
            mirrored = torch.from_numpy(np.random.default_rng([config.seed, 1, start]).random(config.batch)[own] < 0.5)
            images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images)
        yield images, torch.from_numpy(data.labels[index].astype(np.int64)).to(device)
        start += config.batch


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it is larger than the data
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)
