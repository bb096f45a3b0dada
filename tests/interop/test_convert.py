"""``convert``: the same numbers as the packages' own, modules around them, changed sources, and refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import pytest
import torch
from peers import (
    SOURCES,
    D,
    close,
    columns,
    formula,
    inkan,
    masked,
    points,
    pykan,
    read_in_part,
    value,
    value_and_slope,
    with_formulas,
)
from torch import Tensor, nn

import fastkan
from fastkan import KAN, KANLinear, convert, convert_state_dict
from fastkan.layers.symbolic import SymbolicEdges


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("name", SOURCES)
def test_values_and_input_gradients(name: str, dtype: torch.dtype) -> None:
    source = SOURCES[name](dtype=dtype)
    x = points(columns(source), dtype=dtype)
    ours = convert(source)
    for got, expected in zip(value_and_slope(ours, x), value_and_slope(source, x), strict=True):
        close(got, expected)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_of_pykan_after_training(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    width = (2, pick(3, (2, 1)), pick(1, 2))
    source = pykan(width, grid=pick(2, 5, 9), k=pick(1, 2, 3, 4), affine=pick(True, False))
    x, y = points(2), points(width[2] if isinstance(width[2], int) else 1, seed=seed + 1)
    optimizer = torch.optim.Adam([p for p in source.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (source(x) - y).square().mean().backward()
        optimizer.step()
    for got, expected in zip(value_and_slope(convert(source), x), value_and_slope(source, x), strict=True):
        close(got, expected)


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [name for name in SOURCES if "order" not in name])
def test_ten_steps_of_training_stay_together(name: str, optimizer: str) -> None:
    source = SOURCES[name](dtype=D)
    x = points(columns(source))
    ours = convert(source)
    y = torch.randn(value(ours, x).shape, generator=torch.Generator().manual_seed(3), dtype=D)
    losses: list[list[float]] = []
    for model in (source, ours):
        step = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
        losses.append([])
        for _ in range(10):
            step.zero_grad()
            loss = (value(model, x) - y).square().mean()
            loss.backward()
            step.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    close(value(ours, x).detach(), value(source, x).detach())


# -- what does not change -----------------------------------------------------------------------------


def test_classes_come_to_ours() -> None:
    assert type(convert(pykan())) is KAN
    assert type(convert(pykan((3, 4)).act_fun[0])) is KANLinear
    assert type(convert(inkan(3, 5, 2))) is KAN
    assert type(convert(inkan(3, 2))) is KANLinear
    assert type(convert(peers.KAN([3, 2]))) is KAN
    assert type(convert(peers.KANLinear(3, 2))) is KANLinear


def test_a_network_of_pykan_keeps_all_that_it_has() -> None:
    source = pykan((3, (2, 2), 1), mult_arity=[[], [2, 3], []], grid=[3, 6], k=[2, 3], grid_eps=0.3)
    formula(source, 0, 1, 4, "exp", (0.5, 0.0, 1.0, 0.0))
    ours = convert(source)
    assert ours.width == [[3, 0], [2, 2], [1, 0]]
    assert ours.mult_arity == [[], [2, 3], []]
    assert (ours.grid, ours.k, ours.grid_eps) == ([3, 6], [2, 3], 0.3)
    assert [tuple(edge) for edge in ours.symbolic[0].edges] == [(1, 4, "exp")]
    assert ours.layers[0].mask[1, 4] == 0
    for layer, theirs in zip(ours.layers, source.act_fun):
        assert torch.equal(layer.knots, theirs.grid)


def test_what_is_not_enabled_there_is_not_here() -> None:
    source = with_formulas()
    source.speed()
    ours = convert(source)
    assert not any(symbolic.edges for symbolic in ours.symbolic)
    close(ours(points(2)).detach(), source(points(2)).detach())


def test_what_was_trainable_stays_so_by_itself() -> None:
    source = with_formulas(affine_trainable=True, sp_trainable=False)
    source.act_fun[1].coef.requires_grad_(False)
    source.symbolic_fun[0].affine.requires_grad_(False)
    source.node_bias[0].requires_grad_(False)
    ours = convert(source)
    first, second = ours.layers
    assert (first.spline_weight.requires_grad, second.spline_weight.requires_grad) == (True, False)
    assert [layer.spline_scale.requires_grad for layer in ours.layers] == [False, False]
    assert [layer.base_weight.requires_grad for layer in ours.layers] == [True, True]
    assert [symbolic.affine.requires_grad for symbolic in ours.symbolic] == [False, True]
    assert [p.requires_grad for p in ours.node_bias] == [False, True]
    assert all(p.requires_grad for part in (ours.node_scale, ours.subnode_bias, ours.subnode_scale) for p in part)
    layer = peers.KANLinear(2, 3)
    layer.base_weight.requires_grad_(False)
    assert {n: p.requires_grad for n, p in convert(layer).named_parameters()} == {
        "spline_weight": True, "base_weight": False, "spline_scale": True,
    }  # fmt: skip


def test_a_masked_edge_gets_no_gradient() -> None:
    source = masked()
    ours = convert(source)
    ours(points(2)).sum().backward()
    layer = ours.layers[0]
    off = layer.mask == 0
    assert off.any()
    assert (layer.spline_weight.grad[:, off] == 0).all()
    assert (layer.base_weight.grad[off] == 0).all()


def test_nothing_is_shared_with_the_source_and_no_generator_is_moved() -> None:
    for make in SOURCES.values():
        source = make(dtype=D)
        state = torch.get_rng_state()
        ours = convert(source)
        assert torch.equal(state, torch.get_rng_state())
        places = {t.untyped_storage().data_ptr() for t in [*source.parameters(), *source.buffers()] if t.numel()}
        assert not places & {t.untyped_storage().data_ptr() for t in [*ours.parameters(), *ours.buffers()] if t.numel()}
        assert all(t.is_contiguous() for t in [*ours.parameters(), *ours.buffers()])
        copy.deepcopy(ours)


def test_a_network_after_a_forward_can_be_used_as_any_of_ours(tmp_path) -> None:
    source = with_formulas()
    source(points(2))
    ours = convert(source)
    ours.save(tmp_path / "model.safetensors")
    x = points(2)
    close(KAN.load(tmp_path / "model.safetensors")(x).detach(), source(x).detach())
    network = convert(peers.KAN([2, 3, 1]))
    loss = network.fit((x, x[:, :1] ** 2), steps=3, lamb=1e-3, progress=False)["train_loss"]
    assert loss[-1] < loss[0]
    network.plot()
    assert network.refine(10).grid == [10, 10]


def test_of_a_network_that_reads_some_columns_in_features_can_be_set() -> None:
    source = read_in_part()
    ours = convert(source)
    x = points(6)
    with pytest.raises(ValueError, match="in_features=4"):
        ours(x)
    ours.in_features = 6
    close(ours(x).detach(), source(x).detach())


# -- inside other modules -------------------------------------------------------------------------------


class Parent(nn.Module):
    """A module with a layer in several places, and in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.kan = inkan(3, 4)
        self.again = self.kan
        self.blocks = nn.ModuleList([nn.Linear(4, 4), peers.KANLinear(4, 2)])
        self.plain = [self.blocks[1]]

    def forward(self, x: Tensor) -> Tensor:
        return self.plain[0](self.blocks[0].double()(self.kan(x) + self.again(x).tanh()))


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_inside_of_other_modules(inplace: bool) -> None:
    parent = Parent().eval()
    parent.kan.train()
    x = points(3)
    expected = parent(x).detach()
    held = {id(module) for module in parent.modules()}
    ours = convert(parent, inplace=inplace)
    assert (ours is parent) is inplace
    assert ours.kan is ours.again
    assert [type(each) for each in (ours.kan, ours.blocks[0], ours.blocks[1])] == [KANLinear, nn.Linear, KANLinear]
    assert (ours.training, ours.kan.training, ours.blocks[1].training) == (False, True, False)
    if inplace:
        ours.plain = [ours.blocks[1]]  # a plain list holds no submodules
    else:
        assert ours.plain[0] is ours.blocks[1]
        assert not held & {id(module) for module in ours.modules()}
        assert type(parent.kan).__module__ == "inkan.layer"
    close(ours(x).detach(), expected)


