"""``Objective.value_and_grad``: on arrays where the network is a small stack, and by autograd elsewhere."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from computed_weights import COMPUTED
from networks import D, Passive, mixed, network, points, same
from torch import Tensor, nn

import fastkan
import fastkan_kernels
from fastkan.kan.model import KAN
from fastkan.training.objective import Objective
from fastkan.training.optimizers import LBFGS
from fastkan.training.regularization import Penalty
from fastkan_kernels.backends.cpu.piecewise import Block, Piecewise

UNITS = pytest.mark.parametrize("unit", [1.0, 2.0**-9, 0.3])


class Case(NamedTuple):
    """The parts of an objective."""

    model: KAN
    x: Tensor
    y: Tensor
    loss: Any = None
    terms: tuple[float, float, float, float] | None = (1.0, 2.0, 0.0, 0.0)
    metric: str = "edge_forward_spline_n"
    context: Callable[[], AbstractContextManager] = nullcontext

    def objective(self) -> Objective:
        penalty = None if self.terms is None else Penalty(self.model, *self.terms, self.metric)
        return Objective(self.model, self.loss, penalty, 0.07, (False, 10.0))


def case(model: KAN | None = None, rows: int = 25, **options: Any) -> Case:
    model = network([2, 4, 3], off=[(0, 1, 2), (1, 0, 1)]) if model is None else model
    draw = torch.Generator().manual_seed(5)
    y = torch.randn(rows, model.width_in[-1], generator=draw, dtype=D).to(model.dtype)
    return Case(model, points(model, rows), **{"y": y, **options})


def learned(model: KAN) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad and p.numel()]


def pulled(case: Case, unit: float = 1.0) -> tuple[float, list[Tensor | None]]:
    parameters = learned(case.model)
    with case.context():
        value = case.objective().value_and_grad(case.x, case.y, parameters, unit)
    return value, [p.grad for p in parameters]


def by_autograd(case: Case, unit: float = 1.0) -> tuple[float, list[Tensor | None]]:
    parameters = learned(case.model)
    with case.context():
        value = unit * case.objective()(case.x, case.y)
        return value.item(), list(torch.autograd.grad(value, parameters, allow_unused=True))


def by_numbers(case: Case) -> bool:
    with case.context():
        return case.objective()._stack(case.x, case.y) is not None


def agree(case: Case, unit: float, exact: tuple[float, list[Tensor | None]]) -> None:
    value, gradients = pulled(case, unit)
    assert isinstance(value, float)
    assert value == pytest.approx(exact[0], rel=1e-12)
    for one, other in zip(gradients, exact[1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.is_contiguous()
            same(one, other)


# -- as numbers -------------------------------------------------------------------------------------


def frozen(*names: str) -> Case:
    made = case()
    for name, parameter in made.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.rsplit(".", 1)[-1] not in names)
    return made


def with_shared_layers() -> Case:
    model = network([3, 3, 3, 3])
    model.layers[1] = model.layers[0]
    model.layers[2].spline_weight = model.layers[0].spline_weight
    return case(model)


def of_some_columns() -> Case:
    model = network([3, 4, 1], off=[(0, 1, j) for j in range(4)]).prune_input(threshold=1e-9, active_inputs=[0, 2])
    made = case(model)
    assert made.x.shape[1] == 3
    return made


NUMBERS: dict[str, Callable[[], Case]] = {
    "masks": case,
    "no penalty": lambda: case(terms=None),
    "l1 alone": lambda: case(terms=(1.0, 0.0, 0.0, 0.0)),
    "entropy alone": lambda: case(terms=(0.0, 1.0, 0.0, 0.0)),
    "one edge": lambda: case(network([1, 1])),
    "four layers": lambda: case(network([2, 3, 1, 3, 2], "adapted")),
    "repeated knots": lambda: case(network([2, 3, 1], "repeated")),
    "identity": lambda: case(network([2, 3, 1], base_fun="identity")),
    "no base": lambda: case(network([2, 3, 1], base_fun="zero")),
    "scales alone": lambda: frozen("spline_weight", "base_weight"),
    "splines alone": lambda: frozen("spline_scale", "base_weight"),
    "base alone": lambda: frozen("spline_scale", "spline_weight"),
    "shared layers": with_shared_layers,
    "some columns": of_some_columns,
    "one row, no penalty": lambda: case(rows=1, terms=None),
    "two rows": lambda: case(rows=2),
    "not contiguous": lambda: case(y=torch.randn(3, 25, dtype=D).t()),
    "constant input": lambda: (made := case())._replace(x=torch.cat([made.x[:, :1], 0 * made.x[:, :1]], 1)),
}


@UNITS
@pytest.mark.parametrize("name", list(NUMBERS))
def test_numbers_are_those_of_the_reference(name: str, unit: float) -> None:
    made = NUMBERS[name]()
    assert by_numbers(made)
    with fastkan.backend("reference"):
        assert not by_numbers(made)
        exact = by_autograd(made, unit)
    for _ in range(2):  # what was there before counts for nothing
        agree(made, unit, exact)


@pytest.mark.parametrize("name", ["masks", "no penalty"])
def test_in_float32(name: str) -> None:
    """Within twice the error of autograd, by the reference."""
    made = NUMBERS[name]()
    made.model.float()
    narrow = made._replace(x=made.x.float(), y=made.y.float())
    exact = by_autograd(made._replace(model=made.model.copy().double(), x=narrow.x.double(), y=narrow.y.double()))
    assert by_numbers(narrow)
    with fastkan.backend("reference"):
        reference = by_autograd(narrow)
    value, gradients = pulled(narrow)
    eps = torch.finfo(torch.float32).eps
    assert abs(value - exact[0]) <= 2 * abs(reference[0] - exact[0]) + eps * exact[0]
    for got, other, want in zip(gradients, reference[1], exact[1], strict=True):
        assert got.dtype == torch.float32
        assert (got.double() - want).norm() <= 2 * (other.double() - want).norm() + eps * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("number", [np.float64, np.float32, lambda v: torch.tensor(v, dtype=D)],
                         ids=["float64", "float32", "tensor"])  # fmt: skip
def test_strengths_may_be_numbers_of_numpy_or_torch(number: Callable, dtype: torch.dtype) -> None:
    model = network([2, 3, 1], dtype=dtype)
    x = points(model, 25)
    options: dict[str, Any] = {"lamb_l1": float(number(1.0)), "steps": 1, "update_grid": False, "progress": False}
    twin = model.copy()
    if not isinstance(number(1.0), Tensor):
        options["lamb_l1"] = number(1.0)
    found = model.fit((x, x[:, :1]), lamb=number(0.5), **options)
    expected = twin.fit((x, x[:, :1]), lamb=0.5, **{**options, "lamb_l1": 1.0})
    assert found["train_loss"] == expected["train_loss"]


def test_gradients_are_the_parameters_own() -> None:
    """Neither views of each other, nor of what the next vjp needs."""
    made = case(network([1, 1]))
    _, gradients = pulled(made)
    exact = [g.clone() for g in gradients]
    for gradient in gradients:
        gradient.fill_(torch.nan)
    _, again = pulled(made)
    assert all(torch.equal(one, other) for one, other in zip(again, exact, strict=True))


# -- by autograd ------------------------------------------------------------------------------------


class Own(KAN):
    def _forward_with_std(self, *args: Any, **options: Any) -> Any:
        y, spreads = super()._forward_with_std(*args, **options)
        return 2 * y, spreads


def changed(change: Callable[[KAN], Any], **options: Any) -> Case:
    made = case(**options)
    change(made.model)
    return made


def of_another_class() -> Case:
    own = case()
    own.model.__class__ = Own
    return own


def halved(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    return output / 2


ELSEWHERE: dict[str, Callable[[], Case]] = {
    "own loss": lambda: case(loss=lambda p, y: (p - y).abs().mean()),
    "own loss of the same name": lambda: case(loss=nn.functional.mse_loss),
    "coefficients": lambda: case(terms=(1.0, 2.0, 0.3, 0.0)),
    "differences": lambda: case(terms=(1.0, 2.0, 0.0, 0.3)),
    "metric u": lambda: case(metric="edge_forward_spline_u"),
    "metric sum": lambda: case(metric="edge_forward_sum"),
    "metric edge_backward": lambda: case(metric="edge_backward"),
    "metric node_backward": lambda: case(metric="node_backward"),
    "hook on the model": lambda: changed(lambda m: m.register_forward_hook(halved), terms=None),
    "hook before the model": lambda: changed(
        lambda m: m.register_forward_pre_hook(lambda m, given: (given[0] / 2, *given[1:])), terms=None
    ),
    "backward hook on the model": lambda: changed(
        lambda m: m.register_full_backward_pre_hook(lambda m, g: tuple(2 * each for each in g)), terms=None
    ),
    "hook on a layer": lambda: changed(lambda m: m.layers[1].register_forward_hook(halved)),
    "hook before a layer": lambda: changed(
        lambda m: m.layers[1].register_forward_pre_hook(lambda m, given: given[0] / 2)
    ),
    "hook on a parameter": lambda: changed(lambda m: m.layers[0].base_weight.register_hook(lambda g: 3 * g)),
    "own class": of_another_class,
    "own forward": lambda: changed(lambda m: setattr(m, "forward", lambda x, **_: 2 * KAN.forward(m, x)), terms=None),
    "own forward of a layer": lambda: changed(lambda m: setattr(m.layers[0], "forward", lambda x: x @ x.mT[:, :4])),
    "formulas": lambda: case(network([2, 3, 1], formulas=[(0, 0, 0, "sin")])),
    "affine maps": lambda: case(network([2, 3, 1], affine=True)),
    "affine maps in training": lambda: case(network([2, 3, 1], affine_trainable=True)),
    "multiplications": lambda: case(network([2, [2, 1], 1])),
    "everything": lambda: case(mixed()),
    "labels of another dtype": lambda: case(y=torch.randn(25, 3)),
    "labels that want a gradient": lambda: case(y=torch.randn(25, 3, dtype=D).requires_grad_()),
    "rows that want a gradient": lambda: (made := case())._replace(x=made.x.requires_grad_()),
    "one row": lambda: case(rows=1),
    "linear outside": lambda: changed(lambda m: setattr(m.layers[0], "outside", "linear")),
    "a bias": lambda: changed(lambda m: setattr(m.layers[0], "bias", nn.Parameter(torch.randn(4, dtype=D)))),
    "counting": lambda: changed(lambda m: m.layers[0].count_outside()),
    "a mask that learns": lambda: changed(lambda m: m.layers[0].mask.requires_grad_()),
    **{name: lambda change=change: changed(change) for name, change in COMPUTED.items()},
    "a dispatch mode": lambda: case(context=Passive),
    "the reference": lambda: case(context=lambda: fastkan.backend("reference")),
}  # fmt: skip


@UNITS
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_what_numbers_can_not_do_goes_by_autograd(name: str, unit: float) -> None:
    made = ELSEWHERE[name]()
    assert not by_numbers(made)
    exact = by_autograd(made, unit)
    agree(made, unit, exact)


def test_who_looks_on_at_gradients_is_told() -> None:
    made = case()
    seen: list[Tensor] = []
    handle = made.model.layers[0].spline_weight.register_post_accumulate_grad_hook(seen.append)
    assert not by_numbers(made)
    pulled(made)
    assert seen == [made.model.layers[0].spline_weight]
    handle.remove()
    assert by_numbers(made)


def test_who_looks_on_at_all_modules_is_told() -> None:
    made = case(terms=None)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        assert not by_numbers(made)
        made.model(made.x)
    finally:
        handle.remove()
    assert seen == [*made.model.layers, made.model]
    assert by_numbers(made)


def test_a_weight_that_comes_from_others_once_is_refused_by_autograd() -> None:
    """Its gradient would go nowhere."""
    made = case()
    layer = made.model.layers[0]
    raw = layer.spline_weight
    del layer.spline_weight
    layer.spline_weight = raw.detach().requires_grad_() * 1
    assert not by_numbers(made)
    pulled(made)
    with pytest.raises(RuntimeError, match="second time"):
        pulled(made)


# -- what is not finite -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [None, nn.functional.mse_loss], ids=["numbers", "autograd"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_value_that_is_not_finite_leaves_no_gradients(bad: float, loss: Any) -> None:
    made = case(loss=loss)
    pulled(made)
    with torch.no_grad():
        made.model.layers[0].base_weight[0, 0] = bad
    assert by_numbers(made) == (loss is None)
    value, gradients = pulled(made)
    assert not math.isfinite(value)
    assert all(gradient is None for gradient in gradients)


@pytest.fixture
def unchanged_errors() -> Iterator[None]:
    before = np.geterr()
    yield
    assert np.geterr() == before


@pytest.mark.usefixtures("unchanged_errors")
@pytest.mark.parametrize("size", [1e-20, 1e-38, 1e-41, 1e-44])
@pytest.mark.parametrize("loss", [None, nn.functional.mse_loss], ids=["numbers", "autograd"])
def test_steps_from_slopes_that_float32_can_hardly_hold(size: float, loss: Any) -> None:
    """Nothing becomes infinite in the units that a step gives the objective."""
    model = network([2, 3, 1], dtype=torch.float32)
    with torch.no_grad():
        for parameter in (model.layers[1].spline_weight, model.layers[1].base_weight):
            parameter.mul_(size)
    made = case(model, terms=None, loss=loss)._replace(y=torch.zeros(25, 1))
    step = LBFGS(learned(model), 1.0, made.objective())
    for _ in range(5):
        step(made.x, made.y)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# -- calls and caches -------------------------------------------------------------------------------


def test_an_evaluation_of_a_fit_takes_few_python_calls() -> None:
    """On networks this small, time is calls."""
    made = case(network([2, 5, 1], dtype=torch.float32), rows=1000)
    objective, parameters, calls = made.objective(), learned(made.model), []
    places = tuple(str(Path(module.__file__).parent) for module in (fastkan, fastkan_kernels))

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(places):
            calls.append(frame.f_code.co_name)

    with objective.step(made.x, made.y):
        for _ in range(2):
            objective.value_and_grad(made.x, made.y, parameters)
        sys.setprofile(note)
        try:
            objective.value_and_grad(made.x, made.y, parameters)
        finally:
            sys.setprofile(None)
    assert 20 < len(calls) <= 90, Counter(calls)


def test_what_is_cached_ends_with_the_fit_and_the_graph() -> None:
    made = case(rows=50)
    objective, parameters = made.objective(), learned(made.model)
    for _ in range(2):
        objective.value_and_grad(made.x, made.y, parameters)
    y = made.model(made.x)
    y.sum().backward(retain_graph=True)
    gc.collect()
    cached = [weakref.ref(each) for each in gc.get_objects() if type(each) in (Block, Piecewise)]
    assert len(cached) >= 3
    del objective, y
    gc.collect()
    assert not any(reference() for reference in cached)
