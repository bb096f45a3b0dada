"""No cached fact about a tensor outlives its values, however they were written."""

from __future__ import annotations

import copy
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable

import pytest
import torch
from networks import same, walk
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fastkan_kernels
from fastkan import KAN, KANLinear
from fastkan.layers.value_cache import KnotMetadata, TextMetadata
from fastkan_kernels import basis_of, uniform_knots

D = torch.float64


def by_data(tensor: Tensor, value: Tensor) -> None:
    tensor.data.copy_(value)


def by_other_data(tensor: Tensor, value: Tensor) -> None:
    tensor.data = value.clone()


def by_numpy(tensor: Tensor, value: Tensor) -> None:
    tensor.detach().numpy()[...] = value.numpy()


def by_counted_write(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


WRITES = [by_data, by_other_data, by_numpy, by_counted_write]


def bent(knots: Tensor) -> Tensor:
    return knots + 0.2 * torch.linspace(-1, 1, knots.shape[1], dtype=knots.dtype).square()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("stretched", [True, False])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 20), (30, 40, 5, 300), (4, 6, 50, 400)])
def test_knots_are_those_that_the_layer_holds_now(
    sizes: tuple[int, int, int, int], stretched: bool, write: Callable[[Tensor, Tensor], None]
) -> None:
    inputs, outputs, grid, rows = sizes
    torch.manual_seed(0)
    layer = KANLinear(inputs, outputs, grid, dtype=D)
    x = torch.rand(rows, inputs, dtype=D) * 2.4 - 1.2
    layer(x)
    write(layer.knots, layer.knots * 1.5 if stretched else bent(layer.knots))
    with fastkan_kernels.backend("reference"):
        want = copy.deepcopy(layer)(x)
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x[:3]), want[:3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("part", ["node_scale", "node_bias", "subnode_scale", "subnode_bias", "input_id", "knots"])
def test_networks_compute_with_what_they_hold_now(part: str, write: Callable[[Tensor, Tensor], None]) -> None:
    model = KAN([2, 3, 1], seed=0, dtype=D)
    x = torch.rand(50, 2, dtype=D)
    before = model(x)
    if part == "input_id":
        write(model.input_id, torch.tensor([1, 0]))
    elif part == "knots":
        write(model.layers[1].knots, bent(model.layers[1].knots))
    else:
        write(getattr(model, part)[0], torch.full((3,), 0.7, dtype=D))
    want = model.copy()(x)
    same(want, walk(model, x)[-1].out)
    assert (want - before).abs().max() > 1e-3
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("write", WRITES)
def test_masks_of_layers_that_are_all_formulas(write: Callable[[Tensor, Tensor], None]) -> None:
    model = KAN([1, 1], seed=0, dtype=D)
    x = torch.rand(50, 1, dtype=D)
    model.fix_symbolic(0, 0, 0, "x", fit_params_bool=False, verbose=False)
    model(x)
    write(model.layers[0].mask, torch.ones(1, 1, dtype=D))
    torch.testing.assert_close(model(x), model.copy()(x), rtol=1e-12, atol=1e-14)


def test_all_parameters_written_as_one_vector() -> None:
    """SciPy, evolution strategies and plots of loss landscapes write parameters so."""
    model = KAN([2, 3, 1], seed=0, dtype=D)
    x = torch.rand(5, 2, dtype=D)
    model(x)
    vector_to_parameters(parameters_to_vector(model.parameters()) + 0.5, model.parameters())
    torch.testing.assert_close(model(x), model.copy()(x), rtol=1e-12, atol=1e-14)


def test_one_row_of_a_wide_layer_with_a_large_grid_needs_little_memory() -> None:
    """Tables once had the square of the grid for each input: 2.5 GB here."""
    from bench.measure import peak_bytes

    layer = KANLinear(1000, 16, 100)
    layer.update_grid(torch.randn(300, 1000))
    x = torch.randn(1, 1000)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(x)) < 64 << 20


@pytest.mark.parametrize("uniform_now", [True, False])
def test_compiled_code_never_computes_with_other_knots_silently(uniform_now: bool) -> None:
    """Compiled code was made for uniform knots, and can't look: after an uncounted write it says so by NaN, until the
    knots are set."""
    layer = KANLinear(3, 2, dtype=D)
    x = torch.rand(40, 3, dtype=D)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
    by_data(layer.knots, layer.knots * 1.5 if uniform_now else bent(layer.knots))
    assert compiled(x).isnan().all()
    layer.set_knots(layer.knots)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base", ["silu", "none"])
