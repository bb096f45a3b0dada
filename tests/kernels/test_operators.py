"""The registered operators by themselves: what they promise to the compiler, and what they compute."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from cases import make_case

from fastkan_kernels.autograd import operators as ops
from fastkan_kernels.backends.registry import BACKENDS, ContractionSpec
from fastkan_kernels.trilinear import Operands


@pytest.mark.parametrize(
    ("base", "v", "sizes"),
    [("silu", True, (6, 2, 3)), ("none", False, (1, 2, 1)), ("silu", False, (0, 2, 3))],
    ids=["all operands", "one row, one output", "no rows"],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", "FGH")
def test_registered_operators_are_sound(name: str, backend: str, base: str, v: bool, sizes: tuple) -> None:
    """Schema, shapes and strides that fake tensors promise, and gradients under AOTAutograd."""
    o, basis = make_case("shared", *sizes, base=base, v=v)
    operands = {"F": (o.v, o.weight, o.base_weight), "G": (o.v, o.g), "H": (o.weight, o.base_weight, o.g)}[name]
    tensors = [t if t is None else t.clone().requires_grad_() for t in (o.x, *operands)]
    fixed = ops._flat(ContractionSpec(basis, 0, backend))
    torch.library.opcheck(ops.OPERATORS[name], (tensors[0], o.knots, *tensors[1:], *fixed))


@pytest.mark.parametrize("name", "FGH")
def test_registered_operators_compute_the_same(name: str) -> None:
    o, basis = make_case("adapted")
    free = {"F": "g", "G": "W", "H": "v"}[name]
    operands = Operands(o.v, o.weight, o.base_weight, o.g).without(free)
    value = ops.apply(name, ContractionSpec(basis, 1, "cpu"), o.x, o.knots, operands)
    for part, expected in zip(value if name == "G" else (value,), oracle.exact(name, o, basis, 1)):
        np.testing.assert_allclose(part.numpy(), expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


def test_other_source_is_another_operator_to_the_cache() -> None:
    """PyTorch keeps compiled graphs on disk by the operators' arguments, whatever they are decomposed to."""
    _, basis = make_case("shared")
    decomposition = BACKENDS["cpu"].decomposition
    assert decomposition is not None
    before = ops._flat(ContractionSpec(basis, 0, "cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(decomposition=decomposition._replace(source="other")))
        assert ops._flat(ContractionSpec(basis, 0, "cpu")) != before
    assert ops._call(before) == ContractionSpec(basis, 0, "cpu")
