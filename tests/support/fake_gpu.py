"""A simulated GPU: tensors that report the device ``cuda:0``, and a record of what would make the host wait for them.

Their numbers lie on the CPU, so that a step that may wait (a first call, reading the knots) works. Within
:meth:`FakeGPU.capture`, whatever a CUDA graph can't hold raises :class:`Waits`: reading a value, a copy to or from the
host, a size that depends on values. A launch of a Triton kernel is recorded, and interpreted only on request.
PyTorch's own FakeTensorMode can't be used: without CUDA, autograd ends the process at its first GPU tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as off  # for what is done on the host
from torch.utils._pytree import tree_map
from triton.tools.tensor_descriptor import TensorDescriptor

import fastkan.layers.value_cache
import fastkan.training.regularization
from fastkan_kernels.autograd import dispatch
from fastkan_kernels.backends.triton.launch import Launch

GPU, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
ATEN = torch.ops.aten
H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)

# the host waits for a value, or for how many there are
READS = {ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.equal, ATEN.nonzero, ATEN.masked_select, ATEN._unique2}
READS |= {ATEN.unique_dim, ATEN.unique_consecutive, ATEN.bincount, ATEN.repeat_interleave, ATEN.allclose}
INDEXES = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}
TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
ALLOCATES = {ATEN.empty, ATEN.empty_strided, ATEN.empty_like, ATEN.new_empty, ATEN.new_empty_strided}
# may have tensors of the host among their arguments
MIXES = {ATEN.copy_, ATEN._to_copy, *INDEXES}
# give a view, though their schemas don't say so
VIEWS = {ATEN._unsafe_view, ATEN._reshape_alias, ATEN.lift_fresh}


class Waits(AssertionError):
    """Raised by an operation that a CUDA graph can't hold."""


