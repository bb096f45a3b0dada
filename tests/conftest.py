"""Settings and fixtures of every test: one seed, a fresh compiler, reproducible examples."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

# torch reads this when it is imported; no run then uses code that another has left on disk
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton reads this when it is imported. On a machine with a GPU, TRITON_INTERPRET=1 runs all tests without the GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# the tests of bench need the packages of the extra "bench"
if not all(map(find_spec, ("matplotlib", "pandas", "psutil", "rich", "scipy", "sklearn", "tabulate", "tqdm"))):
    collect_ignore = ["bench"]

# Hypothesis draws the same examples on every run, so that a failure can be repeated.
settings.register_profile(
    "fastkan", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("fastkan")


# Tensors are small here, and on a busy machine threads mostly wait for each other. test_contractions.py tests what
# threads could change.
torch.set_num_threads(1)


if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from triton.runtime import interpreter

    device_call = interpreter.InterpretedFunction.__call__

    def call(self, *args, **kwargs):
        """Call a function of a kernel without patching Triton's language again, which takes a third of the
        interpreter's time; only the functions of Triton's own modules need it."""
        if self.fn.__module__.startswith("fastkan_kernels"):
            return self.rewrite()(*args, **kwargs)
        return device_call(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


# Beginnings of the names of slow tests: interpreted and compiled second derivatives, whole commands, machine code, and
# the many builds of kernels in the PTX interpreter. Other tests have the marker at their definition.
SLOW = (
    "test_autograd.py::test_gradients_of_gradients[fused",
    "test_autograd.py::test_mixed_second_derivatives_agree_with_the_reference[fused",
    "test_autograd.py::test_third_order[fused",
    "test_bench_command.py::test_it_writes_json_and_tables",
    "test_bench_command.py::test_the_demo_learns_and_draws",
    "test_codegen.py::test_kernels_that_are_wrong_on_purpose_fail",
    "test_codegen.py::test_the_kernels_pass_every_check",
    "test_convert.py::test_a_compiled_parent_goes_on_with_ours",
    "test_export.py::test_compiled_ahead_of_time",
    "test_fit.py::test_an_interrupt_at_any_evaluation_leaves_what_the_record_says",
    "test_gpu_bench.py::test_every_stage_runs_in_the_interpreter",
    "test_gpu_bench.py::test_kernels_that_are_compiled_ahead_are_those_that_are_launched",
    "test_gpu_marker.py::test_marked_tests_pass_on_the_simulated_gpu",
    "test_operators.py::test_registered_operators_are_sound",
    "test_pinn.py::test_compiled_to_machine_code",
    "test_pinn.py::test_two_layers_compiled",
    "test_ptx.py::test_each_build_agrees_with_float64",
    "test_ptx.py::test_each_mutant_of_the_order_of_events_is_detected",
    "test_ptx.py::test_nan_and_infinities_go_where_they_go_in_float64",
    "test_random_layers.py::test_a_layer_as_it_comes",
    "test_regularization.py::test_compiled_and_traced_it_is_the_same",
    "test_repeated.py::test_a_repeated_contraction_launches_what_the_first_did",
    "test_routes.py::test_compiled_forward_and_backward[adapted-decomposed-inductor",
    "test_routes.py::test_compiled_forward_and_backward[shared-whole-inductor",
    "test_second_order.py::test_the_command_writes_all_parts",
    "test_sklearn.py::test_a_grid_search_over_a_pipeline_in_two_processes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.rpartition("/")[2].startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def apart() -> Iterator[Callable[..., Any]]:
    """Call a function in a process in which Triton compiles kernels, although this process interprets them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "0")
            pool.submit(int).result()  # starts the process
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture(autouse=True)
def without_cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU backend refuse all tensors in tests that are marked ``gpu``, as it refuses tensors on a GPU.

    So a test that would fail on a machine with a GPU also fails on a machine without one.
    """
    if request.node.get_closest_marker("gpu") is None:
        return
    from cases import no_triton

    from fastkan_kernels.backends.registry import BACKENDS

    if reason := no_triton():
        pytest.skip(reason)
    refusing = BACKENDS["cpu"]._replace(unable=lambda device: "tests that are marked gpu do without it")
    monkeypatch.setitem(BACKENDS, "cpu", refusing)


@pytest.fixture(params=["cpu", pytest.param("triton", marks=pytest.mark.gpu)])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Run a test as it is, and again with Triton's kernels wherever "auto" would select another backend.

    With a GPU, the second run creates all tensors there. The value lists the kernels that were launched.
    """
    from cases import DEVICE

    launched: list[str] = []
    if request.param == "cpu":
        yield launched
        return
    from fastkan_kernels.autograd import dispatch
    from fastkan_kernels.backends.triton.launch import Launch

    run, numpy = Launch.run, torch.Tensor.numpy

    def counted(self: Launch) -> None:
        launched.append(self.kernel.__name__)
        run(self)

    monkeypatch.setattr(Launch, "run", counted)
    if DEVICE == "cpu":
        monkeypatch.setitem(dispatch._AUTO, "cpu", "triton")
        yield launched
        return
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self, **options: numpy(self.cpu(), **options))
    with torch.device(DEVICE):
        yield launched


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Drop compiled code after each test, so that no test runs the code of another."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
