"""How many instructions the hot numpy paths take: a count that no other work on the machine changes.

    valgrind --tool=callgrind ... python -m benchmarks.instructions    # as `counted` starts it

Machine instructions, under valgrind's callgrind. Valgrind shows every program the same processor, so that machines with
the same versions of Python and numpy agree. Where valgrind is absent: Python's own instructions (opcodes), which see
nothing within numpy.
"""

from fewstep import extras

extras.name_missing()

import ctypes
import gc
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.kernel_speed import numpy_step
from fewstep.noise import normals
from fewstep.pixels import encode, to_pixels

ROWS = 8  # images in a call
SHAPE = (1, 32, 32)  # of the shipped student
WARM_UP, COUNTED = 3, 20  # calls before, and calls that are counted
TIMEOUT_S = 180.0  # for all paths under valgrind; they take a few seconds on a free machine
# callgrind.h: the requests of its tool base, ('C' << 24) + ('T' << 16)
DUMP_STATS_AT, START = 0x43540003, 0x43540004
BETWEEN = "between"  # the name of dumps that are not read
# valgrind.h, amd64: rdi rotated by 128 bits in all, then xchg rbx, rbx, which does nothing on a processor. Around it:
# the request, whose address is the argument, goes to rax, and 0, the answer where there is no valgrind, to rdx.
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


def paths() -> dict[str, Callable[[], object]]:
    """The hot paths by name, each a call on ROWS images or on one."""
    seeds, steps = np.arange(ROWS, dtype=np.uint64), np.arange(ROWS)
    pixels = to_pixels(normals(seeds[:1], steps[:1], SHAPE) * np.float32(0.3))[0]
    return {
        f"step of {ROWS} rows": numpy_step(SHAPE, ROWS),
        f"noise of {ROWS} rows": lambda: normals(seeds, steps, SHAPE),
        f"rounding of {ROWS} images to pixels": lambda images=normals(seeds, steps, SHAPE): to_pixels(images),
        "PNG of one image": lambda: encode(pixels, "png"),
        f"turn of the engine loop, {ROWS} slots": _turn(),
    }


def _turn() -> Callable[[], object]:
    """Admission, gathering, stepping and retirement around a network that costs nothing."""
    from benchmarks.load.fixed_cost import Cost, FixedCostEngine
    from benchmarks.loop_turns import through_the_loop
    from export.manifest import read_manifest

    return through_the_loop(FixedCostEngine(read_manifest(ROOT / "models/fashion/engine"), Cost(0, 0)), ROWS)


def counted(bytecode: bool = False) -> tuple[str, dict[str, float]]:
    """What was counted, "instructions" or "opcodes", and the count of a call of each path.

    bytecode: count opcodes in any case. Raises TimeoutError after TIMEOUT_S, and RuntimeError when valgrind fails.
    """
    if bytecode or no_valgrind():
        return "opcodes", {name: opcodes(call) for name, call in paths().items()}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-m", "benchmarks.instructions"]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                       "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"valgrind took more than {TIMEOUT_S:g} s") from None
        if done.returncode:
            raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return "instructions", dumped(Path(folder))


def no_valgrind() -> str | None:
    """Why machine instructions cannot be counted here; None where they can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the requests to valgrind are written for x86-64, and this is {platform.machine()}"
    return None


def dumped(folder: Path) -> dict[str, float]:
    """Instructions of a call by path, from the files that callgrind wrote."""
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: (len(file.name), file.name)):  # as they were counted
        text = file.read_text(errors="replace")
        name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
        total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
        if name and total and name[1] != BETWEEN:
            found[name[1]] = int(total[1]) / COUNTED
    return found


def opcodes(call: Callable[[], object]) -> float:
    """Python's instructions of a call."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    for _ in range(WARM_UP):
        call()
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(COUNTED):
            call()
    finally:
        sys.settrace(previous)
    return count / COUNTED


def ask_valgrind() -> Callable[[int, int], None]:
    """A function that makes a client request with one argument."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(REQUEST)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def ask(request: int, argument: int, page: mmap.mmap = page) -> None:  # which keeps the page
        arguments = (ctypes.c_uint64 * 6)(request, argument)
        call(ctypes.addressof(arguments))

    return ask


def main() -> None:
    """Under callgrind: one dump for each path."""
    ask = ask_valgrind()
    every = paths()
    for call in every.values():
        for _ in range(WARM_UP):
            call()
    gc.collect()
    gc.disable()
    ask(START, 0)
    between = ctypes.create_string_buffer(BETWEEN.encode())
    for name, call in every.items():
        label = ctypes.create_string_buffer(name.encode())
        ask(DUMP_STATS_AT, ctypes.addressof(between))  # and the counts begin anew
        for _ in range(COUNTED):
            call()
        ask(DUMP_STATS_AT, ctypes.addressof(label))


if __name__ == "__main__":
    main()
