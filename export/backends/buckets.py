"""A batch of any size through a network that takes a few fixed ones."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from export.backends.opened import Floats, HostNetwork
from fewstep.card import CheckpointError

# Used where neither the caller nor the manifest names any. Powers of two leave no remainder larger than a bucket.
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_PADDING = 1 / 4  # of the rows: beyond it a second, smaller call is cheaper than the padding

FixedNetwork = Callable[[Floats, Floats, Floats, int], Floats]  # x, c_noise, onehot, bucket = their rows -> output


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes, ascending. Raises CheckpointError when they are none, not positive, or listed twice."""
    ascending = tuple(sorted(buckets))
    if not ascending or ascending[0] < 1 or len(set(ascending)) != len(ascending):
        raise CheckpointError(f"buckets are batch sizes from 1, each once, such as 1,2,4,8; not {list(buckets)}")
    return ascending


def split_rows(count: int, buckets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(rows, bucket) of the calls that make up `count` rows; rows < bucket means padding. buckets ascend."""
    while count:
        above = next((bucket for bucket in buckets if bucket >= count), None)
        below = next((bucket for bucket in reversed(buckets) if bucket <= count), None)
        bucket = above if below is None or (above and above - count <= _PADDING * count) else below
        assert bucket is not None
        rows = min(count, bucket)
        yield rows, bucket
        count -= rows


def through_buckets(call: FixedNetwork, buckets: Sequence[int]) -> HostNetwork:
    """A network for any batch size: rows are padded with zeros, or spread over several calls."""

    def network(x: Floats, c_noise: Floats, onehot: Floats) -> Floats:
        if len(x) in buckets:
            return call(x, c_noise, onehot, len(x))
        parts, start = [], 0
        for rows, bucket in split_rows(len(x), buckets):
            part = [padded(array[start : start + rows], bucket) for array in (x, c_noise, onehot)]
            parts.append(call(part[0], part[1], part[2], bucket)[:rows])
            start += rows
        return np.concatenate(parts)

    return network


def padded(rows: Floats, bucket: int) -> Floats:
    """The rows, and zeros behind them up to `bucket`."""
    return np.concatenate([rows, np.zeros((bucket - len(rows), *rows.shape[1:]), rows.dtype)])
