"""The kinds of arguments: what each takes as what, and what it says of everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastkan_kernels as kernels
from fastkan_kernels import validation as kinds
from fastkan_kernels.validation import checked

TAKEN: list[tuple[kinds.Kind, Any, Any]] = [
    (kinds.Int(), np.int64(4), 4),
    (kinds.Int(), np.uint8(4), 4),
    (kinds.Int(), torch.tensor(4), 4),
    (kinds.Int(), np.array(4), 4),
    (kinds.Int(), True, 1),
    (kinds.Int(), np.bool_(False), 0),
    (kinds.Int(least=-1), -1, -1),
    (kinds.Real(), 3, 3.0),
    (kinds.Real(), np.float32(0.5), 0.5),
    (kinds.Real(), torch.tensor(0.5, requires_grad=True), 0.5),
    (kinds.Real(), True, 1.0),
    (kinds.Real(finite=False), float("inf"), float("inf")),
    (kinds.Flag(), np.bool_(True), True),
    (kinds.Flag(), torch.tensor(False), False),
    (kinds.Flag(), 1, True),
    (kinds.Choice(("a", "b")), np.str_("b"), "b"),
    (kinds.Bounds(), [np.float32(0), torch.tensor(2)], (0.0, 2.0)),
    (kinds.Bounds(), np.array([-1, 1]), (-1.0, 1.0)),
    (kinds.Bounds(finite=False), (-float("inf"), 0), (-float("inf"), 0.0)),
    (kinds.Path(), Path("a"), "a"),
    (kinds.Path(), b"a", "a"),
    (kinds.Device(), "cpu", torch.device("cpu")),
    (kinds.Each(kinds.Int()), np.array([1, 2]), [1, 2]),
    (kinds.Each(kinds.Int()), range(2), [0, 1]),
    (kinds.OneOrEach(kinds.Int()), torch.tensor(3), 3),
    (kinds.OneOrEach(kinds.Int()), torch.tensor([3]), [3]),
    (kinds.Optional(kinds.Int()), None, None),
    (kinds.SEED, np.int64(3), 3),
    (kinds.SEED, 2**64 - 1, 2**64 - 1),
]


@pytest.mark.parametrize(("kind", "value", "read"), TAKEN)
def test_values_become_pythons_own(kind: kinds.Kind, value: Any, read: Any) -> None:
    got = kind.read("n", value)
    assert got == read
    assert type(got) is type(read)


REFUSED: list[tuple[kinds.Kind, Any, type[Exception], str]] = [
    (kinds.Int(), 4.0, TypeError, "n must be an int, got float"),
    (kinds.Int(), torch.tensor([4]), TypeError, r"n must be an int, got Tensor of shape \[1\]"),
    (kinds.Int(), torch.tensor(4, device="meta"), TypeError, "n must be an int, got Tensor"),
    (kinds.Int(least=1), 0, ValueError, "n must be at least 1, got 0"),
    (kinds.Int(least=1), 2**70, ValueError, "n must be at most 2147483647, got 1180591620717411303424"),
    (kinds.Int(least=1, most=5), 6, ValueError, "n must be from 1 to 5, got 6"),
    (kinds.Real(), "1", TypeError, "n must be a number, got str"),
    (kinds.Real(), 1j, TypeError, "n must be a number, got complex"),
    (kinds.Real(), torch.nan, ValueError, "n must be finite, got nan"),
    (kinds.Real(finite=False), torch.nan, ValueError, "n must be finite, got nan"),
    (kinds.Real(), 10**400, ValueError, "n must be finite, got a number above 1e308"),
    (kinds.Real(above=0), 0, ValueError, "n must be above 0, got 0"),
    (kinds.Real(least=0, most=1), 1.5, ValueError, "n must be from 0 to 1, got 1.5"),
    (kinds.Flag(), "no", TypeError, "n must be True or False, got 'no'"),
    (kinds.Flag(), 2, TypeError, "n must be True or False, got 2"),
    (kinds.Flag(), torch.ones(2), TypeError, r"n must be True or False, got Tensor of shape \[2\]"),
    (kinds.Choice(("a", "b")), ["a"], ValueError, "n must be one of 'a', 'b'; got list"),
    (kinds.Bounds(), {0, 1}, TypeError, r"n must be two numbers, got \{0, 1\}"),
    (kinds.Bounds(), "01", TypeError, "n must be two numbers, got '01'"),
    (kinds.Bounds(), (0, 10**400), ValueError, "n must be finite and increasing"),
    (kinds.Bounds(finite=False), (1, 0), ValueError, r"n must be increasing, got \(1, 0\)"),
    (kinds.Path(), 3, TypeError, "n must be a path, as a str, bytes or os.PathLike, got int"),
    (kinds.Path(), "a\0b", ValueError, "zero byte"),
    (kinds.Callback(), "f", TypeError, "n must be a function, got str"),
    (kinds.Dtype(), torch.int32, TypeError, "n must be torch.float16.*got torch.int32"),
    (kinds.Dtype(), torch.ones(2), TypeError, "n must be torch.float16"),
    (kinds.Device(), torch.int32, TypeError, "n must be a torch.device or its name, got dtype"),
    (kinds.Device(), True, TypeError, "n must be a torch.device or its name, got bool"),
    (kinds.Device(), "cuda:77", ValueError, "n='cuda:77' can't be used here"),
    (kinds.Device(), "abacus", ValueError, "n='abacus' can't be used here"),
    (kinds.Device(), 2**70, ValueError, "can't be used here"),
    (kinds.Each(kinds.Int()), {1, 2}, TypeError, "n must be a sequence, got set"),
    (kinds.Each(kinds.Int()), [1, "2"], TypeError, r"n\[1\] must be an int, got str"),
    (kinds.Each(kinds.Int(), count=2), [1], ValueError, "n must have 2 entries, got 1"),
    (kinds.SEED, -1, ValueError, "n must be at least 0, got -1"),
    (kinds.SEED, 2**64, ValueError, "n must be at most 18446744073709551615"),
    (kinds.Instance(nn.Module), 3, TypeError, "n must be a Module, got int"),
    (kinds.Text(), b"a", TypeError, "n must be a string, got bytes"),
]


@pytest.mark.parametrize(("kind", "value", "error", "message"), REFUSED)
def test_what_is_of_another_kind_is_refused(kind: kinds.Kind, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind.read("n", value)


@checked(a=kinds.Int(), c=kinds.Flag())
def shown(a: int, b: Any = 0, *rest: Any, c: bool = False, **more: Any) -> tuple:
    return a, b, rest, c, more


def test_a_table_reads_what_it_names_wherever_it_is_given() -> None:
    assert shown(np.int64(1), "b", 3, 4, c=1, d="2") == (1, "b", (3, 4), True, {"d": "2"})
    assert shown(b=2, a=torch.tensor(1)) == (1, 2, (), False, {})
    with pytest.raises(TypeError, match="a must be an int"):
        shown(1.5)
    with pytest.raises(TypeError, match="c must be True or False"):
        shown(1, c="yes")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        shown()
    with pytest.raises(TypeError, match="no parameters"):
        checked(z=kinds.Int())(shown)


def test_compiled_code_calls_functions_with_tables() -> None:
    knots = kernels.uniform_knots(2, 5, 3)
    x, w = torch.rand(7, 2), torch.rand(8, 2, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        basis = kernels.Basis(3, "none")
        return kernels.contract_out(x, knots, w, basis=basis, derivative=1)

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))
