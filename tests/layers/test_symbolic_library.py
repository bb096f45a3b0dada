"""The library of functions: what an entry says of its function is true of it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sympy
import torch

from fastkan.symbolic import SYMBOLIC_LIB, Interval, add_symbolic, lookup, names_of, remove_symbolic

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(SYMBOLIC_LIB)
EVERY = pytest.mark.parametrize("name", NAMES)
INF = math.inf

# of pykan 0.2.8, and three more
COMPLEXITY = {
    "x": 1, "x^2": 2, "x^3": 3, "x^4": 3, "x^5": 3, "1/x": 2, "1/x^2": 2, "1/x^3": 3, "1/x^4": 4, "1/x^5": 5,
    "sqrt": 2, "x^0.5": 2, "x^1.5": 4, "1/sqrt(x)": 2, "1/x^0.5": 2, "exp": 2, "log": 2, "abs": 3, "sin": 2, "cos": 2,
    "tan": 3, "tanh": 3, "sgn": 3, "arcsin": 4, "arccos": 4, "arctan": 4, "arctanh": 4, "0": 0, "gaussian": 3,
    "cosh": 5, "sinh": 5, "sigmoid": 4,
}  # fmt: skip


def stable(value: object) -> str:
    """An id that is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.fixture
def own() -> Iterator[str]:
    """A name for a function of one's own, free before and after."""
    name = "my function"
    assert name not in SYMBOLIC_LIB
    yield name
    if name in SYMBOLIC_LIB:
        remove_symbolic(name)


def inside(name: str, count: int = 41) -> torch.Tensor:
    """Places in the domain, away from its ends and poles."""
    branch = SYMBOLIC_LIB[name].branches()[-1]
    low, high = max(branch.low, -3.0), min(branch.high, 3.0)
    margin = 0.03 * (high - low)
    return torch.linspace(low + margin, high - margin, count, dtype=torch.float64)


def test_names_and_complexities_are_those_that_people_know() -> None:
    assert {name: entry.complexity for name, entry in SYMBOLIC_LIB.items()} == COMPLEXITY
    assert all(entry.name == name for name, entry in SYMBOLIC_LIB.items())


@EVERY
def test_values_are_those_of_pykan(name: str) -> None:
    library = pytest.importorskip("kan.utils").SYMBOLIC_LIB
    if name not in library:
        pytest.skip("not in pykan")
    z = inside(name)
    torch.testing.assert_close(SYMBOLIC_LIB[name].fun(z), library[name][0](z), rtol=1e-12, atol=1e-12)
    assert SYMBOLIC_LIB[name].complexity == library[name][2]