class OnGPU(Tensor):
    """A tensor that reports a GPU as its device. For PyTorch's own code it is on ``meta``."""

    held: Tensor  # on the CPU
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    def data_ptr(self) -> int:
        """An address with the alignment of CUDA's allocator."""
        return 512 + self.held.storage_offset() * self.held.element_size()

    def __deepcopy__(self, memo: dict) -> OnGPU:
        with off():
            return memo.setdefault(id(self), OnGPU(self.held.clone()).requires_grad_(self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor on a GPU that is switched off")


class Launched(NamedTuple):
    """A launch of a kernel, without the addresses of its tensors."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple
    constants: tuple
    warps: int
    stages: int


class Captured:
    """The launches, operations and allocations during a capture."""

    def __init__(self) -> None:
        self.launches: list[Launched] = []  # of Triton's kernels
        self.calls: list[str] = []  # of PyTorch's that launch at least one
        self.allocated: list[tuple[int, ...]] = []
        self.largest = 0  # number of elements of the largest tensor that PyTorch made

    @property
    def kernels(self) -> list[str]:
        return [launch.kernel for launch in self.launches]


class FakeGPU(TorchDispatchMode):
    """A dispatch mode that holds tensors on a simulated GPU.

    Args:
        computes: whether Triton's interpreter runs the kernels; else their results are uninitialised memory.
    """

    def __init__(self, computes: bool = False) -> None:
        super().__init__()
        self.computes = computes
        self.captured: Captured | None = None
        self.waits: list[str] = []

    @contextmanager
    def capture(self) -> Iterator[Captured]:
        """Raise :class:`Waits` within the context for whatever a CUDA graph can't hold."""
        assert self.captured is None
        self.captured = Captured()
        try:
            yield self.captured
        finally:
            self.captured = None

    def wait(self, why: str) -> None:
        """Record that the host waits, or raise during a capture."""
        self.waits.append(why)
        if self.captured is not None:
            raise Waits(why)

    def put(self, tensor: Tensor) -> OnGPU:
        """Return a copy of a tensor on the GPU, as a leaf."""
        with off():
            held = tensor.detach().clone(memory_format=torch.preserve_format)
        return OnGPU(held).requires_grad_(tensor.requires_grad)

    # -- PyTorch's calls ------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, kwargs = func.overloadpacket, dict(kwargs or {})
        tensors: list[Tensor] = []
        tree_map(lambda a: tensors.append(a) if isinstance(a, Tensor) else None, (args, kwargs))
        ours = [t for t in tensors if isinstance(t, OnGPU)]
        to = kwargs.get("device")
        lands = to == META if to is not None else bool(ours)
        self._look(func, args, ours, tensors, lands)
        if to == META:
            kwargs["device"] = CPU
        owner = {id(t.held): t for t in ours}
        args, kwargs = tree_map(lambda a: a.held if isinstance(a, OnGPU) else a, (args, kwargs))
        if func is ATEN.mm.dtype:  # which a CPU lacks
            func, args = ATEN.mm.default, [factor.to(args[2]) for factor in args[:2]]
        done = func(*args, **kwargs)

        def brought(made: Any) -> Any:
            if not isinstance(made, Tensor) or not lands:
                return made
            return owner[id(made)] if id(made) in owner else OnGPU(made)

        done = tree_map(brought, done)
        if lands and self.captured is not None:
            if isinstance(done, Tensor) and not (func.is_view or packet in VIEWS):
                self.captured.largest = max(self.captured.largest, done.numel())
            if packet in ALLOCATES:
                self.captured.allocated.append(tuple(done.shape))
            elif not (func.is_view or packet in VIEWS or packet is ATEN.detach):
                self.captured.calls.append(str(packet))
        return done

    def _look(self, func, args, ours: list, tensors: list, lands: bool) -> None:
        """Call :meth:`wait` if an operation makes the host wait.

        Raises:
            RuntimeError: if PyTorch has no operation on these tensors of host and GPU.
        """
        packet = func.overloadpacket
        if ours and packet not in MIXES and any(t.dim() > 0 and not isinstance(t, OnGPU) for t in tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        if ours and packet in READS:
            self.wait(f"{func} reads values")
        if ours and len(ours) < len(tensors):
            self.wait(f"{func} of memory of host and GPU")
        if packet is ATEN._to_copy and bool(ours) != lands:
            self.wait(f"{func} between host and GPU")
        indices = [t for t in args[1] if t is not None] if packet in INDEXES else []
        if ours and any(t.dtype in (torch.bool, torch.uint8) for t in indices):
            self.wait(f"{func} by a mask, which is counted")

    # -- Triton's -------------------------------------------------------------------------------

    def launch(self, launch: Launch) -> None:
        """Replacement for :meth:`Launch.run`."""
        tensors = [a.base if _describes(a) else a for a in launch.arguments.values()]
        assert all(isinstance(t, (OnGPU, int)) for t in tensors), "an argument is neither on the GPU nor an integer"
        if self.captured is not None:
            self.captured.launches.append(_recorded(launch))
        if self.computes:
            with off():
                arguments = {name: _held(a) for name, a in launch.arguments.items()}
                _run(launch._replace(arguments=arguments))


_run = Launch.run


def _recorded(launch: Launch) -> Launched:
    def described(argument: Any) -> Any:
        if _describes(argument):
            return ("descriptor", tuple(argument.block_shape), described(argument.base))
        if isinstance(argument, Tensor):
            return (tuple(argument.shape), argument.stride(), argument.dtype, argument.data_ptr() % 16)
        return argument

    arguments = tuple((name, described(a)) for name, a in launch.arguments.items())
    name = launch.kernel.fn.__name__
    return Launched(name, launch.grid, arguments, tuple(launch.constants.items()), launch.warps, launch.stages)


def _describes(argument: Any) -> bool:
    """Whether ``value`` is a tensor descriptor of Triton or Gluon."""
    return hasattr(argument, "block_shape")


def _held(argument: Any) -> Any:
    if isinstance(argument, TensorDescriptor):
        return TensorDescriptor.from_tensor(_held(argument.base), list(argument.block_shape))
    return argument.held if isinstance(argument, OnGPU) else argument


class Notice:
    """A stand-in for ``fastkan.layers.value_cache.Notice`` whose answers are available at once."""

    def __init__(self) -> None:
        self.answer = False

    def send(self, answer: OnGPU) -> None:
        with off():
            self.answer = bool(answer.held)

    def says_yes(self) -> bool:
        return not torch.cuda.is_current_stream_capturing() and self.answer


class _Devices(TorchFunctionMode):
    """A mode that answers calls which name the GPU, since PyTorch would search for a real one."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        named = [a for a in (*args, *kwargs.values()) if _is_gpu(a)]
        if func in TO_HOST and isinstance(args[0], OnGPU):
            self.gpu.wait(f"{func.__name__} reads values")
            return func(args[0].held, *args[1:], **kwargs)
        generator = kwargs.get("generator")
        if named and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            raise RuntimeError(f"{func.__name__}: expected a generator on the GPU")
        if not named or func in (torch.device, torch.get_device_module):
            return func(*args, **kwargs)
        if func in FROM_HOST and not any(isinstance(a, OnGPU) for a in args[:1]):
            self.gpu.wait(f"{func.__name__} of numbers of the host")
            kwargs["device"] = CPU
            return self.gpu.put(func(*args, **kwargs))
        args = tuple(META if _is_gpu(a) else a for a in args)
        return func(*args, **{name: META if _is_gpu(a) else a for name, a in kwargs.items()})


def _is_gpu(argument: Any) -> bool:
    if isinstance(argument, str):
        return argument.split(":")[0] == "cuda"
    return isinstance(argument, torch.device) and argument.type == "cuda"


def _has_values(*tensors: Tensor | None) -> bool:
    """``has_values`` as it would answer on a real GPU."""
    return all(x is None or isinstance(x, OnGPU) for x in tensors) and not torch.compiler.is_compiling()


def _forget() -> None:
    """Clear the caches of facts about GPUs."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fastkan_kernels.backends.triton"):
            for function in vars(module).values():
                getattr(function, "cache_clear", lambda: None)()


@contextmanager
def fake_gpu(computes: bool = False) -> Iterator[FakeGPU]:
    """Simulate a GPU within the context, with an H100's properties."""
    gpu = FakeGPU(computes)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(Launch, "run", lambda launch: gpu.launch(launch))
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: H100)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (H100.major, H100.minor))
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: H100.name)
        patch.setattr(torch.cuda, "current_device", lambda: GPU.index)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.captured is not None)
        patch.setattr(fastkan.layers.value_cache, "Notice", Notice)
        stack.callback(_forget)
        _forget()
        for module in (fastkan.layers.symbolic, fastkan.layers.value_cache, fastkan.training.regularization, dispatch):
            patch.setattr(module, "has_values", _has_values)
        stack.enter_context(gpu)
        stack.enter_context(_Devices(gpu))
        yield gpu


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda")`` for a machine without CUDA, where PyTorch disables it."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
