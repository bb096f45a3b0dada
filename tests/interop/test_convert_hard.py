"""``convert`` of shared, changed and degenerate sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import pytest
import torch
from peers import D, formula, inkan, points, pykan
from test_convert import close, value_and_slope
from torch import Tensor, nn

from fastkan import KANLinear, convert
from fastkan.layers.symbolic import SymbolicEdges

# -- shared modules -------------------------------------------------------------------------------------


class Holder(nn.Module):
    """A network, followed by one of its own layers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.first = net.layers[0]
        self.plain = [net.layers[1]]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_of_a_network_that_is_held_again_stays_one(inplace: bool) -> None:
    holder = Holder(inkan(3, 5, 2))
    net, layers = holder.net, list(holder.net.layers)
    ours = convert(holder, inplace=inplace)
    assert type(ours.first) is KANLinear
    assert ours.first is ours.net.layers[0]
    if not inplace:
        assert ours.plain[0] is ours.net.layers[1]
    assert list(net.layers) == layers  # the source is not changed


def test_networks_that_share_layers_still_do() -> None:
    one, other = inkan(3, 3, 3), inkan(3, 3, 3)
    other.layers[0] = one.layers[1] = one.layers[0]
    ours = convert(nn.ModuleList([one, other]))
    assert ours[0].layers[0] is ours[0].layers[1] is ours[1].layers[0]
    assert len(list(ours.parameters())) == len({id(p) for p in ours.parameters()})


def test_formulas_that_a_refined_model_shares_with_its_parent_stay_shared() -> None:
    one, other = pykan(), pykan(grid=8)
    formula(one, 0, 0, 0, "sin", (2, 0.1, 1, 0))
    for l in range(2):
        other.symbolic_fun[l] = one.symbolic_fun[l]  # pykan's refine shares modules like this
    ours = convert(nn.ModuleList([one, other]))
    assert ours[0].symbolic[0] is ours[1].symbolic[0]
    assert [tuple(edge) for edge in ours[1].symbolic[0].edges] == [(0, 0, "sin")]
    close(ours[1](points(2)).detach(), other(points(2)).detach())


def test_training_modes_of_a_network_s_layers_are_kept() -> None:
    source = inkan(3, 4, 2).eval()
    source.layers[0].train()
    ours = convert(source)
    assert [each.training for each in (ours, ours.layers[0], ours.layers[1], ours.layers)] == [
        False,
        True,
        False,
        False,
    ]


def test_a_compiled_parent_goes_on_with_ours() -> None:
    for source in (nn.Sequential(inkan(3, 4)), inkan(3, 4)):
        compiled = torch.compile(source, backend="eager")
        x = points(3)
        expected = compiled(x).detach()
        ours = convert(compiled)
        close(ours(x).detach(), expected)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
        assert not ours(x).any()
        assert compiled(x).any()


# -- numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_an_input_whose_samples_were_all_one_value(k: int, dtype: torch.dtype) -> None:
    source = pykan((3, 2), k=k, dtype=dtype)
    x = points(3, dtype=dtype)
    x[:, 1] = 0.3
    source.update_grid(x)
    source.act_fun[0].grid.data[2] = torch.tensor([0.0, *source.act_fun[0].grid[2, :-1]])
    source.act_fun[0].grid.data[2] = source.act_fun[0].grid.data[2].sort().values
    source.act_fun[0].grid.data[2, 3] = source.act_fun[0].grid[2, 2]  # knots of edges that are off
    source.act_fun[0].mask.data[2] = 0
    ours = convert(source)
    for points_ in (x, 40 * points(3, dtype=dtype)):
        (y, slope), (y_source, slope_source) = value_and_slope(ours, points_), value_and_slope(source, points_)
        close(y, y_source)
        close(slope[:, 0], slope_source[:, 0])  # pykan's gradients are NaN for the other inputs
        assert slope.isfinite().all()
    ours(x).sum().backward()
    assert not ours.layers[0].spline_weight.grad[:, 1].any()  # the splines stay 0, as in pykan
    assert ours.layers[0].base_weight.grad[1].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_copies_are_compared_without_their_rounding(dtype: torch.dtype) -> None:
    source = peers.KANLinear(3, 4).to(dtype)
    ours = convert(source)
    assert ours.spline_weight.dtype == dtype
    close(ours.double()(points(3)).detach(), source.double()(points(3)).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_grids_of_inkan_stay_even(dtype: torch.dtype) -> None:
    ours = convert(inkan(3, 4, grid_size=40, dtype=dtype))
    assert ours.basis.uniform
    assert ours.knots.dtype == torch.float32


def test_a_scale_that_is_switched_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.KANLinear, "__module__", "efficient_kan.kan")
    source = peers.KANLinear(3, 4)
    source.enable_standalone_scale_spline = False
    ours = convert(source)
    assert ours.spline_scale is None
    close(ours(points(3)).detach(), source(points(3)).detach())


