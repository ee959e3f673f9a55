"""What PTX's instructions without side effects compute, over arrays of one value a thread.

Registers are bit patterns: bool, uint16, uint32, uint64. An instruction's suffix says what they mean to it. Approximate
functions are rounded correctly here; a GPU's own are off by an ulp or two. Denormals are kept, also by .ftz.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
_ORDERS: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_LOGIC: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def width(kind: str) -> int:
    """Bits of a type: b32, s16, pred."""
    return 1 if kind == "pred" else 16 if kind == "bf16" else int(kind.lstrip("bsuf"))


def as_type(bits: Bits, kind: str) -> NDArray[Any]:
    """What the lower bits of registers mean: numbers of a PTX type such as s32 or bf16."""
    if kind == "pred":
        return bits
    raw = bits.astype(UNSIGNED[width(kind)])
    if kind == "bf16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind in _FLOATS:
        return raw.view(_FLOATS[kind])
    return raw.view(_SIGNED[width(kind)]) if kind.startswith("s") else raw


def as_bits(values: NDArray[Any], kind: str) -> Bits:
    """Registers of numbers, rounded to nearest where they are floats, as `as_type` reads them."""
    if kind == "pred":
        return values.astype(bool)
    if kind == "bf16":
        raw = values.astype(np.float32).view(np.uint32)
        rounded = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)
    if kind in _FLOATS:
        return values.astype(_FLOATS[kind]).view(UNSIGNED[width(kind)])
    whole = values.astype(_SIGNED[width(kind)]) if kind.startswith("s") else values.astype(UNSIGNED[width(kind)])
    return whole.view(UNSIGNED[width(kind)])


def operation(opcode: str) -> Callable[..., Bits]:
    """The function of an instruction. Raises NotImplementedError for one that Triton has not been seen to need."""
    name, *suffixes = opcode.split(".")
    if unknown := {"sat", "relu", "rz", "rm", "rp"} & set(suffixes):
        raise NotImplementedError(f"no numpy for .{unknown.pop()} in the PTX instruction {opcode}")
    special = _SPECIAL.get(name)
    if special is not None:
        return partial(special, suffixes)
    kind = suffixes[-1] if suffixes else ""
    if name in _LOGIC:
        return _LOGIC[name]
    if name not in _PLAIN:
        raise NotImplementedError(f"no numpy for the PTX instruction {opcode}: add it to {__name__}")
    return lambda *bits: as_bits(_PLAIN[name](*(as_type(b, kind) for b in bits)), kind)


def _fma(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[Any]:
    """In float64, which holds the product; the sum is rounded twice, which is one ulp off in a case of 2^29."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


_PLAIN: dict[str, Callable[..., NDArray[Any]]] = {
    "mov": lambda a: a,
    "not": np.invert,
    "add": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "abs": np.abs,
    "fma": _fma,
    "min": np.fmin,  # the number, where the other is none
    "max": np.fmax,
    "div": np.divide,
    "rsqrt": lambda a: 1 / np.sqrt(a.astype(np.float64)),
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "ex2": lambda a: np.exp2(a.astype(np.float64)),
    "lg2": lambda a: np.log2(a.astype(np.float64)),
}


def _multiply(suffixes: list[str], a: Bits, b: Bits, *plus: Bits) -> Bits:
    """mul and mad: .lo, .hi and .wide of integers, and of floats."""
    kind = suffixes[-1]
    if kind in _FLOATS:
        return as_bits(as_type(a, kind) * as_type(b, kind), kind)
    if "lo" not in suffixes and width(kind) > 32:
        raise NotImplementedError(f"no numpy for products of {kind} in full")
    wide = kind[0] + str(2 * width(kind))
    if "lo" in suffixes:
        result = as_bits(as_type(a, kind) * as_type(b, kind), kind)
    else:
        result = as_bits(as_type(a, kind).astype(as_type(np.zeros(1), wide).dtype) * as_type(b, kind), wide)
        if "hi" in suffixes:
            result = as_bits(as_type(result, wide) >> width(kind), kind)
    return result + plus[0].astype(result.dtype) if plus else result