@EVERY
def test_sympy_and_torch_mean_the_same_function(name: str) -> None:
    entry, symbol = SYMBOLIC_LIB[name], sympy.Symbol("z", real=True)
    expression = entry.sympy_fun(symbol)
    z = inside(name, 11)
    exact = [float(expression.subs(symbol, sympy.Float(place, 40)).evalf(30)) for place in z.tolist()]
    torch.testing.assert_close(entry.fun(z), torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@EVERY
def test_functions_are_differentiable_twice(name: str) -> None:
    z = inside(name, 8).requires_grad_()
    assert torch.autograd.gradcheck(SYMBOLIC_LIB[name].fun, (z,))
    assert torch.autograd.gradgradcheck(SYMBOLIC_LIB[name].fun, (z,))


@EVERY
def test_a_domain_is_where_values_are_finite(name: str) -> None:
    entry = SYMBOLIC_LIB[name]
    low, high, low_closed, high_closed = entry.domain
    for end, closed, step in ((low, low_closed, -1e-9), (high, high_closed, 1e-9)):
        if math.isinf(end):
            continue
        at, beyond = entry.fun(torch.tensor([end, end + step], dtype=torch.float64)).isfinite().tolist()
        assert (at, beyond) == (closed, False)
    for pole in entry.poles:
        near = torch.tensor([pole], dtype=torch.float64)
        assert not entry.fun(near).abs() < 1e15
        assert not entry.defined_on(pole - 0.1, pole + 0.1)
    places = inside(name)
    assert entry.fun(places).isfinite().all()
    assert entry.defined_on(places[0].item(), places[-1].item())


def test_branches_end_at_poles() -> None:
    assert SYMBOLIC_LIB["1/x"].branches() == (Interval(-INF, 0.0), Interval(0.0, INF))
    assert SYMBOLIC_LIB["tan"].branches() == (Interval(-math.pi / 2, math.pi / 2),)
    assert SYMBOLIC_LIB["sqrt"].branches() == (Interval(0.0, INF, True),)
    tan = SYMBOLIC_LIB["tan"]
    assert tan.defined_on(math.pi / 2 + 0.01, 3 * math.pi / 2 - 0.01)
    assert not tan.defined_on(math.pi / 2 - 0.01, math.pi / 2 + 0.01)
    assert not tan.defined_on(0.0, 4.0)


@EVERY
def test_what_a_search_takes_for_granted_is_true(name: str) -> None:
    entry, z = SYMBOLIC_LIB[name], inside(name)

    def close(got: torch.Tensor, want: torch.Tensor) -> None:
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)

    f = entry.fun(z)
    assert entry.symmetry in ("even", "odd", None)
    if entry.symmetry:
        close(entry.fun(-z), f if entry.symmetry == "even" else -f)
    for factor in (0.3, 7.0):
        scaled = entry.fun(factor * z)
        if entry.scale == "c":
            close(scaled * f[0], f * scaled[0])
        elif entry.scale == "d":
            close(scaled - scaled[0], f - f[0])
        else:
            assert entry.scale is None
    moved = entry.fun(z + 0.7)
    if entry.shift == "c":
        close(moved, f * math.exp(0.7))
    elif entry.shift == "d":
        close(moved - moved[0], f - f[0])
    else:
        assert entry.shift is None
    if entry.period is not None:
        close(entry.fun(z + entry.period), f)
        if entry.antiperiodic:
            close(entry.fun(z + entry.period / 2), -f)
    if entry.same_as is not None:
        other, (a, b, c, d) = entry.same_as
        close(c * SYMBOLIC_LIB[other].fun(a * z + b) + d, f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("y_th", [2.0, 10.0, 1000.0])
@pytest.mark.parametrize("name", [name for name in NAMES if SYMBOLIC_LIB[name].guard])
def test_a_guard_holds_what_is_singular(name: str, y_th: float, dtype: torch.dtype) -> None:
    entry = SYMBOLIC_LIB[name]
    rounding = 4 * torch.finfo(dtype).eps
    near = torch.logspace(-12, 1.2, 300, dtype=torch.float64)
    ends = [end for end in (*entry.domain[:2], *entry.poles, 0.0) if math.isfinite(end)]
    z = torch.cat([end + side * near for end in ends for side in (-1, 1)] + [torch.tensor(ends)]).to(dtype)
    z = z[z.abs() < 20].requires_grad_()
    value = entry.guarded(z, y_th)
    assert value.isfinite().all()
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    assert slope.isfinite().all()
    (curved,) = torch.autograd.grad(slope.sum(), z)
    assert curved.isfinite().all()
    if name not in ("sqrt", "x^0.5", "x^1.5", "log"):  # which grow slowly, far from what is singular
        assert value.abs().max() <= max(y_th, math.pi) * (1 + 1e-3)
    plain = entry.fun(z)
    fine = (
        plain.isfinite()
        & (plain.abs() <= y_th * (1 - rounding * y_th))
        & ((z - torch.tensor(ends).to(dtype)[:, None]).abs().amin(0) > rounding)
    )
    assert fine.any()
    torch.testing.assert_close(value[fine], plain[fine], rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=rounding)


def test_where_nothing_is_singular_a_guard_changes_nothing() -> None:
    z = torch.linspace(-50, 50, 101)
    for name, entry in SYMBOLIC_LIB.items():
        if entry.guard is None:
            assert torch.equal(entry.guarded(z, 1e-3), entry.fun(z)), name


# -- names -----------------------------------------------------------------------------------------


def test_the_whole_library_has_no_function_by_two_names() -> None:
    names = names_of()
    assert set(NAMES) - set(names) == {"x^0.5", "1/x^0.5"}
    assert names_of(["x^0.5", "sqrt", "x^0.5"]) == ["x^0.5", "sqrt"]


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: lookup("sine"), ValueError, "no symbolic function has the name 'sine': add it by add_symbolic.* sin"),
    (lambda: lookup(3), TypeError, "name of a symbolic function must be a str, got int"),
    (lambda: names_of("sin"), TypeError, "lib must be names of functions in a list, got 'sin'"),
    (lambda: names_of(3), TypeError, "lib must be names of functions in a list, got 3"),
    (lambda: names_of([]), ValueError, "lib must name a function, got none"),
    (lambda: names_of(["sin", "sine"]), ValueError, "'sine'"),
    (lambda: remove_symbolic("sin"), ValueError, "must be that of a function you have added, got 'sin'"),
    (lambda: remove_symbolic("sine"), ValueError, "'sine'"),
], ids=stable)  # fmt: skip
def test_unknown_names_are_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# -- one's own -------------------------------------------------------------------------------------


