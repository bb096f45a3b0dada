"""The checks of compiled kernels: each finds its fault and passes right code, and the kernels pass all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from listing import LOOP, printed, program

pytest.importorskip("rich")

from bench.codegen import flow, hazard, judge, sass
from bench.codegen.compile import Compiled

ROOT = Path(__file__).resolve().parents[2]

compiles = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not find_spec("triton"), reason="needs Linux and triton to compile kernels"
)

# -- PTX and ptxas's log ----------------------------------------------------------------------------

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 242 registers, used 1 barriers
"""
SERIALISED = (
    "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    "non wgmma instructions defining accumulator registers in the function 'kernel'\n"
)
PLAIN_LOG = LOG.format(stack=0, stores=0)


@pytest.mark.parametrize(
    "operation", ["max.f32", "min.f32", "max.ftz.f32", "max.f64", "min.f16x2", "max.xorsign.abs.f32"]
)
def test_a_lost_nan_is_found(operation: str) -> None:
    assert judge.lost_nan(f"\t{operation} \t%r1, %r2, %r3;") == [operation]
    assert judge.lost_nan("{ .reg .b32 a; " + operation + " $0, $1, $2; }") == [operation]


@pytest.mark.parametrize(
    "line",
    [
        "max.NaN.f32 %r1, %r2, %r3;",
        "min.NaN.bf16x2 %r1, %r2, %r3;",
        "min.s32 %r1, %r2, %r3;",
        "max.u64 %rd1, %rd2, %rd3;",
        "atom.global.max.f32 %r1, [%rd1], %r2;",
        "// max.f32 %r1, %r2, %r3;",
        "cvt.sat.f32.f32 %r1, %r2;",
    ],
)
def test_a_nan_that_stays_is_not_flagged(line: str) -> None:
    assert judge.lost_nan(f"\t{line}\n") == []


# -- products ---------------------------------------------------------------------------------------

DOT = (
    "%acc = tt.dot %a, %w, %y, inputPrecision = {precision} : "
    "tensor<128x32x{dtype}> * tensor<32x256x{dtype}> -> tensor<128x256xf32> loc(#loc3)\n"
)


def test_products_are_read() -> None:
    assert judge.dots(DOT.format(precision="tf32x3", dtype="f32")) == [(128, 256, 32, "f32", "tf32x3")]
    without = DOT.format(precision="ieee", dtype="f64").replace(", inputPrecision = ieee", "")
    assert judge.dots(without) == [(128, 256, 32, "f64", "ieee")]
    gluon = (
        "%acc = ttng.warp_group_dot %a, %w, %y : tensor<128x32xbf16, #dot> * !ttg.memdesc<32x256xbf16, #s> -> tensor"
    )
    assert judge.dots(gluon) == [(128, 256, 32, "bf16", "ieee")]
    with pytest.raises(ValueError, match="unknown form"):
        judge.dots("%acc = tt.dot %a : tensor<2x16x16xf32> * tensor<2x16x16xf32> -> tensor<2x16x16xf32>")


def counted(text: str) -> judge.Inner | None:
    code = program(text)
    graph = flow.graph_of(code)
    loop = judge.inner_loop(code, graph)
    return None if loop is None else judge.counted(code, graph, loop)


def test_the_inner_loop_is_the_deepest_with_products() -> None:
    """A loop that waits for a barrier does not count, nor an outer loop with more products."""
    text = """
        .L_x_0:
        HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24
        HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
        HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
        @P0 BRA `(.L_x_0)
        .L_x_1:
        MOV R1, R2
        .L_x_2:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR5], R3
        @!P1 BRA `(.L_x_4)
        .L_x_3:
        FMUL R152, R1, R2
        HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8], R24
        HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
        @P0 BRA `(.L_x_2)
        @P2 BRA `(.L_x_1)
        EXIT
        .L_x_4:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR5], R3
        @!P1 BRA `(.L_x_4)
        BRA `(.L_x_3)
    """
    inner = counted(text)
    assert inner is not None
    assert (inner.wgmma_registers, inner.wgmma_shared, inner.mma) == (2, 0, 0)
    assert inner.instructions == 6  # without the loop that waits
    assert (inner.stores, inner.loads, inner.barriers, inner.waits, inner.copies) == (0, 0, 0, 0, 1)
    assert counted("FMUL R1, R2, R3\nEXIT") is None


