"""Arguments of every public function: what is taken, and how everything else is refused."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from hostile import Call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fastkan
import fastkan_kernels as kernels
from fastkan import KAN, KANLinear, create_dataset
from fastkan_kernels import validation as kinds
from fastkan_kernels.validation import checked

matplotlib.use("Agg")

BAD = (TypeError, ValueError)

# -- what people have ----------------------------------------------------------------------------------


def test_numbers_as_people_have_them() -> None:
    """NumPy's and PyTorch's numbers give the network that Python's give."""
    expected = KAN(width=[2, 5, 1], grid=4, k=2, seed=3, noise_scale=0.25, grid_eps=0.5, sparse_init=True)
    for number in (np.int64, np.uint8, torch.tensor):
        model = KAN(
            width=np.array([2, 5, 1]) if number is not torch.tensor else torch.tensor([2, 5, 1]),
            grid=number(4), k=number(2), seed=number(3), noise_scale=np.float32(0.25), grid_eps=torch.tensor(0.5),
            sparse_init=np.bool_(True),
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))
        assert (model.width, model.grid, model.k) == (expected.width, [4, 4], [2, 2])
        assert all(type(size) is int for size in (*model.width_in, *model.grid, *model.k, model.layers[0].in_features))
        finer = model.refine(number(8))
        assert (finer.grid, model.refine(np.array([8, 4])).grid) == ([8, 8], [8, 4])
    assert KAN([2, np.int64(3), [np.int64(1), 1], 1], mult_arity=np.int64(3)).width_out == [2, 3, 4, 1]


def test_methods_take_numbers_as_people_have_them() -> None:
    one = np.int64(1)
    model = KAN([2, 2, 1], seed=0)
    model.get_act(torch.rand(50, 2))
    model.fix_symbolic(0, one, torch.tensor(0), "sin", verbose=np.bool_(False))
    assert model.symbolic[0].edges == ((1, 0, "sin"),)
    assert all(type(index) is int for index in model.symbolic[0].edges[0][:2])
    assert model.get_fun(0, one, one)[0].shape == (50,)
    assert model.attribute(one, one).shape == (2,)
    model.remove_edge(0, one, one)
    assert model.layers[0].mask[1, 1] == 0
    model.expand_width(one, np.int64(2), mult_arity=np.int64(3), sum_bool=np.bool_(False), seed=one)
    assert model.mult_arity == [[], [3, 3], []]
    model.swap(np.int64(0), np.int64(0), one)
    assert model.input_id.tolist() == [1, 0]
    assert model.prune_input(active_inputs=np.array([1])).input_id.tolist() == [1]
    assert model.prune(torch.tensor(-1.0), np.float64(-1)).width == model.width
    assert model.train(np.bool_(False)).training is False
    assert model.train(1).training is True
    assert len(model.plot(beta=np.float32(10), tick=one).axes) == 1
    matplotlib.pyplot.close("all")
    layer = KANLinear(np.int64(2), torch.tensor(3), grid_range=np.array([0, 2]), bias=np.bool_(True))
    assert layer.bias is not None
    assert repr(layer) == "KANLinear(2, 3, grid_size=5, spline_order=3, bias=True)"
    data = create_dataset(torch.sin, n_var=np.int64(1), train_num=np.int64(5), test_num=0, seed=np.int64(7))
    same = create_dataset(torch.sin, 1, train_num=5, test_num=0, seed=7)
    assert torch.equal(data["train_input"], same["train_input"])


def test_a_bool_counts_as_0_or_1() -> None:
    assert KANLinear(2, 3, True).grid_size == 1
    assert KAN([2, True, 1]).width == [[2, 0], [1, 0], [1, 0]]
    with pytest.raises(ValueError, match="grid_size must be at least 1, got False"):
        KANLinear(2, 3, False)


