"""Properties of the machine and settings of PyTorch and Triton on which the kernels depend."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

MIN_CAPABILITY = 80  # lowest compute capability with tensor cores for bfloat16 and tf32
# First version of Triton whose kernels are correct without tiles.await_product, if they are compiled by the ptxas that
# is shipped with Triton.
WGMMA_WAIT_UNNEEDED_SINCE = (3, 9)


# INSTALLED is computed at import, because torch.compile cannot trace find_spec.
try:
    INSTALLED = find_spec("triton") is not None
except (ImportError, ValueError):
    INSTALLED = False
# The values that turn the interpreter on are the values that Triton itself accepts.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def interpreter_failure(triton: str, numpy: str) -> str | None:
    """Return the reason why Triton's interpreter fails with a version of NumPy, or None if it works."""
    found = [tuple(int(part) for part in text.split(".")[:2]) for text in (triton, numpy)]
    if found[0] >= (3, 7) or found[1] < (2, 4):
        return None
    return f"the interpreter of Triton {triton} fails with NumPy {numpy}: install triton>=3.7 or numpy<2.4"


# INTERPRETER_FAILURE is computed at import, because torch.compile cannot trace the function version.
try:
    INTERPRETER_FAILURE = interpreter_failure(version("triton"), version("numpy")) if INTERPRETED else None
except PackageNotFoundError:
    INTERPRETER_FAILURE = None


def missing() -> str | None:
    """Return the reason why no kernel can run on this machine, or None if kernels can run."""
    return None if INSTALLED else "the package triton is not installed"


def unable(device: torch.device) -> str | None:
    """Return the reason why the kernels cannot run on tensors of a device, or None if they can run."""
    if device.type not in ("cuda", "cpu"):
        return f"the kernels are for CUDA tensors, and x is on {device.type!r}"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    reason = missing()
    if reason is not None:
        return reason
    if device.type == "cpu":
        if INTERPRETED:
            return INTERPRETER_FAILURE
        return "x is on the CPU, where the kernels run in Triton's interpreter only (set TRITON_INTERPRET=1)"
    found = capability(device)
    if found < MIN_CAPABILITY:
        return f"the kernels need compute capability 8.0, and this GPU has {found / 10}"
    return None


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Return the compute capability of a GPU, such as 80 for 8.0.

    For a CPU, where Triton's interpreter runs the kernels, return 90.
    """
    if device.type != "cuda":
        return 90
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


# The attribute makes torch.compile call the function during tracing instead of tracing into the function. The attribute
# is set directly, because the function torch.compiler.assume_constant_result would import the compiler.
capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of a GPU; without a GPU, return the number of an H100."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@functools.cache  # the result is cached because the function is called for each kernel launch
def needs_wgmma_wait(capability: int) -> bool:
    """Return whether a kernel must wait for each asynchronous matrix product in the loop iteration that starts it.

    The function ``tiles.await_product`` explains the reason. Only Hopper GPUs (compute capability 9.x) have the
    instruction wgmma. Blackwell GPUs store accumulators in tensor memory, and the wait would copy the accumulator to
    registers in every step.
    """
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    # Even a recent Triton needs the wait if the user has selected a ptxas that may be older than Triton's own.
    foreign = bool(os.environ.get("TRITON_PTXAS_PATH"))
    return 90 <= capability < 100 and (foreign or version < WGMMA_WAIT_UNNEEDED_SINCE)


@functools.cache
def gluon_available() -> bool:
    """Return whether the installed version of Triton has the functions of Gluon that the Hopper kernels need.

    Gluon is experimental, and names in Gluon change between versions of Triton.
    """
    try:
        from triton.experimental.gluon.language.nvidia.hopper import (  # noqa: F401
            fence_async_shared,
            mbarrier,
            tma,
            warpgroup_mma,
            warpgroup_mma_wait,
        )
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def precision(matmul_dtype: torch.dtype) -> str:
    """Return the precision argument of ``tl.dot`` for a dtype.

    For float32, the precision is ``"tf32"`` if PyTorch's settings allow tf32. Otherwise the precision is ``"tf32x3"``,
    which is as accurate as float32.
    """
    if matmul_dtype != torch.float32:
        return "ieee"
    return "tf32" if _tf32_allowed() else "tf32x3"


@contextmanager
def pytorch_products(precision: str) -> Iterator[None]:
    """Use tf32 in PyTorch's float32 matrix products inside the ``with`` statement if ``precision`` is "tf32".

    PyTorch has no setting for a single product or a single thread, so its global setting is changed and restored.
    PyTorch's older settings of float32 precision cannot be restored, so only the newer setting is used.

    Args:
        precision: a result of :func:`precision`, or ``"tf32"`` where tf32 replaces float16. For any other value than
            ``"tf32"``, PyTorch's setting is already right and is left unchanged.
    """
    if precision != "tf32" or _tf32_allowed():
        yield
        return
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _tf32_allowed() -> bool:
    # If the setting for CUDA is unset, PyTorch returns the setting for all devices, torch.backends.fp32_precision.
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if newer != "none":
        return newer == "tf32"
    # get_float32_matmul_precision raises if a program has used both the older and the newer setting of PyTorch for
    # float32 products. The call below is reached only if the newer setting is unused, so the call cannot raise.
    return torch.get_float32_matmul_precision() != "highest"


def table_from_environment() -> str | None:
    """Return the path in the environment variable FASTKAN_TUNING, which names a table of tuned choices, or None."""
    return os.environ.get("FASTKAN_TUNING") or None