def test_traffic_barriers_and_waits_of_a_round_are_counted() -> None:
    inner = counted(
        """
        .L_x_0:
        STS.128 [R1], R4
        BAR.SYNC.DEFER_BLOCKING 0x0
        LDSM.16.M88.4 R152, [R20]
        LDS.U16 R4, [R9]
        LDGDEPBAR
        DEPBAR.LE SB0, 0x1
        HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        @P0 BRA `(.L_x_0)
        EXIT
        """
    )
    assert inner is not None
    assert (inner.stores, inner.loads, inner.barriers, inner.waits, inner.copies) == (1, 2, 1, 1, 1)


@pytest.mark.parametrize(("where", "late"), [("while", 0), ("after", 2), ("before", 2)])
def test_features_that_are_made_when_nothing_runs(where: str, late: int) -> None:
    """ptxas may put the wait first, though in PTX it comes last."""
    made = "F2FP.BF16.F32.PACK_AB R152, R1, R2\nF2FP.BF16.F32.PACK_AB R153, R3, R4"
    text = f"""
        .L_x_0:
        {made if where == "before" else ""}
        HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8], R24
        HGMMA.64x256x16.F32.BF16 R24, R156, gdesc[UR8], R24, gsb0
        {made if where == "while" else ""}
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        {made if where == "after" else ""}
        @P0 BRA `(.L_x_0)
        EXIT
    """
    (loop,) = flow.loops(flow.graph_of(program(text)))
    assert judge.made_late(program(text), loop) == late


def test_a_round_may_be_several_iterations() -> None:
    asked = judge.dots(DOT.format(precision="tf32", dtype="bf16"))
    inner = counted(WGMMA)
    assert inner is not None
    once = inner._replace(warp_macs=2 * 16 * 256 * 16)  # of 8 warps, 16 rows each, in two steps of 16
    assert judge.unrolled(once, asked, 128 * 32, 8) == 1
    assert judge.unrolled(once._replace(warp_macs=2 * once.warp_macs), asked, 128 * 32, 8) == 2


# -- verdicts ---------------------------------------------------------------------------------------

WGMMA = """
    .L_x_0:
    HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
    @P0 BRA `(.L_x_0)
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    EXIT
"""
MMA = """
    .L_x_0:
    HMMA.16816.F32.BF16 R4, R8, R12, R4
    @P0 BRA `(.L_x_0)
    EXIT
"""
HALF, EXACT, DOUBLE = (DOT.format(precision="ieee", dtype=dtype) for dtype in ("bf16", "f32", "f64"))


def checks(
    code: str = WGMMA,
    ttir: str = HALF,
    capability: int = 90,
    ptx: str = "",
    log: str = PLAIN_LOG,
    shared: int = 0,
    **claims: Any,
) -> set[str]:
    """Return the names of the checks that fail."""
    verdict = judge.judged(build(capability, **claims), Compiled(ttir, ptx, printed(code), log, shared))
    assert (verdict.registers, verdict.passed) == (242, not verdict.failures)
    return {failure.check for failure in verdict.failures}


def build(capability: int = 90, **claims: Any) -> Any:
    launch = SimpleNamespace(kernel=SimpleNamespace(__name__="kernel"), warps=8)
    claims = {"elements": 0, "tensor_cores": False, "overlaps": False, "keeps_nan": False, **claims}
    return SimpleNamespace(name="one", launch=launch, capability=capability, **claims)


def test_code_without_fault_passes() -> None:
    assert checks(tensor_cores=True, overlaps=True, keeps_nan=True, shared=227 * 1024) == set()
    assert checks(MMA, capability=80, tensor_cores=True, overlaps=True, keeps_nan=True, shared=163 * 1024) == set()


def test_each_fault_is_named() -> None:
    assert checks(LOOP.format(before="FMUL R152, R1, R2", after="")) == {"hazard"}
    assert checks(log=LOG.format(stack=8, stores=0)) == {"spills"}
    assert checks(log=LOG.format(stack=0, stores=4)) == {"spills"}
    assert checks(WGMMA.replace("EXIT", "STL.64 [R1], R4\nEXIT")) == {"spills"}
    assert checks(shared=227 * 1024 + 1) == {"shared memory"}
    assert checks(capability=80, shared=163 * 1024 + 1) == {"shared memory"}
    assert checks(ptx="\tmax.f32 %r1, %r2, %r3;", keeps_nan=True) == {"NaN"}
    assert checks(ptx="\tmax.f32 %r1, %r2, %r3;") == set()
    assert checks(log=SERIALISED + PLAIN_LOG, overlaps=True) == {"serialised"}
    assert checks(log=SERIALISED + PLAIN_LOG.replace("ptxas", "ptxas-blackwell")) == set()
    with pytest.raises(ValueError, match="did not tell"):
        checks(log="ptxas fatal : nothing")


