"""Pictures of networks: what is drawn is the network, and what is left out is said."""

from __future__ import annotations

from inspect import unwrap

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
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
    methods = [unwrap(method) for method in (KAN.plot, KAN.plot_edge, KAN.plot_history)]
    assert methods == [unwrap(function) for function in (plots.plot, plots.plot_edge, plots.plot_history)]
