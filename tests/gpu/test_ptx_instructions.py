"""Tests of the PTX interpreter: the results of instructions, and the detection of faults and races."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import torch
from ptx.instructions import Program
from ptx.kernel import parse
from ptx.machine import CTA, LATE, Deadlock
from ptx.memory import Fault, Global, TensorMap, shared_wavefronts
from ptx.races import GlobalShadow, Race

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0)
.reqntid {threads}
{{
 .reg .pred %p<8>; .reg .b16 %rs<16>; .reg .b32 %r<32>; .reg .b64 %rd<16>;
 ld.param.b64 %rd1, [kernel_param_0];
 mov.u32 %r1, %tid.x;
 mad.wide.u32 %rd2, %r1, 32, %rd1;
 ld.global.v2.b32 {{%r2, %r3}}, [%rd2];
 ld.global.b64 %rd3, [%rd2+8];
{body}
 ret;
}}
"""


def execute(body: str, inputs: np.ndarray, threads: int = 32, races: bool = False, shared: int = 1024) -> np.ndarray:
    """Run instructions with memory for each thread: two 32-bit inputs, a 64-bit input, and 16 bytes for results."""
    program = Program(parse(HEAD.format(threads=threads, body=body)))
    memory = Global(1 << 16)
    raw = np.zeros((threads, 32), np.uint8)
    raw[:, : inputs.shape[1]] = inputs
    address = memory.put(raw.reshape(-1))
    cta = CTA(program, {"kernel_param_0": address}, {}, memory, shared, LATE, random.Random(0))
    cta.global_shadow = GlobalShadow(memory) if races else None
    with np.errstate(all="ignore"):
        cta.start((0, 0, 0), (1, 1, 1), 0)
        cta.run()
    return memory.get(address, raw.size).reshape(threads, 32)[:, 16:]


def words(low: int, high: int = 0, wide: int = 0) -> np.ndarray:
    return np.frombuffer(struct.pack("<IIQ", low, high, wide) * 32, np.uint8).reshape(32, 16)


def bits(number: float) -> int:
    return int.from_bytes(struct.pack("<f", number), "little")


def result(instruction: str, low: int, high: int = 0) -> int:
    """Return the value that an instruction writes to ``%r4``."""
    found = execute(f" {instruction}\n st.global.b32 [%rd2+16], %r4;", words(low, high))
    return int(found[:, :4].copy().view(np.uint32)[0, 0])


