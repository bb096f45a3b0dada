"""fastkan.backend chooses, explain says so, and what is said is what runs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import make_knots

import fastkan
import fastkan_kernels
from fastkan import KANLinear, backend
from fastkan.layers.explain import explain
from fastkan_kernels.autograd import dispatch as routing
from fastkan_kernels.backends.cpu import banded, dense, selection
from fastkan_kernels.backends.registry import BACKENDS
from fastkan_kernels.backends.triton import hardware

X = torch.rand(20, 2)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Which backends' contractions run meanwhile, as "cpu F"."""
    ran: list[str] = []

    def spied(name: str, contraction: str, function):
        def spy(*arguments, **options):
            ran.append(f"{name} {contraction}")
            return function(*arguments, **options)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name, entry in BACKENDS.items():
            for contraction, function in dict(entry.contract).items():
                patch.setitem(entry.contract, contraction, spied(name, contraction, function))
        yield ran


def a_contraction_each(patch: pytest.MonkeyPatch) -> None:
    """Let no backend share anything between contractions."""
    for name, entry in BACKENDS.items():
        patch.setitem(BACKENDS, name, entry._replace(at_rows=None))


def adapted_layer(inputs: int = 2, outputs: int = 3, grid: int = 5, order: int = 3) -> KANLinear:
    layer = KANLinear(inputs, outputs, grid, order)
    layer.set_knots(make_knots("adapted", inputs, grid, order, torch.float32))
    return layer


# -- the context ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "runs"), [("auto", "cpu"), ("cpu", "cpu"), ("reference", "reference")])
def test_what_is_asked_for_runs_forward_and_backward(name: str, runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_contraction_each(monkeypatch)
    layer, x = adapted_layer(), X.clone().requires_grad_()
    with watched() as ran:
        with backend(name):
            y = layer(x)
        y.sum().backward()  # by the backend of its forward
    assert sorted(ran) == [f"{runs} {contraction}" for contraction in "FGH"]


def test_contexts_nest_and_are_left_by_exceptions() -> None:
    assert fastkan.backend is fastkan_kernels.backend
    assert routing.chosen_backend() == "auto"
    with backend("reference"):
        with backend("cpu"):
            assert routing.chosen_backend() == "cpu"
            with backend("auto"):
                assert routing.chosen_backend() == "auto"
        assert routing.chosen_backend() == "reference"
        with pytest.raises(ZeroDivisionError), backend("cpu"):
            _ = 1 / 0
        assert routing.chosen_backend() == "reference"
        with pytest.raises(ValueError, match="name must be one of"), backend("cuda"):
            pass
        assert routing.chosen_backend() == "reference"
    assert routing.chosen_backend() == "auto"


def test_a_thread_has_its_own() -> None:
    seen = {}

    def ask(name: str) -> None:
        seen["before"] = routing.chosen_backend()
        with backend(name):
            inside.set()
            done.wait(10)
            seen["inside"] = routing.chosen_backend()

    inside, done = threading.Event(), threading.Event()
    with backend("reference"):
        thread = threading.Thread(target=ask, args=("cpu",))
        thread.start()
        assert inside.wait(10)
        assert routing.chosen_backend() == "reference"
        done.set()
        thread.join()
    assert seen == {"before": "auto", "inside": "cpu"}


def test_it_works_as_a_decorator() -> None:
    @backend("reference")
    def function() -> str:
        return routing.chosen_backend()

    assert [function(), function(), routing.chosen_backend()] == ["reference", "reference", "auto"]


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None, 3], ids=repr)
def test_an_unknown_name_is_refused(name: object) -> None:
    message = rf"name must be one of 'auto', 'reference', 'cpu', 'dense', 'triton'; got {name!r}"
    with pytest.raises((ValueError, TypeError), match=message), backend(name):  # type: ignore[arg-type]
        pass