def test_warnings_point_at_the_line_that_called() -> None:
    """Whatever decorators are between."""
    model, linear = KAN([2, 1], seed=0), nn.Sequential(nn.Linear(2, 3))
    linear[0].register_forward_hook(lambda *_: None)
    for call in (
        lambda: KAN([2, 1], save_act=True),
        lambda: model.fix_symbolic(0, 0, 0, "x", fit_params_bool=False, log_history=True),
        lambda: model.plot(mode="supervised"),
        lambda: fastkan.replace_linear(linear),
        lambda: model.prune(node_th=0, edge_th=0),  # by decorators of torch's too
        lambda: model.copy().auto_symbolic(verbose=0),
        lambda: model.symbolic_formula(),
    ):
        with pytest.warns(UserWarning, match="meaning here|hooks of|no fit|contains spline edges") as caught:
            call()
        assert [one.filename for one in caught] == [__file__]
    matplotlib.pyplot.close("all")


def test_a_picture_that_can_not_be_written_leaves_no_figure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = matplotlib.pyplot.get_fignums()
    with pytest.raises(FileExistsError):
        KAN([2, 1], seed=0).plot(tmp_path / "file")
    assert matplotlib.pyplot.get_fignums() == before


def test_a_mask_in_a_state_dict_holds_0_and_1() -> None:
    layer, state = KANLinear(2, 3), KANLinear(2, 3).state_dict()
    for mask, message in (
        (torch.full((2, 3), 0.5), "mask must hold 0 and 1 only"),
        (torch.full((2, 3), torch.nan), "mask must hold 0 and 1 only"),
        ([1], "mask must be a torch.Tensor, got list"),
        (torch.ones(3, 2), r"mask: \[2, 3\] expected, got \[3, 2\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, "mask": mask})
        assert layer.mask is None


def test_a_sample_that_a_model_can_not_be_called_with() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(TypeError, match="sample must be a tensor, or a tuple or mapping of arguments, got int"):
        fastkan.replace_linear(model, sample=3)
    with pytest.raises(ValueError, match="sample must be an input that model can be called with; the call raised"):
        fastkan.replace_linear(model, sample=torch.rand(4, 5))
    assert type(model[0]) is nn.Linear


def test_formulas_of_what_is_no_array() -> None:
    model = KAN([1, 1], seed=0)
    model.fix_symbolic(0, 0, 0, "exp", fit_params_bool=False)
    formula = model.formula_numpy()
    for x in ("a", {}, {1.0}, object(), torch.ones(1, device="meta"), [[1.0], [1.0, 2.0]]):
        with pytest.raises(BAD, match=r"^x must"):
            formula(x)


# -- every public function -----------------------------------------------------------------------------

# what a table leaves to the function itself, as it goes with other arguments or with what it is called on
LEFT_OUT = {
    "width", "mult_arity", "ranges", "inputs", "labels", "dataset", "state_dict", "select", "sample", "fun", "affine",
    "var", "normalizer", "output_normalizer", "in_vars", "out_vars", "mode", "ax", "log_history", "model_or_results",
    "fits", "x", "name", "lib", "singularity_avoiding", "y_th", "params",
    "parameters", "names", "sample_weight",
}  # fmt: skip
ONLY_TENSORS = r"(Tensor|KAN|Network|NetworkT|type\[NetworkT\]|KANLinear|KAN \| KANLinear|nn\.Module|Basis)( \| None)?"
TAKE_FUNCTIONS = {"f", "select", "fun_singularity", "sympy_fun", "loss_fn", "metrics", "callbacks"}


def table_of(function: Any) -> dict[str, kinds.Kind]:
    function = function.__init__ if inspect.isclass(function) else function
    return getattr(function, "argument_table", {})


def public() -> Iterator[tuple[str, Any]]:
    """Everything that can be called by a public name."""
    for package in (fastkan, kernels, fastkan.symbolic):
        for name in package.__all__:
            value = getattr(package, name)
            if callable(value) and not (inspect.isclass(value) and issubclass(value, tuple)):
                yield name, value
    for owner in (KAN, KANLinear, fastkan.symbolic.SymbolicEdges):
        for name in sorted(set(dir(owner)) - set(dir(nn.Module))):
            value = inspect.getattr_static(owner, name)
            value = getattr(value, "__func__", value)
            if not name.startswith("_") and callable(value):
                yield f"{owner.__name__}.{name}", value


@pytest.mark.parametrize("name", sorted(dict(public())))
def test_every_public_function_has_a_table(name: str) -> None:
    function = dict(public())[name]
    missing = [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        and one.name not in {"self", "cls", "model", *table_of(function), *LEFT_OUT}
        and not re.fullmatch(ONLY_TENSORS, str(one.annotation))
    ]
    assert not missing


def test_every_function_with_a_table_is_tried() -> None:
    tried = {name.rpartition(".")[2] for name in hostile.names()}
    assert {name.rpartition(".")[2] for name, function in public() if table_of(function)} <= tried


# -- hostile values ------------------------------------------------------------------------------------


def state_of(subject: Any) -> list[Any]:
    """All that a refused call may not have changed, in a form that can be compared."""
    if subject is None:
        return []
    found: list[Any] = [repr(subject), subject.training]
    for name, value in subject.state_dict().items():
        found.append((name, value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)))
    found += [(name, value.requires_grad) for name, value in subject.named_parameters()]
    if isinstance(subject, KAN):
        sample = None if subject.sample is None else subject.sample.numpy().tobytes()
        masks = None if subject.prune_mask is None else [mask.numpy().tobytes() for mask in subject.prune_mask]
        found += [subject.architecture, subject.in_features, subject.grid_eps, repr(subject.history), sample, masks]
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


class Subjects:
    """The objects whose methods are called, made once for all calls that change nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, tuple[Any, Callable, dict[str, Any], list[Any]]] = {}

    def get(self, name: str) -> tuple[Any, Callable, dict[str, Any], list[Any]]:
        if name not in self.made:
            with quiet():
                subject, function, arguments = hostile.subject(name, self.folder)
            self.made[name] = subject, function, arguments, state_of(subject)
        return self.made[name]

    def try_out(self, call: Call, must_fail: bool = False) -> str | None:
        """The fault in the outcome of a call, or None."""
        subject, function, arguments, before = self.get(call.function)
        value = hostile.VALUES[call.value]()
        kind = table_of(function).get(call.argument)
        try:
            with quiet():
                function(**{**arguments, call.argument: value})
        except Exception as error:
            if callable(value) and (isinstance(kind, kinds.Callback) or call.argument in TAKE_FUNCTIONS):
                wrong = None  # the user's own
            elif isinstance(error, OSError) and isinstance(kind, kinds.Path):
                wrong = None
            elif not isinstance(error, BAD):
                wrong = f"{call}: {error!r}"
            else:
                fits_alone = kind or isinstance(value, (torch.Tensor, nn.Module))  # others may not fit it then
                names = [*hostile.parameters(function), "edge"] if fits_alone else [call.argument]
                named = any(re.search(rf"\b{name}\b", str(error)) for name in names)
                wrong = None if named else f"{call}: {error!r} names no argument"
            if state_of(subject) != before:
                wrong = wrong or f"{call}: refused by {error!r}, but something has changed"
            if wrong:
                del self.made[call.function]
            return wrong
        finally:
            matplotlib.pyplot.close("all")
        if state_of(subject) != before:
            del self.made[call.function]
        return f"{call} was taken" if must_fail else None


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subjects]:
    folder, before, known = tmp_path_factory.mktemp("hostile"), Path.cwd(), set(fastkan.SYMBOLIC_LIB)
    os.chdir(folder)  # pictures go into folders of any name
    yield Subjects(folder)
    os.chdir(before)
    for name in set(fastkan.SYMBOLIC_LIB) - known:  # what add_symbolic was tried with
        fastkan.symbolic.remove_symbolic(name)


@functools.cache
def calls(refused: bool) -> list[Call]:
    """Calls that a table refuses, or all others."""
    found = []
    with quiet(), tempfile.TemporaryDirectory() as folder:
        functions = {name: hostile.subject(name, Path(folder))[1] for name in hostile.names()}
    for name, function in functions.items():
        table = table_of(function)
        for argument in hostile.parameters(function):
            for value, made in hostile.VALUES.items():
                try:
                    if argument in table:
                        table[argument].read(argument, made())
                except BAD:
                    if refused:
                        found.append(Call(name, argument, value))
                else:
                    if not refused:
                        found.append(Call(name, argument, value))
    return found


def test_what_a_table_refuses_is_refused_before_anything_changes(subjects: Subjects) -> None:
    assert len(calls(True)) > 5000
    assert [wrong for call in calls(True) if (wrong := subjects.try_out(call, must_fail=True))] == []


@settings(max_examples=2000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_everything_else_is_taken_or_refused_by_name(subjects: Subjects, data: st.DataObject) -> None:
    wrong = subjects.try_out(data.draw(st.sampled_from(calls(False))))
    assert wrong is None


# -- kinds of arguments ------------------------------------------------------------------------------

TAKEN: list[tuple[kinds.Kind, Any, Any]] = [
    (kinds.Int(), np.int64(4), 4),
    (kinds.Int(), np.uint8(4), 4),
    (kinds.Int(), torch.tensor(4), 4),
    (kinds.Int(), np.array(4), 4),
    (kinds.Int(), True, 1),
    (kinds.Int(), np.bool_(False), 0),
    (kinds.Int(least=-1), -1, -1),
    (kinds.Real(), 3, 3.0),
    (kinds.Real(), np.float32(0.5), 0.5),
    (kinds.Real(), torch.tensor(0.5, requires_grad=True), 0.5),
    (kinds.Real(), True, 1.0),
    (kinds.Real(finite=False), float("inf"), float("inf")),
    (kinds.Flag(), np.bool_(True), True),
    (kinds.Flag(), torch.tensor(False), False),
    (kinds.Flag(), 1, True),
    (kinds.Choice(("a", "b")), np.str_("b"), "b"),
    (kinds.Bounds(), [np.float32(0), torch.tensor(2)], (0.0, 2.0)),
    (kinds.Bounds(), np.array([-1, 1]), (-1.0, 1.0)),
    (kinds.Bounds(finite=False), (-float("inf"), 0), (-float("inf"), 0.0)),
    (kinds.Path(), Path("a"), "a"),
    (kinds.Path(), b"a", "a"),
    (kinds.Device(), "cpu", torch.device("cpu")),
    (kinds.Each(kinds.Int()), np.array([1, 2]), [1, 2]),
    (kinds.Each(kinds.Int()), range(2), [0, 1]),
    (kinds.OneOrEach(kinds.Int()), torch.tensor(3), 3),
    (kinds.OneOrEach(kinds.Int()), torch.tensor([3]), [3]),
    (kinds.Optional(kinds.Int()), None, None),
    (kinds.SEED, np.int64(3), 3),
    (kinds.SEED, 2**64 - 1, 2**64 - 1),
]


@pytest.mark.parametrize(("kind", "value", "read"), TAKEN)
def test_values_become_pythons_own(kind: kinds.Kind, value: Any, read: Any) -> None:
    got = kind.read("n", value)
    assert got == read
    assert type(got) is type(read)


REFUSED: list[tuple[kinds.Kind, Any, type[Exception], str]] = [
    (kinds.Int(), 4.0, TypeError, "n must be an int, got float"),
    (kinds.Int(), torch.tensor([4]), TypeError, r"n must be an int, got Tensor of shape \[1\]"),
    (kinds.Int(), torch.tensor(4, device="meta"), TypeError, "n must be an int, got Tensor"),
    (kinds.Int(least=1), 0, ValueError, "n must be at least 1, got 0"),
    (kinds.Int(least=1), 2**70, ValueError, "n must be at most 2147483647, got 1180591620717411303424"),
    (kinds.Int(least=1, most=5), 6, ValueError, "n must be from 1 to 5, got 6"),
    (kinds.Real(), "1", TypeError, "n must be a number, got str"),
    (kinds.Real(), 1j, TypeError, "n must be a number, got complex"),
    (kinds.Real(), torch.nan, ValueError, "n must be finite, got nan"),
    (kinds.Real(finite=False), torch.nan, ValueError, "n must be finite, got nan"),
    (kinds.Real(), 10**400, ValueError, "n must be finite, got a number above 1e308"),
    (kinds.Real(above=0), 0, ValueError, "n must be above 0, got 0"),
    (kinds.Real(least=0, most=1), 1.5, ValueError, "n must be from 0 to 1, got 1.5"),
    (kinds.Flag(), "no", TypeError, "n must be True or False, got 'no'"),
    (kinds.Flag(), 2, TypeError, "n must be True or False, got 2"),
    (kinds.Flag(), torch.ones(2), TypeError, r"n must be True or False, got Tensor of shape \[2\]"),
    (kinds.Choice(("a", "b")), ["a"], ValueError, "n must be one of 'a', 'b'; got list"),
    (kinds.Bounds(), {0, 1}, TypeError, r"n must be two numbers, got \{0, 1\}"),
    (kinds.Bounds(), "01", TypeError, "n must be two numbers, got '01'"),
    (kinds.Bounds(), (0, 10**400), ValueError, "n must be finite and increasing"),
    (kinds.Bounds(finite=False), (1, 0), ValueError, r"n must be increasing, got \(1, 0\)"),
    (kinds.Path(), 3, TypeError, "n must be a path, as a str, bytes or os.PathLike, got int"),
    (kinds.Path(), "a\0b", ValueError, "zero byte"),
    (kinds.Callback(), "f", TypeError, "n must be a function, got str"),
    (kinds.Dtype(), torch.int32, TypeError, "n must be torch.float16.*got torch.int32"),
    (kinds.Dtype(), torch.ones(2), TypeError, "n must be torch.float16"),
    (kinds.Device(), torch.int32, TypeError, "n must be a torch.device or its name, got dtype"),
    (kinds.Device(), True, TypeError, "n must be a torch.device or its name, got bool"),
    (kinds.Device(), "cuda:77", ValueError, "n='cuda:77' cannot be used here"),
    (kinds.Device(), "abacus", ValueError, "n='abacus' cannot be used here"),
    (kinds.Device(), 2**70, ValueError, "cannot be used here"),
    (kinds.Each(kinds.Int()), {1, 2}, TypeError, "n must be a sequence, got set"),
    (kinds.Each(kinds.Int()), [1, "2"], TypeError, r"n\[1\] must be an int, got str"),
    (kinds.Each(kinds.Int(), count=2), [1], ValueError, "n must have 2 entries, got 1"),
    (kinds.SEED, -1, ValueError, "n must be at least 0, got -1"),
    (kinds.SEED, 2**64, ValueError, "n must be at most 18446744073709551615"),
    (kinds.Instance(nn.Module), 3, TypeError, "n must be a Module, got int"),
    (kinds.Text(), b"a", TypeError, "n must be a string, got bytes"),
]


@pytest.mark.parametrize(("kind", "value", "error", "message"), REFUSED)
def test_what_is_of_another_kind_is_refused(kind: kinds.Kind, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind.read("n", value)


@checked(a=kinds.Int(), c=kinds.Flag())
def shown(a: int, b: Any = 0, *rest: Any, c: bool = False, **more: Any) -> tuple:
    return a, b, rest, c, more


def test_a_table_reads_what_it_names_wherever_it_is_given() -> None:
    assert shown(np.int64(1), "b", 3, 4, c=1, d="2") == (1, "b", (3, 4), True, {"d": "2"})
    assert shown(b=2, a=torch.tensor(1)) == (1, 2, (), False, {})
    with pytest.raises(TypeError, match="a must be an int"):
        shown(1.5)
    with pytest.raises(TypeError, match="c must be True or False"):
        shown(1, c="yes")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        shown()
    with pytest.raises(TypeError, match="no parameters"):
        checked(z=kinds.Int())(shown)


def test_compiled_code_calls_functions_with_tables() -> None:
    knots = kernels.uniform_knots(2, 5, 3)
    x, w = torch.rand(7, 2), torch.rand(8, 2, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        basis = kernels.Basis(3, "none")
        return kernels.contract_out(x, knots, w, basis=basis, derivative=1)

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))
