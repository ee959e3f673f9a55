"""Any batch through fixed sizes: every row once, in order, and little padding."""

import numpy as np
import pytest

from export.backends.buckets import DEFAULT_BUCKETS, check_buckets, split_rows, through_buckets
from fewstep.card import CheckpointError


@pytest.mark.parametrize("buckets", [DEFAULT_BUCKETS, (1,), (8,), (3, 5, 12), (250,)])
def test_calls_cover_the_rows_with_known_sizes(buckets):
    for count in [*range(1, 70), 250, 251, 1000]:
        calls = list(split_rows(count, buckets))
        assert sum(rows for rows, _ in calls) == count
        assert all(0 < rows <= bucket and bucket in buckets for rows, bucket in calls)
        padding = sum(bucket - rows for rows, bucket in calls)
        assert padding <= max(count / 4, buckets[0] - 1)


def test_little_padding_beats_a_second_call():
    assert list(split_rows(7, DEFAULT_BUCKETS)) == [(7, 8)]
    assert list(split_rows(100, DEFAULT_BUCKETS)) == [(64, 64), (32, 32), (4, 4)]
    assert list(split_rows(5, DEFAULT_BUCKETS)) == [(4, 4), (1, 1)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 17, 200])
def test_rows_come_back_in_order_and_padding_is_zero(count):
    sizes = []

    def call(x, c_noise, onehot, bucket):
        assert len(x) == len(c_noise) == len(onehot) == bucket
        sizes.append(bucket)
        used = np.flatnonzero(x[:, 0])
        assert not x[len(used) :].any() and not c_noise[len(used) :].any() and not onehot[len(used) :].any()
        return x + c_noise[:, None] + onehot

    x, c_noise = np.arange(1, count + 1, dtype=np.float32)[:, None], np.full(count, 0.25, np.float32)
    output = through_buckets(call, (4, 16))(x, c_noise, np.ones((count, 1), np.float32))
    assert np.array_equal(output, x + 1.25)
    assert set(sizes) <= {4, 16}


def test_buckets_are_sorted_and_checked():
    assert check_buckets([8, 1, 2]) == (1, 2, 8)
    for wrong in ([], [0, 1], [-1], [2, 2]):
        with pytest.raises(CheckpointError, match="buckets are batch sizes from 1"):
            check_buckets(wrong)
