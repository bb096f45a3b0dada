"""``SymbolicEdges``: values against the definition, derivatives, edits, state, and bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastkan.symbolic import SYMBOLIC_LIB, Edge, SymbolicEdges, add_symbolic, remove_symbolic

SMOOTH = ["sin", "exp", "x^2", "tanh", "gaussian"]
NUMPY = {"sin": np.sin, "exp": np.exp, "x^2": np.square, "tanh": np.tanh, "gaussian": lambda z: np.exp(-(z**2))}


def layer(*edges: tuple[int, int, str], sizes: tuple[int, int] = (3, 4), dtype=torch.float64) -> SymbolicEdges:
    """A layer of formulas with affine parameters from a seed of their own."""
    symbolic = SymbolicEdges(*sizes, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    for edge in edges:
        symbolic.fix(*edge, torch.randn(4, generator=generator))
    return symbolic


LAYERS = {
    "one edge": ((2, 1), [(1, 0, "sin")]),
    "one function": ((2, 1), [(0, 0, "sin"), (1, 0, "sin")]),
    "two functions": ((2, 1), [(0, 0, "sin"), (1, 0, "x^2")]),
    "one to one": ((3, 3), [(0, 0, "exp"), (1, 1, "exp"), (2, 2, "exp")]),
    "in turns": ((3, 4), [(0, 0, "sin"), (0, 2, "exp"), (1, 2, "sin"), (2, 0, "tanh"), (2, 2, "exp"), (2, 3, "sin")]),
    "all": ((3, 4), [(i, j, SMOOTH[(i + 2 * j) % 5]) for i in range(3) for j in range(4)]),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def made(name: str, dtype: torch.dtype = torch.float64) -> SymbolicEdges:
    sizes, edges = LAYERS[name]
    return layer(*edges, sizes=sizes, dtype=dtype)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    symbolic = made(name, dtype)
    x = torch.randn(17, symbolic.in_features, dtype=dtype)
    exact, edges = np.zeros((17, symbolic.out_features)), []
    for (i, j, function), (a, b, c, d) in zip(symbolic.edges, symbolic.affine.detach().double().numpy()):
        edges.append(c * NUMPY[function](a * x[:, i].double().numpy() + b) + d)
        exact[:, j] += edges[-1]
    rounding = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(symbolic(x).double(), torch.from_numpy(exact), **rounding)
    torch.testing.assert_close(symbolic.values(x).double(), torch.from_numpy(np.stack(edges, 1)), **rounding)
    assert symbolic(x).dtype == symbolic.values(x).dtype == dtype


@EVERY
def test_derivatives_of_first_and_second_order(name: str) -> None:
    symbolic = made(name)
    x = torch.randn(5, symbolic.in_features, dtype=torch.float64, requires_grad=True)

    def values(x: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(symbolic, {"affine": affine}, x)

    affine = symbolic.affine.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(values, (x, affine))
    assert torch.autograd.gradgradcheck(values, (x, affine))


@EVERY
def test_transforms_give_the_same_numbers(name: str) -> None:
    symbolic = made(name)
    x = torch.randn(5, symbolic.in_features, dtype=torch.float64)

    def of_row(row: torch.Tensor) -> torch.Tensor:
        return symbolic(row.unsqueeze(0)).squeeze(0)

    torch.testing.assert_close(torch.func.vmap(of_row)(x), symbolic(x))
    by_reverse, by_forward = (torch.func.vmap(by(of_row))(x) for by in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(by_forward, by_reverse)
    step = 1e-5
    for i in range(symbolic.in_features):
        move = torch.zeros_like(x)
        move[:, i] = step
        slope = (symbolic(x + move) - symbolic(x - move)) / (2 * step)
        torch.testing.assert_close(by_reverse[:, :, i], slope, rtol=1e-6, atol=1e-8)
    assert torch.func.hessian(of_row)(x[0]).isfinite().all()
    # networks side by side, their parameters stacked
    stacked = torch.stack([symbolic.affine.detach(), 2 * symbolic.affine.detach()])
    both = torch.func.vmap(lambda affine: torch.func.functional_call(symbolic, {"affine": affine}, x))(stacked)
    torch.testing.assert_close(both[0], symbolic(x))


@EVERY
def test_compiled_whole(name: str) -> None:
    symbolic = made(name)
    x = torch.randn(5, symbolic.in_features, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(symbolic, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), symbolic(x)
    torch.testing.assert_close(y, expected)
    for got, want in zip(torch.autograd.grad(y.sum(), [x, symbolic.affine]),
                         torch.autograd.grad(expected.sum(), [x, symbolic.affine])):  # fmt: skip
        torch.testing.assert_close(got, want)


def test_few_calls_for_one_function() -> None:
    """On networks this small the number of calls determines the time."""
    symbolic = made("one function", torch.float32)
    x = torch.rand(1000, 2)
    with torch.no_grad(), torch.profiler.profile() as profile:
        symbolic(x)
    # what is nested in another is no call of ours
    calls = [event.name for event in profile.events() if event.cpu_parent is None and event.name.startswith("aten::")]
    assert len(calls) <= 6, calls


def test_without_edges_all_is_zero() -> None:
    symbolic = SymbolicEdges(2, 3)
    x = torch.rand(5, 2)
    assert torch.equal(symbolic(x), torch.zeros(5, 3))
    assert symbolic.values(x).shape == (5, 0)
    assert symbolic.edges == ()
    assert symbolic.name(0, 0) is None
    assert symbolic.affine.shape == (0, 4)
    assert (list(symbolic.parameters()), dict(symbolic.state_dict())) == ([], {})


@EVERY
def test_no_rows(name: str) -> None:
    symbolic = made(name)
    x = torch.zeros(0, symbolic.in_features, dtype=torch.float64, requires_grad=True)
    y = symbolic(x)
    assert y.shape == (0, symbolic.out_features)
    y.sum().backward()
    assert torch.equal(symbolic.affine.grad, torch.zeros_like(symbolic.affine))


def test_an_infinite_edge_spoils_no_other_output() -> None:
    symbolic = SymbolicEdges(2, 3)
    symbolic.fix(0, 0, "1/x")
    symbolic.fix(1, 1, "log")
    symbolic.fix(1, 2, "sin")
    y = symbolic(torch.tensor([[0.0, -1.0]]))[0]
    assert y[0] == math.inf
    assert y[1].isnan()
    assert y[2] == torch.tensor(-1.0).sin()


def test_singularities_can_be_avoided() -> None:
    symbolic = SymbolicEdges(2, 1)
    symbolic.fix(0, 0, "1/x", (2, 0, 3, 1))
    symbolic.fix(1, 0, "log")
    x = torch.tensor([[0.0, 0.0], [-1e-9, -2.0], [1.0, 1.0]], requires_grad=True)
    values = symbolic.values(x, singularity_avoiding=True, y_th=5.0)
    torch.testing.assert_close(values, torch.tensor([[16.0, -5.0], [-14.0, -5.0], [2.5, 0.0]]))
    torch.testing.assert_close(symbolic(x, singularity_avoiding=True, y_th=5.0)[:, 0], values.sum(1))
    (slope,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.5, 1.0]]))
    for y_th in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"y_th must be (above 0|finite), got"):
            symbolic(x, singularity_avoiding=True, y_th=y_th)


# -- edges -----------------------------------------------------------------------------------------


def test_edges_are_sorted_and_carry_their_parameters() -> None:
    symbolic = SymbolicEdges(3, 3)
    symbolic.fix(2, 1, "sin", (1, 2, 3, 4))
    symbolic.fix(0, 2, "exp", torch.tensor([5.0, 6, 7, 8], dtype=torch.float64))
    symbolic.fix(0, 1, "x^0.5")
    assert symbolic.edges == (Edge(0, 1, "x^0.5"), Edge(0, 2, "exp"), Edge(2, 1, "sin"))
    assert symbolic.affine.tolist() == [[1, 0, 1, 0], [5, 6, 7, 8], [1, 2, 3, 4]]
    assert symbolic.affine.dtype == torch.float32
    symbolic.fix(0, 2, "log", np.array([9.0, 9, 9, 9]))
    assert symbolic.name(0, 2) == "log"
    assert symbolic.affine.tolist() == [[1, 0, 1, 0], [9, 9, 9, 9], [1, 2, 3, 4]]
    symbolic.unfix(0, 1)
    assert symbolic.edges == (Edge(0, 2, "log"), Edge(2, 1, "sin"))
    assert symbolic.affine.tolist() == [[9, 9, 9, 9], [1, 2, 3, 4]]
    assert isinstance(symbolic.affine, torch.nn.Parameter)
    assert symbolic.affine.requires_grad


def test_frozen_parameters_stay_frozen() -> None:
    symbolic = layer((0, 0, "sin"))
    symbolic.affine.requires_grad_(False)
    symbolic.fix(1, 1, "exp")
    assert not symbolic.affine.requires_grad
    symbolic.unfix(0, 0)
    assert not symbolic.affine.requires_grad
    assert not symbolic.subset([1], [1]).affine.requires_grad


def test_what_was_changed_in_inference_mode_can_be_trained_after() -> None:
    symbolic = SymbolicEdges(2, 2)
    with torch.inference_mode():
        symbolic.fix(0, 0, "sin")
        symbolic.fix(1, 1, "exp")
        symbolic.unfix(0, 0)
        part = symbolic.subset([1], [1])
    for module in (symbolic, part):
        module(torch.rand(3, module.in_features)).sum().backward()
        assert module.affine.grad is not None


def test_a_subset_is_renumbered_and_its_own() -> None:
    symbolic = made("all")
    symbolic.eval()
    part = symbolic.subset([2, 0], [3, 1])
    assert part.edges == tuple(Edge(i, j, symbolic.name([2, 0][i], [3, 1][j])) for i in range(2) for j in range(2))
    x = torch.randn(6, 3, dtype=torch.float64)
    own = symbolic.values(x)
    places = [symbolic.edges.index(Edge(i, j, symbolic.name(i, j))) for i in (2, 0) for j in (3, 1)]
    torch.testing.assert_close(part.values(x[:, [2, 0]]), own[:, places])
    assert not part.training
    assert part.affine.dtype == torch.float64
    with torch.no_grad():
        part.affine.zero_()
    torch.testing.assert_close(symbolic.values(x), own)
    assert symbolic.subset([], [1]).edges == ()
    assert symbolic.subset([], [1])(x[:, :0]).shape == (6, 1)


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_everything_back(assign: bool) -> None:
    symbolic, x = made("in turns"), torch.randn(6, 3, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(symbolic.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for other in (SymbolicEdges(3, 4, dtype=torch.float64), made("all"), made("in turns")):
        other.load_state_dict(state, assign=assign)
        assert other.edges == symbolic.edges
        assert torch.equal(other(x), symbolic(x))
        assert other.affine.requires_grad
    network = torch.nn.Sequential(SymbolicEdges(3, 4, dtype=torch.float64))
    network.load_state_dict(torch.nn.Sequential(symbolic).state_dict())
    assert torch.equal(network(x), symbolic(x))
    empty = made("all")
    empty.load_state_dict(SymbolicEdges(3, 4).state_dict())
    assert empty.edges == ()


def test_a_parameter_of_the_same_size_stays_the_same_object() -> None:
    """So that an optimizer goes on with it."""
    symbolic, other = made("in turns"), made("in turns")
    other.fix(0, 0, "abs", (3, 3, 3, 3))
    parameter = symbolic.affine
    symbolic.load_state_dict(other.state_dict())
    assert symbolic.affine is parameter
    assert symbolic.name(0, 0) == "abs"
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(symbolic(x), other(x))


def spoiled(**changes: object) -> dict:
    state = {"affine": torch.zeros(1, 4), "formulas": [[0, 0, "sin"]]}
    return {**state, **changes}


@pytest.mark.parametrize(("state", "message"), [
    (spoiled(affine=torch.zeros(2, 4)), r"affine must have the shape \[1, 4\], got \[2, 4\]"),
    (spoiled(formulas=[[0, 0, "sine"]]), r"have the names \['sine'\]: add them by add_symbolic"),
    (spoiled(formulas=[[0, 9, "sin"]]), "j must be below 4, got 9"),
    (spoiled(formulas=[[0, "0", "sin"]]), "j must be an int, got str"),
    (spoiled(formulas=[[0, 0]]), r"edges must be a list of \[i, j, name\], got"),
    (spoiled(formulas=7), r"edges must be a list of \[i, j, name\], got 7"),
    (spoiled(formulas=[[0, 0, 5]]), r"no symbolic functions have the names \[5\]"),
    (spoiled(affine=torch.zeros(2, 4), formulas=[[0, 0, "sin"]] * 2), r"sorted by \(i, j\), each once"),
    ({"affine": torch.zeros(1, 4)}, "Missing key.*formulas"),
    ({"formulas": [[0, 0, "sin"]]}, "Missing key.*affine"),
], ids=str)  # fmt: skip
def test_a_state_that_fits_not_is_refused_and_changes_nothing(state: dict, message: str) -> None:
    symbolic = made("in turns")
    x = torch.randn(6, 3, dtype=torch.float64)
    edges, y = symbolic.edges, symbolic(x)
    with pytest.raises(RuntimeError, match=message):
        symbolic.load_state_dict(state)
    assert symbolic.edges == edges
    assert torch.equal(symbolic(x), y)


def test_functions_of_ones_own_are_looked_up_by_name() -> None:
    add_symbolic("twice", lambda z: 2 * z)
    try:
        symbolic = layer((0, 0, "twice"), sizes=(1, 1))
        x = torch.randn(4, 1, dtype=torch.float64)
        y = symbolic(x)
        assert torch.equal(pickle.loads(pickle.dumps(symbolic))(x), y)  # though a lambda can't be pickled
        state = symbolic.state_dict()
    finally:
        remove_symbolic("twice")
    with pytest.raises(RuntimeError, match=r"\['twice'\]: add them by add_symbolic first"):
        SymbolicEdges(1, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="'twice': add it by add_symbolic"):
        symbolic(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_a_copy_is_the_same_and_its_own(copied: Callable) -> None:
    symbolic = made("in turns")
    x = torch.randn(6, 3, dtype=torch.float64)
    y = symbolic(x)
    y.sum().backward()
    other = copied(symbolic)
    assert torch.equal(other(x), y)
    other.fix(1, 1, "exp")
    with torch.no_grad():
        other.affine.zero_()
    assert torch.equal(symbolic(x), y)


def test_dtypes_and_devices_move() -> None:
    symbolic = made("in turns")
    x = torch.randn(6, 3)
    y = symbolic.float()(x)
    assert y.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(copy.deepcopy(symbolic).to(dtype)(x.to(dtype)).float(), y, rtol=0.1, atol=0.1)
    other = copy.deepcopy(symbolic).to("meta")
    assert other(x.to("meta")).shape == y.shape
    other = other.to_empty(device="cpu")
    with torch.no_grad():
        other.affine.copy_(symbolic.affine)
    assert torch.equal(other(x), y)
    with torch.device("meta"):  # another default device is no matter
        again = copy.deepcopy(symbolic)
        again.fix(1, 1, "exp")
    assert again(x).device.type == "cpu"


def test_autocast() -> None:
    symbolic = made("in turns", torch.float32)
    x = torch.randn(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = symbolic(x.bfloat16())
    torch.testing.assert_close(y.float(), symbolic(x), rtol=0.1, atol=0.1)


def test_repr_names_the_edges() -> None:
    assert repr(layer((0, 1, "sin"), (2, 0, "x^2"))) == "SymbolicEdges(3, 4: 0-1 sin, 2-0 x^2)"
    assert repr(SymbolicEdges(3, 4)) == "SymbolicEdges(3, 4)"
    assert repr(made("all")).endswith(", and 4 more)")


# -- bad input -------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable, type[Exception], str]] = {
    "in": (lambda s: SymbolicEdges(-1, 1), ValueError, "in_features must be at least 0, got -1"),
    "dtype": (lambda s: SymbolicEdges(1, 1, dtype=torch.int64), TypeError, "dtype must be"),
    "i": (lambda s: s.fix(3, 0, "sin"), ValueError, "i must be below 3, got 3"),
    "j": (lambda s: s.fix(0, -1, "sin"), ValueError, "j must be at least 0, got -1"),
    "name": (lambda s: s.fix(0, 0, "sine"), ValueError, "no symbolic function has the name 'sine'"),
    "affine size": (lambda s: s.fix(0, 0, "sin", (1, 0)), ValueError, r"affine must have the shape \[4\], got \[2\]"),
    "affine nan": (lambda s: s.fix(0, 0, "sin", (1, 0, math.nan, 0)), ValueError, "affine must be finite"),
    "affine large": (lambda s: s.float().fix(0, 0, "sin", (1, 0, 1e300, 0)), ValueError, "affine must be finite"),
    "affine text": (lambda s: s.fix(0, 0, "sin", "abcd"), TypeError, "affine must be four numbers, got 'abcd'"),
    "unfix": (lambda s: s.unfix(1, 1), ValueError, r"edge \(1, 1\) has no symbolic function"),
    "unfix i": (lambda s: s.unfix(7, 1), ValueError, "i must be below 3, got 7"),
    "subset": (lambda s: s.subset([0, 3], [0]), ValueError, "inputs must be below 3, got 3"),
    "subset twice": (lambda s: s.subset([0], [1, 1]), ValueError, r"outputs must have each index once, got \[1, 1\]"),
    "x shape": (lambda s: s(torch.rand(5, 2)), ValueError, r"x must have the shape \[N, 3\], got \[5, 2\]"),
    "x 1-D": (lambda s: s(torch.rand(3)), ValueError, r"x must have the shape \[N, 3\], got \[3\]"),
    "x dtype": (lambda s: s(torch.rand(5, 3)), TypeError, "affine is torch.float64, but x is torch.float32"),
    "x int": (lambda s: s(torch.ones(5, 3).long()), TypeError, "x must be float16.*got torch.int64"),
    "x device": (lambda s: s.values(torch.rand(5, 3, device="meta").double()), ValueError, "affine is on cpu, but x"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_changes_nothing(case: str) -> None:
    call, error, message = BAD[case]
    symbolic = layer((0, 0, "sin"), (2, 1, "exp"))
    before = copy.deepcopy(symbolic.state_dict())
    with pytest.raises(error, match=message):
        call(symbolic)
    after = symbolic.double().state_dict()
    assert torch.equal(after["formulas"], before["formulas"])
    torch.testing.assert_close(after["affine"], before["affine"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(SYMBOLIC_LIB))
def test_every_function_of_the_library_can_be_an_edge(name: str) -> None:
    symbolic = SymbolicEdges(1, 1, dtype=torch.float64)
    symbolic.fix(0, 0, name, (0.5, 0.6, 2, 1))
    x = torch.linspace(-1, 0.7, 20, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(symbolic(x), 2 * SYMBOLIC_LIB[name].fun(0.5 * x + 0.6) + 1)
    assert symbolic(x).isfinite().all()