def test_converting_again_copies() -> None:
    ours = convert(nn.Sequential(inkan(3, 4)))
    again = convert(ours)
    assert again is not ours
    assert torch.equal(again(points(3)), ours(points(3)))
    assert convert(ours, inplace=True) is ours


# -- refused sources ------------------------------------------------------------------------------------


class FastKANLayer(nn.Module):
    pass


def changed_copy() -> nn.Module:
    """A copy of efficient-kan's layer with a changed forward."""

    class KANLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made = peers.KANLinear(2, 3)
            for name, parameter in made.named_parameters():
                self.register_parameter(name, parameter)
            self.register_buffer("grid", made.get_buffer("grid"))
            self.base_activation = nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.base_activation(x) @ self.base_weight.t()

    return KANLinear()


def tied() -> nn.Module:
    one, other = inkan(3, 3), inkan(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, other)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: torch.ones(2), "module must be a Module, got Tensor"),
    "nothing inside": (lambda: nn.Sequential(nn.Linear(2, 2)), "efficient-kan's KANLinear.*Sequential contains none"),
    "radial basis functions": (lambda: nn.Sequential(FastKANLayer()), "0: .*FastKANLayer is made of Gaussian radial"),
    "pykan's layer inside": (
        lambda: nn.ModuleList([pykan().act_fun[0]]),
        "0, a KANLayer: it is pykan's KANLayer, which returns four",
    ),
    "another base": (lambda: peers.KANLinear(2, 3, base_activation=nn.Mish), "base_activation=Mish is none of"),
    "pykan, another base": (lambda: pykan(base_fun=nn.Mish()), "act_fun.0: base_fun=Mish is none of"),
    "surface": (lambda: inkan(2, 1, dim=2), "dim=2 makes it a surface"),
    "half a mask": (
        lambda: changed(pykan(), lambda s: s.act_fun[1].mask.data[0, 0].fill_(0.5)),
        "act_fun.1: mask must hold only 0 and 1",
    ),
    "a function of one's own": (
        lambda: changed(with_formulas(), lambda s: s.symbolic_fun[0].funs_name[0].__setitem__(0, "my own")),
        r"edge \(0, 0, 0\) is 'my own'.*fastkan.add_symbolic",
    ),
    "a changed copy": (changed_copy, "module, a KANLinear: .*computes something else"),
    "another's KANLinear": (lambda: type("KANLinear", (nn.Linear,), {})(2, 3), "lacks tensors of efficient-kan's"),
    "tied parameters": (tied, "0 and 1 share a parameter"),
}


