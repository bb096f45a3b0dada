"""Registers overwritten in flight: the check reads machine code rightly, finds them all, and confuses none."""

from __future__ import annotations

import pytest
from listing import LOOP, program

from bench.codegen import flow, hazard, registers, sass

# -- machine code, parsed ---------------------------------------------------------------------------

PRINTED = """\
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
//--------------------- .text.kernel         --------------------------
\t.section\t.text.kernel,"ax",@progbits
        .global         kernel
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P3 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x18000], R165 ;
        /*0030*/                   HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR36].tnspB, R24, gsb0 ;
        /*0040*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64+0x10] ;
.L_x_1:
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
"""


def test_what_nvdisasm_prints_is_read() -> None:
    program = sass.parse(PRINTED)
    assert [str(instruction) for instruction in program.instructions] == [
        "LDC R1, c[0x0][0x28]",
        "@P3 BRA `(.L_x_1)",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x18000], R165",
        "HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR36].tnspB, R24, gsb0",
        "@!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64+0x10]",
        "EXIT",
        "BRA `(.L_x_2)",
    ]
    assert [instruction.address for instruction in program.instructions] == list(range(0, 0x70, 16))
    assert {".L_x_0": 2, ".L_x_1": 5, ".L_x_2": 6}.items() <= program.labels.items()
    with pytest.raises(ValueError, match="no instruction"):
        sass.parse("nvdisasm fatal : no such file")


@pytest.mark.parametrize(
    ("instruction", "first", "width"),
    [
        ("FFMA R7, R1.reuse, R2, R3", 7, 1),
        ("MOV R255, 0x1", 255, 1),
        ("MOV RZ, R4", 0, 0),
        ("CS2R R24, SRZ", 24, 2),
        ("CS2R.32 R24, SR_CLOCKLO", 24, 1),
        ("IMAD.WIDE.U32 R8, R2, 0x4, R10", 8, 2),
        ("IADD3 R5, P0, R2, R3, RZ", 5, 1),
        ("LOP3.LUT P0, R5, R2, 0x1, RZ, 0xc0, !PT", 5, 1),
        ("SHFL.BFLY PT, R6, R2, 0x1, 0x1f", 6, 1),
        ("ATOMG.E.EXCH.STRONG.GPU PT, R6, [R2], R5", 6, 1),
        ("LDG.E.64.CONSTANT R4, desc[UR4][R2.64]", 4, 2),
        ("LDS.128 R4, [R9+0x40]", 4, 4),
        ("LDS.U16 R4, [R9]", 4, 1),
        ("LDSM.16.M88.4 R12, [R20]", 12, 4),
        ("LDSM.16.MT88.2 R12, [R20]", 12, 2),
        ("LDSM.16.M88 R12, [R20]", 12, 1),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 4, 4),
        ("HMMA.16816.F16 R4, R8, R12, R4", 4, 2),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 4, 4),
        ("DMMA.884 R4, R8, R12, R4", 4, 4),
        ("DFMA R4, R8, R12, R4", 4, 2),
        ("F2F.F64.F32 R4, R8", 4, 2),
        ("F2F.F32.F64 R4, R8", 4, 1),
        ("F2FP.BF16.F32.PACK_AB R4, R8, R9", 4, 1),
        ("HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8].tnspB, R24", 24, 128),
        ("HGMMA.64x64x16.F16 R24, gdesc[UR8], R24, gsb0", 24, 16),
        ("R2UR UR4, R152", 0, 0),
        ("R2UR.OR P0, UR4, R152", 0, 0),
        ("ISETP.GE.AND P0, PT, R152, R3, PT", 0, 0),
        ("FSETP.GT.AND P1, PT, R152, RZ, PT", 0, 0),
        ("STG.E.128 desc[UR4][R2.64], R152", 0, 0),
        ("STS.128 [R152], R4", 0, 0),
        ("LDGSTS.E.BYPASS.128 [R152], desc[UR4][R2.64], P0", 0, 0),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R152", 0, 0),
        ("BAR.SYNC.DEFER_BLOCKING R152, 0x80", 0, 0),
        ("UMOV UR152, 0x1", 0, 0),
    ],
)
def test_what_an_instruction_writes(instruction: str, first: int, width: int) -> None:
    [found] = program(instruction).instructions
    assert list(registers.written(found)) == list(range(first, first + width))


# -- registers overwritten in flight ----------------------------------------------------------------

WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x{}"


def found(text: str) -> list[tuple[str, str]]:
    return [(str(each.writer), each.operand) for each in hazard.hazards(program(text))]


@pytest.mark.parametrize(
    "writer",
    [
        "FMUL R152, R1, R2",
        "FMUL R155, R1, R2",
        "@P1 FMUL R153, R1, R2",
        "CS2R R151, SRZ",  # a pair, of which the second
        "LDS.128 R149, [R4]",
        "LDSM.16.M88.4 R150, [R4]",
        "IMAD.WIDE R154, R1, R2, R4",
        "SHFL.IDX PT, R154, R1, R2, 0x1f",
        "HGMMA.64x16x16.F32 R148, gdesc[UR8], R148",
    ],
)
def test_an_operand_overwritten_by_the_next_iteration_is_found(writer: str) -> None:
    assert (writer, "A") in found(LOOP.format(before=writer, after=""))
    assert (writer, "A") in found(LOOP.format(before=writer, after=WAIT.format(1)))  # the newest is still in flight
    assert (writer, "A") in found(LOOP.format(before="", after=writer))
    assert found(LOOP.format(before=writer, after=WAIT.format(0))) == []


