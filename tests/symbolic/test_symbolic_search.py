"""The search for formulas finds the right functions and constants; comparisons with scipy and pykan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from symbolic_cases import CASES, FORMS, RANGES, data, r_squared, samples, values

from fastkan.symbolic import SYMBOLIC_LIB, SymbolicEdges, fit_params, names_of, rank, search

# -- the right function, and its constants ---------------------------------------------------------


def test_every_function_has_cases() -> None:
    assert set(CASES) == set(names_of()) - {"0"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_a_function_is_found_in_any_units(name: str, dtype: torch.dtype) -> None:
    x, y = (part.to(dtype) for part in data(name))
    fits = search(x, y, [name])
    # in float32, rounding keeps a fit away from the steep end of a root
    assert (1 - fits.r2 < (1e-9 if dtype == torch.float64 else 1e-7)).all(), (1 - fits.r2).max()
    got = values(name, fits.affine[0], x.double())
    torch.testing.assert_close(r_squared(got, y.double()), fits.r2[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "affine"), FORMS, ids=str)
def test_constants_are_those_that_read_best(name: str, affine: tuple[float, ...]) -> None:
    x = 2 * samples().unsqueeze(1) - 1
    exact = torch.tensor([affine], dtype=torch.float64)
    fits = search(x, values(name, exact, x), [name])
    torch.testing.assert_close(fits.affine[0], exact, rtol=1e-6, atol=1e-6)
    # the same function with equivalent parameters, which the canonical form undoes
    entry = SYMBOLIC_LIB[name]
    a, b, c, d = affine
    if entry.scale == "c":
        assert abs(fits.affine[0, 0, 0]) == 1
    other = values(name, torch.tensor([(a, b, -c, d)], dtype=torch.float64), x)
    turned = search(x, other, [name]).affine[0, 0]
    torch.testing.assert_close(turned[2], torch.tensor(-c, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_step_is_found_between_the_samples_where_it_is() -> None:
    t = samples(500)
    edges = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    x = t.unsqueeze(1).expand(-1, 40)
    fits = search(x, 3 * torch.sign(x - edges) + 1, ["sgn"])
    torch.testing.assert_close(fits.r2[0], torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-12)


# with the default weights, more complex functions lose against these under noise
RANKED = ["x", "x^2", "x^3", "x^4", "x^5", "1/x", "1/x^2", "sqrt", "exp", "log", "abs", "sin", "cos", "tanh",
          "gaussian", "sgn"]  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("name", RANKED)
def test_the_right_function_is_ranked_first(name: str, noise: float) -> None:
    x, y = data(name, noise)
    fits = search(x, y)
    index = fits.names.index(name)
    assert (1 - fits.r2[index] < max(1e-9, 1.2 * noise**2)).all()
    wrong = []
    for edge in range(x.shape[1]):
        first = rank(fits, edge)[0]
        if first.name != name and {first.name, name} != {"sin", "cos"}:  # sin and cos are equivalent
            wrong.append((CASES[name][edge // len(RANGES)], first))
    assert not wrong


def test_a_hidden_value_of_little_width_is_no_tanh() -> None:
    """exp with an |a| beyond 10, where a search in units of x stops and tanh fits better."""
    x = 0.2 * samples().unsqueeze(1) + 0.4
    y = torch.exp(14 * x)
    fits = search(x.float(), y.float())
    assert rank(fits)[0].name == "exp"
    stopped = search(x.float(), y.float(), ["exp", "tanh"], a_range=(-10, 10), b_range=(-10, 10))
    assert stopped.r2[0, 0] < 0.999 < stopped.r2[1, 0]  # the fits of a search that is bounded as pykan's


# -- oracles ---------------------------------------------------------------------------------------

MISFITS = {
    "wave": lambda u: np.sin(2.5 * u) + 0.3 * u**2,
    "bump": lambda u: 1 / (1 + 8 * (u - 0.2) ** 2),
    "kink": lambda u: np.maximum(u, 0.1) + 0.2 * u**3,
    "rise": lambda u: np.exp(1.7 * u) + np.sin(4 * u),
}


@pytest.mark.filterwarnings("ignore:Covariance of the parameters")
@pytest.mark.parametrize("target", MISFITS)
@pytest.mark.parametrize("name", ["x^2", "x^3", "exp", "abs", "sin", "tanh", "gaussian", "arctan", "cosh"])
def test_no_fit_of_scipy_is_better(name: str, target: str) -> None:
    """Best R2 that scipy finds for a function that is not the right one, from many starts."""
    from scipy.optimize import curve_fit

    u = 2 * samples(300).numpy() - 1
    generator = np.random.default_rng(0)
    y = MISFITS[target](u) + 0.02 * generator.standard_normal(len(u))

    def function(u: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
        return c * SYMBOLIC_LIB[name].fun(torch.from_numpy(a * u + b)).numpy() + d

    unexplained = []
    for _ in range(12):
        start = generator.uniform([-4, -3, -2, -1], [4, 3, 2, 1])
        try:
            found, _ = curve_fit(function, u, y, start, maxfev=2000)
        except RuntimeError:  # scipy did not converge
            continue
        unexplained.append((function(u, *found) - y).var() / y.var())
    fits = search(torch.from_numpy(u).unsqueeze(1), torch.from_numpy(y).unsqueeze(1), [name])
    assert len(unexplained) >= 3
    assert 1 - fits.r2[0, 0] < 1.0005 * min(unexplained)


@pytest.mark.parametrize("name", ["sin", "exp", "x^3", "1/x", "arctan"])
def test_no_fit_of_pykan_is_better(name: str) -> None:
    utils = pytest.importorskip("kan.utils")
    t = samples(200)
    x, y = 2 * t - 1, torch.sin(2 * t) + 0.3 * t**2
    _, theirs = utils.fit_params(x, y, utils.SYMBOLIC_LIB[name][0], grid_number=31, verbose=False)
    _, ours = fit_params(x, y, name)
    bounded, within = fit_params(x, y, name, (-10, 10), (-10, 10))
    assert ours >= within - 1e-6
    assert within > float(theirs) - 1e-6
    assert bounded[:2].abs().max() <= 10


# -- guarantees of a fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "start"), [(2.0, -1.0), (0.2, 100.0), (1e-6, 0.0), (1e6, 0.0), (0.0, 3.0)])
def test_every_fit_can_be_an_edge(width: float, start: float, dtype: torch.dtype) -> None:
    """In the data's precision, every fit maps all of x into the domain and has finite values, for any y."""
    t = samples(400)
    targets = [
        torch.sin(6 * t), t.sqrt(), 1 / (t + 0.01), torch.randn(400, dtype=t.dtype), torch.sign(t - 0.4), t, 0 * t + 3
    ]  # fmt: skip
    x = (start + width * t).to(dtype).unsqueeze(1).expand(-1, len(targets))
    y = torch.stack(targets, 1).to(dtype)
    fits = search(x, y)
    assert fits.affine.isfinite().all()
    assert ((fits.r2 >= 0) & (fits.r2 <= 1)).all()
    for index, name in enumerate(fits.names):
        symbolic = SymbolicEdges(len(targets), len(targets), dtype=dtype)
        for edge in range(len(targets)):
            symbolic.fix(edge, edge, name, fits.affine[index, edge])
        got = symbolic(x)
        assert got.isfinite().all(), name
        r2, found = r_squared(got.double()[:, :-1], y.double()[:, :-1]), fits.r2[index, :-1]
        fitted = found > 0.5  # worse fits may end near a pole, where rounding of x matters
        torch.testing.assert_close(r2[fitted], found[fitted], rtol=0, atol=1e-3)
        torch.testing.assert_close(got[:, -1], y[:, -1])


