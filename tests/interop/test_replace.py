"""``replace_linear``: which ``nn.Linear`` layers become KAN layers, and that the rest of the model is unchanged."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastkan import KANLinear, replace_linear


class Head(nn.Linear):
    pass


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8)), nn.Tanh(), Head(8, 2)
    )


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        name: type(each).__name__ for name, each in model.named_modules() if isinstance(each, (nn.Linear, KANLinear))
    }


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, {"0", "2.0", "2.1", "4"}),
        ("2.*", {"2.0", "2.1"}),
        (["0", "4"], {"0", "4"}),
        (Head, {"4"}),
        (lambda name, linear: linear.bias is None, {"2.0"}),
        ((Head, "0"), {"0", "4"}),
    ],
    ids=["all", "pattern", "patterns", "type", "function", "mixed"],
)
def test_what_is_selected_is_replaced_and_told(select: Any, expected: set[str]) -> None:
    model = mlp()
    report = replace_linear(model, select, grid_size=4)
    assert {name for name, kind in kinds(model).items() if kind == "KANLinear"} == expected
    assert {entry.name for entry in report} == expected
    assert model(torch.randn(3, 4)).shape == (3, 2)
    for entry in report:
        layer = model.get_submodule(entry.name)
        assert (entry.in_features, entry.out_features) == (layer.in_features, layer.out_features)
        assert entry.after == sum(p.numel() for p in layer.parameters())
        assert entry.name in str(report)
    assert repr(report).startswith(f"{len(expected)} of {len(expected)} linear layers replaced by KAN layers")


class Residual(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Masked(nn.Linear):
    """A linear layer of MADE, whose forward multiplies the weight by a mask."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("edges", torch.ones(outputs, inputs).tril())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.edges, self.bias)


class Gained(nn.Linear):
    """A linear layer with a parameter that code outside of it applies."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.ones(()))


def test_subclasses_that_may_compute_something_else_stay_unless_their_class_is_selected() -> None:
    def model() -> nn.Sequential:
        changed = nn.Linear(4, 4)
        changed.forward = lambda x: -x  # type: ignore[method-assign]
        return nn.Sequential(nn.Linear(4, 4), Residual(4, 4), Masked(4, 4), Gained(4, 4), changed, Head(4, 4))

    report = replace_linear(model())
    reasons = {entry.name: entry.kept_because for entry in report}
    assert reasons == {
        "0": None,
        "1": "it has its own forward: select the class Residual to replace it",
        "2": "it has its own forward: select the class Masked to replace it",
        "3": "it has the parameter gain: select the class Gained to replace it",
        "4": "it has its own forward: select the class Linear to replace it",
        "5": None,
    }
    assert "stays: it has its own forward" in str(report)
    by_class = model()
    assert [entry.name for entry in replace_linear(by_class, [Masked, "1", "3"]).replaced] == ["2"]
    assert [entry.name for entry in replace_linear(model(), (Residual, Gained)).replaced] == ["1", "3"]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.LazyLinear(2), nn.Linear(2, 2))
    kept = [entry.kept_because for entry in replace_linear(normed)]
    assert kept == ["a parametrization computes its weight", "its sizes are not known yet: call the model once", None]


def test_sizes_bias_dtype_mode_and_options() -> None:
    model = mlp().double().eval()
    replace_linear(model, grid_size=7, spline_order=2, grid_range=(-2, 2), base="identity", spline_scale=True,
                   outside="linear")  # fmt: skip
    layer = model[0]
    assert (layer.in_features, layer.out_features, layer.grid_size, layer.spline_order) == (4, 8, 7, 2)
    assert (layer.base, layer.outside, layer.spline_scale is not None) == ("identity", "linear", True)
    assert layer.spline_weight.dtype == torch.float64
    assert not layer.training
    assert (layer.bias is not None, model[2][0].bias is not None) == (True, False)
    assert layer.knots[0, 2] == -2
    other = mlp()
    replace_linear(other, bias=False)
    assert all(m.bias is None for m in other.modules() if isinstance(m, KANLinear))


def test_a_linear_in_two_places_stays_one() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    (entry,) = replace_linear(model, "2")
    assert entry.name == "0, 2"
    assert model[0] is model[2]
    assert type(model[0]) is KANLinear


def test_grids_move_to_the_inputs_of_a_sample() -> None:
    model = mlp().train()
    model[1].eval()
    x = 5 + 3 * torch.randn(400, 4)
    replace_linear(model, sample=x)
    low, high = (model[0].knots[:, n] for n in (3, -4))
    assert ((low < x.amin(0)) & (x.amax(0) < high)).all()
    inner = model[1](model[0](x)).detach()
    low, high = (model[2][0].knots[:, n] for n in (3, -4))
    assert ((low < inner.amin(0)) & (inner.amax(0) < high)).all()
    assert (model.training, model[1].training, model[0].training) == (True, False, True)
    assert not any(m._forward_pre_hooks for m in model.modules())


class Routed(nn.Module):
    """A model that calls one linear twice, and another with no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.twice(x) + self.twice(x + 10), self.never(x[:0])