def test_sizes_in_numpy_s_integers() -> None:
    source = pykan((2, (2, 1), 1), mult_arity=[[], [2], []])
    source.width = [[np.int64(count) for count in pair] for pair in source.width]
    source.mult_arity = [[], [np.int64(2)], []]
    ours = convert(source)
    assert ours.width == [[2, 0], [2, 1], [1, 0]]
    close(ours(points(2)).detach(), source(points(2)).detach())


def test_it_is_one_s_own_mode_that_counts() -> None:
    source = nn.Sequential(inkan(3, 4), peers.KANLinear(4, 2))
    with torch.inference_mode():
        ours = convert(source)
    ours(points(3)).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        ours = convert(source.float())
    assert type(ours[1]) is KANLinear


def test_a_network_of_that_name_with_other_parts_is_looked_through() -> None:
    for layers in (nn.ModuleDict({"a": inkan(3, 4)}), None):
        other = type("KAN", (nn.Module,), {})()
        other.register_module("layers", layers)
        ours = convert(nn.ModuleList([other, inkan(3, 4)]))
        assert type(ours[0]).__name__ == "KAN"
        assert layers is None or type(ours[0].layers["a"]) is KANLinear


def test_many_formulas_are_set_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = pykan((6, 6, 1))
    layer = source.symbolic_fun[0]
    layer.mask.data[:] = 1
    layer.funs_name = [["sin"] * 6 for _ in range(6)]
    layer.funs = [[torch.sin] * 6 for _ in range(6)]
    layer.affine.data.normal_(generator=torch.Generator().manual_seed(0))
    source.act_fun[0].mask.data[:] = 0
    layer.affine.requires_grad_(False)
    monkeypatch.delattr(SymbolicEdges, "fix")  # its time grows with the number of edges, so it must not be called
    ours = convert(source)
    assert not ours.symbolic[0].affine.requires_grad
    close(ours(points(6)).detach(), source(points(6)).detach())


# -- what is not converted, with a warning ------------------------------------------------------------------


@pytest.mark.parametrize("hook", [
    lambda source: source.register_full_backward_hook(lambda *of: None),
    lambda source: source.weight.register_hook(lambda gradient: 0 * gradient),
], ids=["backward", "parameter"])  # fmt: skip
def test_hooks_of_all_kinds_are_told(hook: Callable[[Any], Any]) -> None:
    source = inkan(3, 4)
    hook(source)
    with pytest.warns(UserWarning, match="hooks of a KANLayer are not converted") as told:
        convert(source)
    assert told[0].filename == __file__


# -- refused sources ------------------------------------------------------------------------------------


def changed(source: Any, change: Callable[[Any], Any]) -> Any:
    change(source)
    return source


class Doubled:
    def forward(self, x: Tensor) -> Any:
        y, *rest = super().forward(x)
        return (2 * y, *rest)


def with_a_subclass(source: Any) -> None:
    layer = source.act_fun[0]
    layer.__class__ = type("Doubled", (Doubled, type(layer)), {})


def renamed_formula() -> Any:
    source = pykan()
    formula(source, 0, 0, 0, "sin", (1, 0, 1, 0))
    source.symbolic_fun[0].funs[0][0] = lambda x: x**3
    return source


def endless_formula() -> Any:
    source = pykan()
    formula(source, 0, 1, 2, "sin", (math.nan, 0, 1, 0))
    return source


def trained_formula_mask() -> Any:
    return changed(pykan(), lambda source: source.symbolic_fun[1].mask.requires_grad_())


