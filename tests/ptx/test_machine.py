"""The machine that runs compiled kernels, against what the PTX manual says of each instruction."""

import re

import numpy as np
import pytest

from tests.ptx.arithmetic import as_bits, as_type, operation
from tests.ptx.machine import Kernel
from tests.ptx.memory import Memory, Traffic

MATRIX = ("stmatrix", "ldmatrix")
NAN, ONE = 0x7FC00000, 0x3F800000


def f32(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize(
    ("opcode", "operands", "expected"),
    [
        ("add.s32", (0xFFFFFFFF, 2), 1),
        ("add.s16x2", (0x0001FFFF, 0x00010001), 0x00020000),
        ("sub.s32", (1, 2), 0xFFFFFFFF),
        ("mul.lo.s32", (0x80000001, 2), 2),
        ("mul.hi.u32", (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFE),
        ("mul.wide.s32", (0xFFFFFFFE, 3), 0xFFFFFFFFFFFFFFFA),
        ("mul.wide.u32", (0xFFFFFFFE, 3), 0x2FFFFFFFA),
        ("mad.lo.s32", (3, 4, 5), 17),
        ("shl.b32", (1, 32), 0),
        ("shr.u32", (0x80000000, 31), 1),
        ("shr.s32", (0x80000000, 40), 0xFFFFFFFF),
        ("bfe.u32", (0xABCD, 4, 8), 0xBC),
        ("bfe.s32", (0x10, 4, 1), 0xFFFFFFFF),
        ("prmt.b32", (0x33221100, 0x77665544, 0x5410), 0x55441100),
        ("prmt.b32", (0x00000080, 0, 0x7778), 0xFF),
        ("neg.f32", (ONE,), 0xBF800000),
        ("max.f32", (NAN, ONE), ONE),
        ("fma.rn.f32", (f32(1 + 2**-12), f32(1 + 2**-12), f32(-1 - 2**-11)), f32(2**-24)),
        ("rsqrt.approx.ftz.f32", (f32(4),), f32(0.5)),
        ("ex2.approx.f32", (f32(-3),), f32(0.125)),
        ("setp.lt.s32", (0xFFFFFFFF, 0), True),
        ("setp.lt.u32", (0xFFFFFFFF, 0), False),
        ("setp.lt.f32", (NAN, ONE), False),
        ("setp.ne.f32", (NAN, NAN), False),
        ("setp.leu.f32", (NAN, ONE), True),
        ("cvt.rzi.u16.f32", (f32(3.9),), 3),
        ("cvt.rzi.u16.f32", (f32(-1),), 0),
        ("cvt.rzi.u16.f32", (f32(70000),), 65535),
        ("cvt.rni.s32.f32", (f32(2.5),), 2),
        ("cvt.s64.s32", (0xFFFFFFFF,), 0xFFFFFFFFFFFFFFFF),
        ("cvt.rn.f32.s32", (0xFFFFFFFF,), f32(-1)),
        ("cvt.rn.bf16x2.f32", (ONE, f32(-2)), 0x3F80C000),
        ("cvt.rn.bf16.f32", (f32(1 + 2**-8),), 0x3F80),  # a tie goes to the even one
        ("cvt.rn.bf16.f32", (f32(1 + 3 * 2**-8),), 0x3F82),
        ("cvt.rn.bf16.f32", (NAN,), 0x7FFF),
        ("cvt.f32.bf16", (0x3F82,), f32(1 + 2**-6)),
        ("cvt.rn.f16.f32", (f32(1 + 2**-12),), 0x3C00),
    ],
    ids=str,
)
def test_an_instruction_computes_what_the_manual_says(opcode: str, operands: tuple[int, ...], expected: int):
    with np.errstate(all="ignore"):
        (result,) = operation(opcode)(*(np.array([bits], np.uint32) for bits in operands))
    assert result == expected


def test_a_selection_takes_the_first_where_the_predicate_holds():
    a, b = np.array([1, 2], np.uint32), np.array([3, 4], np.uint32)
    assert operation("selp.b32")(a, b, np.array([True, False])).tolist() == [1, 4]


@pytest.mark.parametrize("kind", ["u8", "s16", "u32", "s64", "f16", "bf16", "f32", "f64"])
def test_numbers_survive_their_bits(kind: str):
    numbers = np.array([0, 1, 100, 64] if kind == "u8" else [0, 1, -100, 64])
    if kind == "u32":
        numbers = np.abs(numbers)
    assert as_type(as_bits(numbers, kind), kind).tolist() == numbers.tolist()


def kernel(body: str, threads: int = 32, shared: int = 0) -> Kernel:
    """A kernel of one pointer, %rd1, and the number of its thread, %r1."""
    return Kernel(
        f""".visible .entry given(
	.param .u64 .ptr .global .align 1 given_param_0
)
.reqntid {threads}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [given_param_0];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
	{body}
	ret;
}}""",
        shared,
    )


def run(body: str, threads: int = 32, words: int = 64, grid: tuple[int, ...] = (1,)) -> tuple[list[int], Traffic]:
    """What memory of so many words, numbered from 100, holds afterwards, and the traffic."""
    memory = Memory(np.arange(100, 100 + words, dtype=np.uint32).view(np.uint8))
    traffic = kernel(body, threads, 1024).run(grid, memory, memory.starts)
    return memory.content(0, 4 * words).view(np.uint32).tolist(), traffic


def test_threads_load_and_store_where_their_predicate_holds():
    words, traffic = run(
        """ld.global.b32 { %r2 }, [ %rd3 + 0 ];
    add.s32 %r2, %r2, 1000;
    setp.lt.u32 %p1, %r1, 3;
    @%p1 st.global.b32 [ %rd3 + 4 ], { %r2 };"""
    )
    assert words[:6] == [100, 1100, 1101, 1102, 104, 105]
    assert traffic.asked == 4 + 1 and traffic.times == 1


def test_programs_know_their_place_in_the_grid():
    words, _ = run(
        """mov.u32 %r2, %ctaid.y;
    mad.lo.s32 %r3, %r2, 128, 0;
    cvt.u64.u32 %rd4, %r3;
    add.s64 %rd3, %rd3, %rd4;
    st.global.b32 [%rd3], %r2;""",
        grid=(1, 2),
    )
    assert words == [0] * 32 + [1] * 32


def test_a_loop_ends():
    body = """mov.b32 %r2, 0;
$L__BB0_1:
    add.s32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, 5;
    @%p1 bra $L__BB0_1;
    st.global.b32 [%rd3], %r2;"""
    assert run(body)[0][:32] == [5] * 32


def test_warps_exchange_and_add_up():
    shuffled, _ = run(
        """xor.b32 %r2, %r1, 1;
    shfl.sync.idx.b32 %r3, %r1, %r2, 31, -1;
    shfl.sync.bfly.b32 %r4, %r3, 16, 31, -1;
    st.global.b32 [%rd3], %r4;""",
        threads=64,
    )
    assert shuffled == [(thread ^ 1) ^ 16 for thread in range(64)]
    added, _ = run("redux.sync.add.s32 %r2, %r1, -1;\n    st.global.b32 [%rd3], %r2;", threads=64)
    assert added == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
    alike, _ = run("mov.b32 %r3, 5;\n    redux.sync.add.s32 %r2, %r3, -1;\n    st.global.b32 [%rd3], %r2;")
    assert alike[:32] == [160] * 32


def test_halves_of_a_register_are_taken_and_put_lowest_first():
    body = """mov.b32 %r2, 0x00020001;
    mov.b32 {%rs1, %rs2}, %r2;
    mov.b32 %r3, {%rs2, %rs1};
    mov.b64 %rd4, {%r2, %r3};
    mov.b64 {_, %r4}, %rd4;
    st.global.v2.b32 [%rd1], {%r3, %r4};"""
    assert run(body)[0][:2] == [0x00010002, 0x00010002]


def test_matrices_are_dealt_out_by_rows():
    body = """mov.b32 %r2, global_smem;
    shl.b32 %r3, %r1, 4;
    add.s32 %r3, %r2, %r3;
    stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r3], {%r1, %r2};
    bar.sync 0;
    shl.b32 %r4, %r1, 2;
    add.s32 %r4, %r2, %r4;
    ld.shared.b32 %r5, [%r4];
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r3];
    st.global.v2.b32 [%rd4], {%r5, %r6};"""
    words, _ = run("shl.b64 %rd4, %rd2, 1;\n    add.s64 %rd4, %rd4, %rd1;\n    " + body)
    assert words[::2] == list(range(32)), "thread 4 i + j has word j of row i"
    assert words[1::2] == list(range(32))


@pytest.mark.parametrize("instruction", ["ldmatrix", "stmatrix"])
def test_a_transposed_matrix_has_its_columns_in_rows(instruction: str):
    kind = {name: f"{name}.sync.aligned.m8n8.x1{'.trans' * (name == instruction)}.shared.b16" for name in MATRIX}
    words, _ = run(
        f"""mov.b32 %r2, global_smem;
    shl.b32 %r3, %r1, 4;
    add.s32 %r3, %r2, %r3;
    shl.b32 %r4, %r1, 1;
    add.s32 %r5, %r4, 1;
    shl.b32 %r5, %r5, 16;
    or.b32 %r4, %r4, %r5;
    {kind["stmatrix"]} [%r3], {{%r4}};
    {kind["ldmatrix"]} {{%r6}}, [%r3];
    st.global.b32 [%rd3], %r6;"""
    )
    halves = np.array(words[:32], np.uint32).view(np.uint16).reshape(8, 8)
    assert (halves == np.arange(64).reshape(8, 8).T).all()


def test_a_sector_that_is_asked_for_in_halves_is_asked_for_twice():
    half = "ld.global.b32 { %r2 }, [ %rd4 + 0 ];\n    ld.global.b32 { %r3 }, [ %rd4 + 4 ];"
    _, traffic = run("shl.b64 %rd4, %rd2, 1;\n    add.s64 %rd4, %rd4, %rd1;\n    " + half)
    assert traffic.times == 2


@pytest.mark.parametrize(
    ("body", "words", "error", "message"),
    [
        ("st.global.b32 [%rd3], %r1;", 31, IndexError, "outside all buffers"),
        ("st.global.v2.b32 [%rd3], {%r1, %r1};", 64, IndexError, "no multiple"),
        ("st.global.b32 [%rd1], %r1;", 64, RuntimeError, "two threads store different values"),
        ("setp.lt.u32 %p1, %r1, 3;\n    @%p1 bra $L__BB0_1;", 64, NotImplementedError, "part ways"),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 15, -1;", 64, NotImplementedError, "some threads"),
        ("redux.sync.add.s32 %r2, %r1, 255;", 64, NotImplementedError, "some threads"),
    ],
    ids=["outside", "unaligned", "a race", "diverging", "half a warp", "a quarter"],
)
def test_what_would_fail_on_a_gpu_or_is_not_followed_is_said(body: str, words: int, error: type, message: str):
    with pytest.raises(error, match=message):
        run(body, words=words)


UNKNOWN = [
    "wgmma.mma_async.sync %r1, %r2;",
    "shfl.sync.up.b32 %r2, %r1, 1, 31, -1;",
    "redux.sync.min.s32 %r2, %r1, -1;",
    "add.sat.s32 %r2, %r1, %r1;",
    "cvt.rz.f32.f64 %r2, %rd1;",
]


@pytest.mark.parametrize("code", UNKNOWN)
def test_an_instruction_that_is_not_known_is_named(code: str):
    with pytest.raises(NotImplementedError, match=re.escape(code.split(".")[0])):
        kernel(code)


def test_a_load_that_extends_signs_is_refused():
    with pytest.raises(NotImplementedError, match="extends signs"):
        kernel("ld.global.s8 { %rs1 }, [ %rd1 + 0 ];")
