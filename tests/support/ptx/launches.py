"""Execution of the project's own kernel launches by the PTX interpreter instead of a GPU."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from stub_driver import StubDriver
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.driver import driver

from fastkan_kernels.backends.registry import BACKENDS
from fastkan_kernels.backends.triton import hardware
from fastkan_kernels.backends.triton.launch import Launch

from .instructions import Program
from .kernel import Kernel, parse
from .machine import CTA, LATE, Policy
from .memory import Global, TensorMap
from .races import GlobalShadow


class Run(NamedTuple):
    """A launch that the interpreter has run."""

    kernel: str
    grid: tuple[int, ...]
    ptx: str
    program: Program
    executions: list[int]  # number of warps that executed each instruction
    counts: Counter[str]  # numbers of warp instructions by name, and of bytes of memory


class Emulation:
    """The settings of :func:`emulated`, which may change between launches, and the launches that have run."""

    def __init__(self, policy: Policy, races: bool, seed: int, traffic: bool, strict: bool) -> None:
        self.policy, self.races, self.seed, self.traffic, self.strict = policy, races, seed, traffic, strict
        self.runs: list[Run] = []
        self.constants: dict[str, Any] = {}  # values that replace constants of a kernel
        self.mutate: Callable[[Kernel], Kernel] | None = None  # a function that changes a kernel before it runs

    def run(self, launch: Launch) -> None:
        """Run a launch: compile the kernel, copy the tensors to simulated memory, execute, and copy them back."""
        constants = launch.constants | {k: v for k, v in self.constants.items() if k in launch.constants}
        launch = launch._replace(constants=constants)
        compiled = launch.kernel.warmup(
            grid=launch.grid, **launch.arguments, **constants, num_warps=launch.warps, num_stages=launch.stages
        )
        ptx = compiled.asm["ptx"]
        program = _program(ptx)
        if self.mutate is not None:
            program = Program(self.mutate(program.kernel))
        counts: Counter[str] = Counter()
        memory = _Tensors(list(launch.arguments.values()))
        values, maps = _parameters(program, launch, compiled, memory)
        cta = CTA(program, values, maps, memory.memory, compiled.metadata.shared, self.policy, random.Random(self.seed))
        cta.global_shadow, cta.strict = GlobalShadow(memory.memory) if self.races else None, self.strict
        cta.traffic = counts if self.traffic else None
        program.hits = [0] * len(program.hits)
        x, y, z = (*launch.grid, 1, 1)[:3]
        grid = (x, y, z)
        with np.errstate(all="ignore"):
            for number in range(x * y * z):
                cta.start((number % x, number // x % y, number // (x * y)), grid, number)
                cta.run()
        memory.copy_back()
        executions = program.executions()
        for instruction, number in zip(program.kernel.instructions, executions, strict=True):
            counts[instruction.name] += number
        self.runs.append(Run(program.name, launch.grid, ptx, program, executions, counts))


@functools.lru_cache(64)
def _program(ptx: str) -> Program:
    return Program(parse(ptx))


class _Tensors:
    """Copies of the storages of tensors in simulated memory."""

    def __init__(self, arguments: list[Any]) -> None:
        tensors = [a if isinstance(a, Tensor) else a.base for a in arguments if not isinstance(a, (int, float))]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        self.memory = Global(sum(s.nbytes() + 1024 for s in storages.values()) + 4096)
        self._places = {}
        for key, storage in storages.items():
            self._places[key] = (self.memory.put(_bytes(storage)), storage)

    def address(self, tensor: Tensor) -> int:
        base, _ = self._places[tensor.untyped_storage().data_ptr()]
        return base + int(tensor.storage_offset()) * tensor.element_size()

    def copy_back(self) -> None:
        for base, storage in self._places.values():
            _bytes(storage)[...] = self.memory.get(base, storage.nbytes())


def _bytes(storage: torch.UntypedStorage) -> np.ndarray[Any, Any]:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _parameters(
    program: Program, launch: Launch, compiled: Any, tensors: _Tensors
) -> tuple[dict[str, int | float], dict[int, TensorMap]]:
    """Return a tuple of the values of the kernel's parameters, and the tensor maps by the addresses of parameters."""
    metas = iter(getattr(compiled.metadata, "tensordesc_meta", None) or [])
    flat: list[Any] = []
    for name, kind in compiled.src.signature.items():
        if kind == "constexpr":
            continue
        argument = launch.arguments[name] if name in launch.arguments else launch.constants[name]
        if isinstance(kind, str) and kind.startswith("tensordesc"):
            shape, strides, address = list(argument.shape), list(argument.strides), tensors.address(argument.base)
            meta = next(metas)
            box, size, swizzle = (meta[key] for key in ("block_size", "elem_size", "swizzle"))
            flat += [TensorMap(address, shape, strides, box, size, swizzle), *shape, *strides]
        else:
            flat.append(tensors.address(argument) if isinstance(argument, Tensor) else argument)
    values: dict[str, int | float] = {}
    maps: dict[int, TensorMap] = {}
    for n, parameter in enumerate(program.kernel.parameters):
        value = flat[n] if n < len(flat) else 0  # Triton appends pointers to scratch memory
        if isinstance(value, TensorMap):
            maps[program.parameter_addresses[parameter.name]] = value
        else:
            values[parameter.name] = value
    return values, maps


@contextmanager
def emulated(
    policy: Policy = LATE, races: bool = False, seed: int = 0, capability: int = 90, traffic: bool = False,
    strict: bool = True,
) -> Iterator[Emulation]:  # fmt: skip
    """Run all launches of the Triton backend on CPU tensors in the interpreter, inside the ``with`` statement.

    Args:
        policy: policy that selects one of the executions that PTX allows.
        races: whether races, and reads of memory that was never written, raise :class:`.races.Race`.
        seed: seed of the random choices of a policy.
        capability: compute capability of the GPU, such as 90 for 9.0.
        traffic: whether the counts of each run include bytes and wavefronts of memory.
        strict: whether a use of registers of an unfinished product raises :class:`.memory.Fault`. If False, the
            registers hold one of the values that PTX allows.
    """
    found = Emulation(policy, races, seed, traffic, strict)
    backend = BACKENDS["triton"]._replace(unable=lambda device: None)
    with ExitStack() as stack:
        for patch in (
            mock.patch.object(Launch, "run", lambda launch: found.run(launch)),
            mock.patch.dict(BACKENDS, triton=backend),
            mock.patch.object(hardware, "capability", return_value=capability),
            mock.patch.object(driver, "_active", StubDriver(capability)),
            # no machine code is generated, because ptxas is not needed
            mock.patch.object(CUDABackend, "make_cubin", return_value=b""),
            mock.patch.object(
                CUDABackend, "hash", return_value="PTX only"
            ),  # the text is a part of the key of Triton's cache on disk
        ):
            stack.enter_context(patch)
        yield found
