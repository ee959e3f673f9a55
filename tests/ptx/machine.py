"""Runs a kernel as Triton compiled it, without a GPU: PTX in numpy, all threads of a program at once.

Triton's interpreter runs a kernel's Python; this runs what the compiler made of it, with its layouts, shuffles and
vectors, and counts what memory sees of them. It knows the instructions that this project's kernels have come to need,
and raises NotImplementedError at others. Not for tensor cores, atomics, or threads of a program that part ways.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.arithmetic import UNSIGNED, Bits, operation, width
from tests.ptx.memory import Memory, Traffic

WARP = 32

_LINE = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_ADDRESS = re.compile(r"\[\s*(\S+?)\s*(?:\+\s*(-?\d+)\s*)?\]")


@dataclass
class _Program:
    """One program of a launch while it runs."""

    registers: dict[str, Bits]  # [threads], or [1] where all have the same
    arguments: dict[str, Bits]
    memory: Memory
    shared: Memory
    traffic: Traffic


_Source = Callable[[_Program], Bits]
_Mask = Callable[[_Program], NDArray[np.bool_]] | None  # the threads for which an instruction does something
_Step = Callable[[_Program], str | None]  # returns the label to go on at; None: the next instruction

_END = "the end"  # a label that no PTX has


class Kernel:
    """One compiled kernel."""

    def __init__(self, ptx: str, shared_bytes: int) -> None:
        """ptx: a text with one entry; shared_bytes: of a program. Raises NotImplementedError for unknown PTX."""
        start = ptx.index(".visible .entry")
        text = ptx[start : ptx.index("\n}", start)]
        self._threads = int(re.findall(r"\.reqntid (\d+)", text)[0])
        self._shared_bytes = shared_bytes
        self._parameters: dict[str, str] = {
            name: kind for kind, name in re.findall(r"\.param \.(\w+)[^,\n]*?(\w+)[,\n]", text)
        }
        self._widths = {prefix: width(kind) for kind, prefix in re.findall(r"\.reg \.(\w+)\s+(%[a-z]+)<", text)}
        self._labels: dict[str, int] = {}
        self._steps: list[_Step] = []
        for line in text[text.index("\n{") + 2 :].splitlines():
            code = line.split("//")[0].strip().rstrip(";")
            if re.fullmatch(r"\$?\w+:", code):
                self._labels[code[:-1]] = len(self._steps)
            elif code and not code.startswith("."):
                self._steps.append(self._step(code))
        self._labels[_END] = len(self._steps)

    def run(self, grid: Sequence[int], memory: Memory, arguments: Sequence[int | float]) -> Traffic:
        """All programs of a grid, one after another. arguments: addresses in memory, and numbers, in order."""
        given = [*arguments, *[0] * (len(self._parameters) - len(arguments))]  # Triton's own pointers, of no use here
        bits = {
            name: _argument(value, kind) for (name, kind), value in zip(self._parameters.items(), given, strict=True)
        }
        shared, traffic = np.zeros(self._shared_bytes, np.uint8), Traffic()
        thread = np.arange(self._threads, dtype=np.uint32)
        for numbers in product(*(range(count) for count in (*grid, 1, 1)[:3])):
            place = {f"%ctaid.{axis}": np.array([n], np.uint32) for axis, n in zip("xyz", numbers, strict=True)}
            self._run(_Program({"%tid.x": thread, **place}, bits, memory, Memory(shared), traffic))
        return traffic

    def _run(self, program: _Program) -> None:
        at = 0
        with np.errstate(all="ignore"):
            while at < len(self._steps):
                label = self._steps[at](program)
                at = at + 1 if label is None else self._labels[label]

    def _step(self, code: str) -> _Step:
        """One instruction."""
        match = _LINE.fullmatch(code)
        if match is None:
            raise NotImplementedError(f"a line of PTX that is not understood: {code}")
        opcode, operands = match[3], _OPERAND.findall(match[4])
        name, *suffixes = opcode.split(".")
        when = _predicate(match[2], bool(match[1]))
        if name in ("bar", "barrier"):
            return lambda program: None  # all threads are at one instruction anyway
        if name == "ret":
            return lambda program: _END
        if name == "bra":
            return _branch(operands[0], when)
        if name == "ld" and suffixes[0] == "param":
            return self._assign(operands[:1], lambda program: [program.arguments[operands[1][1:-1]]], when)
        if name == "ld":
            return self._load(suffixes, operands, when)
        if name == "st":
            return self._store(suffixes, operands, when)
        if name in ("ldmatrix", "stmatrix"):
            return self._move_matrices(name, suffixes, operands)
        if name == "mov" and "{" in match[4]:
            return self._repack(operands, width(suffixes[-1]))
        run = _EXCHANGES[name](suffixes[1]) if name in _EXCHANGES else operation(opcode)
        sources = [_source(operand, suffixes[-1]) for operand in operands[1:]]
        return self._assign(operands[:1], lambda program: [run(*(source(program) for source in sources))], when)

    def _assign(self, names: list[str], values: Callable[[_Program], Any], when: _Mask) -> _Step:
        """Registers [threads] in the widths they are declared with; where `when` holds, if it is given."""
        kept = [(place, name, self._type(name)) for place, name in enumerate(names) if name != "_"]

        def step(program: _Program) -> None:
            new = values(program)
            for place, name, dtype in kept:
                value = new[place].astype(dtype)
                if when is not None:
                    value = np.where(when(program), value, program.registers.get(name, np.zeros(1, dtype)))
                program.registers[name] = value

        return step

    def _type(self, register: str) -> Any:
        bits = self._widths[register.rstrip("0123456789")]
        return bool if bits == 1 else UNSIGNED[bits]

    def _repack(self, operands: list[str], bits: int) -> _Step:
        """mov between a register and its halves or quarters, the lowest first."""
        into, out_of = (operand.strip("{} ").split(", ") for operand in (operands[0], operands[1]))
        sources = [_source(name, f"b{bits // len(out_of)}") for name in out_of]
        small, large = UNSIGNED[bits // max(len(into), len(out_of))], UNSIGNED[bits]

        def values(program: _Program) -> list[Bits]:
            parts = np.broadcast_arrays(*(source(program) for source in sources))
            if len(into) == 1:
                return [np.stack(parts, axis=-1).astype(small).view(large)[:, 0]]
            return list(np.ascontiguousarray(parts[0].astype(large))[:, None].view(small).T)

        return self._assign(into, values, None)

    def _load(self, suffixes: list[str], operands: list[str], when: _Mask) -> _Step:
        names, (address, size, space) = operands[0].strip("{} ").split(", "), _access(operands[1], suffixes, False)

        def values(program: _Program) -> NDArray[Any]:
            where, active = address(program, when, self._threads)
            found = np.zeros((self._threads, len(names)), UNSIGNED[8 * size])
            found[active] = space(program, where, active, size * len(names)).load(where, size, len(names))
            return found.T

        return self._assign(names, values, when)

    def _store(self, suffixes: list[str], operands: list[str], when: _Mask) -> _Step:
        names, (address, size, space) = operands[1].strip("{} ").split(", "), _access(operands[0], suffixes, True)
        sources = [_source(name, suffixes[-1]) for name in names]

        def step(program: _Program) -> None:
            where, active = address(program, when, self._threads)
            values = [np.broadcast_to(source(program), self._threads)[active] for source in sources]
            into = space(program, where, active, size * len(names))
            into.store(where, np.stack(values, axis=-1).astype(UNSIGNED[8 * size]), size)

        return step

    def _move_matrices(self, name: str, suffixes: list[str], operands: list[str]) -> _Step:
        """ldmatrix, stmatrix: 8 x 8 of 16 bits, to or from shared memory, .trans: with rows and columns exchanged.

        Eight threads a matrix name its rows; of every matrix each thread has a word, of two neighbours in a row.
        """
        inner, outer = operands if name == "stmatrix" else operands[::-1]
        registers, (address, _, _) = outer.strip("{} ").split(", "), _access(inner, suffixes, name == "stmatrix")
        count, warps = len(registers), self._threads // WARP
        naming = (np.arange(self._threads) % WARP < 8 * count).nonzero()[0]

        def turned(rows: Bits) -> Bits:
            """[8 x matrices, 4] words."""
            if "trans" not in suffixes:
                return rows
            matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
            return np.ascontiguousarray(matrices).reshape(-1, 8).view(np.uint32)

        def load(program: _Program) -> list[Bits]:
            rows = turned(program.shared.load(address(program, None, self._threads)[0][naming], 4, 4))
            return list(rows.reshape(warps, count, WARP).swapaxes(0, 1).reshape(count, -1))

        def store(program: _Program) -> None:
            words = np.stack([np.broadcast_to(program.registers[name], self._threads) for name in registers])
            rows = words.reshape(count, warps, WARP).swapaxes(0, 1).reshape(-1, 4)
            program.shared.store(address(program, None, self._threads)[0][naming], turned(rows), 4)

        return store if name == "stmatrix" else self._assign(registers, load, None)


def _argument(value: int | float, kind: str) -> Bits:
    return np.array([value], np.float32).view(np.uint32) if kind == "f32" else np.array([value]).astype(np.uint64)


def _predicate(register: str | None, negated: bool) -> _Mask:
    return None if register is None else lambda program: program.registers[register] ^ negated


def _source(operand: str, kind: str) -> _Source:
    """A register's value, or a literal's."""
    if operand.startswith("%"):
        return lambda program: program.registers[operand]
    if operand == "global_smem":
        return lambda program: np.array(program.shared.starts, np.uint32)
    value = int(operand[2:], 16) if operand.startswith("0f") else int(operand.rstrip("U"), 0)
    bits = width(kind)
    literal = np.array([value & (2**bits - 1)], np.uint64).astype(bool if bits == 1 else UNSIGNED[bits])
    return lambda program: literal


def _branch(label: str, when: _Mask) -> _Step:
    def step(program: _Program) -> str | None:
        taken = np.ones(1, bool) if when is None else when(program)
        if taken.any() != taken.all():
            raise NotImplementedError("threads of one program part ways, which this machine does not follow")
        return label if taken.all() else None

    return step


def _shuffle(mode: str) -> Callable[..., Bits]:
    """shfl among the 32 threads of a warp: to each, what the thread that it names has."""

    def exchange(value: Bits, by: Bits, clamp: Bits, members: Bits) -> Bits:
        if (clamp != WARP - 1).any() or (members != 2**WARP - 1).any():
            raise NotImplementedError("a shuffle among some threads of a warp")
        lane = np.arange(value.size, dtype=np.uint32)
        other = by % WARP if mode == "idx" else (lane % WARP) ^ by
        return value[lane // WARP * WARP + other] if value.size > 1 else value

    if mode not in ("idx", "bfly"):
        raise NotImplementedError(f"no numpy for shfl.{mode}")
    return exchange


def _reduce(mode: str) -> Callable[..., Bits]:
    """redux: to each thread of a warp the sum of what all of them have."""

    def exchange(value: Bits, members: Bits) -> Bits:
        if (members != 2**WARP - 1).any():
            raise NotImplementedError("a sum over some threads of a warp")
        if value.size == 1:
            return value * np.uint32(WARP)
        return np.repeat(value.reshape(-1, WARP).sum(axis=1, dtype=value.dtype), WARP)

    if mode != "add":
        raise NotImplementedError(f"no numpy for redux.{mode}")
    return exchange


_EXCHANGES: dict[str, Callable[[str], Callable[..., Bits]]] = {"shfl": _shuffle, "redux": _reduce}


def _access(operand: str, suffixes: list[str], write: bool) -> tuple[Callable[..., Any], int, Callable[..., Memory]]:
    """How an instruction finds its addresses and which threads take part, the bytes of a word, and its memory."""
    match = _ADDRESS.fullmatch(operand)
    if match is None or not suffixes[-1].startswith("b"):
        raise NotImplementedError(f"an access of {operand} that extends signs or is not understood")
    base, offset = _source(match[1], "b64"), int(match[2] or 0)

    def address(program: _Program, when: _Mask, threads: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        active = np.broadcast_to(True if when is None else when(program), threads)
        return np.broadcast_to(base(program), threads)[active].astype(np.int64) + offset, active

    def space(program: _Program, where: NDArray[Any], active: NDArray[np.bool_], size: int) -> Memory:
        if "shared" in suffixes:
            return program.shared
        if len(where):
            program.traffic.count(where, np.flatnonzero(active) // WARP, size, write)
        return program.memory

    return address, width(suffixes[-1]) // 8, space