def tied_inside() -> Any:
    source = inkan(3, 3, 3)
    source.layers[1].weight = source.layers[0].weight
    return source


def tied_to_its_parent() -> nn.Module:
    parent = nn.Sequential(inkan(3, 3))
    parent.weight = parent[0].weight
    return parent


def with_a_product() -> nn.Module:
    parent = nn.Sequential(inkan(3, 4))
    parent.last = parent(points(3))
    return parent


def doubled_forward(source: Any) -> None:
    before = source.forward
    source.forward = lambda x: 2 * before(x)


def with_bias(source: nn.Module) -> None:
    source.bias = nn.Parameter(torch.zeros(4))


def half_double(source: Any) -> None:
    coef = source.act_fun[1].coef
    coef.data = coef.data.float()


def coincident(source: Any) -> None:
    source.act_fun[0].grid.data[0, 5] = source.act_fun[0].grid.data[0, 4]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "base in place": (lambda: pykan(base_fun=nn.SiLU(inplace=True)), "base_fun=SiLU changes its input in place"),
    "base that differs far out": (lambda: pykan(base_fun=nn.Hardtanh(-10, 10)), "base_fun=Hardtanh is none of"),
    "base with a parameter": (lambda: peers.KANLinear(2, 3, base_activation=lambda: nn.PReLU(init=1.0)),
                              "base_activation=PReLU has parameters"),
    "trained grid": (lambda: pykan().requires_grad_(),
                     r"act_fun.0: grid requires a gradient.*grid.requires_grad_\(False\)"),
    "trained mask of formulas": (trained_formula_mask, "symbolic_fun.1: mask requires a gradient"),
    "coincident knots": (lambda: changed(pykan(), coincident), r"act_fun.0: knots of the inputs \[0\] coincide"),
    "two dtypes": (lambda: changed(pykan(), lambda s: s.act_fun[1].float()), "one dtype, got .*32 and .*64"),
    "two dtypes in a layer": (lambda: changed(pykan(), half_double),
                              "act_fun.1: its parameters must have one dtype"),
    "a subclass inside": (lambda: changed(pykan(), with_a_subclass), "Doubled is a subclass of kan.KANLayer.KANLayer"),
    "another layer inside": (lambda: changed(inkan(3, 4, 2), lambda s: s.layers.insert(1, nn.LayerNorm(4))),
                             "its layer 1 must be inkan's KANLayer, got a LayerNorm"),
    "forward of the instance": (lambda: changed(inkan(3, 4), doubled_forward), "its forward was replaced"),
    "forward of a network": (lambda: changed(inkan(3, 4, 2), doubled_forward), "its forward was replaced"),
    "one more parameter": (lambda: changed(peers.KANLinear(3, 4), with_bias),
                           "it has the parameter bias, which efficient-kan's layer does not have"),
    "one more in a network": (lambda: changed(peers.KAN([3, 4]), with_bias),
                              "it has the parameter bias, which efficient-kan's network does not have"),
    "formula of another name": (renamed_formula, r"edge \(0, 0, 0\) is called 'sin', but computes something else"),
    "formula of NaN": (endless_formula, r"edge \(0, 1, 2\) must have finite numbers, it has \[nan"),
    "tied inside of a network": (tied_inside, "layers.0 and layers.1 share a parameter"),
    "tied to its parent": (tied_to_its_parent, "module and 0 share a parameter"),
    "meta": (lambda: nn.Sequential(inkan(3, 4).to("meta")), "0, a KANLayer: .* on the meta device"),
    "no copy": (with_a_product, "module, a Sequential, can't be copied; convert it with inplace=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_the_same_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert(make())


def test_what_can_not_be_copied_is_converted_in_place() -> None:
    parent = with_a_product()
    assert type(convert(parent, inplace=True)[0]) is KANLinear


def test_a_compiled_layer_is_not_converted_in_place() -> None:
    parent = nn.Sequential(torch.compile(inkan(3, 4), backend="eager"))
    with pytest.raises(ValueError, match="a compiled layer would still call its source"):
        convert(parent, inplace=True)


def test_a_range_without_few_decimals() -> None:
    source = inkan(3, 2, grid_range=(-math.pi, math.pi / 3), grid_size=9)
    close(convert(source)(points(3)).detach(), source(points(3)).detach())
