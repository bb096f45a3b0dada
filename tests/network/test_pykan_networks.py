"""pykan's tests of symmetry, its MLP and its network methods return the same values as pykan's own."""

from __future__ import annotations

from typing import Any

import matplotlib
import pytest
import sympy
import torch
from peers import formula, points, pykan
from pykan_cases import float64, kan, quiet, rows  # noqa: F401
from torch import Tensor

import fastkan
from fastkan import KAN, MLP, convert, create_dataset, kanpiler

matplotlib.use("Agg")

x, y, z = sympy.symbols("x y z")


# -- symmetries -----------------------------------------------------------------------------------

ADDED = lambda r: r[:, [0]] * r[:, [1]] + r[:, [2]] * r[:, [3]] + r[:, [4]] * r[:, [5]]  # noqa: E731
MULTIPLIED = lambda r: (r[:, [0]] + r[:, [1]]) * (r[:, [2]] + r[:, [3]]) * (r[:, [4]] + r[:, [5]])  # noqa: E731
IN_A_SINE = lambda r: torch.sin(MULTIPLIED(r))  # noqa: E731
PAIRS = [[0, 1], [2, 3], [4, 5]]


def test_separability() -> None:
    theirs, at = kan("hypothesis"), 2 * torch.rand(100, 6) - 1
    for f, mode in ((ADDED, "add"), (MULTIPLIED, "mul"), (ADDED, "mul"), (IN_A_SINE, "add")):
        ours = quiet(fastkan.detect_separability, f, at, mode)
        other = quiet(theirs.detect_separability, f, at, mode)
        assert torch.allclose(ours["hessian"], other["hessian"], rtol=1e-9)
        assert ours["n_groups"] == other["n_groups"]
        assert ours["groups"] == sorted([int(i) for i in group] for group in other["groups"])
        assert [ours["groups"][label] for label in ours["labels"]] == [next(g for g in ours["groups"] if i in g)
                                                                       for i in range(6)]  # fmt: skip
    assert quiet(fastkan.detect_separability, ADDED, at)["groups"] == PAIRS
    assert quiet(fastkan.detect_separability, ADDED, at, n_clusters=2)["n_groups"] == 2
    assert quiet(fastkan.detect_separability, ADDED, at, n_clusters=4)["n_groups"] == 1
    with pytest.raises(ValueError, match="n_clusters"):
        fastkan.detect_separability(ADDED, at, n_clusters=7)
    for f in (ADDED, MULTIPLIED, IN_A_SINE):
        for groups in (PAIRS, [[0, 1], [2, 4], [3, 5]], [[0, 1]], [[0], [1]]):
            for mode in ("add", "mul"):
                ours = fastkan.test_separability(f, at, groups, mode)
                assert ours == bool(theirs.test_separability(f, at, groups, mode)), (groups, mode)
    assert fastkan.test_general_separability(IN_A_SINE, at, PAIRS)
    assert theirs.test_general_separability(IN_A_SINE, at, PAIRS)
    assert not fastkan.test_general_separability(IN_A_SINE, at, [[0, 2], [1, 3], [4, 5]])


def test_general_separability_asks_for_one_quantity_of_each_group() -> None:
    """All ratios of derivatives of x^2 + y z are products, although [y] and [x, z] are not separable."""
    f = lambda r: torch.sin(r[:, [0]] ** 2 + r[:, [1]] * r[:, [2]])  # noqa: E731
    assert fastkan.test_general_separability(f, rows(3), [[0], [1, 2]])
    assert not fastkan.test_general_separability(f, rows(3), [[1], [0, 2]])