@pytest.mark.parametrize(
    ("code", "ttir", "capability", "safe"),
    [
        (WGMMA, HALF, 90, True),
        (MMA, HALF, 90, False),
        (MMA + WGMMA.replace("_0", "_1").replace("EXIT", MMA.replace("_0", "_2")), HALF, 90, False),  # both
        (MMA, HALF.replace("128x", "16x"), 90, True),  # too few rows for a warp group
        (MMA, HALF, 80, True),
        ("FFMA R4, R8, R12, R4\nEXIT", HALF, 80, False),
        ("FFMA R4, R8, R12, R4\nEXIT", EXACT, 90, False),
        ("DFMA R4, R8, R12, R4\nEXIT", DOUBLE, 90, True),
        (WGMMA, "", 90, False),
    ],
)
def test_tensor_cores_are_asked_for_where_they_can_be(code: str, ttir: str, capability: int, safe: bool) -> None:
    assert checks(code, ttir, capability, tensor_cores=True) == (set() if safe else {"tensor cores"})
    assert checks(code, ttir, capability) == set()


def test_code_that_cannot_be_judged_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0\nBRX R4 -0x10\nEXIT"
    monkeypatch.setattr(judge, "compiled", lambda build: Compiled("", "", printed(code), PLAIN_LOG, 0))
    [failure] = judge.checked(build()).failures
    assert failure == ("unclear", "the jump BRX R4 -0x10 at 0x10 can't be followed")


# -- the command, on kernels ------------------------------------------------------------------------


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that does not interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return subprocess.run(
        [sys.executable, "-m", "bench.codegen", *options],
        env={**environment, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


@compiles
def test_kernels_that_are_wrong_on_purpose_fail(tmp_path: Path) -> None:
    process = command(
        "--builds", "bench.codegen.faults", "--json", f"{tmp_path}/faults.json", "--keep", f"{tmp_path}/keep",
        "--jobs", "1",
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    builds = json.loads((tmp_path / "faults.json").read_text())["builds"]
    failed = {build["name"]: build["failures"] for build in builds}
    assert failed["compile crashed"] == [{"check": "compile", "detail": "it crashed"}]
    if tuple(map(int, version("triton").split(".")[:2])) >= (3, 8):
        failed.pop("hazard")  # that Triton compiles the kernel rightly
    assert len(failed) >= 9
    for name, failures in failed.items():
        expected = set() if name.startswith("ok") else {name.removesuffix(" crashed").partition(" sm")[0]}
        assert {failure["check"] for failure in failures} == expected, (name, failures)
    assert "of 10 builds pass every check" in process.stdout
    assert "max.f32" in (tmp_path / "keep" / "NaN.ptx").read_text()


@compiles
def test_the_kernels_pass_every_check(tmp_path: Path) -> None:
    process = command("--sample", "--json", f"{tmp_path}/sample.json", "--markdown", f"{tmp_path}/sample.md")
    found = json.loads((tmp_path / "sample.json").read_text())
    failures = {build["name"]: build["failures"] for build in found["builds"] if build["failures"]}
    assert not failures
    assert process.returncode == 0, process.stderr
    assert {build["capability"] for build in found["builds"]} == {80, 90}
    assert 10 < len(found["builds"]) <= 30
    assert {"triton", "ptxas sm_80", "ptxas sm_90"} <= found["versions"].keys()
    assert f"{len(found['builds'])} of {len(found['builds'])} builds pass" in (tmp_path / "sample.md").read_text()


@compiles
def test_nothing_is_compiled_that_cannot_be_or_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from bench.codegen import __main__ as codegen

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert codegen.main([]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(codegen, "listed", lambda *module: [SimpleNamespace(name="F")])
    for options, said in (
        (["--only", "G", "H"], "no build is named like 'G' or 'H'"),
        (["--json", f"{tmp_path}/missing/file.json"], "there is no folder"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            codegen.main(options)
        assert said in capsys.readouterr().err


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
    assert list(found.written) == list(range(first, first + width))


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
    graph = flow.graph_of(code)
    before, inside = (place for place, each in enumerate(code.instructions) if each.name == "BSYNC")
    assert set(graph.successors(before)) == {code.labels[".L_x_1"]}
    assert set(graph.successors(inside)) == {code.labels[".L_x_4"]}
    (loop,) = flow.loops(graph)
    assert min(loop.places) == code.labels[".L_x_2"]
    assert len(loop.places) == 6