def test_triton_is_refused_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    with (
        pytest.raises(RuntimeError, match=r"cannot be used for this call: x is on the CPU.*TRITON_INTERPRET"),
        backend("triton"),
    ):
        KANLinear(2, 3)(X)
    monkeypatch.setattr(hardware, "INSTALLED", False)
    with (
        pytest.raises(RuntimeError, match="backend 'triton' cannot be used: the package triton is not installed"),
        backend("triton"),
    ):
        pass


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.4.0", False), ("3.6.0", "2.10.1", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.4.6", True)],
)
def test_an_interpreter_that_fails_with_numpy_is_refused(
    triton: str, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = hardware.interpreter_failure(triton, numpy)
    assert (reason is None) == works
    if not works:
        monkeypatch.setattr(hardware, "INSTALLED", True)
        monkeypatch.setattr(hardware, "INTERPRETED", True)
        monkeypatch.setattr(hardware, "INTERPRETER_FAILURE", reason)
        message = rf"interpreter of Triton {triton} fails with NumPy {numpy}: install triton>=3.7 or numpy<2.4"
        with pytest.raises(RuntimeError, match=message), backend("triton"):
            KANLinear(2, 3)(X)


def test_auto_takes_the_kernels_for_a_gpu_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert routing._AUTO["cuda"] == "triton"
    monkeypatch.setitem(routing._AUTO, "cpu", "triton")
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(routing, "_warned", {("cpu", hardware.unable(X.device))})
    said = explain(KANLinear(2, 3), X)
    assert "backend: dense (auto: backend 'triton' cannot be used: x is on the CPU" in said
    assert "F_0 (forward): dense: features made in closed form, 1 block of 20 rows x 8 splines" in said


@pytest.fixture
def unable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU in place of a GPU on which the Triton kernels cannot run."""
    monkeypatch.setitem(routing._AUTO, "cpu", "triton")
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(routing, "_warned", set())


WARNING = "the Triton kernels cannot run on 'cpu' tensors because .*; the contractions run in plain PyTorch"


@pytest.mark.usefixtures("unable")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layer", [KANLinear(2, 3), adapted_layer(grid=40)], ids=["uniform", "adapted"])
def test_a_device_without_the_kernels_is_warned_of_once(layer: KANLinear, compiled: bool) -> None:
    function = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer

    def step(function: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        x = X.clone().requires_grad_()
        y = function(x)
        y.square().sum().backward()
        return y, x.grad

    with backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        expected = step(layer)
    with watched() as ran:
        with pytest.warns(RuntimeWarning, match=WARNING) as caught:
            found = step(function)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            step(function)
    assert compiled or caught[0].filename == __file__
    assert set(ran) == {"dense F", "dense G", "dense H"}
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("unable")
def test_transforms_do_not_need_the_kernels() -> None:
    layer = KANLinear(2, 3)
    with watched() as ran, warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.vmap(layer)(X)
    assert set(ran) == {"reference F"}


def test_a_compiler_sees_what_an_older_gpu_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "INSTALLED", True)
    monkeypatch.setattr(hardware, "_capability", {0: 90, 1: 75}.__getitem__)

    def function(x: torch.Tensor) -> tuple[torch.Tensor, str | None, str | None]:
        return x + 1, hardware.unable(torch.device("cuda", 0)), hardware.unable(torch.device("cuda", 1))

    _, newer, older = torch.compile(function, backend="eager", fullgraph=True)(X)
    assert newer is None
    assert "this GPU has 7.5" in older


@pytest.mark.skipif(hardware.missing() is not None, reason="triton is not installed")
def test_explain_says_which_kernels() -> None:
    with backend("triton"):
        said = explain(KANLinear(64, 64), torch.rand(3000, 64))
        assert "F_0 (forward): fused: features made in registers by truncated powers, products in float32" in said
        assert "gather: the 4 active of 403 splines" in explain(KANLinear(64, 64, 400), torch.rand(3000, 64))
        assert "from their cell's active ones" in explain(adapted_layer(), X)
        assert "chunked: features written" in explain(adapted_layer().double(), X.double())
    assert routing.chosen_backend() == "auto"


def test_a_backend_refuses_a_device_it_is_not_for() -> None:
    assert BACKENDS["cpu"].unable(torch.device("cpu")) is None
    assert "cuda" in BACKENDS["cpu"].unable(torch.device("cuda"))
    assert BACKENDS["reference"].unable(torch.device("cuda")) is None
    assert BACKENDS["dense"].unable(torch.device("xpu")) is None
    assert "x is on 'xpu'" in BACKENDS["triton"].unable(torch.device("xpu"))


@pytest.mark.skipif(hardware.missing() is not None, reason="triton is not installed")
def test_of_several_gpus_the_one_that_x_is_on_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_capability", {0: 90, 1: 75}.__getitem__)
    monkeypatch.setattr(routing, "_warned", set())
    newer, older = torch.device("cuda", 0), torch.device("cuda", 1)
    assert BACKENDS["triton"].unable(newer) is None
    assert "this GPU has 7.5" in BACKENDS["triton"].unable(older)
    assert routing._automatic(newer)[0] == "triton"
    with pytest.warns(RuntimeWarning, match="cannot run on 'cuda' tensors because .* this GPU has 7.5; the contr"):
        assert routing._automatic(older)[0] == "dense"


# -- explain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("wide", [False, True], ids=["small", "wide"])
def test_it_names_the_backend_that_runs(wide: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_contraction_each(monkeypatch)
    layer, x = (KANLinear(64, 64), torch.rand(5000, 64)) if wide else (adapted_layer(), X)
    with backend(name):
        words = explain(layer, x)
        with watched() as ran:
            layer(x)
    (ran_by,) = {run.split()[0] for run in ran}
    assert f"backend: {ran_by}" in words
    assert ("selected by" in words) == (name != "auto")


FILLED = {"closed": "closed form", "scattered": "scatter", "recursive": "recursion"}


@pytest.mark.parametrize(
    ("layer", "rows", "banded_runs"),
    [
        (lambda: adapted_layer(40, 8, 64), 500, True),
        (lambda: adapted_layer(40, 40, 4), 500, False),
        (lambda: KANLinear(40, 8, 200), 500, True),
        (lambda: KANLinear(64, 64, 5), 4000, False),
    ],
    ids=["adapted-fine", "adapted-coarse", "equal-fine", "equal-coarse"],
)
def test_its_words_for_each_contraction_are_what_runs(
    layer, rows: int, banded_runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "piecewise_pays", lambda *sizes, **options: False)
    layer = layer()
    x = torch.rand(rows, layer.in_features)
    lines = {line[:3]: line for line in explain(layer, x).splitlines()}
    assert ("banded" in lines["F_0"]) == banded_runs
    assert "banded" not in lines["G_0"]
    with pytest.MonkeyPatch.context() as patch:
        ran: list[str] = []
        for name in ("splines_out", "splines_in"):
            function = getattr(banded, name)
            patch.setattr(banded, name, lambda *a, f=function: (ran.append("banded"), f(*a))[1])
        for way in FILLED:
            method = getattr(dense.DenseFeatures, f"_{way}")
            patch.setattr(dense.DenseFeatures, f"_{way}", lambda self, f=method, w=way: (ran.append(w), f(self))[1])
        with torch.no_grad():
            layer(x)
        assert [FILLED.get(r, r) in lines["F_0"] for r in ran] == [True], f"{ran} ran, not {lines['F_0']}"
        for line, by in (("G_0", layer.spline_weight), ("H_1", x)):
            layer.requires_grad_(False)
            by.requires_grad_()
            y = layer(x)
            ran.clear()
            y.sum().backward()
            assert [FILLED.get(r, r) in lines[line] for r in ran] == [True], f"{ran} ran, not {lines[line]}"


def test_it_counts_the_blocks_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_ELEMENTS", 1 << 12)
    monkeypatch.setattr(dense, "MIN_ROWS", 16)
    monkeypatch.setattr(selection, "piecewise_pays", lambda *sizes, **options: False)
    layer, x = KANLinear(40, 50, 6), torch.rand(300, 40)
    (line,) = (line for line in explain(layer, x).splitlines() if line.startswith("F_0"))
    count = 0
    method = dense.DenseFeatures.blocks

    def counted(self):
        nonlocal count
        for block in method(self):
            count += 1
            yield block

    monkeypatch.setattr(dense.DenseFeatures, "blocks", counted)
    layer(x)
    assert f"{count} blocks of " in line
    assert count > 1


def test_it_says_why_it_is_composite() -> None:
    layer = KANLinear(2, 3)
    words = {}
    torch.func.vmap(lambda x: (words.update(vmap=explain(layer, x)), x)[1])(X)
    with torch.autograd.forward_ad.dual_level():
        words["level"] = explain(layer, X)
    assert "composite, because of a torch.func transform" in words["vmap"]
    assert "forward-mode level" in words["level"]
    assert all("backend: reference" in w for w in words.values())
    with backend("cpu"), torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="cannot be used"):
        explain(layer, X)


def test_it_describes_the_layer_and_the_call() -> None:
    layer = KANLinear(2, 3, 7, 2, base="identity", outside="linear")
    words = explain(layer, torch.rand(4, 5, 2))
    for part in ("2 -> 3", "9 splines of order 2", "uniform", "base identity", "20 rows of float32 on cpu", "linear"):
        assert part in words
    assert "autocast" not in words
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "rounded to bfloat16" in explain(layer, X)
    assert "any spacing" in explain(adapted_layer(), X)


def test_it_runs_nothing() -> None:
    layer = KANLinear(2, 3)
    layer.count_outside()
    with watched() as ran:
        explain(layer, X)
        explain(layer, X[:0])
    assert ran == []
    with pytest.raises(RuntimeError):
        layer.outside_share()
