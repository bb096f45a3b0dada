"""Bad input: an error that names the argument, what came and what was expected, and nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

import fastkan
import fastkan_kernels as kernels
from fastkan import KANLinear
from fastkan.functional import kan_linear
from fastkan_kernels import Basis

NAN, INF = float("nan"), float("inf")
BAD = (TypeError, ValueError)  # where either would do

# -- tensors for the contractions: 5 rows, 2 inputs, 3 outputs, 8 cubic splines ----------------------

X, V, G = torch.rand(5, 2), torch.rand(5, 2), torch.rand(5, 3)
KNOTS = kernels.uniform_knots(2, 5, 3)
W, BASE_W = torch.rand(8, 2, 3), torch.rand(2, 3)
CUBIC = Basis(3, uniform=True)


def call_of(contraction: Callable, *arguments: object) -> Callable:
    """The calls of a contraction: with other values at some places, and other options."""

    def call(*changes: tuple[int, object], **options) -> Callable:
        given = list(arguments)
        for place, value in changes:
            given[place] = value
        return lambda: contraction(*given, **{"basis": CUBIC, **options})

    return call


out = call_of(kernels.contract_out, X, KNOTS, W, BASE_W, V)
weight = call_of(kernels.contract_weight, X, KNOTS, G, V)
inputs = call_of(kernels.contract_in, X, KNOTS, W, BASE_W, G)

CONTRACTIONS = {
    "x list": (out((0, [1.0])), TypeError, r"x must be a torch.Tensor, got list"),
    "x int": (out((0, X.long())), TypeError, r"x must be float16.*got torch.int64"),
    "x 1-D": (out((0, X[0])), ValueError, r"x must have the shape \[N, 2\], got \[2\]"),
    "x 3-D": (out((0, X[None])), ValueError, r"x must have the shape \[N, 2\], got \[1, 5, 2\]"),
    "x wide": (out((0, torch.rand(5, 4))), ValueError, r"x must have the shape .*2.*got \[5, 4\]"),
    "x dtype": (out((0, X.double())), TypeError, r"(knots|weight).* torch.float32.*x is torch.float64"),
    "knots none": (out((1, None)), TypeError, r"knots must be a torch.Tensor, got NoneType"),
    "knots 1-D": (out((1, KNOTS[0])), ValueError, r"knots must have the shape .*got \[12\]"),
    "knots few": (out((1, KNOTS[:, :7])), ValueError, r"knots must have at least 8 columns .*got 7"),
    "knots dtype": (out((1, KNOTS.double())), TypeError, r"knots is torch.float64, but x is torch.float32"),
    "knots device": (out((1, KNOTS.to("meta"))), ValueError, r"knots is on meta, but x is on cpu"),
    "weight none": (out((2, None), (3, None)), BAD, r"weight .*None"),
    "weight number": (out((2, 1.0)), TypeError, r"weight must be a torch.Tensor, got float"),
    "weight splines": (out((2, W[1:])), ValueError, r"weight must have the shape \[8, 2, .*got \[7, 2, 3\]"),
    "weight inputs": (out((2, W[:, 1:])), ValueError, r"weight must have the shape \[8, 2, .*got \[8, 1, 3\]"),
    "weight order": (out((2, W.permute(1, 2, 0))), ValueError, r"weight must have the shape \[8, 2, .*\[2, 3, 8\]"),
    "weight dtype": (out((2, W.double())), TypeError, r"weight is torch.float64, but x is torch.float32"),
    "weight device": (out((2, W.to("meta"))), ValueError, r"weight is on meta, but x is on cpu"),
    "base_weight shape": (out((3, BASE_W.t())), ValueError, r"base_weight must have the shape \[2, 3\], got \[3, 2\]"),
    "base_weight type": (out((3, 2)), TypeError, r"base_weight must be a torch.Tensor, got int"),
    "base_weight missing": (out((3, None)), ValueError, r"base='silu', but base_weight is None"),
    "base_weight too much": (out(basis=Basis(3, "none")), ValueError, r"base='none', but base_weight is a tensor"),
    "v shape": (out((4, V[:, :1])), ValueError, r"v must have the shape \[5, 2\], got \[5, 1\]"),
    "v type": (out((4, 1.0)), TypeError, r"v must be a torch.Tensor, got float"),
    "v dtype": (out((4, V.half())), TypeError, r"v is torch.float16, but x is torch.float32"),
    "g none": (weight((2, None)), BAD, r"g .*None"),
    "g rows": (weight((2, G[:4])), ValueError, r"g must have the shape \[5, .*got \[4, 3\]"),
    "g 1-D": (weight((2, G[:, 0])), ValueError, r"g must have the shape \[5, .*got \[5\]"),
    "g outputs": (inputs((4, G[:, :2])), ValueError, r"g must have the shape \[5, 3\], got \[5, 2\]"),
    "g none in H": (inputs((4, None)), BAD, r"g .*None"),
    "weight none in H": (inputs((2, None), (3, None)), BAD, r"weight .*None"),
    "order 0": (out(basis=Basis(0)), ValueError, r"spline_order must be from 1 to 5, got 0"),
    "order 6": (out(basis=Basis(6)), ValueError, r"spline_order must be from 1 to 5, got 6"),
    "order float": (out(basis=Basis(3.0)), TypeError, r"spline_order must be an int, got float"),
    "base unknown": (out(basis=Basis(3, "relu")), ValueError, r"base must be one of .*none'; got 'relu'"),
    "x sparse": (out((0, X.to_sparse())), TypeError, r"x must be a dense tensor, got torch.sparse_coo"),
    "product word": (out(basis=CUBIC._replace(matmul_dtype="half")), TypeError, r"dtype must .*'half'"),
    "basis int": (out(basis=3), TypeError, r"basis .*Basis.*int"),
    "derivative -1": (out(derivative=-1), ValueError, r"derivative must be at least 0, got -1"),
    "derivative float": (out(derivative=1.0), TypeError, r"derivative must be an int, got float"),
    "F_5 of silu": (out(derivative=5), ValueError, r"derivative must be at most 4 for base='silu', got 5.*identity"),
    "G_5 of silu": (weight(derivative=5), ValueError, r"derivative must be at most 4 for base='silu', got 5"),
    "H_7 of silu": (inputs(derivative=7), ValueError, r"derivative must be at most 4 for base='silu', got 7"),
}  # fmt: skip

EDGES = {
    "std of one row": (lambda: kernels.edge_std(X[:1], KNOTS, W, BASE_W, basis=CUBIC), ValueError,
                       r"x must have more than 1 rows.*got 1"),
    "std correction": (lambda: kernels.edge_std(X, KNOTS, W, BASE_W, basis=CUBIC, correction=5), ValueError,
                       r"x must have more than 5 rows.*got 5"),
    "std correction word": (lambda: kernels.edge_std(X, KNOTS, W, BASE_W, basis=CUBIC, correction="1"), TypeError,
                            r"correction must be an int, got str"),
    "std correction -1": (lambda: kernels.edge_std(X, KNOTS, W, BASE_W, basis=CUBIC, correction=-1), ValueError,
                          r"correction must be at least 0, got -1"),
    "std weight": (lambda: kernels.edge_std(X, KNOTS, W[1:], BASE_W, basis=CUBIC), ValueError,
                   r"weight must have the shape .*got \[7, 2, 3\]"),
    "std weight none": (lambda: kernels.edge_std(X, KNOTS, None, basis=Basis(3, "none")), BAD,
                        r"weight .*None"),
    "std order": (lambda: kernels.edge_std(X, KNOTS, W, BASE_W, basis=Basis(9)), ValueError,
                  r"spline_order must be from 1 to 5, got 9"),
    "std base": (lambda: kernels.edge_std(X, KNOTS, W, BASE_W, basis=Basis(3, "relu")), ValueError,
                 r"base must be one of .*got 'relu'"),
    "values x": (lambda: kernels.edge_values(X[0], KNOTS, W, BASE_W, basis=CUBIC), ValueError,
                 r"x must have the shape \[N, 2\], got \[2\]"),
    "values weight none": (lambda: kernels.edge_values(X, KNOTS, None, basis=Basis(3, "none")), BAD,
                           r"weight .*None"),
    "mean of no rows": (lambda: kernels.edge_mean_abs(X[:0], KNOTS, W, BASE_W, basis=CUBIC), ValueError,
                        r"x must have rows.*none"),
    "mean base_weight": (lambda: kernels.edge_mean_abs(X, KNOTS, W, basis=CUBIC), ValueError, r"base_weight is None"),
    "covariance knots": (lambda: kernels.feature_covariance(X, KNOTS[:1], basis=CUBIC), ValueError,
                         r"(knots|x) must have the shape"),
    "covariance base": (lambda: kernels.feature_covariance(X, KNOTS, basis=Basis(3, "relu")), ValueError,
                        r"base must be one of .*got 'relu'"),
}  # fmt: skip

KNOT_MAKERS = {
    "no grid": (lambda: kernels.uniform_knots(2, 0, 3), ValueError, r"grid_size .*1.* got 0"),
    "float grid": (lambda: kernels.uniform_knots(2, 2.5, 3), TypeError, r"grid_size must be an int, got float"),
    "order": (lambda: kernels.uniform_knots(2, 5, 0), ValueError, r"order .*1.* got 0"),
    "reversed": (lambda: kernels.uniform_knots(2, 5, 3, (1.0, -1.0)), ValueError, r"grid_range .*increasing.*\(1"),
    "no width": (lambda: kernels.uniform_knots(2, 5, 3, (1.0, 1.0)), ValueError, r"grid_range .*increasing"),
    "nan": (lambda: kernels.uniform_knots(2, 5, 3, (NAN, 1.0)), ValueError, r"grid_range .*finite"),
    "int dtype": (lambda: kernels.uniform_knots(2, 5, 3, dtype=torch.int64), TypeError, r"dtype must .*int64"),
    "basis of a row": (lambda: kernels.basis_of(KNOTS[0], 3), ValueError, r"knots must have the shape .*got \[12\]"),
    "basis of a list": (lambda: kernels.basis_of([[0.0, 1.0]], 3), TypeError, r"knots must be .*got list"),
    "basis of order 8": (lambda: kernels.basis_of(KNOTS, 8), ValueError, r"order must be from 1 to 5, got 8"),
    "basis of base": (lambda: kernels.basis_of(KNOTS, 3, "relu"), ValueError, r"base must be one of .*got 'relu'"),
}  # fmt: skip


def function(**changes: object) -> Callable:
    arguments = {"x": X, "spline_weight": W, "base_weight": BASE_W, "knots": KNOTS, **changes}
    return lambda: kan_linear(**arguments)


def knots_with(column: int, value: float) -> torch.Tensor:
    knots = KNOTS.clone()
    knots[1, column] = value
    return knots


NARROW = torch.linspace(1, 1 + 1e-9, 12, dtype=torch.float64).repeat(2, 1)  # in float32 all are 1
FLAT = torch.cat([KNOTS[:, :4], KNOTS[:, 3:4].expand(-1, 4), KNOTS[:, 3:4].expand(-1, 1), KNOTS[:, 9:]], 1)

FUNCTION = {
    "x": (function(x=X.tolist()), TypeError, r"x must be a torch.Tensor, got list"),
    "x number": (function(x=torch.tensor(1.0)), ValueError, r"x must have the shape .*in_features=2.*got \[\]"),
    "x width": (function(x=torch.rand(4, 3)), ValueError, r"x must have the shape .*in_features=2.*got \[4, 3\]"),
    "x dtype": (function(x=X.double()), TypeError, r"torch.float32.*x is torch.float64"),
    "x int": (function(x=X.long()), TypeError, r"x must be float16.*got torch.int64"),
    "x device": (function(x=X.to("meta")), ValueError, r"is on cpu, but x is on meta"),
    "weight": (function(spline_weight=None), TypeError, r"spline_weight must be a torch.Tensor, got NoneType"),
    "weight 2-D": (function(spline_weight=BASE_W), ValueError, r"spline_weight must have the shape .*got \[2, 3\]"),
    "weight splines": (function(spline_weight=W[1:]), ValueError, r"(spline_weight|knots) .*shape .*got"),
    "weight dtype": (function(spline_weight=W.double()), TypeError, r"spline_weight is torch.float64, but x is"),
    "base_weight": (function(base_weight=W), ValueError, r"base_weight must have the shape \[2, 3\], got \[8, 2, 3\]"),
    "base missing": (function(base_weight=None), ValueError, r"base='silu', but base_weight is None"),
    "base": (function(base="tanh"), ValueError, r"base must be one of .*got 'tanh'"),
    "order": (function(spline_order=0), ValueError, r"spline_order must be from 1 to 5, got 0"),
    "outside": (function(outside="clamp"), ValueError, r"outside must be one of 'zero', 'linear'; got 'clamp'"),
    "knots": (function(knots=None), TypeError, r"knots must be a torch.Tensor, got NoneType"),
    "knots given": (function(knots=None, uniform=True), TypeError, r"knots must be a torch.Tensor, got NoneType"),
    "knots rows": (function(knots=KNOTS[:1]), ValueError, r"(knots|spline_weight) must have the shape"),
    "knots columns": (function(knots=KNOTS[:, :-1]), ValueError, r"(knots|spline_weight) must have the shape"),
    "knots nan": (function(knots=knots_with(3, NAN)), ValueError, r"knots must be finite"),
    "knots inf": (function(knots=knots_with(11, INF)), ValueError, r"knots must be finite"),
    "knots fall": (function(knots=knots_with(4, 9.0)), ValueError, r"knots must be non-decreasing.* \[1\]"),
    "knots flat": (function(knots=FLAT), ValueError, r"must have a width.*\[0, 1\]"),
    "bias number": (function(bias=1.0), TypeError, r"bias must be a torch.Tensor.*got float"),
    "bias shape": (function(bias=torch.zeros(2)), ValueError, r"bias must have the shape \[3\], got \[2\]"),
    "bias dtype": (function(bias=torch.zeros(3).double()), TypeError, r"bias is torch.float64, but x is torch.float32"),
    "bias device": (function(bias=torch.zeros(3, device="meta")), ValueError, r"bias is on meta, but x is on cpu"),
    "scale number": (function(spline_scale=2), TypeError, r"spline_scale must be a torch.Tensor.*got int"),
    "scale shape": (function(spline_scale=BASE_W.t()), ValueError, r"spline_scale .*shape \[2, 3\], got \[3, 2\]"),
    "scale dtype": (function(spline_scale=BASE_W.double()), TypeError, r"spline_scale is torch.float64, but x is"),
    "mask list": (function(mask=[[1, 0]]), TypeError, r"mask must be a torch.Tensor.*got list"),
    "mask shape": (function(mask=torch.ones(3, 2)), ValueError, r"mask must have the shape \[2, 3\], got \[3, 2\]"),
    "mask device": (function(mask=BASE_W.to("meta")), ValueError, r"mask is on meta, but x is on cpu"),
}  # fmt: skip

CONSTRUCTOR = {
    "in_features": (lambda: KANLinear(-1, 2), ValueError, r"in_features must be at least 0, got -1"),
    "in_features float": (lambda: KANLinear(2.0, 2), TypeError, r"in_features must be an int, got float"),
    "out_features": (lambda: KANLinear(2, "3"), TypeError, r"out_features must be an int, got str"),
    "grid_size": (lambda: KANLinear(2, 3, 0), ValueError, r"grid_size must be at least 1, got 0"),
    "spline_order": (lambda: KANLinear(2, 3, 5, 6), ValueError, r"spline_order must be from 1 to 5, got 6"),
    "range reversed": (lambda: KANLinear(2, 3, grid_range=(1, -1)), ValueError, r"grid_range .*increasing.*\(1"),
    "range inf": (lambda: KANLinear(2, 3, grid_range=(0, INF)), ValueError, r"grid_range must be finite.*inf"),
    "range nan": (lambda: KANLinear(2, 3, grid_range=(NAN, 1)), ValueError, r"grid_range must be finite.*nan"),
    "range number": (lambda: KANLinear(2, 3, grid_range=1), TypeError, r"grid_range must be two numbers, got 1"),
    "range words": (lambda: KANLinear(2, 3, grid_range="01"), TypeError, r"grid_range must be two numbers, got '01'"),
    "range without width": (lambda: KANLinear(2, 3, grid_range=(1, 1 + 1e-9)), ValueError, r"width.*float32"),
    "range too small": (lambda: KANLinear(2, 3, grid_range=(0, 1e-40)), ValueError, r"width.*float32"),
    "range too large": (lambda: KANLinear(2, 3, grid_range=(-3e38, 3e38)), ValueError, r"finite"),
    "range beyond float32": (lambda: KANLinear(2, 3, grid_range=(-1e39, 1e39)), ValueError, r"finite"),
    "dtype float8": (lambda: KANLinear(2, 3, dtype=torch.float8_e4m3fn), TypeError, r"dtype must .*float8"),
    "range three": (lambda: KANLinear(2, 3, grid_range=(1, 2, 3)), TypeError, r"grid_range must be two.* got \(1"),
    "base": (lambda: KANLinear(2, 3, base="relu"), ValueError, r"base must be one of .*got 'relu'"),
    "outside": (lambda: KANLinear(2, 3, outside="tangent"), ValueError, r"outside must be one of .*got 'tangent'"),
    "dtype int": (lambda: KANLinear(2, 3, dtype=torch.int32), TypeError, r"dtype must .* got torch.int32"),
    "dtype complex": (lambda: KANLinear(2, 3, dtype=torch.complex64), TypeError, r"dtype must .*complex64"),
    "dtype word": (lambda: KANLinear(2, 3, dtype="float32"), TypeError, r"dtype .*(str|'float32')"),
    "options are named": (lambda: KANLinear(2, 3, 5, 3, (-1, 1)), TypeError, r"positional"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(*case, id=f"{group}: {name}")
        for group, cases in {
            "contraction": CONTRACTIONS,
            "edges": EDGES,
            "knots": KNOT_MAKERS,
            "kan_linear": FUNCTION,
            "KANLinear": CONSTRUCTOR,
        }.items()
        for name, case in cases.items()
    ],
)
def test_bad_arguments_are_named(call: Callable, error: type | tuple, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# -- methods of a layer, which must not have changed it ----------------------------------------------


def samples(value: float | None = None) -> torch.Tensor:
    x = torch.randn(30, 2)
    if value is not None:
        x[4, 1] = value
    return x


METHODS = {
    "forward list": (lambda m: m([1.0, 2.0]), TypeError, r"x must be a torch.Tensor, got list"),
    "forward width": (lambda m: m(torch.rand(4, 3)), ValueError, r"x .*shape .*in_features=2.*got \[4, 3\]"),
    "forward dtype": (lambda m: m(samples().double()), TypeError, r"x is torch.float64.*layer.to"),
    "forward int": (lambda m: m(torch.ones(4, 2, dtype=torch.int64)), TypeError, r"x must be float16.*got torch.int64"),
    "update nan": (lambda m: m.update_grid(samples(NAN)), ValueError, r"x must be finite, got 1 NaN"),
    "update inf": (lambda m: m.update_grid(samples(INF)), ValueError, r"x must be finite, got 1 NaN or inf"),
    "update empty": (lambda m: m.update_grid(samples()[:0]), ValueError, r"x must have at least one sample, got none"),
    "update width": (lambda m: m.update_grid(torch.rand(4, 3)), ValueError, r"x must have the shape .*got \[4, 3\]"),
    "update list": (lambda m: m.update_grid([[1.0, 2.0]]), TypeError, r"x must be a torch.Tensor, got list"),
    "update int": (lambda m: m.update_grid(samples().long()), TypeError, r"x must be float16.*got torch.int64"),
    "update device": (lambda m: m.update_grid(samples().to("meta")), ValueError, r"x is on meta.*cpu"),
    "update grid_eps": (lambda m: m.update_grid(samples(), grid_eps=1.1), ValueError, r"grid_eps .*got 1.1"),
    "update grid_eps nan": (lambda m: m.update_grid(samples(), grid_eps=NAN), ValueError, r"grid_eps must .*got nan"),
    "update grid_eps word": (lambda m: m.update_grid(samples(), grid_eps="0"), TypeError, r"grid_eps .*(str|'0')"),
    "update margin": (lambda m: m.update_grid(samples(), margin=-0.1), ValueError, r"margin .*got -0.1"),
    "update overflow": (lambda m: m.update_grid(samples(3e38) * 1.1), ValueError, r"(x|knots) must be finite"),
    "refine 0": (lambda m: m.refine(0), ValueError, r"grid_size must be at least 1, got 0"),
    "refine float": (lambda m: m.refine(10.0), TypeError, r"grid_size must be an int, got float"),
    "refine nan": (lambda m: m.refine(7, samples(NAN)), ValueError, r"x must be finite, got 1 NaN"),
    "refine width": (lambda m: m.refine(7, torch.rand(4, 3)), ValueError, r"x must have the shape .*got \[4, 3\]"),
    "knots columns": (lambda m: m.set_knots(KNOTS[:, 1:]), ValueError, r"knots .*shape \[2, 12\], got \[2, 11\]"),
    "knots rows": (lambda m: m.set_knots(KNOTS[:1]), ValueError, r"knots must have the shape \[2, 12\], got \[1, 12\]"),
    "knots nan": (lambda m: m.set_knots(knots_with(5, NAN)), ValueError, r"knots must be finite"),
    "knots fall": (lambda m: m.set_knots(-KNOTS), ValueError, r"knots must be non-decreasing.*\[0, 1\]"),
    "knots flat": (lambda m: m.set_knots(FLAT), ValueError, r"must have a width"),
    "knots meta": (lambda m: m.set_knots(KNOTS.to("meta")), ValueError, r"knots must have values.*meta.*cpu"),
    "knots flat once rounded": (lambda m: m.set_knots(NARROW), ValueError,
                                r"must have a width"),
    "knots infinite once rounded": (lambda m: m.set_knots(1e300 * KNOTS.double()), ValueError, r"knots must be finite"),
    "mask meta": (lambda m: m.set_mask(torch.ones(2, 3, device="meta")), ValueError, r"mask must have values.*meta"),
    "knots list": (lambda m: m.set_knots([1.0]), TypeError, r"knots must be a torch.Tensor, got list"),
    "mask shape": (lambda m: m.set_mask(torch.ones(3, 2)), ValueError, r"mask .*shape \[2, 3\], got \[3, 2\]"),
    "mask half": (lambda m: m.set_mask(torch.full((2, 3), 0.5)), ValueError, r"mask must hold 0 and 1 only"),
    "mask nan": (lambda m: m.set_mask(torch.full((2, 3), NAN)), ValueError, r"mask must hold 0 and 1 only"),
    "mask list": (lambda m: m.set_mask([[1, 0, 1]] * 2), TypeError, r"mask must be a torch.Tensor or None, got list"),
    "explain list": (lambda m: fastkan.explain(m, [1.0]), TypeError, r"x must be a torch.Tensor, got list"),
    "explain width": (lambda m: fastkan.explain(m, torch.rand(4, 3)), ValueError, r"x .*shape .*got \[4, 3\]"),
    "explain dtype": (lambda m: fastkan.explain(m, samples().double()), TypeError, r"x is torch.float64"),
    "explain module": (lambda m: fastkan.explain(torch.nn.Linear(2, 3), X), TypeError, r"layer .*KANLinear.* Linear"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*case, id=name) for name, case in METHODS.items()])
def test_a_refused_call_leaves_the_layer_as_it_was(call: Callable, error: type | tuple, message: str) -> None:
    layer = KANLinear(2, 3, bias=True)
    layer.count_outside()
    layer(torch.rand(4, 2))
    parameters = dict(layer.named_parameters())
    state, shown, share = copy.deepcopy(layer.state_dict()), repr(layer), layer.outside_share()
    with pytest.raises(error, match=message):
        call(layer)
    after = layer.state_dict()
    assert set(after) == set(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert all(parameter is parameters[name] for name, parameter in layer.named_parameters())
    assert repr(layer) == shown
    assert torch.equal(layer.outside_share(), share)


def test_half_layers_take_their_float32_knots_and_no_other_mixture() -> None:
    layer = KANLinear(2, 3, dtype=torch.bfloat16)
    layer(X.bfloat16())
    with pytest.raises(TypeError, match=r"torch.bfloat16.*x is torch.float32"):
        layer(X)
    with pytest.raises(TypeError, match=r"torch.bfloat16.*x is torch.float16"):
        layer(X.half())
