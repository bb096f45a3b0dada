"""The suite: contenders compute the same function, errors are found before anything is timed, and modes apply where
they should."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bench import report
from bench.records import Result
from bench.suite.cases import CASES, SWEEPS, Case, Edges, swept
from bench.suite.cases import chosen as chosen_cases
from bench.suite.contenders import CONTENDERS, MLP, Contender
from bench.suite.errors import BOUND, Error, Oracle
from bench.suite.modes import MODES, chosen, derivatives
from bench.suite.plain import KANLinear as PlainKANLinear
from bench.suite.run import run_case
from fastkan import KANLinear, convert

TINY = Case(40, (3, 4, 2))
BY_NAME = {contender.name: contender for contender in CONTENDERS}
OURS, PLAIN = BY_NAME["fastkan"], BY_NAME["plain Cox-de Boor"]
COMPARED = [
    pytest.param(contender, mode, id=f"{contender.name}-{mode}")
    for contender in CONTENDERS
    for mode in ("step", "sparse", "pinn")
    if contender.is_kan and not contender.compiled and contender.why_not(TINY) is None and contender.takes(mode)
    if not (mode == "sparse" and contender.own_penalty)
]


def measured(contenders: Sequence[Contender], modes: Sequence[str], **options) -> dict[tuple[str, str], Result]:
    """Results of the smallest case, by contender and mode."""
    results = run_case(options.pop("case", TINY), contenders, budget=0.02, modes=modes, **options)
    return {(result["contender"], result["mode"]): result for result in results}


@pytest.mark.parametrize("order", [1, 3, 5])
def test_the_plain_layer_is_the_same_function(order: int) -> None:
    plain = PlainKANLinear(3, 4, 6, order, (-2, 1), dtype=torch.float64)
    ours = convert(plain)
    assert type(ours) is KANLinear
    x = 3 * torch.rand(50, 3, dtype=torch.float64) - 2
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-12, atol=1e-12)


def test_the_mlp_has_as_many_parameters() -> None:
    """Those of a KAN I-H-O: I H (G+k+1) + H O (G+k+1)."""
    count = sum(p.numel() for p in BY_NAME[MLP].make(TINY).parameters())
    assert count == sum(p.numel() for i, o in TINY.layers for p in KANLinear(i, o).parameters())


@pytest.mark.parametrize(("contender", "mode"), COMPARED)
def test_every_contender_agrees_with_float64(contender: Contender, mode: str) -> None:
    error = Oracle(TINY).error(contender.make(TINY, mode=mode), lambda edges: contender.make(TINY, edges, mode), mode)
    assert max(error) < BOUND / 10, error  # type: ignore[type-var]


class NoSecond(torch.autograd.Function):
    """The identity, whose backward has no graph, so that second derivatives silently lose a term."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.detach()


class Raising(NoSecond):
    """The identity, whose second derivative raises."""

    backward = staticmethod(torch.autograd.function.once_differentiable(lambda ctx, g: g.clone()))


class SingleUse(NoSecond):
    """The identity, with a graph for a single backward, as a compiled network's."""

    @staticmethod
    def backward(ctx, g):
        assert not hasattr(ctx, "used")
        ctx.used = True
        return g


class Faulty(nn.Module):
    """A network with a right forward, and with one of the identities above inside, or with half of a gradient."""

    def __init__(self, network: nn.Module, identity: type[NoSecond] | None) -> None:
        super().__init__()
        self.network, self.identity = network, identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.network[0], self.network[1]  # type: ignore[index]
        if self.identity is Raising:
            return self.network(self.identity.apply(x))  # type: ignore[no-untyped-call]
        if self.identity is not None:
            return second(self.identity.apply(first(x)))  # type: ignore[no-untyped-call]
        weight = first.spline_weight  # which receives half its gradient
        y = nn.functional.linear(first.splines(x).flatten(1), (weight / 2 + weight.detach() / 2).flatten(1))
        return second(y + nn.functional.linear(nn.functional.silu(x), first.base_weight))


def faulty(identity: type[NoSecond] | None) -> Contender:
    return Contender("faulty", lambda case, edges: Faulty(PLAIN.build(case, edges), identity))


@pytest.mark.parametrize(
    ("identity", "mode", "wrong"), [(None, "step", "weights"), (NoSecond, "pinn", "output"), (None, "pinn", "weights")]
)
def test_a_wrong_gradient_is_found_and_not_timed(identity: type[NoSecond] | None, mode: str, wrong: str) -> None:
    contender = faulty(identity)
    error = Oracle(TINY).error(contender.make(TINY), lambda edges: contender.make(TINY, edges), mode)
    assert getattr(error, wrong) > 100 * BOUND
    assert error.too_large
    found = measured([OURS, contender], [mode])
    assert (found["faulty", mode]["note"], found["faulty", mode]["seconds"]) == ("wrong", None)
    assert found["fastkan", mode]["seconds"] is not None


