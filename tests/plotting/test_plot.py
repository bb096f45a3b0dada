"""Pictures of networks, single edges and histories: what is drawn is the network, and what is left out is said."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import time
import types
from inspect import unwrap
from itertools import combinations

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import boxes, colors, curves, edge_count, fix, made, part, texts

from fastkan import plotting as plots
from fastkan.kan.model import KAN

SHAPES = [
    ([1, 1], 2),
    ([2, 5, 1], 2),
    ([2, [5, 2], 1], 2),
    ([3, [2, 3], [1, 1], 2], [[], [3, 4, 2], [3], []]),
    ([3, [0, 1], [0, 1]], [[], [3], [4]]),
]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


# -- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "arity"), SHAPES)
def test_every_edge_has_a_box_a_curve_and_two_lines(width, arity) -> None:
    model = made(width, arity)
    figure = plots.plot(model, beta=10)
    count = edge_count(model)
    assert len(figure.axes) == 1
    assert len(boxes(figure)) == len(curves(figure)) == count
    assert len(part(figure, "lines").get_segments()) == 2 * count
    sums, products = sum(model.width_out[1:]), sum(len(arity) for arity in model.mult_arity)
    strokes = part(figure, "symbols").get_segments()
    slanted = [stroke for stroke in strokes if abs(stroke[0] - stroke[1]).min() > 1e-6]
    assert len(slanted) == 2 * products
    assert len(strokes) - len(slanted) == 2 * sums
    assert len(part(figure, "links").get_segments()) == sum(
        model.width_out[layer] for layer in range(1, model.depth + 1) if model.mult_arity[layer]
    )


@pytest.mark.parametrize(("width", "arity"), SHAPES)
def test_lines_lead_from_node_to_box_to_subnode(width, arity) -> None:
    model = made(width, arity)
    figure = plots.plot(model)
    circles = {tuple(round(c, 6) for c in at) for at in part(figure, "nodes").get_offsets()}
    lines = part(figure, "lines").get_segments()
    for n, (left, low, right, high) in enumerate(boxes(figure)):
        below, above = lines[2 * n], lines[2 * n + 1]
        assert below[-1] == pytest.approx([(left + right) / 2, low])
        assert above[0] == pytest.approx([(left + right) / 2, high])
        assert tuple(round(c, 6) for c in below[0]) in circles
        assert tuple(round(c, 6) for c in above[-1]) in circles
        assert below[0][1] < low < high < above[-1][1]


@pytest.mark.parametrize("metric", ["backward", "forward_n", "forward_u"])
def test_transparency_is_the_score(metric: str) -> None:
    model = made([3, [2, 1], 2], 3)
    model.get_act(torch.rand(200, 3))
    fix(model, 0, 1, 2, "exp")
    trace = model.trace(edges=True)
    if metric == "backward":
        scores = model.attribute().edges
    else:
        scores = [layer.edges.std(0) for layer in trace]
        if metric == "forward_n":
            scores = [score / (layer.nodes.std(0) + 0.1).unsqueeze(1) for score, layer in zip(scores, trace)]
    expected = torch.cat([torch.tanh(8 * score).flatten() for score in scores]).tolist()
    figure = plots.plot(model, beta=8, metric=metric)
    assert min(expected) < 0.5 < max(expected)
    for gid in ("curves", "boxes"):
        assert [color[3] for color in colors(figure, gid)] == pytest.approx(expected, abs=1e-4)
    assert [color[3] for color in colors(figure, "lines")] == pytest.approx(
        [alpha for alpha in expected for _ in range(2)], abs=1e-4
    )


def test_colors_tell_splines_formulas_and_both() -> None:
    model = made()
    fix(model, 0, 0, 1, "sin")
    fix(model, 0, 1, 3, "x^2", alone=False)
    model.layers[1].set_mask(torch.tensor([1.0, 1, 0, 1, 1]).unsqueeze(1))
    figure = plots.plot(model, beta=100)
    expected = ["black"] * 14
    expected[1], expected[8] = "red", "purple"
    assert [color[:3] for color in colors(figure, "curves")] == [to_rgb(color) for color in expected]
    assert [color[:3] for color in colors(figure, "lines")[::2]] == [to_rgb(color) for color in expected]


def test_curves_are_the_edges_functions() -> None:
    model = made([2, 3, 2], noise=2.0)
    fix(model, 0, 1, 2, "sin", (3.0, 0.5, 2.0, -1.0))
    fix(model, 1, 0, 1, "x^2", alone=False)
    x = 3 * torch.randn(300, 2)
    trace = model.trace(x)
    figure = plots.plot(model, x=x)
    drawn, frames = curves(figure), boxes(figure)
    n = 0
    for layer, traced in enumerate(trace):
        numeric, symbolic = model.layers[layer], model.symbolic[layer]
        for i in range(model.width_in[layer]):
            low, high = traced.nodes[:, i].min().item(), traced.nodes[:, i].max().item()
            at = torch.zeros(len(drawn[n]), model.width_in[layer])
            at[:, i] = torch.linspace(low, high, len(at))
            other = torch.zeros_like(at)
            for j in range(model.width_out[layer + 1]):
                left, lower, right, upper = frames[n]
                with torch.no_grad():  # its function, from the layer's, but for a constant
                    y = (numeric(at) + symbolic(at) - numeric(other) - symbolic(other))[:, j].double()
                share = (y - y.min()) / (y.max() - y.min())
                room_x, room_y = 0.1 * (right - left), 0.1 * (upper - lower)
                expected_x = torch.linspace(left + room_x, right - room_x, len(at), dtype=torch.float64)
                expected_y = lower + room_y + (upper - lower - 2 * room_y) * share
                torch.testing.assert_close(drawn[n], torch.stack([expected_x, expected_y], 1), rtol=0, atol=1e-5)
                n += 1
    assert n == len(drawn)


def test_marked_samples_lie_on_their_curve() -> None:
    model = made([1, 1], noise=2.0)
    figure = plots.plot(model, sample=True)
    (curve,) = curves(figure)
    points = torch.tensor(part(figure, "samples").get_offsets().data)
    assert len(points) >= 40
    for x, y in points.tolist():
        right = int(torch.searchsorted(curve[:, 0].contiguous(), x).clamp(1, len(curve) - 1))
        (x0, y0), (x1, y1) = curve[right - 1].tolist(), curve[right].tolist()
        assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=2e-3)


def test_a_constant_is_a_line_at_half_height() -> None:
    model = made([1, 1])
    fix(model, 0, 0, 0, "sin", (0.0, 0.4, 1.0, 0.1))
    figure = plots.plot(model, tick=True)
    (curve,), ((_, lower, _, upper),) = curves(figure), boxes(figure)
    torch.testing.assert_close(curve[:, 1], torch.full_like(curve[:, 1], (lower + upper) / 2))


def test_ticks_are_the_ranges() -> None:
    model = made([1, 1])
    fix(model, 0, 0, 0, "x^2", (1.0, 0.0, 3.0, -2.0))
    figure = plots.plot(model, x=torch.linspace(0, 200, 50).unsqueeze(1), tick=True)
    assert texts(figure, "tick") == ["0", "200", "\N{MINUS SIGN}2", "1e5"]
    wide = plots.plot(made([30, 1]), tick=True)
    assert texts(wide, "tick") == texts(wide, "note")[1:] == []
    assert "Ranges are left out" in texts(wide, "note")[0]


def test_poles_and_gaps_stay_in_their_boxes() -> None:
    model = made([3, 1])
    fix(model, 0, 0, 0, "1/x")
    fix(model, 0, 1, 0, "tan", (3.0, 0.0, 1.0, 0.0))
    fix(model, 0, 2, 0, "log")
    with pytest.warns(RuntimeWarning, match=r"\d+ of 1024 samples make a node NaN or infinite"):
        figure = plots.plot(model)
    for curve, (left, lower, right, upper) in zip(curves(figure), boxes(figure)):
        y = curve[:, 1][curve[:, 1].isfinite()]
        assert len(y) > 80
        assert lower < y.min() < (lower + 0.2 * (upper - lower))
        assert upper - 0.2 * (upper - lower) < y.max() < upper
        assert left < curve[:, 0].min() < curve[:, 0].max() < right
    one_over = curves(figure)[0][:, 1]
    assert one_over.isnan().any()
    assert one_over[75] - one_over[100] > 0.02 * (boxes(figure)[0][3] - boxes(figure)[0][1])  # 2 and 1, still a curve


# -- what is hidden, and what has no room -------------------------------------------------------------


def test_off_edges_are_not_drawn() -> None:
    model = made()
    model.layers[0].set_mask(torch.tensor([[1.0, 0, 1, 0, 1], [0, 0, 1, 1, 1]]))
    figure = plots.plot(model)
    assert len(curves(figure)) == 6 + 5
    model.layers[1].set_mask(torch.zeros(5, 1))
    assert len(curves(plots.plot(model))) == 6


def test_mask_hides_what_pruning_would_drop() -> None:
    model = made()
    with pytest.raises(RuntimeError, match=r"call prune\(\) first$"):
        plots.plot(model, mask=True)
    dropped = [torch.ones(2, 5, dtype=torch.bool), torch.ones(5, 1, dtype=torch.bool)]
    dropped[0][:, 2] = dropped[1][2] = dropped[0][0, 4] = False
    model.prune_mask = dropped
    whole, hidden = plots.plot(model), plots.plot(model, mask=True)
    assert len(curves(whole)) == 15
    kept = torch.cat([layer.flatten() for layer in dropped]).nonzero().flatten().tolist()
    assert [tuple(box) for box in boxes(hidden)] == [tuple(boxes(whole)[n]) for n in kept]
    assert len(part(hidden, "nodes").get_offsets()) == len(part(whole, "nodes").get_offsets()) - 1
    model.prune_mask = dropped[:1]
    with pytest.raises(RuntimeError, match="the network has changed"):
        plots.plot(model, mask=True)


def test_of_many_edges_the_strongest_are_drawn_and_a_note_says_so() -> None:
    model = KAN(width=[64, 100, 10], seed=0)
    figure = plots.plot(model, beta=50)
    assert len(curves(figure)) == 200
    strongest = [score.flatten().sort(descending=True).values[:100] for score in model.attribute().edges]
    expected = torch.cat([torch.tanh(50 * score) for score in strongest]).double().sort().values
    drawn = torch.tensor(sorted(color[3] for color in colors(figure, "curves")))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    (note,) = texts(figure, "note")
    assert note.split("\n")[0].startswith("Drawn: the 100 strongest of 6400 edges of layer 0, ")
    assert "100 strongest of 1000 edges of layer 1." in note
    assert max(figure.get_size_inches()) < 15
    assert len(curves(plots.plot(model, max_edges=7))) == 14


def test_an_invisible_network_says_why() -> None:
    model = made()
    assert texts(plots.plot(model), "note") == []
    (note,) = texts(plots.plot(model, x=torch.ones(10, 2)), "note")
    assert "raise beta" in note


def test_they_are_methods() -> None:
    assert KAN([2, 1], seed=0).speed().plot() is not None
    methods = [unwrap(method) for method in (KAN.plot, KAN.plot_edge, KAN.plot_history)]
    assert methods == [unwrap(function) for function in (plots.plot, plots.plot_edge, plots.plot_history)]


# -- texts --------------------------------------------------------------------------------------------


def test_names() -> None:
    sympy = pytest.importorskip("sympy")
    model = made([2, 1, 3])
    figure = plots.plot(model)
    assert texts(figure, "in_var") == ["$x_{1}$", "$x_{2}$"]
    assert texts(figure, "out_var") == ["$y_{1}$", "$y_{2}$", "$y_{3}$"]
    assert texts(plots.plot(made()), "out_var") == ["$y$"]
    u, rows = sympy.symbols("alpha"), sympy.Piecewise((1, sympy.Symbol("t") > 0), (0, True))
    figure = plots.plot(model, in_vars=[u**2, rows], out_vars=["a", r"$\pi$", r"$\nothing$"], title="T")
    assert texts(figure, "in_var") == [r"$\alpha^{2}$", str(rows)]  # matplotlib can't typeset cases
    assert texts(figure, "out_var") == ["a", r"$\pi$", r"$\nothing$"]
    assert texts(figure, "title") == ["T"]
    figure.canvas.draw()


def test_names_are_those_of_the_columns_that_are_read() -> None:
    model = made([2, 3, 1])
    model.input_id.copy_(torch.tensor([1, 4]))
    model.in_features = 6
    assert texts(plots.plot(model), "in_var") == ["$x_{2}$", "$x_{5}$"]
    assert texts(plots.plot(model, in_vars=list("abcdef")), "in_var") == ["b", "e"]
    assert texts(plots.plot(model, in_vars=["p", "q"]), "in_var") == ["p", "q"]
    with pytest.raises(ValueError, match="in_vars must have 2 or 6 names, got 3"):
        plots.plot(model, in_vars=["p", "q", "r"])
    assert plots.plot_edge(model, 0, 1, 0).get_xlabel() == "$x_{5}$"
    under = [text.get_position()[0] for text in plots.plot(model).axes[0].texts[:2]]
    dots = sorted(map(tuple, part(plots.plot(model), "nodes").get_offsets().data.tolist()), key=lambda at: at[::-1])
    assert under == pytest.approx([dots[0][0], dots[1][0]])


LONG = [f"quite a long name of the variable {n}" for n in range(40)]
CASES = [
    {"width": [1, 1], "title": "one", "in_vars": ["a name that is much wider than the network"]},
    {"width": [2, 5, 1], "in_vars": ["$x$", "$y$"], "out_vars": [r"$e^{\sin(\pi x)+y^2}$"], "title": "A title"},
    {"width": [2, 5, 1], "tick": True, "sample": True, "title": "a longer title $x^2$ that needs its room " * 3},
    {"width": [2, [5, 2], 1], "tick": True},
    {"width": [4, 10, 10, 1], "tick": True, "scale": 0.3},
    {"width": [3, [2, 3], [1, 1], 2], "arity": [[], [3, 4, 2], [3], []], "varscale": 2.0},
    {"width": [40, 3, 5], "in_vars": LONG, "out_vars": LONG[:5]},
    {"width": [200, 3, 12], "in_vars": LONG * 5, "out_vars": LONG[:12], "title": "wide"},
    {"width": [64, 100, 10]},
    {"width": [784, 20, 10]},
    {"width": [2, 1], "in_vars": ["two\nlines", "one"], "scale": 1.0},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case["width"])).replace(" ", ""))
def test_no_text_overlaps_another_or_is_cut(case: dict) -> None:
    options = dict(case)
    figure = plots.plot(made(options.pop("width"), options.pop("arity", 2)), **options)
    figure.canvas.draw()
    placed = [text.get_window_extent() for text in figure.axes[0].texts]
    frame = figure.bbox.padded(1)
    frames = [figure.axes[0].transData.transform_bbox(path.get_extents()) for path in part(figure, "boxes").get_paths()]
    assert placed
    for one in placed:
        assert frame.x0 <= one.x0 < one.x1 <= frame.x1
        assert frame.y0 <= one.y0 < one.y1 <= frame.y1
    assert not [(a, b) for a, b in combinations([box.padded(-0.75) for box in placed], 2) if a.overlaps(b)]
    assert not [(a, b) for a in placed for b in frames if a.padded(-0.75).overlaps(b.padded(-0.75))]


# -- around it ----------------------------------------------------------------------------------------


def test_a_picture_takes_less_than_a_second(tmp_path) -> None:
    model = KAN(width=[4, 10, 10, 1], seed=0)
    model.get_act(torch.rand(1000, 4))
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        plots.plot(model, folder=tmp_path)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1.0  # others may be at work beside it


def test_the_model_and_matplotlib_stay_as_they_are() -> None:
    mine = plt.figure()
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    model = made([2, [2, 1], 1]).eval()
    model.get_act(torch.rand(10, 2))
    fix(model, 0, 0, 0, "sin")
    before, kept, random = copy.deepcopy(model.state_dict()), dict(model.__dict__), torch.get_rng_state()
    figure = plots.plot(model, tick=True, sample=True)
    plots.plot_edge(model, 0, 0, 0, ax=mine.add_subplot())
    assert plt.get_fignums() == [mine.number, figure.number]
    assert plt.gcf() is figure
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.get_backend() == backend
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name
    assert model.__dict__.keys() == kept.keys()
    assert all(model.__dict__[name] is value for name, value in kept.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_folder_gets_one_file(tmp_path) -> None:
    folder = tmp_path / "new" / "folder"
    plots.plot(made(), folder=str(folder))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kan.png"]
    assert plt.imread(folder / "kan.png").shape[2] in (3, 4)


def test_into_axes_of_ones_own() -> None:
    figure, (left, _) = plt.subplots(1, 2)
    assert plots.plot(made(), ax=left, title="here") is figure
    assert plt.get_fignums() == [figure.number]
    assert len(curves(figure)) == 15
    part_of = plt.figure().subfigures(1, 2)[0]
    assert plots.plot(made(), ax=part_of.subplots()) is part_of.figure


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_and_any_sample(dtype: torch.dtype) -> None:
    model = made([2, 3, 1], dtype=dtype)
    assert len(curves(plots.plot(model, sample=True))) == 9  # before any forward
    model.get_act(torch.rand(1, 2, dtype=dtype))
    assert len(curves(plots.plot(model))) == 9
    alphas = {color[3] for color in colors(plots.plot(model), "curves")}
    assert max(alphas) > 0.5  # one row tells no spread: as before any forward


def test_not_a_number_is_explained() -> None:
    model = made()
    with torch.no_grad():
        model.layers[1].spline_weight[:, 3, 0] = math.nan
    with pytest.raises(ValueError, match=r"edges \(l, i, j\) = \(1, 3, 0\) are NaN or infinite at the samples"):
        plots.plot(model)
    with pytest.raises(ValueError, match=r"edge \(1, 3, 0\) is NaN or infinite"):
        plots.plot_edge(model, 1, 3, 0)
    plots.plot_edge(model, 0, 1, 3)
    with pytest.raises(ValueError, match="the samples are NaN or infinite"):
        plots.plot(made(), x=torch.full((5, 2), math.inf))
    assert plt.get_fignums() == [1]  # of the edge that could be drawn


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"metric": "sideways"},
            ValueError,
            "metric must be one of 'backward', 'forward_n', 'forward_u'; got 'sideway",
        ),
        ({"beta": 0}, ValueError, "beta must be above 0, got 0"),
        ({"beta": "3"}, TypeError, "beta must be a number, got str"),
        ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
        ({"varscale": -1.0}, ValueError, "varscale must be above 0, got -1"),
        ({"max_edges": 0}, ValueError, "max_edges must be at least 1"),
        ({"in_vars": "xy"}, TypeError, "in_vars must be a list of names, got str"),
        ({"in_vars": ["x"]}, ValueError, "in_vars must have 2 names, got 1"),
        ({"in_vars": ["x", 3]}, TypeError, r"in_vars\[1\] must be a str or a sympy expression, got int"),
        ({"out_vars": ["x", "y"]}, ValueError, "out_vars must have 1 names, got 2"),
        ({"title": 3}, TypeError, "title must be a string, got int"),
        ({"ax": 3}, TypeError, "ax must be matplotlib axes or None, got int"),
        ({"x": torch.rand(1, 2)}, ValueError, "x must have at least two samples, got 1"),
        ({"x": torch.rand(5, 3)}, ValueError, r"x must have the shape \[..., in_features=2\]"),
    ],
)
def test_what_is_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plots.plot(made(), **options)
    assert plt.get_fignums() == []


def test_mode_has_no_meaning() -> None:
    with pytest.warns(UserWarning, match="mode has no meaning here"):
        plots.plot(made(), mode="supervised")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        lambda: plots.plot(made()),
        lambda: plots.plot_edge(made(), 0, 0, 0),
        lambda: plots.plot_history({"train_loss": [1.0]}),
    ):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw()


def test_a_notebook_shows_a_figure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Figure] = []
    notebook = types.ModuleType("IPython.display")
    notebook.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    figure = plots.plot(made())
    figure._ipython_display_()
    assert shown == [figure]
    assert plt.fignum_exists(figure.number)  # Agg shows nothing by itself
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    figure._ipython_display_()
    assert shown == [figure, figure]
    assert not plt.fignum_exists(figure.number)  # pyplot would show it at the cell's end
    figure._ipython_display_()
    assert shown == [figure, figure, figure]
    assert len(pickle.loads(pickle.dumps(figure)).axes) == 1


# -- edges and histories ------------------------------------------------------------------------------


def test_one_edge() -> None:
    model = made([2, 3, 1], noise=2.0)
    fix(model, 0, 1, 2, "x^2", (2.0, -0.5, 3.0, 1.0), alone=False)
    x = 2 * torch.randn(100, 2)
    ax = plots.plot_edge(model, 0, 1, 2, x=x)
    lines = {line.get_gid(): line for line in ax.lines}
    at = torch.tensor(lines["both"].get_xdata(), dtype=torch.float32)
    assert (at[0], at[-1]) == (x[:, 1].min(), x[:, 1].max())
    formula = 3 * (2 * at - 0.5) ** 2 + 1
    alone = copy.deepcopy(model.layers[0])
    mask = torch.zeros(2, 3)
    mask[1, 2] = 1
    alone.set_mask(mask)
    with torch.no_grad():
        numeric = alone(torch.stack([torch.zeros_like(at), at], 1))[:, 2]
    for gid, expected in {"symbolic": formula, "numeric": numeric, "both": formula + numeric}.items():
        torch.testing.assert_close(torch.tensor(lines[gid].get_ydata(), dtype=torch.float32), expected)
    assert sorted(lines["samples"].get_xdata()) == pytest.approx(x[:, 1].sort().values.tolist())
    assert lines["symbolic"].get_label() == "3 (2 x - 0.5)^2 + 1"
    assert (ax.get_title(), ax.get_xlabel()) == ("edge (0, 1, 2)", "$x_{2}$")
    assert [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "grid"] == pytest.approx([-1, 1])
    model.layers[0].set_mask(1 - mask)
    model.symbolic[0].unfix(1, 2)
    (off,) = (
        line for line in plots.plot_edge(model, 0, 1, 2, ax=plt.figure().add_subplot()).lines if line.get_gid() == "off"
    )
    assert set(off.get_ydata()) == {0.0}


@pytest.mark.parametrize(
    ("place", "message"),
    [((2, 0, 0), "l must be below 2"), ((0, 2, 0), "i must be below 2, the inputs of layer 0"),
     ((0, 0, 7), "j must be below 7, the outputs of layer 0"), ((-1, 0, 0), "l must be at least 0")],
)  # fmt: skip
def test_an_edge_that_is_not_there(place: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_edge(made([2, [3, 2], 1]), *place)
    with pytest.raises(TypeError, match="i must be an int"):
        plots.plot_edge(made(), 0, 1.0, 0)


def test_history() -> None:
    first = {"train_loss": [1.0, 0.5, 0.25], "test_loss": [1.5, 0.6, 0.3], "reg": [3.0, 2.0, 1.0]}
    second = {"train_loss": [0.2, 0.1], "test_loss": [], "reg": [0.5, 0.5], "other": [1, 2]}
    model = made()
    with pytest.raises(ValueError, match=r"call fit\(\) first"):
        plots.plot_history(model)
    model.history += [first, {"train_loss": [], "test_loss": [], "reg": []}, second]
    figure = plots.plot_history(model)
    losses, reg = figure.axes
    drawn = [(line.get_gid(), list(line.get_xdata()), list(line.get_ydata())) for line in losses.lines]
    assert drawn == [
        ("train_loss", [1, 2, 3], first["train_loss"]),
        ("train_loss", [4, 5], second["train_loss"]),
        ("test_loss", [1, 2, 3], first["test_loss"]),
        ("fit", [3.5, 3.5], [0, 1]),
    ]
    assert [list(line.get_ydata()) for line in reg.lines[:2]] == [first["reg"], second["reg"]]
    assert losses.get_yscale() == "log"
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["train", "test"]
    assert len(plots.plot_history({"train_loss": [1, 2], "reg": [0, 0]}).axes) == 1
    assert len(plots.plot_history([first]).axes) == 2
    for wrong in (3, [1.0], {"loss": [1]}):
        with pytest.raises(TypeError, match="model_or_results must be"):
            plots.plot_history(wrong)
