"""Safetensors read with numpy alone: what the library writes comes back, and what is damaged is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from fewstep.tensor_file import read_tensors

TENSORS = {
    "a.down": np.arange(12, dtype=np.float32).reshape(3, 1, 4),
    "half": np.array([0.5, -2.0], np.float16),
    "count": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}


def test_what_the_library_writes_comes_back():
    read = read_tensors(save(TENSORS, {"note": "any"}))
    assert set(read) == set(TENSORS)
    for name, values in TENSORS.items():
        assert read[name].dtype == values.dtype and np.array_equal(read[name], values)


def forged(**entry: object) -> bytes:
    """A file of 16 bytes of values whose header says something else."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no safetensors file"),
        (save(TENSORS)[:-1], "where it is not"),
        (save(TENSORS)[:20], "truncated"),
        (forged(shape=[5]), "where it is not"),
        (forged(data_offsets=[4, 20]), "where it is not"),
        (forged(data_offsets=[-16, 0]), "where it is not"),
        (forged(shape=[-2, -2]), "where it is not"),
        (forged(dtype="BF16"), "is of BF16"),
    ],
)
def test_what_is_damaged_is_refused(content: bytes, why: str):
    with pytest.raises(ValueError, match=why):
        read_tensors(content)