def test_a_function_of_ones_own(own: str) -> None:
    add_symbolic(own, torch.special.bessel_j0, 4)
    entry = SYMBOLIC_LIB[own]
    assert (entry.complexity, entry.domain, entry.name) == (4, Interval(), own)
    assert own in names_of()
    z = sympy.Symbol("z")
    assert entry.sympy_fun(z) == sympy.Function(own)(z)
    with pytest.raises(ValueError, match="which you have added: pass overwrite=True"):
        add_symbolic(own, torch.sin)
    assert SYMBOLIC_LIB[own].fun is torch.special.bessel_j0
    add_symbolic(own, torch.log1p, sympy_fun=lambda z: sympy.log(1 + z), domain=(-1, INF), overwrite=True)
    assert SYMBOLIC_LIB[own].fun is torch.log1p
    assert SYMBOLIC_LIB[own].sympy_fun(z) == sympy.log(1 + z)
    remove_symbolic(own)
    assert own not in SYMBOLIC_LIB


@pytest.mark.parametrize(("fun", "domain", "closed"), [
    (torch.log1p, (-1, INF), (False, False)),
    (lambda z: torch.sqrt(2 - z), (-INF, 2), (False, True)),
    (torch.arcsin, (-1, 1), (True, True)),
    (lambda z: torch.sqrt(z) / (1 - z), (0, 1), (True, False)),
], ids=["log1p", "root", "arcsin", "half-open"])  # fmt: skip
def test_ends_belong_to_a_domain_where_the_function_is_finite(own: str, fun, domain, closed) -> None:
    add_symbolic(own, fun, domain=domain)
    assert SYMBOLIC_LIB[own].domain == Interval(*domain, *closed)


def test_pykans_form_of_a_guard(own: str) -> None:
    def avoiding(z: torch.Tensor, y_th: float) -> tuple:
        return (1 / y_th,), torch.where(z.abs() < 1 / y_th, y_th, 1 / z)

    add_symbolic(own, torch.reciprocal, 2, avoiding)
    z = torch.tensor([0.0, 0.05, 4.0])
    torch.testing.assert_close(SYMBOLIC_LIB[own].guarded(z, 10.0), torch.tensor([10.0, 10.0, 0.25]))
    add_symbolic(own, torch.reciprocal, 2, lambda z, y_th: avoiding(z, y_th)[1], overwrite=True)
    torch.testing.assert_close(SYMBOLIC_LIB[own].guarded(z, 10.0), torch.tensor([10.0, 10.0, 0.25]))


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    (("sin", torch.sin), {}, ValueError, "name must be a new one, got 'sin', which is built in"),
    (("sin", torch.sin), {"overwrite": True}, ValueError, "'sin', which is built in"),
    (("", torch.sin), {}, ValueError, "name must not be empty"),
    ((3, torch.sin), {}, TypeError, "name must be a string, got int"),
    (("f", 3), {}, TypeError, "fun must be a function, got int"),
    (("f", torch.sin, "2"), {}, TypeError, "c must be a number, got str"),
    (("f", torch.sin, -1), {}, ValueError, "c must be at least 0, got -1"),
    (("f", torch.sin, 1, 5), {}, TypeError, "fun_singularity must be a function, got int"),
    (("f", torch.sin), {"sympy_fun": "sin"}, TypeError, "sympy_fun must be a function, got str"),
    (("f", torch.sin), {"domain": (1, 0)}, ValueError, "domain must be increasing"),
    (("f", torch.sin), {"domain": 3}, TypeError, "domain must be two numbers, got 3"),
    (("f", lambda z: z.sum()), {}, TypeError, r"fun must map a tensor to one of its shape.*float64 \[\]"),
    (("f", lambda z: z > 0), {}, TypeError, r"fun must map a tensor to one of its shape.*bool \[2\]"),
    (("f", lambda z: 1.0), {}, TypeError, "became float"),
], ids=stable)  # fmt: skip
def test_what_is_no_function_is_refused(arguments, options, error: type[Exception], message: str) -> None:
    before = dict(SYMBOLIC_LIB)
    with pytest.raises(error, match=message):
        add_symbolic(*arguments, **options)
    assert dict(SYMBOLIC_LIB) == before


def test_the_mapping_is_for_reading() -> None:
    with pytest.raises(TypeError):
        SYMBOLIC_LIB["sin"] = SYMBOLIC_LIB["cos"]  # type: ignore[index]


def test_sympy_is_imported_when_it_is_needed() -> None:
    code = "import torch, sys; before = set(sys.modules); " \
        "import fastkan.symbolic; assert not {'sympy', 'scipy', 'mpmath'} & (set(sys.modules) - before)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert done.returncode == 0, done.stderr