def test_a_grid_covers_all_calls_and_stays_without_rows() -> None:
    model, x = Routed(), torch.rand(50, 3)
    replace_linear(model, sample=UserDict(x=x))
    assert (model.twice.knots[:, 3] <= x.amin(0)).all()
    assert (model.twice.knots[:, -4] >= x.amax(0) + 10).all()
    assert torch.equal(model.never.knots, KANLinear(3, 3).knots)


def test_layers_made_in_inference_mode_can_be_trained() -> None:
    model = mlp()
    with torch.inference_mode():
        replace_linear(model, sample=torch.randn(20, 4))
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].spline_weight.grad is not None


def test_the_modules_of_a_large_model_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    seen: list[nn.Module] = []
    whole = nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda self, *a, **k: seen.append(self) or whole(self, *a, **k))
    replace_linear(model)
    assert sum(each is model for each in seen) < 6


def test_hooks_go_with_a_word() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda *of: None)
    with pytest.warns(UserWarning, match="the hooks of 0 are lost with the replaced linear layers") as told:
        replace_linear(model)
    assert told[0].filename == __file__


def test_layers_that_cannot_be_replaced_stay() -> None:
    whole = nn.Linear(3, 3)
    whole.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    model = nn.ModuleList([nn.LazyLinear(3), whole, torch.compile(nn.Linear(3, 3), backend="eager"), nn.Linear(3, 3)])
    report = replace_linear(model)
    assert [entry.kept_because for entry in report] == [
        "its sizes are not known yet: call the model once", "its weight has the dtype torch.int8",
        "2 is compiled from it", None,
    ]  # fmt: skip
    assert kinds(model) == {"0": "LazyLinear", "1": "Linear", "2._orig_mod": "Linear", "3": "KANLinear"}
    assert "stays: its sizes are not known yet" in str(report)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


def test_a_sample_can_be_arguments() -> None:
    x, y = 9 + torch.rand(50, 2), torch.rand(50, 4) - 9
    for sample in ((x, y), {"y": y, "x": x}):
        model = Two()
        replace_linear(model, sample=sample)
        assert model.a.knots.min() > 5
        assert model.b.knots.max() < -5


@pytest.mark.parametrize("select", [None, "*"])
def test_a_transformer_goes_on_in_training_and_inference(select: str | None) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    report = replace_linear(model, select)
    assert [e.name for e in report.replaced] == [f"layers.{l}.linear{n}" for l in range(2) for n in (1, 2)]
    assert [e.name for e in report if e.kept_because] == [f"layers.{l}.self_attn.out_proj" for l in range(2)]
    assert repr(report).startswith(f"{len(report) - 2} of {len(report)} linear layers replaced")
    x = torch.randn(3, 5, 8)
    trained = model(x).detach()
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), trained)
        model(x, src_key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))


