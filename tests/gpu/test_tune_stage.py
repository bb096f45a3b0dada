"""Candidates are judged by their machine code before they are timed: ``python -m bench --gpu OUT --only tune``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import no_triton
from listing import LOOP, printed

pytest.importorskip("rich")

from bench.gpu import static, tune
from bench.gpu.clock import Clock
from bench.gpu.place import Place

ROOT = Path(__file__).resolve().parents[2]
PLACE = Place(torch.device("cpu"), "triton")
interpreted = pytest.mark.skipif(
    no_triton() is not None or os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


def kernel(name: str, shared: int = 0, spills: int = 0) -> SimpleNamespace:
    """As Triton has compiled one: ``name`` stands for its machine code."""
    return SimpleNamespace(asm={"cubin": name}, hash=name, metadata=SimpleNamespace(shared=shared), n_spills=spills)


CODE = {
    "hazard": LOOP.format(before="FMUL R152, R1, R2", after=""),
    "local": "STL.64 [R1], R4\nEXIT",
    "clean": "FMUL R1, R2, R3\nEXIT",
    "unclear": "BRX R2 -0x10\nEXIT",
}


@pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
def test_faults_are_read_off_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "disassemble", lambda cubin: printed(CODE[cubin]))
    monkeypatch.setattr(static, "_judged", {})

    def fault(*kernels: SimpleNamespace | None, capability: int = 90) -> str:
        return str(static.fault(kernels, capability, overlaps=False))

    assert fault(kernel("clean"), None) == "None"
    assert fault(kernel("clean"), kernel("hazard")).startswith("hazard: FMUL R152")
    assert fault(kernel("local")).startswith("spills: ")
    assert fault(kernel("clean", spills=2)) == "8 bytes of stack"
    assert "shared memory" in fault(kernel("clean", shared=1 << 20))
    assert fault(kernel("hazard"), capability=100) == "None"  # whose machine code can't be read
    monkeypatch.setattr(static.judge, "_hazards", lambda program: exec("raise ValueError('no way')"))
    assert fault(kernel("unclear")) == "unclear: no way"


@interpreted
def test_a_candidate_with_a_fault_is_not_timed() -> None:
    choice = next(c for c in tune.choices(rehearsal=True) if c.row.dtype == "highest" and c.contraction == "F")
    clock = Clock(PLACE)
    judged: tune.Judged = {}
    key, best, result = tune.tuned(choice, PLACE, clock, lambda: 60.0, judged)
    assert not result["dropped"]
    assert {config.way for _, config in judged} == {"fused", "chunked", "gather"}
    assert set(judged.values()) == {None}
    judged = {known: "hazard: one overwrites another" for known in judged if known[1].way != "gather"}
    again, best, result = tune.tuned(choice, PLACE, clock, lambda: 60.0, judged)
    assert again == key
    assert best.way == "gather"
    assert {entry["why"] for entry in result["dropped"]} == {"hazard: one overwrites another"}
    assert "the default hazard: one overwrites another" in result["failure"]


@interpreted
def test_a_later_run_keeps_what_an_earlier_one_has_tuned(tmp_path: Path) -> None:
    from fastkan_kernels.backends.triton import selection
    from fastkan_kernels.backends.triton.config import Config
    from fastkan_kernels.backends.triton.key import key

    path, metadata = tmp_path / tune.TABLE, selection.metadata(PLACE.device)
    assert tune._before(path, metadata) == {}
    o, basis, operands = tune._operands(tune.choices(rehearsal=True)[0], PLACE)
    from fastkan_kernels.backends.triton.problem import problem

    entries = {key(problem("F", o.x, o.knots, operands, basis, 0)): Config("chunked")}
    selection.write_table(path, entries, metadata)
    assert tune._before(path, metadata) == entries
    assert tune._before(path, {**metadata, "ptxas": "0"}) == {}


COMPILED = """
import json, sys, tempfile
from types import SimpleNamespace
from bench.codegen import compile, faults, ptx
compile.prepare(tempfile.mkdtemp())
from bench.gpu import static
kept = []
disassemble = compile.disassemble
compile.disassemble = lambda cubin: kept.append(cubin) or disassemble(cubin)
found = {}
for build in faults.sample():
    if build.name in ("hazard", "ok product sm90"):
        made = compile.compile_build(build)
        kernel = SimpleNamespace(asm={"cubin": kept[-1], "ptx": made.ptx}, hash=build.name, n_spills=0,
                                 metadata=SimpleNamespace(shared=made.shared))
        found[build.name] = static.fault([kernel], 90, overlaps=False)
        again = ptx.assembled(compile.assembler_log(made.ptx, 90))
        assert again == ptx.assembled(made.log), (again, made.log)
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not find_spec("triton"), reason="needs Linux and triton")
def test_compiled_kernels_are_judged() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok product sm90"] is None
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        assert found["hazard"].startswith("hazard: ")
