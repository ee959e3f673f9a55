"""A batch of any size through a network that takes a few fixed ones."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from export.backends.opened import Floats, HostNetwork
from fewstep.card import CheckpointError

# Used where neither the caller nor the manifest names any. Powers of two leave no remainder larger than a bucket.
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_PADDING = 1 / 4  # of the rows: beyond it a second, smaller call is cheaper than the padding

FixedNetwork = Callable[..., Floats]  # the arrays of a HostNetwork and bucket, their number of rows -> output


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

    def network(*arrays: np.ndarray) -> Floats:
        count = len(arrays[0])
        if count in buckets:
            return call(*arrays, count)
        parts, start = [], 0
        for rows, bucket in split_rows(count, buckets):
            part = [padded(array[start : start + rows], bucket) for array in arrays]
            parts.append(call(*part, bucket)[:rows])
            start += rows
        return np.concatenate(parts)

    return network


def padded(rows: np.ndarray, bucket: int) -> np.ndarray:
    """The rows, and zeros behind them up to `bucket`."""
    return np.concatenate([rows, np.zeros((bucket - len(rows), *rows.shape[1:]), rows.dtype)])