def _packed_add(suffixes: list[str], a: Bits, b: Bits) -> Bits:
    """add, of two halves of a word as well."""
    if suffixes[-1] in ("s16x2", "u16x2"):
        a, b = (np.ascontiguousarray(x) for x in np.broadcast_arrays(a, b))
        return (a.view(np.uint16) + b.view(np.uint16)).view(np.uint32)
    return as_bits(as_type(a, suffixes[-1]) + as_type(b, suffixes[-1]), suffixes[-1])


def _shift(name: str, suffixes: list[str], a: Bits, by: Bits) -> Bits:
    """Shifts by a register's width or more leave zeros, or signs."""
    kind = suffixes[-1]
    most = width(kind) - 1
    values = as_type(a, kind)
    amount = np.minimum(by, most).astype(values.dtype)
    shifted = np.left_shift(values, amount) if name == "shl" else np.right_shift(values, amount)
    gone = 0 if name == "shl" or not kind.startswith("s") else np.where(values < 0, -1, 0).astype(values.dtype)
    return as_bits(np.where(by > most, gone, shifted), kind)


def _set_predicate(suffixes: list[str], a: Bits, b: Bits) -> Bits:
    """setp; the orders that end in u hold for NaN as well."""
    order, kind = suffixes[0], suffixes[-1]
    x, y = as_type(a, kind), as_type(b, kind)
    if kind in _FLOATS and order.endswith("u"):
        return _ORDERS[order[:-1]](x, y) | np.isnan(x) | np.isnan(y)
    holds = _ORDERS[order](x, y)
    return holds & ~(np.isnan(x) | np.isnan(y)) if kind in _FLOATS else holds


def _select(suffixes: list[str], a: Bits, b: Bits, predicate: Bits) -> Bits:
    return np.where(predicate, a, b)


def _convert(suffixes: list[str], *sources: Bits) -> Bits:
    """cvt; two sources are packed, the first above the second."""
    target, source = suffixes[-2:]
    if target.endswith("x2"):
        above, below = (as_bits(as_type(bits, source), target[:-2]).astype(np.uint32) for bits in sources)
        return (above << np.uint32(16)) | below
    values = as_type(sources[0], source)
    if source in (*_FLOATS, "bf16") and target[0] in "su":
        values = np.trunc(values) if "rzi" in suffixes else np.rint(values)
        ends = np.iinfo(UNSIGNED[width(target)] if target[0] == "u" else _SIGNED[width(target)])
        values = np.clip(np.nan_to_num(values.astype(np.float64)), ends.min, ends.max)
    return as_bits(values, target)


def _permute(suffixes: list[str], a: Bits, b: Bits, order: Bits) -> Bits:
    """prmt: each byte of the result is one of the eight of a and b, or its sign."""
    a, b, order = np.broadcast_arrays(a, b, order)
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for place in range(4):
        chosen = (order >> np.uint32(4 * place)) & np.uint32(0xF)
        byte = ((both >> (np.uint64(8) * (chosen & np.uint32(7)))) & np.uint64(0xFF)).astype(np.uint32)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result = result | (np.where(chosen & np.uint32(8), sign, byte) << np.uint32(8 * place))
    return result


def _extract(suffixes: list[str], a: Bits, start: Bits, length: Bits) -> Bits:
    """bfe, of fields that are not empty."""
    kind = suffixes[-1]
    left = (width(kind) - start - length).astype(np.uint32)
    return _shift("shr", suffixes, _shift("shl", suffixes, a, left), left + start)


_SPECIAL: dict[str, Callable[..., Bits]] = {
    "mul": _multiply, "mad": _multiply, "add": _packed_add,
    "shl": partial(_shift, "shl"), "shr": partial(_shift, "shr"),
    "setp": _set_predicate, "selp": _select, "cvt": _convert, "prmt": _permute, "bfe": _extract,
}  # fmt: skip