def test_weights_are_nan_where_knots_are_others_and_nobody_may_look(base: str) -> None:
    knots = uniform_knots(3, 5, 3)
    basis = basis_of(knots, 3, base)
    known = KnotMetadata(knots, 3, base)
    weight, base_weight = torch.rand(8, 3, 4), None if base == "none" else torch.rand(3, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        right = known.checked(knots, basis, weight, base_weight)
        lost = known.checked(knots * 2, basis, weight, base_weight)
    assert torch.equal(right[0], weight)
    assert base_weight is None or torch.equal(right[1], base_weight)
    for backend in ("reference", "cpu"):
        with fastkan_kernels.backend(backend):
            x = torch.cat([torch.rand(7, 3), torch.full((2, 3), 50.0)])
            y = fastkan_kernels.contract_out(x, knots * 2, *lost, basis=basis)
            assert y[:7].isnan().all()
            assert base == "none" or y.isnan().all()


def test_threads_with_other_knots_get_their_own_basis() -> None:
    layer = KANLinear(2, 2, dtype=D)
    x = torch.rand(10, 2, dtype=D)
    other = {"knots": bent(layer.knots)}
    want = layer(x), torch.func.functional_call(layer, other, (x,))
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(300):
            y = torch.func.functional_call(layer, other, (x,)) if which else layer(x)
            # functional_call puts its tensors into the module for all threads: either answer may come, no mixture
            if not any(torch.allclose(y, each, rtol=1e-12, atol=0) for each in want):
                wrong.append(which)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_a_fit_computes_with_what_a_callback_has_written() -> None:
    """The network is looked at once for all evaluations of a step, and anew for the next one."""
    torch.manual_seed(0)
    model = KAN([2, 3, 1], seed=0, dtype=D)
    x = torch.rand(50, 2, dtype=D)
    y = torch.sin(3 * x[:, :1])

    def write(model: KAN, step: int, record: object) -> None:
        if step == 0:
            by_data(model.node_bias[0], torch.full((3,), 0.3, dtype=D))
            by_data(model.layers[1].knots, bent(model.layers[1].knots))

    results = model.fit((x, y), steps=3, update_grid=False, callbacks=[write], progress=False)
    error = (model.copy()(x) - y).square().mean().sqrt().item()
    assert results["train_loss"][-1] == pytest.approx(error, rel=1e-10)
    assert results["train_loss"][-1] < results["train_loss"][0]


@pytest.mark.parametrize("sizes", [(2, 3, 5), (30, 40, 5)])
def test_a_layer_of_the_meta_device_takes_values_by_assignment(sizes: tuple[int, int, int]) -> None:
    """transformers loads weights in this way."""
    source, layer = KANLinear(*sizes), KANLinear(*sizes, device="meta")
    source.set_knots(bent(source.knots))
    for name, tensor in source.state_dict().items():
        setattr(layer, name, torch.nn.Parameter(tensor) if name in layer._parameters else tensor)
    x = torch.rand(10, sizes[0])
    assert torch.equal(layer(x), source(x))


@pytest.mark.parametrize("sizes", [(2, 3, 5), (9, 3, 20)])  # knots that are compared as a list and as a tensor
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), None])
def test_memory_that_nobody_wrote_is_refused_at_the_first_call(
    value: float | None, sizes: tuple[int, int, int]
) -> None:
    layer = KANLinear(*sizes, device="meta")
    assert "adapted" not in repr(layer)
    for name in ("knots", "spline_weight", "base_weight"):
        like = getattr(layer, name)
        falling = torch.arange(0, -like.numel(), -1.0).view(like.shape)
        memory = falling if value is None else torch.full(like.shape, value)
        setattr(layer, name, torch.nn.Parameter(memory) if name != "knots" else memory)
    x = torch.rand(4, sizes[0])
    for each in (layer, copy.deepcopy(layer)):
        assert "adapted" not in repr(each)
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"device meta.*\((knots|the grid) must .*\): call reset_parameters\(\)"
            ):
                each(x)
        missing, _ = each.load_state_dict({"base_weight": torch.zeros(sizes[:2])}, strict=False)
        assert "knots" in missing
        with pytest.raises(RuntimeError, match="has not been initialised"):
            each(x)
        each.reset_parameters()
        assert each(x).isfinite().all()
        assert not each._known.awaits_values


def with_formula(name: str, inputs: int = 2) -> KAN:
    """A network whose edge (0, 0) has a formula, and which differs from others of its kind only in the formula."""
    model = KAN([inputs, 1], seed=0, dtype=D)
    model.fix_symbolic(0, 0, 0, name, fit_params_bool=False)
    return model


X = torch.linspace(-1, 1, 10, dtype=D).view(5, 2)


@pytest.mark.parametrize("write", [*WRITES, torch.utils.swap_tensors])
def test_formulas_are_those_that_the_buffer_holds_now(write: Callable[[Tensor, Tensor], None]) -> None:
    model, other = with_formula("sin"), with_formula("cos")
    expected, text = other(X), other.symbolic[0].formulas.clone()
    model(X)
    buffer = model.symbolic[0].formulas
    write(buffer, text)
    assert repr(model.symbolic[0]) == "SymbolicEdges(2, 1: 0-0 cos)"
    assert torch.equal(model(X), expected)
    assert model.symbolic[0].formulas is buffer  # DistributedDataParallel keeps a reference to the buffer


