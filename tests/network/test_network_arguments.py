"""What ``KAN(...)`` takes, refuses and draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import D, network

from fastkan import KAN
from fastkan.kan.old_arguments import IGNORED


def test_nothing_global_is_seeded_and_no_argument_changed() -> None:
    import random

    import numpy as np

    width: list[Any] = [2, [3, 1], 1]
    arity = [[], [2], []]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = KAN(width=width, mult_arity=arity, seed=3, sparse_init=True)
    model(torch.rand(4, 2, generator=torch.Generator().manual_seed(0)))
    model.trace()
    assert width == [2, [3, 1], 1]
    assert arity == [[], [2], []]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    model.width.append([7, 0])
    model.mult_arity[1].append(9)
    assert (model.width, model.mult_arity) == ([[2, 0], [3, 1], [1, 0]], [[], [2], []])


def test_seeds() -> None:
    x = torch.rand(4, 2)
    one, other, third = KAN([2, 3, 1], seed=7), KAN([2, 3, 1], seed=7), KAN([2, 3, 1], seed=8)
    assert torch.equal(one(x), other(x))
    assert not torch.equal(one(x), third(x))
    before = torch.get_rng_state()
    drawn = [KAN([2, 3, 1], seed=None)(x) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.set_rng_state(before)
    assert torch.equal(KAN([2, 3, 1], seed=None)(x), drawn[0])


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_arguments_without_a_meaning_are_taken_and_say_so(name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name} has no meaning here") as caught:
        model = KAN([2, 1], seed=0, **{name: True})
    assert caught[0].filename == __file__
    assert torch.equal(model.layers[0].spline_weight, KAN([2, 1], seed=0).layers[0].spline_weight)


def test_arguments_that_nobody_knows_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'gird'"):
        KAN([2, 1], gird=5)


def test_fresh_parameters_are_in_their_ranges() -> None:
    model = KAN([4, 6, 2], grid=5, k=3, noise_scale=0.5, scale_base_mu=0.2, scale_base_sigma=0.1, seed=0, dtype=D)
    for layer in model.layers:
        root = layer.in_features**0.5
        assert (layer.spline_scale * root == 1).all()
        assert ((layer.base_weight * root - 0.2).abs() <= 0.1).all()
        assert (layer.base_weight * root - 0.2).abs().max() > 0.05
    at_knots = torch.linspace(-1, 1, 6, dtype=D).unsqueeze(1).expand(-1, 4)
    from fastkan_kernels.bspline.cox_de_boor import splines

    values = torch.einsum("npi,pio->nio", splines(at_knots, model.layers[0].knots, 3), model.layers[0].spline_weight)
    assert values.abs().max() <= 0.5 * 0.5 / 5 * 1.2  # the noise, but for the fastest changes, which splines leave out
    assert values.abs().max() > 0.02


def test_what_is_trainable() -> None:
    def trainable(**options: bool) -> set[str]:
        model = KAN([2, 2, 1], seed=0, **options)
        return {name.split(".")[-1 if "layers" in name else 0]
                for name, p in model.named_parameters() if p.requires_grad and p.numel()}  # fmt: skip

    affine = {"node_scale", "node_bias", "subnode_scale", "subnode_bias"}
    assert trainable() == {"spline_weight", "base_weight", "spline_scale"}
    assert trainable(sp_trainable=False) == {"spline_weight", "base_weight"}
    assert trainable(sb_trainable=False) == {"spline_weight", "spline_scale"}
    assert trainable(affine_trainable=True) == {"spline_weight", "base_weight", "spline_scale"} | affine


def test_sparse_init_leaves_every_node_an_edge() -> None:
    for layer in KAN([4, 7, 3], sparse_init=True, seed=0).layers:
        assert (layer.mask.sum(0) >= 1).all()
        assert (layer.mask.sum(1) >= 1).all()
        assert layer.mask.sum() < layer.mask.numel() / 2


def test_sizes() -> None:
    model = KAN([3, [2, 3], [1, 1], 2], grid=[3, 4, 5], k=[1, 2, 3], mult_arity=[[], [2, 3, 4], [2], []])
    assert model.width == [[3, 0], [2, 3], [1, 1], [2, 0]]
    assert model.width_in == [3, 5, 2, 2]
    assert model.width_out == [3, 11, 3, 2]
    assert (model.grid, model.k, model.depth) == ([3, 4, 5], [1, 2, 3], 3)
    assert KAN([2, [1, 2], 1], mult_arity=3).mult_arity == [[], [3, 3], []]
    assert (
        repr(model)
        == "KAN(width=[3, [2, 3], [1, 1], 2], grid=[3, 4, 5], k=[1, 2, 3], mult_arity=[[], [2, 3, 4], [2], []])"
    )


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"width": 3}, TypeError, "width must be a list"),
    ({"width": "2,1"}, TypeError, "width must be a list"),
    ({"width": [2]}, ValueError, "width must name at least"),
    ({"width": [2, 0, 1]}, ValueError, r"width\[1\] must have at least one node"),
    ({"width": [2, -1, 1]}, ValueError, r"width\[1\] must be at least 0"),
    ({"width": [2, 1.5, 1]}, TypeError, r"width\[1\] must be an int"),
    ({"width": [2, [1, 2, 3], 1]}, ValueError, r"width\[1\] must be a number or"),
    ({"width": [[2, 1], 1]}, ValueError, r"width\[0\] must be inputs alone"),
    ({"width": [2, [1, 1], 1], "mult_arity": 1}, ValueError, "mult_arity must be at least 2"),
    ({"width": [2, [1, 1], 1], "mult_arity": [[], [2]]}, ValueError, "mult_arity must be a number or a list"),
    ({"width": [2, [1, 1], 1], "mult_arity": [[], [2, 2], []]}, ValueError, r"mult_arity\[1\] must have 1 entries"),
    ({"width": [2, [1, 1], 1], "mult_arity": [0, 2, 0]}, TypeError, r"mult_arity\[0\] must be a list"),
    ({"width": [2, 1], "grid": 0}, ValueError, "grid must be at least 1"),
    ({"width": [2, 1], "grid": [3, 4]}, ValueError, "grid must be a number or a list"),
    ({"width": [2, 1], "k": 6}, ValueError, "k must be from 1 to 5"),
    ({"width": [2, 1], "base_fun": "relu"}, ValueError, "base_fun must be one of"),
    ({"width": [2, 1], "grid_range": (1, -1)}, ValueError, "grid_range must be finite and increasing"),
    ({"width": [2, 1], "grid_eps": 2}, ValueError, "grid_eps must be from 0 to 1"),
    ({"width": [2, 1], "dtype": torch.int64}, TypeError, "dtype must be"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_arguments_out_of_range_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KAN(**options)


def test_inputs_of_another_kind_are_refused() -> None:
    model = network([2, 3, 1])
    for x, error in (
        (torch.rand(4, 3, dtype=D), ValueError),
        (torch.rand(4, 2), TypeError),
        (torch.zeros(4, 2, dtype=torch.long), TypeError),
        ([[0.0, 0.0]], TypeError),
        (torch.rand((), dtype=D), ValueError),
    ):
        with pytest.raises(error, match="x"):
            model(x)
