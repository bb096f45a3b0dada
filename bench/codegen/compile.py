"""Compile a kernel for a GPU that needn't be there, and disassemble it."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastkan_kernels.backends.triton.builds import Build


class Compiled(NamedTuple):
    """What became of a kernel."""

    ttir: str  # Triton's intermediate code, before any GPU is thought of; Gluon's begins with one
    ptx: str
    sass: str  # as nvdisasm prints it
    log: str  # of ptxas -v, from the run that made the machine code
    shared: int  # bytes of a block


def prepare(cache: str) -> None:
    """To be called once in a process, before Triton is imported: compile anew, into a folder of one's own."""
    os.environ["TRITON_CACHE_DIR"] = cache
    from triton import knobs

    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True


def compile_build(build: Build) -> Compiled:
    """Compile for the build's capability; :func:`prepare` must have been called.

    Raises:
        RuntimeError: if nvdisasm fails or ptxas's log isn't there; and whatever Triton raises.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    log = io.StringIO()
    with redirect_stdout(log):
        kernel = triton.compile(
            _source(build),
            target=GPUTarget("cuda", build.capability, 32),
            options={"num_warps": build.warps, "num_stages": build.stages},
        )
    if "ptxas" not in log.getvalue():
        raise RuntimeError("Triton did not print the log of ptxas")
    return Compiled(
        kernel.asm.get("ttir") or kernel.asm["ttgir"],
        kernel.asm["ptx"],
        disassemble(kernel.asm["cubin"]),
        log.getvalue(),
        kernel.metadata.shared,
    )


def disassemble(cubin: bytes) -> str:
    """The code sections, by the nvdisasm that Triton brings along.

    Raises:
        RuntimeError: if it fails.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        run = subprocess.run([knobs.nvidia.nvdisasm.path, "-c", str(path)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"nvdisasm failed: {run.stderr.strip()[:200]}")
    return run.stdout


def assembler_log(ptx: str, capability: int) -> str:
    """What ptxas says of PTX that Triton has made, by the flags that Triton gives it.

    Raises:
        RuntimeError: if it fails.
    """
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(capability).path, "-lineinfo", "-v", f"--gpu-name={sm_arch_from_capability(capability)}"]
        run = subprocess.run(
            [*command, str(path), "-o", str(path.with_suffix(".cubin"))], capture_output=True, text=True
        )
    if run.returncode:
        raise RuntimeError(f"ptxas failed: {run.stderr.strip()[:200]}")
    return run.stdout + run.stderr


def _source(build: Build) -> Any:
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    names = build.kernel.arg_names
    missing = [name for name in names if name not in build.signature]
    if missing:
        raise ValueError(f"the signature of {build.name} lacks {', '.join(missing)}")
    source = GluonASTSource if build.kernel.is_gluon() else ASTSource
    return source(
        fn=build.kernel,
        signature={name: build.signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in build.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.divisible},
    )