def test_what_does_not_vary() -> None:
    t = samples(50)
    x = torch.stack([t, t, torch.full_like(t, 0.7)], 1)
    y = torch.stack([torch.full_like(t, 2.5), 1e9 + 1e-8 * t, t], 1)  # the variation of the second is within rounding
    fits = search(x, y)
    assert (fits.affine[..., 2] == 0).all()
    torch.testing.assert_close(fits.affine[..., 3], y.mean(0).expand(len(fits.names), -1))
    assert torch.equal(fits.r2, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).expand(len(fits.names), -1))
    assert rank(fits)[0].name == "0"


def test_a_constant_and_a_line_are_plain_least_squares() -> None:
    t = samples(50)
    x, y = t.unsqueeze(1), torch.stack([torch.exp(t)], 1)
    fits = search(x, y, ["0", "x"])
    slope, offset = np.polyfit(t.numpy(), y[:, 0].numpy(), 1)
    exact = torch.tensor([[1, 0, 0, y.mean()], [1, 0, slope, offset]], dtype=torch.float64)
    torch.testing.assert_close(fits.affine[:, 0], exact)
    assert fits.r2[0, 0] == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples(count: int) -> None:
    x = torch.arange(count, dtype=torch.float64).unsqueeze(1)
    fits = search(x, x.square() + 1)
    assert fits.affine.isfinite().all()
    assert ((fits.r2 >= 0) & (fits.r2 <= 1)).all()
