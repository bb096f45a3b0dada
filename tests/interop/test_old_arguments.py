"""Arguments and attributes of other versions and packages: accepted with a warning, or refused with fastkan's name."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkan import KAN, KANLinear, create_dataset
from fastkan.kan.old_arguments import INSTEAD, OLD, Refused, Renamed

DATASET = create_dataset(lambda x: x[:, [0]] ** 2 + x[:, [1]], n_var=2, train_num=50, test_num=20)


# -- arguments of forward -------------------------------------------------------------------------


def test_nothing_but_x_is_given_by_place() -> None:
    """efficient-kan's second argument is update_grid, pykan's is singularity_avoiding."""
    model = KAN([2, 1], seed=0)
    x = torch.rand(4, 2)
    with pytest.raises(TypeError, match="2 positional arguments"):
        model(x, True)
    with pytest.raises(TypeError, match="update_grid"):
        model(x, update_grid="yes")
    assert torch.equal(model(x, update_grid=False), model(x))
    model.fix_symbolic(0, 0, 0, "1/x", fit_params_bool=False)
    zero = torch.zeros(1, 2)
    assert not model(zero).isfinite().all()
    assert model(zero, singularity_avoiding=True, y_th=5.0).isfinite().all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(3, 2, dtype=torch.float64), r"x\.to\(torch\.float32\), or once model\.double\(\)"),
        (torch.rand(3, 2, dtype=torch.float16), r"x\.to\(torch\.float32\)"),
        (torch.rand(3, 2).numpy(), r"got ndarray: use model\.predict\(x\)"),
        ([[0.1, 0.2]], r"got list: use model\.predict\(x\) .* torch\.as_tensor\(x, dtype=model\.dtype\)"),
    ],
)
def test_data_of_another_kind(x: Any, message: str) -> None:
    model = KAN([2, 3, 1], seed=0)
    with pytest.raises(TypeError, match=message):
        model(x)
    assert model(torch.as_tensor(x, dtype=model.dtype)).dtype == model.dtype
    if isinstance(x, torch.Tensor):
        with pytest.raises(TypeError, match=message):
            model.trace(x)


# -- arguments ------------------------------------------------------------------------------------

CALLS = {
    "fit": lambda m, **o: m.fit(DATASET, steps=1, progress=False, **o),
    "attribute": lambda m, **o: m.attribute(**o),
    "expand_width": lambda m, **o: m.expand_width(1, 1, **o),
    "plot": lambda m, **o: m.plot(**o),
    "prune": lambda m, **o: m.prune(**o),
    "set_mode": lambda m, **o: m.set_mode(0, 0, 0, "n", **o),
    "symbolic_formula": lambda m, **o: formulas(m).symbolic_formula(**o),
}


def formulas(model: KAN) -> KAN:
    for l, layer in enumerate(model.layers):
        for i in range(layer.in_features):
            for j in range(layer.out_features):
                model.fix_symbolic(l, i, j, "x", fit_params_bool=False)
    return model


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, names in OLD.items() for name in names])
def test_old_arguments(function: str, name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    known = OLD[function][name]
    call = CALLS[function]
    if isinstance(known, Refused):
        with pytest.raises(TypeError, match=f"has no argument '{name}' here: use prune_node"):
            call(KAN([2, 3, 1], seed=0), **{name: None})
        return
    value = 0.005 if name == "threshold" else True
    with pytest.warns(UserWarning, match=rf"{name} (is|has no meaning)") as caught:
        call(KAN([2, 3, 1], seed=0), **{name: value})
    assert caught[0].filename == __file__
    if isinstance(known, Renamed):
        with pytest.raises(TypeError, match="which are the same"):
            call(KAN([2, 3, 1], seed=0), **{name: value, known.name: value})
    matplotlib.pyplot.close("all")


def test_a_renamed_argument_counts() -> None:
    model = KAN([2, 3, 1], seed=0)
    with pytest.warns(UserWarning, match="threshold is node_th here"), pytest.raises(ValueError, match=r"node_th=2"):
        model.prune(threshold=2.0)
    with pytest.warns(UserWarning, match="log_history has no meaning"):
        model.swap(1, 0, 1, log_history=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(DATASET, steps=1, progress=False, singularity_avoiding=True)


def test_train_is_fit_with_its_older_arguments() -> None:
    with pytest.warns(UserWarning, match="device has no meaning here: the model is where"):
        results = KAN([2, 1], seed=0).train(DATASET, opt="LBFGS", steps=1, progress=False, device="cpu")
    assert len(results["train_loss"]) == 1


def test_base_functions_as_modules() -> None:
    for given, name in (
        (torch.nn.SiLU(), "silu"),
        (torch.nn.functional.silu, "silu"),
        (torch.nn.GELU(), "gelu"),
        (torch.nn.functional.gelu, "gelu"),
        (torch.nn.Identity(), "identity"),
    ):
        assert KAN([2, 1], base_fun=given).layers[0].base == name
    with pytest.raises(ValueError, match="base_fun must be one of"):
        KAN([2, 1], base_fun=torch.nn.ReLU())


@pytest.mark.parametrize(("name", "here"), [("layers_hidden", "width"), ("grid_size", "grid"), ("spline_order", "k")])
def test_arguments_of_other_packages_are_named(name: str, here: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; it is {here} here"):
        KAN([2, 1], **{name: 3})


# -- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_attributes_of_pykans_are_answered(name: str) -> None:
    model = KAN([2, 1], seed=0)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}': ") as caught:
        getattr(model, name)
    assert INSTEAD[name] in str(caught.value)
    assert not hasattr(model, name)


def test_other_attributes() -> None:
    model = KAN([2, 1], seed=0)
    with pytest.raises(AttributeError, match=r"'KAN' object has no attribute 'nothing'$"):
        _ = model.nothing
    model.register_buffer("mine", torch.ones(1))
    model.own = torch.nn.Parameter(torch.ones(1))
    assert model.mine.sum() + model.own.sum() == 2
    assert model.cache_data is None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.mine, model.mine)
        assert other.versions is None


# -- versions -------------------------------------------------------------------------------------


def test_versions_are_kept_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = KAN([2, 3, 1], seed=0, auto_save=True)
    x = DATASET["test_input"]
    fresh = model(x)
    model.fit(DATASET, steps=2, progress=False)
    fitted = model(x)
    pruned = model.prune(node_th=1e-6, edge_th=1e-6)
    finer = pruned.refine(6)
    finer.auto_symbolic(verbose=0)  # auto_symbolic is one version, although it fixes many edges
    assert list(model.versions.models) == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert torch.equal(finer.checkout("0.0")(x), fresh)
    assert torch.equal(finer.checkout("0.1")(x), fitted)
    assert model.checkout("0.1").sample is model.checkout("0.1").sample
    back = finer.rewind("0.1")
    assert torch.equal(back(x), fitted)
    assert back.auto_save
    with torch.no_grad():
        back.layers[0].spline_weight.zero_()
    assert torch.equal(finer.checkout("1.1")(x), fitted)  # versions are copies
    back.log_history("zeroed")
    assert (model.versions.round, model.versions.state_id) == (1, 2)
    assert repr(model.versions) == "Versions: 0.0, 0.1, 0.2, 0.3, 0.4, 1.1, 1.2"
    with pytest.raises(ValueError, match=r"model_id must be one of '0\.0'.*got '7\.0'"):
        model.rewind("7.0")
    assert list(tmp_path.iterdir()) == []


def test_no_versions_are_kept_otherwise() -> None:
    model = KAN([2, 3, 1], seed=0)
    model.fit(DATASET, steps=1, progress=False)
    assert model.versions is None
    assert not model.auto_save
    model.log_history("nothing")
    for call in (model.rewind, model.checkout):
        with pytest.raises(RuntimeError, match=r"auto_save=True.*model\.copy\(\).*model\.save"):
            call("0.1")


def test_a_step_that_fails_makes_no_version() -> None:
    model = KAN([2, 3, 1], seed=0, auto_save=True)
    with pytest.raises(ValueError, match="opt"):
        model.fit(DATASET, opt="none")
    assert list(model.versions.models) == ["0.0"]
    model.expand_width(1, 1)
    assert list(model.versions.models) == ["0.0", "0.1"]


def test_files_by_pykans_names(tmp_path: Path) -> None:
    model, path = KAN([2, 3, 1], seed=3), tmp_path / "model"
    model.saveckpt(path)
    x = torch.rand(5, 2)
    assert torch.equal(KAN.loadckpt(path)(x), model(x))
    (tmp_path / "theirs_config.yml").write_text("width: [2, 1]")
    with pytest.raises(ValueError, match=r"written by pykan.*fastkan\.convert"):
        KAN.loadckpt(tmp_path / "theirs")


# -- outside the grid -----------------------------------------------------------------------------


def linear(**options: Any) -> KAN:
    return KAN([2, 3, 1], seed=0, outside="linear", dtype=torch.float64, **options)


def test_splines_of_a_network_go_on_linearly(tmp_path: Path) -> None:
    model = linear()
    assert repr(model) == "KAN(width=[2, 3, 1], grid=3, k=3, outside='linear')"
    x = 6 * torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 3
    layers = [KANLinear(2, 3, 3, 3, base="silu", spline_scale=True, outside="linear", dtype=torch.float64),
              KANLinear(3, 1, 3, 3, base="silu", spline_scale=True, outside="linear", dtype=torch.float64)]  # fmt: skip
    for own, other in zip(model.layers, layers):
        other.load_state_dict(own.state_dict())
    assert torch.equal(model(x), layers[1](layers[0](x)))
    assert not torch.allclose(model(x), KAN([2, 3, 1], seed=0, dtype=torch.float64)(x))
    path = tmp_path / "model"
    model.save(path)
    kept = [KAN.load(path), model.copy(), copy.deepcopy(model), model.refine(6, 0.5 * x / 3)]
    model.get_act(x)
    kept += [model.prune(node_th=1e-9, edge_th=1e-9), model.copy().expand_width(1, 2), model.copy().expand_depth()]
    for other in kept:
        assert [layer.outside for layer in other.layers] == ["linear"] * other.depth
        assert torch.allclose(other(x), model(x), atol=1e-9), other
    with pytest.raises(ValueError, match="outside must be one of"):
        KAN([2, 1], outside="wide")


def test_edges_go_on_linearly_in_all_that_looks_at_them() -> None:
    model = linear()
    x = 6 * torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 3
    for step, layer in zip(model.trace(x, edges=True), model.layers):
        assert step.edges is not None
        assert torch.allclose(step.edges.sum(1), layer(step.nodes), atol=1e-12)
    step = model.trace(x, edges=True)[0]
    model.get_act(x)
    scores = model.attribute().edges[0]
    shares = step.edges.std(0) / (step.subnodes.std(0) + 1e-4)
    assert torch.allclose(scores, shares * model.attribute().subnodes[0], rtol=1e-6)
    one = KAN([2, 1], seed=0, outside="linear", dtype=torch.float64)
    values = one.trace(x, edges=True)[0]
    expected = (values.edges.std(0) / (values.nodes.std(0).unsqueeze(1) + 0.1)).sum()
    assert torch.allclose(one.get_reg(lamb_l1=1.0, lamb_entropy=0.0, x=x), expected, rtol=1e-6)


def test_grids_move_under_what_goes_on_linearly() -> None:
    """The new splines are fitted to the function outside the old grid as well."""
    model = KAN([1, 1], grid=3, seed=0, outside="linear", dtype=torch.float64)
    x = torch.linspace(-2, 2, 400, dtype=torch.float64).unsqueeze(1)
    before = model(x)
    model.update_grid(x)
    assert (model(x) - before).abs().max() < 0.08 * before.std()  # it is 0.27 if the splines are 0 outside the old grid
    model = KAN([1, 1], grid=3, seed=0, outside="linear", dtype=torch.float64)
    assert (model.refine(24, x)(x) - before).abs().max() < 0.02 * before.std()


# -- refine ---------------------------------------------------------------------------------------


def test_a_grid_by_either_name() -> None:
    model = KAN([2, 3, 1], seed=0)
    model.get_act(torch.rand(20, 2))
    assert model.refine(grid=7).grid == model.refine(7).grid == model.refine(new_grid=torch.tensor(7)).grid == [7, 7]
    assert model.refine(grid=[6, 9]).grid == [6, 9]
    for options in ({}, {"new_grid": 5, "grid": 5}):
        with pytest.raises(TypeError, match=r"refine\(\) takes new_grid, or grid in its place"):
            model.refine(**options)