def test_a_mode_that_fails_leaves_the_others() -> None:
    found = measured([faulty(Raising)], ("step", "pinn"))
    assert found["faulty", "step"]["seconds"] is not None
    assert found["faulty", "pinn"]["note"].startswith("failed: RuntimeError")


def test_a_graph_for_a_single_backward_is_enough() -> None:
    contender = faulty(SingleUse)
    assert not Oracle(TINY).error(contender.make(TINY), lambda edges: contender.make(TINY, edges)).too_large


def wrong(case: Case, edges: list[Edges]) -> nn.Module:
    network = OURS.build(case, edges)
    next(network.parameters()).mul_(1 + 100 * BOUND)
    return network


def failing(case: Case, edges: list[Edges]) -> nn.Module:
    raise RuntimeError("no such thing\nand more")


def test_a_contender_that_is_wrong_or_fails_has_no_time() -> None:
    others = [Contender("wrong", wrong), Contender("failing", failing), Contender("absent", wrong, needs="no_such_pkg")]
    results = run_case(TINY, [OURS, BY_NAME[MLP], *others], budget=0.05)
    step = {result["contender"]: result for result in results if result["mode"] == "step"}
    assert [step[name]["note"] for name in step] == [
        None, None, "wrong", "failed: RuntimeError: no such thing", "not installed",
    ]  # fmt: skip
    assert [result["seconds"] is not None for result in step.values()] == [True, True, False, False, False]
    assert step["wrong"]["error"][0] > BOUND
    ((_, frame, notes),) = report.tables(results)
    assert list(frame.index) == ["fastkan", MLP, "wrong"]
    assert notes.startswith("wrong: wrong; failing: failed: RuntimeError: no such thing")
    assert "Not installed: absent." in report.legend(results)


@pytest.mark.parametrize("error", [Error(float("nan"), 0.0), Error(0.0, 2 * BOUND), Error(float("inf"), 0.0)])
def test_errors_that_are_too_large(error: Error) -> None:
    assert error.too_large


def test_modes_that_do_not_apply_have_no_result() -> None:
    found = measured([OURS, BY_NAME[MLP], BY_NAME["bare matrix products"]], tuple(MODES))
    timed = {key for key, result in found.items() if result["seconds"] is not None}
    assert timed == set(found)
    assert {mode for name, mode in found if name == "bare matrix products"} == {"forward", "step"}
    assert all({mode for other, mode in found if other == name} == set(MODES) for name in ("fastkan", MLP))
    assert all(found["fastkan", mode]["error"] is not None for mode in MODES)
    plain, sparse, pinn = report.tables(list(found.values()))
    assert list(plain[1])[-4:] == ["err y", "err dx", "err dW", "MiB"]
    assert list(sparse[1])[-4:] == ["err reg", "err dx", "err dW", "MiB"]
    assert "PINN step" in pinn[0]
    assert "sparsity terms" in report.legend(list(found.values()))


def test_a_pinn_needs_a_continuous_second_derivative() -> None:
    found = measured([OURS], ("step", "pinn"), case=TINY._replace(order=2))
    assert "order 3" in found["fastkan", "pinn"]["note"]
    assert found["fastkan", "pinn"]["seconds"] is None


def test_slow_packages_are_left_out_but_neither_anchors_nor_ours() -> None:
    found = measured([OURS, BY_NAME[MLP], PLAIN], ("step",), patience=0.0)
    assert [result["seconds"] is not None for result in found.values()] == [True, True, False]
    assert found[PLAIN.name, "step"]["note"].startswith("left out")


def test_derivatives_are_those_of_a_known_function() -> None:
    x = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    u, u_x, u_xx = derivatives(lambda x: x[:, :1] ** 3 * x[:, 1:], x)
    a, t = x.detach().unbind(1)
    for found, true in ((u, a**3 * t), (u_x[:, 0], 3 * a**2 * t), (u_x[:, 1], a**3), (u_xx, 6 * a * t)):
        torch.testing.assert_close(found, true)


def test_cases_sweeps_and_modes_are_chosen_by_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case in chosen_cases([case.name], quick=True) for case in CASES)
    assert (chosen(None), chosen(["pinn", "step"]), chosen(["all"])) == (
        ("forward", "step"), ("step", "pinn"), tuple(MODES),
    )  # fmt: skip
    with pytest.raises(ValueError, match="--modes takes forward, step, sparse, pinn or all; got 'train'"):
        chosen(["train"])
    for name, field in (("rows", "rows"), ("width", "widths"), ("grid", "grid_size"), ("order", "order")):
        assert len({getattr(case, field) for case in SWEEPS[name]}) == len(SWEEPS[name]) >= 4
        assert len({case._replace(**{field: None}) for case in SWEEPS[name]}) == 1
        assert swept([name]) == list(SWEEPS[name])
    assert len({case.name for case in swept(["all"])}) == len(swept(["all"])) < sum(map(len, SWEEPS.values()))
    with pytest.raises(ValueError, match="'depth'"):
        swept(["depth"])