def test_symmetry() -> None:
    theirs, at = kan("hypothesis"), 2 * torch.rand(100, 6) - 1
    for group in ([0, 1], [0, 2], [2, 3], [0, 1, 2], [], list(range(6))):
        assert fastkan.test_symmetry(MULTIPLIED, at, group) == bool(theirs.test_symmetry(MULTIPLIED, at, group))
    assert torch.allclose(fastkan.batch_grad_normgrad(MULTIPLIED, at, [0, 2]),
                          theirs.batch_grad_normgrad(MULTIPLIED, at, [0, 2]), rtol=1e-9)  # fmt: skip
    assert torch.allclose(fastkan.get_dependence(MULTIPLIED, at, [0, 2]),
                          theirs.get_dependence(MULTIPLIED, at, [0, 2]), rtol=1e-9)  # fmt: skip
    f = lambda r: r[:, [0]] * torch.sqrt(1 + (r[:, [1]] / r[:, [2]]) ** 2)  # noqa: E731
    for variable in (y / z, y * z):
        ours = quiet(fastkan.test_symmetry_var, f, rows(3), [x, y, z], variable)
        other = quiet(theirs.test_symmetry_var, f, rows(3), [x, y, z], variable)
        assert torch.allclose(ours, other, rtol=1e-12)
    with pytest.raises(ValueError, match="group must name inputs from 0 to 5"):
        fastkan.test_symmetry(MULTIPLIED, at, [0, 6])


