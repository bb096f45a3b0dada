"""``convert``: the numbers of the packages' own layers, and the modules around converted layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from peers import D, formula, inkan, points, pykan
from torch import Tensor, nn

import fastkan
from fastkan import KAN, KANLinear, convert

FORMULAS = [(0, 0, 0, "sin", (2.0, 0.3, 1.5, -0.2)), (0, 1, 2, "x^2", (1.2, 0.1, 0.7, 0.4)),
            (1, 1, 0, "tanh", (0.8, 0.0, 1.1, 0.3))]  # fmt: skip


def with_formulas(**options: Any) -> Any:
    model = pykan(**options)
    for place, (l, i, j, name, row) in enumerate(FORMULAS):
        formula(model, l, i, j, name, row, keep=place == 0)
    return model


def masked(**options: Any) -> Any:
    model = pykan(**options)
    for layer in model.act_fun:
        draw = torch.rand(layer.mask.shape, generator=torch.Generator().manual_seed(2))
        layer.mask.data = (draw > 0.3).to(layer.mask)
    return model


def read_in_part(**options: Any) -> Any:
    """Return columns 3 and 1 of the input."""
    model = pykan((2, 3, 1), **options)
    model.input_id = torch.tensor([3, 1])
    return model


SOURCES: dict[str, Callable[..., Any]] = {
    "pykan": pykan,
    "pykan, deep": lambda **o: pykan((2, 3, 3, 2), grid=[3, 5, 4], k=[3, 2, 4], **o),
    "pykan, order 1": lambda **o: pykan(k=1, **o),
    "pykan, order 5": lambda **o: pykan(k=5, grid=6, **o),
    "pykan, identity": lambda **o: pykan(base_fun="identity", **o),
    "pykan, zero": lambda **o: pykan(base_fun="zero", **o),
    "pykan, products": lambda **o: pykan((3, (2, 2), 2), **o),
    "pykan, products of three": lambda **o: pykan((3, (1, 2), 2), mult_arity=3, affine=True, **o),
    "pykan, products of many": lambda **o: pykan((3, (1, 2), (2, 1), 1), mult_arity=[[], [2, 4], [3], []],
                                                 affine=True, **o),
    "pykan, affine maps": lambda **o: pykan((2, 4, 2), affine=True, **o),
    "pykan, masks": masked,
    "pykan, sparse from the start": lambda **o: pykan((3, 5, 2), sparse_init=True, **o),
    "pykan, formulas": with_formulas,
    "pykan, some inputs": read_in_part,
    "pykan, layer": lambda **o: pykan((3, 4), **o).act_fun[0],
    "inkan": lambda **o: inkan(3, 5, 2, **o),
    "inkan, layer": lambda **o: inkan(3, 5, grid_range=(-0.7, 1.2), **o),
    "inkan, fine grid": lambda **o: inkan(3, 2, grid_size=60, **o),
    "inkan, dense": lambda **o: inkan(3, 2, basis_mode="dense", contraction="dense", **o),
    "efficient-kan": lambda dtype: peers.KAN([3, 5, 2]).to(dtype),
    "efficient-kan, layer": lambda dtype: peers.KANLinear(3, 4, 6, 2).to(dtype),
    "efficient-kan, no scale": lambda dtype: peers.KANLinear(3, 4, scaled=False).to(dtype),
    "efficient-kan, identity": lambda dtype: peers.KANLinear(3, 4, base_activation=nn.Identity).to(dtype),
}  # fmt: skip


def columns(source: Any) -> int:
    """Number of columns of a model's input."""
    if hasattr(source, "input_id"):
        return int(source.input_id.max()) + 1
    first = source.layers[0] if hasattr(source, "layers") else source
    for name in ("in_dim", "in_features"):
        if hasattr(first, name):
            return getattr(first, name)
    return first.grid.shape[0]


def value(source: Any, x: Tensor) -> Tensor:
    """First output of a source, since pykan's layer returns four."""
    y = source(x)
    return y[0] if isinstance(y, tuple) else y


def value_and_slope(source: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = value(source, x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=D).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


def close(got: Tensor, expected: Tensor) -> None:
    """Compare to 1e-10 of the largest value in float64, to 1e-5 in float32."""
    digits = 1e-10 if expected.dtype == D else 1e-5
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).abs().max()) <= digits * float(expected.abs().max())


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


def test_hooks_are_left_behind_with_a_word() -> None:
    source = inkan(3, 4)
    source.register_forward_hook(lambda *of: None)
    with pytest.warns(UserWarning, match="hooks of a KANLayer are not converted"):
        convert(source)


# -- refused sources ------------------------------------------------------------------------------------


class FastKANLayer(nn.Module):
    pass


class Own(peers.KANLinear):
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


def half_masked() -> Any:
    source = pykan()
    source.act_fun[1].mask.data[0, 0] = 0.5
    return source


def of_anonymous_functions() -> Any:
    source = with_formulas()
    source.symbolic_fun[0].funs_name[0][0] = "my own"
    return source


def tied() -> nn.Module:
    one, other = inkan(3, 3), inkan(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, other)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: torch.ones(2), "module must be a Module, got Tensor"),
    "nothing inside": (lambda: nn.Sequential(nn.Linear(2, 2)), "efficient-kan's KANLinear.*Sequential contains none"),
    "radial basis functions": (lambda: nn.Sequential(FastKANLayer()), "0: .*FastKANLayer is made of Gaussian radial"),
    "pykan's layer inside": (lambda: nn.ModuleList([pykan().act_fun[0]]), "0 is pykan's KANLayer, which returns four"),
    "subclass": (lambda: Own(2, 3), "Own is a subclass of peers.KANLinear"),
    "another base": (lambda: peers.KANLinear(2, 3, base_activation=nn.GELU), "base_activation=GELU is none of"),
    "pykan, another base": (lambda: pykan(base_fun=torch.nn.GELU()), "act_fun.0: base_fun=GELU is none of"),
    "surface": (lambda: inkan(2, 1, dim=2), "dim=2 makes it a surface"),
    "half a mask": (half_masked, "act_fun.1: mask must hold only 0 and 1"),
    "a function of one's own": (of_anonymous_functions, r"edge \(0, 0, 0\) is 'my own'.*fastkan.add_symbolic"),
    "a changed copy": (changed_copy, "module, a KANLinear: .*computes something else"),
    "another's KANLinear": (lambda: type("KANLinear", (nn.Linear,), {})(2, 3), "lacks tensors of efficient-kan's"),
    "tied parameters": (tied, "0 and 1 share a parameter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_the_same_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        convert(make())


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