READS: dict[str, Callable[[KAN], object]] = {
    "forward": lambda m: m(X).tolist(),
    "values": lambda m: m.symbolic[0].values(X).tolist(),
    "edges": lambda m: m.symbolic[0].edges,
    "ends": lambda m: m.symbolic[0].ends.tolist(),
    "to": lambda m: (m.float().symbolic[0].edges, m.double().symbolic[0].formulas.tolist()),
    "copy": lambda m: copy.deepcopy(m)(X).tolist(),
    "pickle": lambda m: pickle.loads(pickle.dumps(m))(X).tolist(),
    "state": lambda m: m.state_dict()["symbolic.0.formulas"].tolist(),
    "formula": lambda m: str(m.symbolic_formula()[0][0]),
    "file": lambda m: saved(m)(X).tolist(),
    "compiled copy": lambda m: compiled(copy.deepcopy(m))(X).tolist(),
}


def saved(model: KAN) -> KAN:
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        return KAN.load(f"{folder}/model")


def compiled(function: Callable) -> Callable:
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore:the formula contains spline edges", "ignore:there has been no fit")
@pytest.mark.parametrize("read", list(READS))
def test_whatever_reads_formulas_first_reads_those_of_the_buffer(read: str) -> None:
    model, other = with_formula("sin"), with_formula("cos")
    model(X)
    by_data(model.symbolic[0].formulas, other.symbolic[0].formulas)
    assert READS[read](model) == READS[read](other)


def test_an_average_with_rounding_errors_has_the_same_formulas() -> None:
    model = with_formula("sin")
    averaged = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=averaged, use_buffers=True)
    for _ in range(3):
        mean.update_parameters(model)
    assert not torch.equal(mean.module.symbolic[0].formulas, model.symbolic[0].formulas)
    torch.testing.assert_close(mean(X), model(X), rtol=1e-12, atol=1e-14)
    assert torch.equal(mean.module.symbolic[0].formulas, model.symbolic[0].formulas)


@pytest.mark.parametrize("replaced", [False, True])
def test_compiled_code_never_computes_with_other_formulas_silently(replaced: bool) -> None:
    model, other = with_formula("sin"), with_formula("cos")
    fast = compiled(model)
    torch.testing.assert_close(fast(X), model(X), rtol=1e-12, atol=1e-14)
    if replaced:
        model.symbolic[0].formulas = other.symbolic[0].formulas.clone()
    else:
        by_data(model.symbolic[0].formulas, other.symbolic[0].formulas)
    y = fast(X)
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), model.symbolic[0].affine)[0].isnan().all()
    assert model.symbolic[0].name(0, 0) == "cos"  # which reads the buffer
    torch.testing.assert_close(fast(X), other(X), rtol=1e-12, atol=1e-14)


def test_compiled_code_for_no_formulas_or_for_fewer_gives_nan() -> None:
    plain, other = KAN([2, 1], seed=0, dtype=D), with_formula("sin")
    fast = compiled(plain)
    torch.testing.assert_close(fast(X), plain(X), rtol=1e-12, atol=1e-14)
    plain.symbolic[0].formulas = other.symbolic[0].formulas.clone()
    assert fast(X).isnan().all()
    fast = compiled(other)
    assert fast(X).isfinite().all()
    other.symbolic[0].formulas = other.symbolic[0].formulas[:-1]
    assert fast(X).isnan().all()
    other.symbolic[0].formulas = None
    assert fast(X).isnan().all()


def test_transforms_give_nan_for_formulas_of_another_state() -> None:
    """In a transform, values cannot be read, so the comparison is an operation of the transform."""
    model, other = with_formula("sin"), with_formula("cos")
    call = torch.func.functional_call
    fast = compiled(lambda state: call(model, state, (X,)))
    torch.testing.assert_close(fast(dict(model.state_dict())), model(X), rtol=1e-12, atol=1e-14)
    assert fast(dict(other.state_dict())).isnan().all()
    for base in (model, copy.deepcopy(model).to("meta")):
        y = torch.func.vmap(lambda p, b, base=base: call(base, (p, b), (X,)))(
            *torch.func.stack_module_state([model, other])
        )
        torch.testing.assert_close(y[0], model(X), rtol=1e-12, atol=1e-14)
        assert y[1].isnan().all()
    (x,) = X[:1]
    slope = torch.func.jacrev(model)(x.unsqueeze(0))
    assert slope.isfinite().all()
    there = torch.func.jacrev(lambda x: call(model, dict(other.state_dict()), (x,)))(x.unsqueeze(0))
    assert there[..., 0].isnan().all()


def test_networks_without_formulas_compare_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = KAN([2, 3, 1], seed=0)
    monkeypatch.setattr(TextMetadata, "is_read", None)
    monkeypatch.setattr(TextMetadata, "changed", None)
    assert model(X.float()).shape == (5, 1)