INTEGERS = [
    ("add.s32 %r4, %r2, %r3;", 0xFFFFFFFF, 2, 1),
    ("sub.s32 %r4, %r2, 5;", 3, 0, 0xFFFFFFFE),
    ("mul.hi.u32 %r4, %r2, %r3;", 0x80000000, 6, 3),
    ("mul.hi.s32 %r4, %r2, %r3;", 0x80000000, 6, 0xFFFFFFFD),
    ("mad.lo.s32 %r4, %r2, %r3, 7;", 5, 0xFFFFFFFF, 2),
    ("div.s32 %r4, %r2, %r3;", 0xFFFFFFF9, 2, 0xFFFFFFFD),
    ("rem.s32 %r4, %r2, %r3;", 0xFFFFFFF9, 2, 0xFFFFFFFF),
    ("min.s32 %r4, %r2, %r3;", 0xFFFFFFFF, 2, 0xFFFFFFFF),
    ("shl.b32 %r4, %r2, 4;", 0x12345678, 0, 0x23456780),
    ("shl.b32 %r4, %r2, %r3;", 1, 40, 0),
    ("shr.s32 %r4, %r2, %r3;", 0x80000000, 40, 0xFFFFFFFF),
    ("shr.u32 %r4, %r2, 31;", 0x80000000, 0, 1),
    ("bfe.u32 %r4, %r2, 4, 8;", 0x12345678, 0, 0x67),
    ("bfe.s32 %r4, %r2, 4, 4;", 0x000000F0, 0, 0xFFFFFFFF),
    ("prmt.b32 %r4, %r2, %r3, 0x5140;", 0x33221100, 0x77665544, 0x55114400),
    ("prmt.b32 %r4, %r2, %r3, 0x8888;", 0x00000080, 0, 0xFFFFFFFF),
    ("selp.b32 %r4, %r2, %r3, %p0;", 1, 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "low", "high", "want"), INTEGERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_integers(instruction: str, low: int, high: int, want: int) -> None:
    assert result(" setp.lt.s32 %p0, 5, 3; " + instruction, low, high) == want


FLOATS = [
    ("fma.rn.f32 %r4, %r2, %r3, 0fBF800000;", 1 + 2.0**-12, 1 - 2.0**-12, -(2.0**-24)),
    ("max.f32 %r4, %r2, %r3;", float("nan"), 2.0, 2.0),
    ("max.NaN.f32 %r4, %r2, %r3;", float("nan"), 2.0, float("nan")),
    ("div.rn.f32 %r4, %r2, %r3;", 1.0, 3.0, np.float32(1) / np.float32(3)),
    ("cvt.sat.f32.f32 %r4, %r2;", float("nan"), 0.0, 0.0),
    ("cvt.sat.f32.f32 %r4, %r2;", 1.5, 0.0, 1.0),
    ("cvt.rmi.f32.f32 %r4, %r2;", -1.5, 0.0, -2.0),
    ("cvt.rni.f32.f32 %r4, %r2;", 2.5, 0.0, 2.0),
    ("cvt.rna.tf32.f32 %r4, %r2;", 1 + 2.0**-11, 0.0, 1 + 2.0**-10),
    ("ex2.approx.f32 %r4, %r2;", -3.0, 0.0, 0.125),
]


@pytest.mark.parametrize(("instruction", "low", "high", "want"), FLOATS, ids=lambda v: v if isinstance(v, str) else "")
def test_floats(instruction: str, low: float, high: float, want: float) -> None:
    found = struct.unpack("<f", struct.pack("<I", result(instruction, bits(low), bits(high))))[0]
    np.testing.assert_equal(found, np.float32(want))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pairs_are_rounded_as_pytorch_rounds(dtype: torch.dtype) -> None:
    name = {torch.bfloat16: "bf16x2", torch.float16: "f16x2"}[dtype]
    for low, high in ((1.00390625, 3.0e-39), (1.01171875, -65519.0), (float("inf"), 0.1)):
        want = torch.tensor([low, high], dtype=torch.float32).to(dtype).view(torch.int16).numpy().view(np.uint16)
        found = result(f"cvt.rn.{name}.f32 %r4, %r3, %r2;", bits(low), bits(high))
        assert [found & 0xFFFF, found >> 16] == want.tolist()


@pytest.mark.parametrize(
    ("value", "want"), [("-1.5", 0xFFFFFFFE), ("3e9", 0x7FFFFFFF), ("nan", 0)], ids=["floor", "clamp", "nan"]
)
def test_integers_from_floats(value: str, want: int) -> None:
    assert result("cvt.rmi.s32.f32 %r4, %r2;", bits(float(value))) == want


@pytest.mark.parametrize(("mode", "amount", "source"), [("bfly", 5, 3 ^ 5), ("idx", 9, 9)])
def test_shuffles(mode: str, amount: int, source: int) -> None:
    body = f" shfl.sync.{mode}.b32 %r4, %r1, {amount}, 31, -1;\n st.global.b32 [%rd2+16], %r4;"
    assert execute(body, words(0))[3, 0] == source


def test_masked_threads_keep_their_registers() -> None:
    body = " mov.b32 %r4, 7; setp.lt.u32 %p1, %r1, 4; @%p1 add.s32 %r4, %r4, 1; st.global.b32 [%rd2+16], %r4;"
    assert execute(body, words(0))[:, 0].tolist() == [8] * 4 + [7] * 28


# -- faults ------------------------------------------------------------------------------------------

SHARED = " mov.b32 %r10, global_smem; shl.b32 %r11, %r1, 2; add.s32 %r12, %r10, %r11; sub.s32 %r13, %r12, 128;\n"
WRITE, READ = " st.shared.b32 [%r12], %r1;", " ld.shared.b32 %r4, [%r12+{offset}];"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (" ld.global.b32 %r4, [%rd1+4096];", "outside of all tensors"),
        (" ld.global.b32 %r4, [%rd1+2];", "misaligned"),
        (SHARED + " ld.shared.b32 %r4, [%r12+1024];", "of the 1024 bytes of shared memory"),
        (SHARED + " ld.shared.v4.b32 {%r4,%r5,%r6,%r7}, [%r12];", "misaligned"),
        (" setp.lt.u32 %p1, %r1, 4; @%p1 bra $L__end;\n$L__end:", "threads of a warp differ"),
        (SHARED + " mbarrier.inval.shared::cta.b64 [%r10];", "there is no mbarrier"),
        (" cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r1, %r1}], [%r1];",
         "without a tensor map"),
    ],
    ids=str,
)  # fmt: skip
def test_faults(body: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        execute(body, words(0))


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(Fault, match=r"cannot decode 'tex\.2d %r4, %r2'"):
        execute(" tex.2d %r4, %r2;", words(0))


def test_a_wait_for_nothing_is_a_deadlock() -> None:
    body = (
        SHARED
        + " setp.eq.b32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r10], 1;\n"
        + "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%r10], 0; @!done bra.uni again; }"
    )
    with pytest.raises(Deadlock, match=r"warp 0 at an mbarrier: mbarrier\.try_wait"):
        execute(body, words(0))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (WRITE + " bar.sync 0;" + READ.format(offset=0), None),
        (WRITE + READ.format(offset=0), None),  # a thread reads what it has written
        (READ.format(offset=0), "reads memory that nothing has written"),
        (WRITE + " st.shared.b32 [%r12+128], %r1;", "writes what warp"),
        (WRITE + " bar.sync 0; ld.shared.b32 %r4, [%r10]; bar.sync 0; st.shared.b32 [%r10], %r4;", None),
        (WRITE + " bar.sync 0; ld.shared.b32 %r4, [%r10+128]; st.shared.b32 [%r12], %r4;", "writes what warp . reads"),
    ],
    ids=["barrier", "own", "unwritten", "two writes", "read, barrier, write", "read, write"],
)  # fmt: skip
def test_races(body: str, what: str | None) -> None:
    raw = np.repeat(words(0), 2, 0)
    if what is None:
        execute(SHARED + body, raw, 64, races=True)
    else:
        with pytest.raises(Race, match=what):
            execute(SHARED + body, raw, 64, races=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"address": 8}, "not a multiple of 16"),
        ({"strides": [6, 1]}, "strides"),
        ({"strides": [16, 2]}, "last stride"),
        ({"box": [300, 8]}, "box"),
        ({"box": [8, 4]}, "box"),
        ({"box": [8, 128]}, "wide"),
    ],
    ids=str,
)
def test_tensor_maps_that_the_driver_refuses(change: dict, reason: str) -> None:
    given = {"address": 1 << 20, "shape": [64, 128], "strides": [128, 1], "box": [8, 64], "element": 2, "swizzle": 3}
    TensorMap(**given)
    with pytest.raises(Fault, match=reason):
        TensorMap(**{**given, **change})