def test_an_exact_copy_of_efficient_kan_and_the_package_itself_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(peers.KANLinear).__module__ != "efficient_kan.kan"
    assert type(convert(peers.KANLinear(2, 3))) is KANLinear
    for cls in (peers.KANLinear, peers.KAN):
        monkeypatch.setattr(cls, "__module__", "efficient_kan.kan")
    assert type(convert(peers.KANLinear(2, 3))) is KANLinear
    assert type(convert(peers.KAN([2, 3]))) is KAN


def test_all_four_are_there() -> None:
    names = ("convert", "convert_state_dict", "to_efficient_kan_state_dict", "to_pykan", "replace_linear")
    assert all(name in fastkan.__all__ for name in names)


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


def with_bias(source: nn.Module) -> None:
    source.bias = nn.Parameter(torch.zeros(4, dtype=D))


def doubled_forward(source: Any) -> None:
    before = source.forward
    source.forward = lambda x: 2 * before(x)


REFUSED |= {
    "base in place": (lambda: pykan(base_fun=nn.SiLU(inplace=True)), "base_fun=SiLU changes its input in place"),
    "base that differs far out": (lambda: pykan(base_fun=nn.Hardtanh(-10, 10)), "base_fun=Hardtanh is none of"),
    "base with a parameter": (lambda: peers.KANLinear(2, 3, base_activation=lambda: nn.PReLU(init=1.0)),
                              "base_activation=PReLU has parameters"),
    "trained grid": (lambda: pykan().requires_grad_(),
                     r"act_fun.0: grid requires a gradient.*grid.requires_grad_\(False\)"),
    "trained mask of formulas": (lambda: changed(pykan(), lambda s: s.symbolic_fun[1].mask.requires_grad_()),
                                 "symbolic_fun.1: mask requires a gradient"),
    "coincident knots": (lambda: changed(pykan(), lambda s:
                         s.act_fun[0].grid.data[0, 5].copy_(s.act_fun[0].grid.data[0, 4])),
                         r"act_fun.0: knots of the inputs \[0\] coincide"),
    "two dtypes": (lambda: changed(pykan(), lambda s: s.act_fun[1].float()), "one dtype, got .*32 and .*64"),
    "two dtypes in a layer": (lambda: changed(pykan(), lambda s:
                              setattr(s.act_fun[1].coef, "data", s.act_fun[1].coef.data.float())),
                              "act_fun.1: its parameters must have one dtype"),
    "a subclass inside": (lambda: changed(pykan(), with_a_subclass), "act_fun.0: .*computes something else"),
    "forward of the instance": (lambda: changed(inkan(3, 4), doubled_forward), "its forward was replaced"),
    "forward of a network": (lambda: changed(inkan(3, 4, 2), doubled_forward), "its forward was replaced"),
    "one more parameter": (lambda: changed(peers.KANLinear(3, 4), lambda s: s.register_parameter("gain", nn.Parameter(
                           torch.ones(1, dtype=D)))),
                           "it has the parameter gain, which efficient-kan's layer does not have"),
    "a bias that is not added": (lambda: changed(peers.KANLinear(3, 4), with_bias), "computes something else"),
    "formula of another name": (lambda: changed(pykan(), lambda s: (
        formula(s, 0, 0, 0, "sin", (1, 0, 1, 0)), s.symbolic_fun[0].funs[0].__setitem__(0, lambda x: x**3))),
                                r"edge \(0, 0, 0\) is called 'sin', but computes something other than"),
    "formula of NaN": (lambda: changed(pykan(), lambda s: formula(s, 0, 1, 2, "sin", (math.nan, 0, 1, 0))),
                       r"edge \(0, 1, 2\) must have finite numbers, it has \[nan"),
    "tied inside of a network": (tied_inside, "layers.0 and layers.1 share a parameter"),
    "tied to its parent": (tied_to_its_parent, "module and 0 share a parameter"),
    "meta": (lambda: nn.Sequential(inkan(3, 4).to("meta")), "0, a KANLayer: .* on the meta device"),
    "no copy": (with_a_product, "module, a Sequential, cannot be copied; convert it with inplace=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_the_same_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
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


# -- changed copies of efficient-kan's classes -------------------------------------------------------


def layer(forward: Callable[[Any, Tensor], Tensor], change: Callable[[Any], None] = lambda layer: None) -> Any:
    """A layer with the name and tensors of efficient-kan's, but another forward."""

    def call(self: Any, x: Tensor) -> Tensor:
        return forward(self, x)

    made = type("KANLinear", (peers.KANLinear,), {"forward": call})(3, 4)
    change(made)
    return made


def plain(self: Any, x: Tensor) -> Tensor:
    return peers.KANLinear.forward(self, x)


def with_dropout(self: Any, x: Tensor) -> Tensor:
    return plain(self, nn.functional.dropout(x, 0.1, self.training))


CHANGED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout in forward": (lambda: layer(with_dropout), "it draws random numbers, as dropout does"),
    "a dropout layer": (lambda: layer(lambda self, x: self.dropout(plain(self, x)),
                                      lambda self: self.add_module("dropout", nn.Dropout(0.02))),
                        "it draws random numbers"),
    "noise": (lambda: layer(lambda self, x: plain(self, x) + (
        1e-12 * torch.randn(len(x), 4, dtype=x.dtype) if self.training else 0.0)), "it draws random numbers"),
    "another in training": (lambda: layer(lambda self, x: plain(self, x) * (1 + self.training)),
                            "computes something else in training mode"),
    "another in evaluation": (lambda: layer(lambda self, x: plain(self, x) * (2 - self.training)),
                              r"computes something else\."),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_what_a_layer_does_in_either_mode_counts(name: str, training: bool) -> None:
    make, message = CHANGED[name]
    source = nn.Sequential(make().train(training), nn.Tanh())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"0, a KANLinear: .*{message}"):
        convert(source)
    assert source[0].training is training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropout_inside_of_a_network_counts() -> None:
    source = peers.KAN([3, 4]).eval()
    source.layers[0] = layer(with_dropout)
    source.layers[0].eval()
    with pytest.raises(ValueError, match=r"module, a KAN: layers.0: it draws random numbers"):
        convert(source)


def test_the_source_is_left_as_it_was() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = plain(self, x)
        with torch.no_grad():
            self.calls += 1
            if self.training:
                self.spline_weight += 1
                self.grid = self.grid + 1
        return y

    source = layer(forward, lambda layer: layer.register_buffer("calls", torch.zeros(())))
    source.base_activation.eval()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    grid = source.grid
    ours = convert(source)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert source.grid is grid
    assert (source.training, source.base_activation.training, ours.training) == (True, False, True)
    source.calls -= 1
    close(ours(points(3)).detach(), peers.KANLinear.forward(source, points(3)).detach())


def test_a_changed_file_in_a_folder_of_the_package_s_name_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = layer(lambda self, x: plain(self, x) * (2 - self.training))
    monkeypatch.setattr(type(source), "__module__", "efficient_kan.kan")
    with pytest.raises(ValueError, match="computes something else"):
        convert(source)


def test_a_layer_that_calls_silu_itself() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        base = nn.functional.linear(function(x), self.base_weight)
        weight = self.spline_weight * self.spline_scaler.unsqueeze(2)
        return base + nn.functional.linear(self.splines(x).flatten(1), weight.flatten(1))

    source = layer(forward, lambda layer: delattr(layer, "base_activation"))
    function: Callable[[Tensor], Tensor] = nn.functional.silu
    ours = convert(source)
    assert ours.base == "silu"
    close(ours(points(3)).detach(), source(points(3)).detach())
    function = nn.functional.gelu
    assert convert(source).base == "gelu"
    function = nn.functional.mish
    with pytest.raises(ValueError, match="computes something else"):
        convert(source)


def grouped() -> Any:
    """convkan's layer, which has one weight for each group of channels."""
    made = layer(plain)
    made.spline_weight = nn.Parameter(torch.ones(2, 4, 3, 8, dtype=D))
    made.base_weight = nn.Parameter(torch.ones(2, 4, 3, dtype=D))
    return made


def test_weights_of_groups_are_refused_by_name() -> None:
    message = r"spline_weight must have 3 dimensions, as in efficient-kan; got the shape \[2, 4, 3, 8\]"
    with pytest.raises(ValueError, match=f"module, a KANLinear: {message}"):
        convert(grouped())
    with pytest.raises(ValueError, match=f"state_dict: {message}"):
        convert_state_dict(grouped().state_dict())


class Convolution(nn.Module):
    """A convolution made of a list of layers, each applied to patches."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(peers.KANLinear(9, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 3).transpose(1, 2)
        return torch.cat([conv(patches.flatten(0, 1)) for conv in self.convs], 1)


@pytest.mark.parametrize("name", ["KAN_Convolutional_Layer", "KANLinear"])
def test_a_module_that_is_named_like_a_layer_and_holds_some_is_looked_through(name: str) -> None:
    source = nn.Sequential(type(name, (Convolution,), {})(), peers.KAN([2, 3]))
    x = points(36, 5).reshape(5, 1, 6, 6)
    expected = source(x).detach()
    ours = convert(source)
    assert [type(each) for each in ours[0].convs] == [KANLinear] * 2
    assert type(ours[1]) is peers.KAN
    assert type(ours[1].layers[0]) is KANLinear
    close(ours(x).detach(), expected)