def test_tied_weights_stay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10)})
    model["head"].weight = model["embedding"].weight
    (entry,) = replace_linear(model)
    assert entry.kept_because == "its weight is also embedding's"
    assert type(model["head"]) is nn.Linear
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    (entry,) = replace_linear(normed)
    assert entry.kept_because == "a parametrization computes its weight"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: replace_linear(3), "model must be a Module, got int"),
        (lambda model: replace_linear(nn.Linear(2, 2)), "model must contain linear layers, got a Linear"),
        (
            lambda model: replace_linear(model, "encoder.*"),
            r"select='encoder.\*' matches no linear layer; the model has the linear layers: 0, 2.0",
        ),
        (
            lambda model: replace_linear(model, nn.Conv2d),
            "a subclass of nn.Linear, or Conv1D, got Conv2d",
        ),
        (
            lambda model: replace_linear(model, ["0", "head"]),
            "pattern 'head', which matches no linear layer; there are: 0, 2.0",
        ),
        (lambda model: replace_linear(model, nn.Linear(2, 2)), "select must be a pattern, .* got Linear"),
        (lambda model: replace_linear(model, bias="no"), "bias must be True or False, got 'no'"),
        (lambda model: replace_linear(model, 3), "select must be a pattern, a type, a function or a list"),
        (lambda model: replace_linear(model, grid_size=0), "grid_size"),
        (lambda model: replace_linear(model, base="relu"), "base must be one of"),
        (lambda model: replace_linear(model, sample=torch.full((3, 4), torch.nan)), "x must"),
        (lambda model: replace_linear(model, sample=torch.ones(3, 5)), "in_features=4"),
    ],
    ids=["model", "linear", "nothing", "type", "pattern", "module", "bias", "number", "grid", "base", "nan", "shape"],
)
def test_errors_leave_the_model_as_it_is(call: Any, message: str) -> None:
    model = mlp()
    before = list(model.named_modules())
    with pytest.raises((TypeError, ValueError), match=message):
        call(model)
    assert list(model.named_modules()) == before
    assert set(kinds(model).values()) == {"Linear", "Head"}


def test_a_sample_needs_values() -> None:
    model = mlp().to("meta")
    with pytest.raises(ValueError, match="sample needs a model with values, but 0 is on the meta device"):
        replace_linear(model, sample=torch.ones(3, 4, device="meta"))
    assert set(kinds(model).values()) == {"Linear", "Head"}


class ReadsWeights(nn.Module):
    """Linear layers whose weights are read in several ways."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("direct", "inner", "lazy", "computed", "started", "hidden", "scalar"):
            self.add_module(name, nn.Linear(2, 2))
        self.block = nn.ModuleDict({"deep": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        through = self.hidden
        x = self.started(x).to(self.direct.weight.dtype) + through.weight.sum()
        return x + (lambda y: y @ self.inner.weight)(x) + self.scalar.bias + self.property_value.sum()

    @property
    def property_value(self) -> Tensor:
        return self.computed.weight

    def later(self) -> list[Any]:
        return [self.lazy.weight[number] for number in range(2)] + [self.block.deep.weight.dtype]

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.started.weight)


def test_layers_whose_weight_is_read_stay() -> None:
    reasons = {entry.name: entry.kept_because for entry in replace_linear(ReadsWeights())}
    assert reasons == {
        "direct": "ReadsWeights.forward reads its weight",
        "inner": "ReadsWeights.forward reads its weight",
        "lazy": "ReadsWeights.later reads its weight",
        "computed": "ReadsWeights.property_value reads its weight",
        "started": None,  # only for its initial values
        "hidden": None,  # through a variable, which only a call of the model shows
        "scalar": None,  # KAN layers may have a bias as well
        "block.deep": "ReadsWeights.later reads its weight",
    }


def test_a_sample_shows_what_else_reads_a_weight() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            linear = self.linear
            return x @ linear.weight

    model = Hidden()
    with pytest.raises(ValueError, match=r"The model reads 'weight' of a linear layer, .*: exclude it by select"):
        replace_linear(model, sample=torch.rand(5, 2))
    assert kinds(model) == {"linear": "Linear"}


def test_parameters_of_several_layers_are_told_if_a_pattern_matches() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.zeros(4, 6, 2))
            self.position = nn.Parameter(torch.zeros(1, 6, 2))

    model = nn.ModuleDict({"experts": Experts(), "out": nn.Linear(2, 2), "conv": nn.Conv1d(2, 3, 1)})
    (entry,) = replace_linear(copy.deepcopy(model))
    assert entry.name == "out"
    kept = "Experts keeps the weights of 4 layers in one parameter"
    report = replace_linear(copy.deepcopy(model), ["out", "*"])
    assert list(report) == [("experts.up", 2, 6, 48, 0, kept), ("out", 2, 2, 6, report[1].after, None)]
    for select in ("experts", "experts.*", "*.up"):
        with pytest.raises(ValueError, match=rf"linear layer, only experts.up, which .* because {kept}: .*layers: out"):
            replace_linear(model, select)