def test_wavefronts_count_conflicts_of_banks() -> None:
    lanes, warp = np.arange(32), np.zeros(32, int)
    assert shared_wavefronts(4 * lanes, 4, warp) == 1
    assert shared_wavefronts(0 * lanes, 4, warp) == 1  # all threads read one word
    assert shared_wavefronts(128 * lanes, 4, warp) == 32
    assert shared_wavefronts(16 * lanes, 16, warp) == 4
    assert shared_wavefronts(128 * lanes, 16, warp) == 32


def test_an_address_of_32_bits_wraps_around() -> None:
    body = SHARED + WRITE + " sub.s32 %r14, %r11, 8192; ld.shared.b32 %r4, [%r14+9216]; st.global.b32 [%rd2+16], %r4;"
    assert execute(body, words(0))[:, 0].tolist() == list(range(32))  # shared memory begins at 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("mul", torch.mul), ("add", torch.add), ("sub", torch.sub), ("max", torch.maximum), ("min", torch.minimum),
        ("fma.rn", lambda a, b: (a.double() * b.double() + a.double()).to(a.dtype)), ("neg", lambda a, b: -a),
    ],
)  # fmt: skip
def test_pairs_of_16_bits_are_computed_as_pytorch_computes_them(instruction, function, dtype) -> None:
    """A pair in one register is two numbers, and not an integer."""
    a, b = (torch.tensor(pair, dtype=dtype) for pair in ([1.7, -3.25], [0.3, -100.0]))
    low, high = (int(pair.view(torch.int32)) & 0xFFFFFFFF for pair in (a, b))
    kind = "bf16x2" if dtype == torch.bfloat16 else "f16x2"
    sources = {"neg": "%r2", "fma.rn": "%r2, %r3, %r2"}.get(instruction, "%r2, %r3")
    found = result(f"{instruction}.{kind} %r4, {sources};", low, high)
    want = function(a, b)
    assert found == int(want.view(torch.int32)) & 0xFFFFFFFF
