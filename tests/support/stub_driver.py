"""A driver for Triton without a GPU: kernels are compiled for a GPU, and their launches are listed instead of run.

Everything else is Triton's own code, so that programs can count launches and the Python time that they take. A program
that calls :func:`install` must do so before its first launch, and must not set TRITON_INTERPRET.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.backends.nvidia.driver as nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}


def install() -> list[tuple[str, tuple[Any, ...]]]:
    """Make the stub Triton's driver, and let the Triton backend accept CPU tensors.

    Returns:
        A list to which each launch adds the name and hash of its kernel and the values that would be passed to the
        GPU, among them a tuple for each hardware tensor descriptor.
    """
    from fastkan_kernels.backends import registry

    stub = StubDriver()
    driver.set_active(stub)
    registry.BACKENDS["triton"] = registry.BACKENDS["triton"]._replace(unable=lambda device: None)
    return stub.launched


def run_compiling(script: str, *arguments: str, cache: Path | None = None) -> str:
    """Run a script in a process in which Triton compiles kernels, and return the output.

    Args:
        script: Python code, which can import this module as ``stub_driver``.
        arguments: arguments of the script.
        cache: folder of Triton's cache (default: the user's).

    Raises:
        AssertionError: if the script fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = (ROOT, ROOT / "kernels", ROOT / "tests" / "support")
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    environment |= {} if cache is None else {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _tensor_map(*arguments: Any) -> tuple[Any, ...]:
    return ("tensor map", *arguments)


class StubDriver:
    """A driver for a GPU that does not exist, with the given compute capability, such as 90 for 9.0.

    The number of the device depends on the capability, because Triton caches the target of each device.
    """

    def __init__(self, capability: int = 90) -> None:
        self.capability = capability
        self.launched: list[tuple[str, tuple[Any, ...]]] = []
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (1, 1, 128, 0, 1024),
            get_device_properties=lambda device: PROPERTIES,
            fill_tma_descriptor=_tensor_map,  # Triton 3.6
            fill_tma_descriptor_tiled=_tensor_map,
            unload_module=lambda module: None,
        )

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        newer = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)

        def launch(*given: Any) -> None:
            arguments = given[-1] if newer else given[13:]
            self.launched.append((f"{metadata.name} {metadata.hash}", tuple(arguments)))

        expand = nvidia.wrap_handle_tensordesc(launch, dict(src.signature), getattr(metadata, "tensordesc_meta", None))

        def run(*given: Any) -> None:
            (*place, packed, about, enter, leave), arguments = given[:9], given[9:]
            if enter is not None:
                enter(about)
            options = (False, False, None, None)  # cooperative, dependent, and two buffers in global memory
            if newer:
                expand(*place, *options, arguments)
            else:
                expand(*place, *options, packed, about, enter, leave, *arguments)
            if leave is not None:
                leave(about)

        return run

    def get_current_device(self) -> int:
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")
