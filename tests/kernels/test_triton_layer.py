"""The layer's own tests once more, with the Triton kernels where they are on a GPU: in "auto"'s place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_autograd
import test_layer
import test_pinn
import test_state
import torch
from cases import DEVICE, no_triton

from fastkan import KANLinear
from fastkan_kernels.autograd import dispatch as routing

pytestmark = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))

MODULES = (test_autograd, test_layer, test_pinn, test_state)
SLOW = ("test_lbfgs_steps", "test_compiled_to_machine_code")  # in the interpreter, and nothing more to see
launched = 0


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that "auto" computes goes to the kernels, and launches are counted."""
    from fastkan_kernels.backends.triton.launch import Launch

    run, numpy = Launch.run, torch.Tensor.numpy

    def counted(self: Launch) -> None:
        global launched
        launched += 1
        run(self)

    monkeypatch.setattr(Launch, "run", counted)
    if DEVICE == "cpu":
        monkeypatch.setitem(routing._AUTO, "cpu", "triton")
        yield
        return
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: numpy(self.cpu()))
    with torch.device(DEVICE):
        yield


for module in MODULES:
    for name, value in vars(module).items():
        if (name.startswith("test_") and name not in SLOW) or hasattr(value, "_fixture_function"):
            assert name not in globals(), f"two tests are named {name}"
            globals()[name] = value


def test_a_step_is_made_of_launches() -> None:
    """It would be nothing to pass the others on another backend: F, G of the splines and of the base, H."""
    before = launched
    layer, x = KANLinear(3, 4), torch.rand(5, 3, requires_grad=True)
    layer(x).sum().backward()
    assert launched - before == 4
