"""Whether exact mode is possible: the bytes of a row depend on nothing but the row."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fewstep.card import CheckpointError
from fewstep.conditions import Conditions
from fewstep.noise import normals
from fewstep.precond import onehot

Rows = list[NDArray]  # x, c_noise, onehot, conditions, and adapter where the network takes one


def check_rows_independent(
    network: Callable[..., NDArray[np.float32]],
    shape: tuple[int, int, int],
    classes: int,
    capacity: int,
    adapters: int | None = None,
    conditions: Conditions = (),
) -> None:
    """A row must give the same bytes in every slot of the padded shape, alone, among copies and among other rows.

    shape: (channels, H, W) of the network's input. adapters: how many a network has that takes them by row, which then
    have a turn; None: it takes none. conditions: what it takes behind `onehot`. Raises CheckpointError when it does
    not. Seven network calls.
    """
    seeds = np.arange(capacity, dtype=np.uint64)
    x = normals(seeds, np.zeros(capacity, np.int64), shape)
    c_noise = np.linspace(-0.75, 1.1, capacity, dtype=np.float32)  # ln(sigma) / 4 for sigma from 0.05 to 80
    batch: Rows = [x, c_noise, onehot(np.arange(capacity) % max(classes, 1), classes, x)]
    random = np.random.default_rng(0)
    batch += [random.uniform(each.low, each.high, (capacity, *each.shape)).astype(np.float32) for each in conditions]
    if adapters is not None:
        batch.append(np.arange(capacity) % (adapters + 1))
    ends_and_middle = sorted({0, capacity // 2, capacity - 1})

    mixed = network(*batch)
    for shift in (1, capacity // 2):
        moved = network(*(np.roll(part, shift, axis=0) for part in batch))
        _require(moved, np.roll(mixed, shift, axis=0), f"{shift} slots further")
    among_copies = network(*(np.repeat(part[:1], capacity, axis=0) for part in batch))
    _require(among_copies, np.repeat(mixed[:1], capacity, axis=0), "among copies of itself")
    for slot in ends_and_middle:
        rows = [np.zeros_like(part) for part in batch]
        for row, part in zip(rows, batch, strict=True):
            row[slot] = part[slot]
        _require(network(*rows)[slot], mixed[slot], f"alone in slot {slot}")


def _require(output: NDArray[np.float32], expected: NDArray[np.float32], where: str) -> None:
    if output.tobytes() != expected.tobytes():
        raise CheckpointError(
            f"exact mode is not possible with this engine on this machine: a row gives other bytes {where}. "
            "Choose another --capacity, --threads 1, or --mode fast"
        )
