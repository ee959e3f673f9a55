"""Reads safetensors files with numpy alone: a server has neither torch nor the library that writes them.

The format: eight bytes with the length of a JSON object, that object, which gives every tensor's dtype, shape and place
in what follows, and then the values, little-endian.
"""

import json
import math

import numpy as np
from numpy.typing import NDArray

HEADER = 8  # bytes
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def read_tensors(content: bytes) -> dict[str, NDArray]:
    """The tensors of a safetensors file, by name; views of `content`, read-only. Raises ValueError."""
    length = int.from_bytes(content[:HEADER], "little")
    if len(content) < HEADER + max(length, 1):
        raise ValueError("it is no safetensors file, or truncated")
    header = json.loads(content[HEADER : HEADER + length])
    header.pop("__metadata__", None)
    return {name: _tensor(name, entry, content, HEADER + length) for name, entry in header.items()}


def _tensor(name: str, entry: dict, content: bytes, first: int) -> NDArray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name} is of {entry['dtype']}; read are {', '.join(DTYPES)}")
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or end - begin != count * dtype.itemsize or begin < 0 or first + end > len(content):
        raise ValueError(f"the header places tensor {name} where it is not")
    return np.frombuffer(content, dtype, count, first + begin).reshape(shape)
