"""Compiles every kernel for a GPU, without one, and reports what the assembler made of it.

python -m tests.ptx.report [--out FILE.json]
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.group_norm_silu import group_norm_silu_kernel
from kernels.initial_noise import initial_noise_kernel
from kernels.step import step_kernel
from tests.ptx.machine import Kernel
from tests.ptx.memory import Memory

CAPABILITIES = (80, 90)  # A100, H100 and H200
_FIXED = {  # of arguments whose type is the same in every launch; the rest are pointers to `Variant.dtype`
    **dict.fromkeys(("slot_ptr", "source_ptr", "target_ptr", "call_ptr", "label_ptr", "flags_ptr"), "*i32"),
    **dict.fromkeys(("c_skip_ptr", "c_out_ptr", "sigma_next_ptr", "c_in_ptr", "row_c_noise_ptr"), "*fp32"),
    **dict.fromkeys(("x_ptr", "c_noise_ptr", "known_ptr"), "*fp32"),
    "seed_ptr": "*i64", "pixels_ptr": "*u8", "broken_ptr": "*i32", "mask_ptr": "*i1", "stamp": "i32",
    "add_stride": "i32", "scale_stride": "i32", "eps": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, as a launcher would ask for it."""

    name: str
    kernel: Any
    dtype: str  # of the network: fp32, fp16, bf16
    warps: int
    constants: dict[str, Any] = field(default_factory=dict)  # tl.constexpr arguments, and pointers that are None


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes, per thread unless said otherwise."""

    kernel: str
    dtype: str
    sm: int
    warps: int
    registers: int
    spilled_bytes: int  # local memory
    stack_bytes: int
    shared_bytes: int  # per program
    vector_accesses: int  # global loads and stores of two words or more
    sector_requests: float  # how often a program asks for each 32 bytes that it moves; 1: no access but of whole ones
    instructions: int  # in the whole kernel, all branches
    cubin_bytes: int


def variants() -> Iterator[Variant]:
    """The kernels as 32x32 and 256x256 students launch them, in every dtype and both layouts."""
    image = {"CHANNELS": 3, "CLASSES": 10, "CLASS_TILE": 16}
    nchw = {"X_LAST": False, "INPUT_LAST": False, "TILE_C": 1, "TILE_P": 512, "RGB": False}
    nhwc = {"X_LAST": True, "INPUT_LAST": True, "TILE_C": 4, "TILE_P": 128, "RGB": False}
    rgb = {"X_LAST": True, "INPUT_LAST": True, "TILE_C": 4, "TILE_P": 256, "RGB": True, "EXTRA": 0}
    plain = {"mask_ptr": None, "known_ptr": None}
    large, small = {"AREA": 65536, "PARTS": 4}, {"AREA": 1024, "PARTS": 1}
    for dtype in ("fp32", "bf16"):
        step = {**image, **nchw, **large, **plain, "EXTRA": 0, "OUTPUT_LAST": False}
        yield Variant("step, NCHW", step_kernel, dtype, 4, step)
        step = {**image, **rgb, **plain, "AREA": 65536, "PARTS": 2, "OUTPUT_LAST": True}
        yield Variant("step, channels_last", step_kernel, dtype, 2, step)
    step = {**image, **nhwc, **large, **plain, "EXTRA": 0, "OUTPUT_LAST": True}
    yield Variant("step, channels_last, as if not RGB", step_kernel, "bf16", 4, step)
    step = {**image, **rgb, "AREA": 1024, "PARTS": 1, "OUTPUT_LAST": True}
    yield Variant("step, channels_last, inpainting", step_kernel, "bf16", 2, step)
    latent = {**image, **nhwc, **small, "EXTRA": 3, "OUTPUT_LAST": True}
    yield Variant("step, channels_last, latent, inpainting", step_kernel, "fp16", 4, latent)
    odd = {**image, **nchw, **plain, "AREA": 27 * 29, "PARTS": 1, "EXTRA": 1, "OUTPUT_LAST": False}
    yield Variant("step, odd size", step_kernel, "fp16", 4, odd)
    noise = {**image, **nchw, **large, **plain, "EXTRA": 0}
    yield Variant("initial noise, NCHW", initial_noise_kernel, "bf16", 4, noise)
    noise = {**image, **rgb, "AREA": 65536, "PARTS": 2, "known_ptr": None}
    yield Variant("initial noise, channels_last", initial_noise_kernel, "bf16", 2, noise)
    noise = {**image, **nhwc, **small, "EXTRA": 3}
    yield Variant("initial noise, channels_last, latent, images", initial_noise_kernel, "fp16", 4, noise)
    norm = {"GROUPS": 32, "WIDTH": 4, "AREA": 1024, "ACTIVATE": True}
    first = {**norm, "CHANNELS_LAST": False, "TILE_G": 1, "TILE_C": 4, "TILE_P": 1024}
    added, modulated = {"scale_ptr": None, "shift_ptr": None}, {"add_ptr": None}
    yield Variant("group norm + SiLU, add", group_norm_silu_kernel, "bf16", 8, {**first, **added})
    yield Variant("group norm + SiLU, scale and shift", group_norm_silu_kernel, "fp32", 8, {**first, **modulated})
    last = {**norm, "AREA": 4096, "CHANNELS_LAST": True, "TILE_G": 4, "TILE_C": 4, "TILE_P": 256}
    yield Variant("group norm + SiLU, channels_last, in tiles", group_norm_silu_kernel, "bf16", 8, last)


def compile_variant(variant: Variant, capability: int) -> Usage:
    """Compile for sm_`capability`. Raises RuntimeError in a process where Triton interprets."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, so there is nothing to compile; unset it and run this again")
    names = variant.kernel.arg_names
    constants = {(names.index(name),): value for name, value in variant.constants.items() if name in names}
    types = {name: "constexpr" if (place,) in constants else _type(variant, name) for place, name in enumerate(names)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    compiled = triton.compile(
        ASTSource(variant.kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.warps, "enable_fp_fusion": False},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        used, instructions = _resources(cubin.name), _instructions(cubin.name)
    ptx = compiled.asm["ptx"]
    return Usage(
        variant.name, variant.dtype, capability, variant.warps,
        registers=used["REG"], spilled_bytes=used["LOCAL"], stack_bytes=used["STACK"],
        shared_bytes=compiled.metadata.shared,
        vector_accesses=len(re.findall(r"(?:ld|st)\.global\S*\.v[24]", ptx)),
        sector_requests=round(_sector_requests(Kernel(ptx, compiled.metadata.shared), variant, types), 3),
        instructions=instructions, cubin_bytes=len(compiled.asm["cubin"]),
    )  # fmt: skip


def compile_all() -> list[Usage]:
    """Every variant for every capability: a second or two each, less when Triton's cache knows it."""
    return [compile_variant(variant, capability) for capability in CAPABILITIES for variant in variants()]


def _type(variant: Variant, name: str) -> str:
    if variant.kernel is group_norm_silu_kernel and name == "x_ptr":
        return f"*{variant.dtype}"
    return _FIXED.get(name, f"*{variant.dtype}")


def _sector_requests(kernel: Kernel, variant: Variant, types: dict[str, str]) -> float:
    """Of the first program of a launch whose rows have calls to come."""
    constants = variant.constants
    channels = constants.get("CHANNELS", 0) + constants.get("EXTRA", 0) or constants["GROUPS"] * constants["WIDTH"]
    names = [name for name, type_ in types.items() if type_ != "constexpr"]
    pointers = [name for name in names if types[name].startswith("*")]
    image = np.zeros(channels * constants["AREA"], np.float32)  # as large as any buffer
    level = np.ones_like(image)
    memory = Memory(*((level if name == "sigma_next_ptr" else image).view(np.uint8) for name in pointers))
    places = dict(zip(pointers, memory.starts, strict=True))
    return kernel.run((1,), memory, [places.get(name, 1) for name in names]).times


def _resources(cubin: str) -> dict[str, int]:
    """Registers, stack and local memory of the only kernel in a file."""
    text = _tool("cuobjdump", "-res-usage", cubin)
    return {name: int(re.findall(rf"\b{name}:(\d+)", text)[-1]) for name in ("REG", "STACK", "LOCAL")}


def _instructions(cubin: str) -> int:
    """How many there are in the only kernel in a file; the assembler fills up its end with NOP."""
    return len(re.findall(r"/\*[0-9a-f]{4,}\*/ +(?!NOP\b)", _tool("nvdisasm", "-c", cubin)))


def _tool(name: str, *arguments: str) -> str:
    """What a tool of CUDA's that Triton brings along prints."""
    path = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here as well")
    out = parser.parse_args().out
    usages = compile_all()
    for usage in usages:
        print(
            f"sm_{usage.sm}  {usage.kernel:<42} {usage.dtype:<5} {usage.registers:>3} registers  "
            f"{usage.spilled_bytes} B spilled  {usage.stack_bytes} B stack  {usage.shared_bytes} B shared  "
            f"{usage.instructions} instructions  {usage.sector_requests:.2f} requests a sector"
        )
    if out:
        report = {"triton": triton.__version__, "kernels": [asdict(usage) for usage in usages]}
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