def test_trees() -> None:
    theirs = kan("hypothesis")
    at = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) + 0.5

    def nested(r: Tensor) -> Tensor:
        pairs = [(r[:, [i]] ** 2 + r[:, [j]] ** 2) ** 2 for i, j in ((0, 4), (2, 7), (1, 5), (6, 3))]
        return (pairs[0] + pairs[1]) ** 2 + (pairs[2] + pairs[3]) ** 2

    four = lambda r: (r[:, [0]] + r[:, [2]]) * r[:, [1]] ** 2 + torch.sin(r[:, [3]])  # noqa: E731
    for f, columns in ((nested, 8), (four, 4), (lambda r: r[:, [0]] * r[:, [1]] ** 2 * r[:, [2]], 3)):
        levels = fastkan.get_molecule(f, at[:, :columns], verbose=False)
        expected = theirs.get_molecule(f, at[:, :columns], verbose=False)
        assert levels == expected
        ours = fastkan.get_tree_node(f, at[:, :columns], levels, skip_test=False)
        assert ours == theirs.get_tree_node(f, at[:, :columns], expected, skip_test=False)
    figure = fastkan.plot_tree(four, at[:, :4], in_var=["a", y, "$c$", "d"], sep_th=1e-2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["+", "$a$", "$c$", "$y$", "$d$"]
    boxed = fastkan.plot_tree(four, at[:, :4], style="box", sep_th=1e-2)
    assert "Add" in [text.get_text() for text in boxed.axes[0].texts]
    with pytest.raises(ValueError, match="in_var must have 4 names"):
        fastkan.plot_tree(four, at[:, :4], in_var=["a"])
    assert KAN([3, 2, 1], seed=0).tree(rows(3)).axes
    assert MLP([3, 4, 1]).tree(rows(3)).axes
    matplotlib.pyplot.close("all")


# -- MLP ------------------------------------------------------------------------------------------


def test_an_mlp() -> None:
    theirs = kan("MLP").MLP([3, 6, 5, 1], seed=4)
    before = torch.get_rng_state()
    ours = MLP([3, 6, 5, 1], seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    at = points(3)
    assert torch.equal(ours(at), theirs(at))
    ours.attribute(at)
    theirs.attribute()
    assert ours.node_scores is not None
    assert ours.edge_scores is not None
    for one, other in zip([*ours.node_scores, *ours.edge_scores], [*theirs.node_scores, *theirs.edge_scores]):
        assert torch.allclose(one, other, rtol=1e-12)
    assert ours.get_reg("a", 1.0, 2.0, at).item() == pytest.approx(theirs.get_reg("a", 1.0, 2.0).item(), rel=1e-12)
    assert ours.connection_cost == pytest.approx(float(theirs.connection_cost), rel=1e-12)
    start, y_before = ours.connection_cost, ours(at)
    ours.auto_swap()
    assert ours.connection_cost < start
    assert torch.allclose(ours(at), y_before, atol=1e-14)
    quiet(theirs.auto_swap)
    assert ours.connection_cost == pytest.approx(float(theirs.connection_cost), rel=1e-9)
    for metric in ("w", "act", "fa"):
        assert len(ours.plot(metric=metric).axes[0].collections) == 7
    matplotlib.pyplot.close("all")


def test_an_mlp_is_fitted() -> None:
    dataset = create_dataset(lambda r: torch.sin(3 * r[:, [0]]) * r[:, [1]], n_var=2, train_num=200, test_num=100)
    model = MLP([2, 8, 1])

    def score() -> Tensor:
        return model(dataset["test_input"]).mean()

    results = model.fit(dataset, steps=15, metrics=[score], display_metrics=["score"], progress=False)
    theirs = quiet(kan("MLP").MLP([2, 8, 1]).fit, dataset, steps=15)
    assert results["train_loss"][-1] < min(0.05, 1.2 * float(theirs["train_loss"][-1]))
    assert len(results["score"]) == len(results["test_loss"]) == 15
    penalised = MLP([2, 8, 1])
    penalised.fit(dataset, opt="Adam", lr=1e-2, steps=30, lamb=1e-2, batch=50, progress=False)
    free = MLP([2, 8, 1])
    free.fit(dataset, opt="Adam", lr=1e-2, steps=30, batch=50, progress=False)
    assert sum(w.abs().sum() for w in penalised.w) < sum(w.abs().sum() for w in free.w)
    with pytest.raises(ValueError, match="opt must be one of"):
        model.fit(dataset, opt="SGD")
    with pytest.raises(ValueError, match="width must name at least two"):
        MLP([2])


# -- methods of a network -------------------------------------------------------------------------


def same(ours: KAN, theirs: Any) -> None:
    for layer, symbolic, other, formulas in zip(ours.act_fun, ours.symbolic_fun, theirs.act_fun, theirs.symbolic_fun):
        for name in ("coef", "scale_base", "scale_sp", "mask", "grid"):
            assert torch.allclose(getattr(layer, name), getattr(other, name)), name
        assert torch.equal(symbolic.mask, formulas.mask)
        on = formulas.mask.bool()
        assert torch.allclose(symbolic.affine[on], formulas.affine[on])
        assert [n for row, m in zip(symbolic.funs_name, on.tolist()) for n, o in zip(row, m) if o] == [
            n for row, m in zip(formulas.funs_name, on.tolist()) for n, o in zip(row, m) if o
        ]


def test_views_of_layers() -> None:
    theirs = pykan((2, (2, 1), 1))
    formula(theirs, 0, 1, 2, "sin", (2.0, 0.3, 1.5, -0.2))
    ours = convert(theirs)
    same(ours, theirs)
    assert (ours.n_edge, ours.n_sum, ours.n_mult) == (theirs.n_edge, theirs.n_sum, theirs.n_mult)
    assert ours.symbolic_fun[0].funs[2][1] is fastkan.SYMBOLIC_LIB["sin"].fun
    assert "in_dim=2" in repr(ours.act_fun[0]) + repr(ours.symbolic_fun[0])
    assert KAN([1, 1], base_fun="zero").act_fun[0].scale_base.abs().sum() == 0


def test_attribution_and_the_order_of_nodes() -> None:
    theirs = pykan((4, 5, 5, 2))
    ours, at = convert(theirs), points(4)
    quiet(theirs.get_act, at)
    theirs.attribute()
    ours.get_act(at)
    for one, other in zip([*ours.node_scores, *ours.edge_scores, *ours.subnode_scores],
                          [*theirs.node_scores, *theirs.edge_scores, *theirs.subnode_scores]):  # fmt: skip
        assert torch.allclose(one, other, rtol=1e-6)
    for layer in (1, 2, 3):
        assert ours.feature_interaction(layer, 0.2, 0.4) == {
            tuple(map(int, key)): count for key, count in theirs.feature_interaction(layer, 0.2, 0.4).items()
        }
        theirs.attribute()
    theirs.node_attribute()
    for one, other in zip(ours.node_attribute(), theirs.node_attribute_scores):
        assert torch.allclose(one, other, rtol=1e-6)
    theirs.attribute()
    assert ours.connection_cost == pytest.approx(float(theirs.connection_cost), rel=1e-6)
    before, start = ours(at), ours.connection_cost
    ours.auto_swap()
    assert ours.connection_cost < start
    assert torch.allclose(ours(at), before, atol=1e-12)
    quiet(theirs.auto_swap)
    quiet(theirs.get_act, at)
    theirs.attribute()
    assert ours.connection_cost == pytest.approx(float(theirs.connection_cost), rel=1e-6)
    same(ours, theirs)
    with pytest.raises(ValueError, match="l must name a hidden layer"):
        ours.auto_swap_l(3)


def test_nodes_of_one_kind_are_exchanged() -> None:
    model, at = KAN([3, [2, 3], [1, 2], 1], seed=1), rows(3)
    model.get_act(at)
    before, start = model(at), model.connection_cost
    model.auto_swap()
    assert model.connection_cost <= start
    assert torch.allclose(model(at), before, atol=1e-12)


@pytest.mark.parametrize("mode", ["non-intrusive", "minimal", "all"])
def test_perturb(mode: str) -> None:
    formula = sympy.exp(sympy.sin(sympy.pi * x) + y**2)
    ours, theirs = kanpiler([x, y], formula), quiet(kan("compiler").kanpiler, [x, y], formula)
    ours.expand_width(1, 2)
    quiet(theirs.expand_width, 1, 2)
    quiet(theirs, rows(2))
    before = ours(rows(2))
    ours.perturb(mag=0.5, mode=mode)
    quiet(theirs.perturb, 0.5, mode)
    on, expected = (
        ours.act_fun[0].mask != 0,
        theirs.act_fun[0].mask[:, [2, 0, 1]] != 0,
    )  # in pykan, new nodes come first
    old = [0] if mode == "minimal" else [0, 1, 2]  # in fastkan, edges into new nodes are on from the start
    assert torch.equal(on[:, old], expected[:, old])
    if mode == "non-intrusive":
        assert torch.allclose(ours(rows(2)), before, atol=1e-12)
        assert ours.act_fun[1].mask.all()
        assert ours.layers[1].spline_scale.abs()[0].sum() == 0
    else:
        assert not torch.allclose(ours(rows(2)), before, atol=1e-3)
    assert ours.n_edge > 0
    with pytest.raises(ValueError, match="mode must be one of"):
        ours.perturb(mode="some")


def test_modules() -> None:
    theirs = pykan((4, 3, 2))
    ours = convert(theirs)
    for chain in ("[0,1]->[0]->[0]->[0]", "[2]->[1,2]"):
        ours.module(0, chain)
        quiet(theirs.module, 0, chain)
    same(ours, theirs)
    last = KAN([2, 2, 1], seed=0)
    last.module(0, "[-1]->[-1]")
    assert last.act_fun[0].mask.tolist() == [[1, 0], [0, 1]]
    for wrong, message in (("[0]", "two lists"), ("[0]->[7]", "nodes below"), ("a->b", "lists of nodes"),
                           ("[0]->[0]->[0]->[0]->[0]->[0]", "two lists")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ours.module(0, wrong)


def test_another_models_function() -> None:
    coarse, fine, at = KAN([2, 3, 1], grid=4, seed=0), KAN([2, 3, 1], grid=8, seed=5), points(2) * 0.7
    coarse.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    assert fine.initialize_from_another_model(coarse, at) is fine
    assert torch.allclose(fine(at), coarse(at), atol=1e-10)
    assert fine.grid == [8, 8]
    with pytest.raises(ValueError, match="another_model must be of the same width"):
        fine.initialize_from_another_model(KAN([2, 4, 1]), at)


def test_the_penalty() -> None:
    theirs = pykan((3, 4, 1))
    ours, at = convert(theirs), points(3)
    quiet(theirs.get_act, at)
    for metric in ("edge_forward_spline_n", "edge_forward_sum"):
        expected = theirs.get_reg(metric, 1.0, 2.0, 0.1, 0.2)
        assert ours.get_reg(metric, 1.0, 2.0, 0.1, 0.2, x=at).item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(ours.get_params()) == len(list(ours.parameters()))
