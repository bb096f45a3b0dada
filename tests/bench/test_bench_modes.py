"""The benchmark's modes: what float64 says of each, who has no time in one, and how a result is shown and drawn."""

from __future__ import annotations

import pytest
import torch
from bench_cases import TINY, measured
from torch import nn

from bench import report
from bench.cases import SWEEPS, Case, Edges, swept
from bench.errors import BOUND, Oracle
from bench.modes import MODES, chosen, derivatives
from bench.rivals import RIVALS, Rival
from bench.run import run_case

ALL = tuple(MODES)
PROBED = ("step", "sparse", "pinn")
OURS = next(rival for rival in RIVALS if rival.name == "fastkan")
PLAIN = next(rival for rival in RIVALS if rival.name == "plain Cox-de Boor")
JUDGED = [
    pytest.param(rival, mode, id=f"{rival.name}-{mode}")
    for rival in RIVALS
    for mode in PROBED
    if rival.is_kan and not rival.compiled and rival.why_not(TINY) is None and rival.takes(mode)
    if not (mode == "sparse" and rival.own_penalty)
]


@pytest.mark.parametrize(("rival", "mode"), JUDGED)
def test_every_rival_gives_what_float64_gives(rival: Rival, mode: str) -> None:
    error = Oracle(TINY).error(rival.make(TINY, mode=mode), lambda edges: rival.make(TINY, edges, mode), mode)
    assert max(error) < BOUND / 10, error  # type: ignore[type-var]


class Faulty(nn.Module):
    """A right forward with a gradient that is not."""

    def __init__(self, network: nn.Module, what: str) -> None:
        super().__init__()
        self.network, self.what = network, what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.network[0], self.network[1]  # type: ignore[index]
        if self.what == "weights":  # one layer learns half of what it should
            weight = first.spline_weight
            y = nn.functional.linear(first.splines(x).flatten(1), (weight / 2 + weight.detach() / 2).flatten(1))
            return second(y + nn.functional.linear(nn.functional.silu(x), first.base_weight))
        return second(Once.apply(first(x)))  # type: ignore[no-untyped-call]


class Once(torch.autograd.Function):
    """The identity, whose backward has no graph, so that second derivatives lose a term in silence."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.detach()


@pytest.mark.parametrize(
    ("what", "mode", "wrong"),
    [("weights", "step", "weights"), ("second", "pinn", "output"), ("weights", "pinn", "weights")],
)
def test_a_gradient_that_is_wrong_is_told(what: str, mode: str, wrong: str) -> None:
    def make(case: Case, edges: list[Edges]) -> nn.Module:
        return Faulty(PLAIN.build(case, edges), what)

    rival = Rival("faulty", make)
    error = Oracle(TINY).error(rival.make(TINY), lambda edges: rival.make(TINY, edges), mode)
    assert getattr(error, wrong) > 100 * BOUND
    assert error.too_large
    rows = measured([OURS, rival], [mode]).rows
    assert mode not in rows[1].timings
    assert "wrong" in (rows[1].note, rows[1].notes.get(mode))
    assert mode in rows[0].timings


def test_what_has_no_such_thing_has_no_time_and_no_note() -> None:
    rivals = [rival for rival in RIVALS if rival.anchor or rival.name in ("fastkan", "bare matrix products")]
    rivals = [rival for rival in rivals if rival.why_not(TINY) is None]
    result = measured(rivals, ALL)
    rows = {row.rival: row for row in result.rows}
    assert set(rows["fastkan"].timings) == set(ALL)
    assert set(rows["fastkan"].errors) == {"sparse", "pinn"}
    assert set(rows["bare matrix products"].timings) == {"forward", "step"}
    assert rows["bare matrix products"].notes == {}
    assert set(rows["MLP, as many parameters"].timings) == set(ALL)
    plain, sparse, pinn = report.views(result)
    assert plain.columns()[-4:] == ["err y", "err dx", "err dW", "MiB"]
    assert sparse.columns()[-4:] == ["err reg", "err dx", "err dW", "MiB"]
    assert "PINN step" in pinn.title
    assert pinn.cells(rows["bare matrix products"])[1] == report.ABSENT
    assert len(sparse.cells(rows["fastkan"])) == len(sparse.columns())
    assert "sparsity terms" in report.legend([result])


def test_a_mode_that_fails_leaves_the_others() -> None:
    def make(case: Case, edges: list[Edges]) -> nn.Module:
        return nn.Sequential(Stubborn(), PLAIN.build(case, edges))

    rows = measured([Rival("stubborn", make)], ("step", "pinn")).rows
    assert set(rows[0].timings) == {"step"}
    assert rows[0].notes["pinn"].startswith("failed: RuntimeError")


class Stubborn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OnlyOnce.apply(x)  # type: ignore[no-untyped-call]


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


def test_derivatives_are_those_of_a_known_function() -> None:
    x = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    u, u_x, u_xx = derivatives(lambda x: x[:, :1] ** 3 * x[:, 1:], x)
    a, t = x.detach().unbind(1)
    for found, true in ((u, a**3 * t), (u_x[:, 0], 3 * a**2 * t), (u_x[:, 1], a**3), (u_xx, 6 * a * t)):
        torch.testing.assert_close(found, true)


def test_a_pinn_asks_for_a_continuous_second_derivative() -> None:
    result = run_case(TINY._replace(order=2), [OURS], budget=0.02, modes=("step", "pinn"))
    (row,) = result.rows
    assert "order 3" in row.notes["pinn"]
    assert "pinn" not in row.timings


def test_slow_packages_are_left_out_but_neither_anchors_nor_ours() -> None:
    rows = measured([OURS, *(r for r in RIVALS if r.anchor and r.needs is None), PLAIN], ("step",), patience=0.0).rows
    assert ["step" in row.timings for row in rows] == [True, True, False]
    assert rows[2].note is not None
    assert rows[2].note.startswith("left out")


def test_modes_are_chosen_by_name() -> None:
    assert chosen(None) == ("forward", "step")
    assert chosen(["pinn", "step"]) == ("step", "pinn")
    assert chosen(["all"]) == ALL
    with pytest.raises(ValueError, match="--modes takes forward, step, sparse, pinn or all; got 'train'"):
        chosen(["train"])


def test_a_sweep_varies_one_thing() -> None:
    for name, field in (("rows", "rows"), ("width", "widths"), ("grid", "grid_size"), ("order", "order")):
        cases = SWEEPS[name]
        assert len({getattr(case, field) for case in cases}) == len(cases) >= 4
        assert len({case._replace(**{field: None}) for case in cases}) == 1
        assert swept([name]) == list(cases)
    assert len({case.name for case in swept(["all"])}) == len(swept(["all"])) < sum(map(len, SWEEPS.values()))
    with pytest.raises(ValueError, match="'depth'"):
        swept(["depth"])