@pytest.mark.parametrize(
    "other",
    [
        "FMUL R156, R152, R153",
        "FMUL R23, R152, R153",
        "CS2R R156, SRZ",
        "LDS.128 R156, [R152]",
        "R2UR UR4, R152",
        "STS.128 [R1], R152",
        "ISETP.GE.AND P1, PT, R152, R153, PT",
        "UMOV UR24, 0x1",
    ],
)
def test_other_registers_and_mere_readers_are_not_confused(other: str) -> None:
    assert found(LOOP.format(before=other, after=other)) == []


def test_a_product_from_shared_memory_has_no_operand_to_overwrite() -> None:
    text = LOOP.format(before="FMUL R152, R1, R2", after="").replace("R152, gdesc", "gdesc")
    assert found(text) == []


def test_an_accumulator_overwritten_in_flight_is_found() -> None:
    assert found(LOOP.format(before="FMUL R151, R1, R2", after="")) == [("FMUL R151, R1, R2", "accumulator")]
    assert found(LOOP.format(before="FMUL R151, R1, R2", after=WAIT.format(0))) == []


TWO_GROUPS = """
    HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
    HGMMA.64x64x16.F32.BF16 R24, R156, gdesc[UR8], R24
    HGMMA.64x64x16.F32.BF16 R24, R160, gdesc[UR8], R24, gsb0
    {wait}
    FMUL R{register}, R1, R2
    EXIT
"""


@pytest.mark.parametrize(("register", "pending", "safe"), [
    (152, 2, False), (152, 1, True), (152, 0, True),
    (156, 2, False), (156, 1, False), (156, 0, True),
    (160, 1, False), (160, 0, True),
])  # fmt: skip
def test_a_wait_covers_the_older_groups_alone(register: int, pending: int, safe: bool) -> None:
    assert (found(TWO_GROUPS.format(wait=WAIT.format(pending), register=register)) == []) == safe


def test_a_wait_covers_no_product_that_is_not_committed() -> None:
    text = "HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24\n" + WAIT.format(0) + "\nFMUL R152, R1, R2\nEXIT"
    assert found(text) == [("FMUL R152, R1, R2", "A")]


@pytest.mark.parametrize(("guards", "safe"), [(("", ""), True), (("@P0 ", ""), False), (("", "@P1 "), False)])
def test_a_wait_that_may_be_left_out_is_none(guards: tuple[str, str], safe: bool) -> None:
    jump = f"{guards[0]}BRA `(.L_x_1)" if guards[0] else "NOP"
    text = f"""
        HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
        {jump}
        {guards[1]}WARPGROUP.DEPBAR.LE gsb0, 0x0
        .L_x_1:
        FMUL R152, R1, R2
        EXIT
    """
    assert (found(text) == []) == safe


def test_a_loop_in_a_loop_carries_products_along() -> None:
    """The inner loop waits for all but its last group, which the outer loop's next round overwrites."""
    text = """
        .L_x_0:
        FMUL R156, R1, R2
        .L_x_1:
        FMUL R152, R1, R2
        HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        HGMMA.64x64x16.F32.BF16 R24, R156, gdesc[UR8], R24, gsb0
        @P0 BRA `(.L_x_1)
        {after}
        @P1 BRA `(.L_x_0)
        EXIT
    """
    assert found(text.format(after="NOP")) == [("FMUL R156, R1, R2", "A")]
    assert found(text.format(after=WAIT.format(0))) == []


def test_a_function_called_in_flight_is_looked_into() -> None:
    text = """
        HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
        CALL.REL.NOINC `($__internal_0_$__reciprocal)
        EXIT
        $__internal_0_$__reciprocal:
        MUFU.RCP R{register}, R1
        RET.REL.NODEC R4 `(kernel)
    """
    assert found(text.format(register=152)) == [("CALL.REL.NOINC `($__internal_0_$__reciprocal)", "A")]
    assert found(text.format(register=160)) == []


def test_what_cannot_be_followed_is_not_passed() -> None:
    text = "HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0\nBRX R4 -0x10\nEXIT"
    with pytest.raises(ValueError, match="can't be followed"):
        hazard.hazards(program(text))


def test_a_barrier_that_is_used_again_leads_into_no_loop() -> None:
    """Threads that part before a loop meet before it, though inside it the same barrier serves again."""
    code = program(
        """
        BSSY B0, `(.L_x_1)
        @P1 BRA `(.L_x_0)
        MOV R3, R4
    .L_x_0:
        BSYNC B0
    .L_x_1:
        MOV R5, R6
    .L_x_2:
        BSSY B0, `(.L_x_4)
        @P2 BRA `(.L_x_3)
        MOV R7, R8
    .L_x_3:
        BSYNC B0
    .L_x_4:
        HMMA.16816.F32.BF16 R8, R12, R16, R8
        @P0 BRA `(.L_x_2)
        EXIT
        """
    )
    before, inside = (place for place, each in enumerate(code.instructions) if each.name == "BSYNC")
    assert set(flow.successors(code)[before]) == {code.labels[".L_x_1"]}
    assert set(flow.successors(code)[inside]) == {code.labels[".L_x_4"]}
    (loop,) = flow.loops(code)
    assert min(loop.places) == code.labels[".L_x_2"]
    assert len(loop.places) == 6
