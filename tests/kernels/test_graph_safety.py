"""On a GPU no step reads a value or waits, so that a CUDA graph can hold it; shown on a simulated GPU.

What only a GPU can show: that the kernels run, and what PyTorch's own calls do inside.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from cases import compute, make_case, make_knots
from functorch.compile import make_boxed_func
from oracle import Example
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import mse_loss

pytest.importorskip("triton")

from fake_gpu import READS, Captured, FakeGPU, OnGPU, Waits, autocast, fake_gpu, off

import fastkan_kernels
from fastkan import KANLinear
from fastkan.functional import kan_linear
from fastkan.kan.model import KAN
from fastkan.training.regularization import REG_METRICS, Penalty
from fastkan_kernels import Basis
from fastkan_kernels.autograd import dispatch as routing
from fastkan_kernels.backends.cpu import dense
from fastkan_kernels.backends.triton import config, hardware, selection
from fastkan_kernels.backends.triton.config import WAYS, Config

ORDER = 3
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
ROWS = 300


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as made:
        yield made


@contextmanager
def way(name: str, descriptors: bool = False) -> Iterator[None]:
    """All three contractions by one way; fused where they lack it."""
    by_hand = name == "pipelined"
    config = Config(name, descriptors=descriptors)
    if by_hand:
        config = Config(name, 64, inner=64, splines=8, descriptors=True)
    with ExitStack() as stack:
        for contraction in "FGH":
            taken = config if contraction in WAYS[name] else config._replace(way="fused")
            stack.enter_context(selection.override(contraction, taken))
        yield


def twice(gpu: FakeGPU, step: Callable[[], Any], leaves: Iterable[Tensor] = ()) -> Captured:
    """Capture a step twice, with new gradients of ``leaves``, assert that both are the same, and return the capture."""
    leaves, found = list(leaves), []
    for _ in range(2):
        for leaf in leaves:
            leaf.grad = None
        with gpu.capture() as done:
            step()
        found.append(done)
    first, second = found
    assert first.launches == second.launches
    assert first.calls == second.calls
    assert first.allocated == second.allocated
    return first


def data(gpu: FakeGPU, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return gpu.put(torch.rand(shape, dtype=dtype) * 2.4 - 1.2).requires_grad_(grad)


# -- the GPU that is not there ----------------------------------------------------------------------

REFUSED = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0, 0]),
    "tolist": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.ones(3).to("cuda"),
    "copied from the host": lambda x: x.copy_(torch.ones(4, 2)),
    "host list": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "host number": lambda x: torch.tensor(1.0, device=x.device),
    "host operand": lambda x: x * torch.tensor(2.0),
    "mask": lambda x: x[x > 0],
    "masked write": lambda x: x.__setitem__(x > 0, 1.0),
    "host index": lambda x: x[torch.tensor([1, 0])],
    "list as index": lambda x: x[[1, 0]],
    "nonzero": lambda x: (x > 0).nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_what_waits_is_refused_in_a_graph(refused: Callable, gpu: FakeGPU) -> None:
    x = data(gpu, 4, 2)
    assert (x.device.type, x.is_cuda) == ("cuda", True)
    refused(x)  # outside of one it may
    assert gpu.waits
    with gpu.capture(), pytest.raises(Waits):
        refused(x)


@pytest.mark.skipif(not hardware.INTERPRETED, reason="Triton's interpreter runs the kernels")
def test_its_numbers_are_right() -> None:
    """So it is the real code that runs on it."""
    model, x, target = KAN([2, 5, 1], seed=0), torch.rand(20, 2) * 2 - 1, torch.rand(20, 1)
    copy = model.copy()
    mse_loss(copy(x), target).backward()
    with fake_gpu(computes=True) as gpu:
        model.to("cuda")
        mse_loss(model(gpu.put(x)), gpu.put(target)).backward()
    for found, want in zip(model.parameters(), copy.parameters()):
        if want.grad is not None:
            assert isinstance(found.grad, OnGPU)
            torch.testing.assert_close(found.grad.held, want.grad)


# -- contractions -----------------------------------------------------------------------------------


HOW = ("fused", "descriptors", "chunked", "gather")
PIPELINED = [("pipelined", "bf16")] if hardware.gluon_available() else []


def with_gradients(name: str, o: Example, basis: Basis, derivative: int) -> None:
    out = compute(name, o, basis, derivative)
    leaves = [t for t in o if t is not None and t.requires_grad]
    torch.autograd.grad(out, leaves, out, allow_unused=True)


@pytest.mark.parametrize("kind", ["shared", "adapted"])
@pytest.mark.parametrize(("how", "dtype"), [*product(HOW, DTYPES), *PIPELINED])
@pytest.mark.parametrize("name", "FGH")
def test_a_contraction_and_its_gradients(name: str, how: str, dtype: str, kind: str, gpu: FakeGPU) -> None:
    """For every derivative and base function, with a v and without."""
    narrow = DTYPES[dtype]
    own = {"chunked": "features", "gather": "contract" if name == "G" else "gather"}.get(how, "contract")
    for base in ("silu", "gelu", "identity", "none"):
        with off():
            host, basis = make_case(kind, 40, 8, 8, order=ORDER, base=base)
        moved = [t if t is None else gpu.put(t.to(narrow)).requires_grad_() for t in host]
        o = Example(*moved)._replace(knots=gpu.put(host.knots.to(torch.promote_types(narrow, torch.float32))))
        for derivative in range(ORDER + 2):
            o.x.requires_grad_(base not in ("silu", "gelu") or derivative < 4)  # they have four derivatives
            for each in (o,) if name == "H" else (o, o._replace(v=None)):
                with way("fused" if how == "descriptors" else how, how == "descriptors"):
                    done = twice(gpu, partial(with_gradients, name, each, basis, derivative))
                if derivative <= ORDER:
                    assert own in done.kernels[0]


# -- the layer --------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"spline_scale": True},
    "bias": {"bias": True},
    "mask": {"mask": True},
    "linear outside": {"outside": "linear", "bias": True},
    "linear outside on adapted knots": {"outside": "linear", "adapted": True},
    "no base": {"base": "none", "spline_scale": True},
    "counting": {"counts": True},
    "three dimensions": {"shape": (3, 50, 6)},
    "not contiguous": {"turned": True},
    "wide": {"outputs": 640},
    "fine": {"grid_size": 200},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64 on adapted knots": {"dtype": torch.float64, "adapted": True},
    "autocast to bfloat16": {"product": torch.bfloat16},
    "autocast to float16": {"product": torch.float16, "outside": "linear"},
}


def a_layer(gpu: FakeGPU, mask=False, adapted=False, counts=False, outputs=8, product=None, **options) -> KANLinear:
    layer = KANLinear(6, outputs, **options)
    with off():
        if adapted:
            layer.set_knots(make_knots("adapted", 6, layer.grid_size, ORDER, layer.knots.dtype))
        if mask:
            layer.set_mask((torch.rand(6, outputs) > 0.5).float())
        layer.count_outside(counts)
    return layer.to("cuda")


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_layers_step(options: dict[str, Any], gpu: FakeGPU) -> None:
    """From its first call on: the knots are read when the layer gets them."""
    options = dict(options)
    shape, turned = options.pop("shape", (ROWS, 6)), options.pop("turned", False)
    layer = a_layer(gpu, **options)
    dtype = options.get("dtype", torch.float32)
    x = data(gpu, *(shape[::-1] if turned else shape), dtype=dtype, grad=True)
    gpu.waits.clear()

    def step() -> None:
        with autocast(options["product"]) if "product" in options else nullcontext():
            y = layer(x.t() if turned else x)
        y.square().mean().backward()

    step()
    assert not gpu.waits
    done = twice(gpu, step, [x, *layer.parameters()])
    assert any("contract_weight" in kernel or "features" in kernel for kernel in done.kernels)


def test_no_launch_or_allocation_depends_on_the_data(gpu: FakeGPU) -> None:
    layer, x = a_layer(gpu), data(gpu, ROWS, 6, grad=True)
    steps = []
    for fill in (None, float("nan"), float("inf"), 50.0):
        if fill is not None:
            x.data.fill_(fill)
        steps.append(twice(gpu, lambda: layer(x).square().mean().backward(), [x, *layer.parameters()]))
    assert all(vars(done) == vars(steps[0]) for done in steps)


def test_knots_are_read_where_they_are_set(gpu: FakeGPU) -> None:
    """After a write into the knots, the next call reads them once."""
    layer, x = a_layer(gpu), data(gpu, ROWS, 6)
    for change in (lambda: layer.update_grid(x), lambda: layer.refine(10), lambda: layer.set_knots(layer.knots * 2)):
        change()
        twice(gpu, lambda: layer(x))
    layer.knots.mul_(0.5)
    with gpu.capture(), pytest.raises(Waits):
        layer(x)
    layer(x)
    twice(gpu, lambda: layer(x))


def test_the_function_reads_knots_unless_told(gpu: FakeGPU) -> None:
    layer, x = a_layer(gpu), data(gpu, ROWS, 6)
    call = partial(kan_linear, x, layer.spline_weight, layer.base_weight, knots=layer.knots)
    for uniform in (True, False):
        twice(gpu, partial(call, uniform=uniform))
    with gpu.capture(), pytest.raises(Waits):
        call()


# -- networks ---------------------------------------------------------------------------------------


def fixed(model: KAN, *edges: tuple[int, int, int, str]) -> KAN:
    with off():
        for edge in edges:
            model.fix_symbolic(*edge, fit_params_bool=False, verbose=False)
    return model


NETWORKS: dict[str, Callable[[], KAN]] = {
    "plain": lambda: KAN([2, 5, 1], seed=0),
    "trained affine": lambda: KAN([2, 5, 1], seed=0, affine_trainable=True),
    "multiplication": lambda: KAN([2, [3, 2], 1], mult_arity=3, seed=0),
    "formulas": lambda: fixed(KAN([2, 5, 1], seed=0), (0, 0, 1, "sin"), (0, 1, 1, "x^2"), (1, 2, 0, "exp")),
    "formulas alone": lambda: fixed(KAN([2, 1], seed=0), (0, 0, 0, "sin"), (0, 1, 0, "1/x")),
    "adapted": lambda: KAN([2, 5, 1], seed=0, grid_eps=0.0),
}


def a_network(gpu: FakeGPU, make: Callable[[], KAN]) -> tuple[KAN, Tensor, Tensor]:
    """A network with input and label, after a first call that has read the facts about its values."""
    with off():
        model = make()
        if model.grid_eps == 0:
            model.update_grid(torch.rand(100, 2))
    model.to("cuda")
    x = data(gpu, ROWS, 2)
    gpu.waits.clear()
    model(x)
    return model, x, data(gpu, ROWS, 1)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_networks_step(make: Callable[[], KAN], gpu: FakeGPU) -> None:
    """After the first call, which reads what scales, biases and masks say."""
    model, x, target = a_network(gpu, make)
    assert set(gpu.waits) <= {"aten._local_scalar_dense.default reads values"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step() -> None:
        mse_loss(model(x), target).backward()
        optimizer.step()

    twice(gpu, step, model.parameters())


def test_how_many_launches_a_small_networks_step_has(gpu: FakeGPU) -> None:
    """A step of [2, 5, 1] takes as long as its launches: each costs microseconds, and the arithmetic nearly nothing."""
    model, x, target = a_network(gpu, NETWORKS["plain"])
    done = twice(gpu, lambda: mse_loss(model(x), target).backward(), model.parameters())
    # two layers; no gradient by the first one's input
    most = {"contract_out_kernel": 2, "contract_in_kernel": 1, "contract_weight_kernel": 2}
    assert Counter(done.kernels) <= Counter(most)
    # of each layer the spline scale into the weights, and on the way back to both; the loss, there and back
    loss = {"aten.mse_loss": 1, "aten.ones_like": 1, "aten.mse_loss_backward": 1}
    # whether each layer's knots are those that were read; and, as the host can't look at the values either, which
    # columns are read, and each layer's affine maps, made into one, there and back
    checks = {"aten.ne": 2, "aten.any": 2, "aten.masked_fill": 4, "aten.index": 1, "aten.addcmul": 4, "aten.mul": 6}
    assert Counter(done.calls) <= Counter({"aten.mul": 6, "aten.sum": 2, **loss}) + Counter(checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "products", "sums"), [("F", 2, 1), ("G", 2, 2), ("H", 2, 0)])
def test_how_many_launches_a_chunk_has(
    name: str, products: int, sums: int, dtype: torch.dtype, gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel computes or reads all features of a chunk, and the base function costs no launch of its own."""
    monkeypatch.setattr(config, "CHUNK_BYTES", 1)
    monkeypatch.setattr(config, "MIN_ROWS", 50)
    with off():
        host, basis = make_case("shared", 100, 8, 8, order=ORDER)
    o = Example(*(gpu.put(t.to(torch.float32 if t is host.knots else dtype)) for t in host))
    with way("chunked"):
        compute(name, o, basis)
        done = twice(gpu, partial(compute, name, o, basis))
    calls = Counter(call.split(".")[1] for call in done.calls)
    assert len(done.kernels) == 2
    assert calls["mm"] + calls["addmm_"] == 2 * products
    assert calls.total() - calls["mm"] - calls["addmm_"] <= 2 * sums


@pytest.mark.parametrize("derivative", [0, 3, 4])
@pytest.mark.parametrize(("kind", "grid"), [("shared", 5), ("shared", 40), ("uniform", 5), ("adapted", 5)])
def test_a_gpu_without_the_kernels(
    kind: str, grid: int, derivative: int, gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain PyTorch waits for nothing either, and its memory does not grow with the rows."""
    monkeypatch.setattr(hardware, "MIN_CAPABILITY", 91)
    monkeypatch.setattr(routing, "_warned", set())
    monkeypatch.setattr(dense, "GPU_ELEMENTS", 1 << 13)
    with off():
        host, basis = make_case(kind, rows=1000, inputs=6, outputs=4, grid=grid, dtype=torch.float32)
    o = Example(*map(gpu.put, host))
    assert 1000 * 6 * basis.splines_of(o.knots) > 5 << 13
    for name in "FGH":
        with pytest.warns(RuntimeWarning, match="cannot run on 'cuda' tensors") if name == "F" else nullcontext():
            found = compute(name, o, basis, derivative)
        done = twice(gpu, partial(compute, name, o, basis, derivative))
        assert not done.launches
        assert done.largest <= 4 << 13  # a block and its scratch memory; the results have 1000 x 6 elements at most
        with off(), fastkan_kernels.backend("reference"):
            want = compute(name, host, basis, derivative)
        for value, right in zip(found, want, strict=True):
            torch.testing.assert_close(
                value.held, right, rtol=1e-4, atol=1e-4 * float(right.nan_to_num().abs().max()), equal_nan=True
            )


@pytest.mark.parametrize("outputs", [3, 8])
def test_knots_written_behind_its_back_give_nan_once_and_then_the_right_numbers(outputs: int) -> None:
    """Nothing counts such a write, and the host may not wait to see it."""
    with fake_gpu(computes=True) as gpu:
        layer = a_layer(gpu, outputs=outputs)
        x = data(gpu, 16, 6)
        layer(x)
        with off():
            bent = layer.knots.held + 0.1 * torch.linspace(-1, 1, layer.knots.shape[1]).square()
        with off():
            layer.knots.held.data.copy_(bent)
        waits = len(gpu.waits)
        lost = layer(x).held
        assert len(gpu.waits) == waits
        got = layer(x).held
    assert lost.isnan().all()
    with torch.no_grad():
        own = KANLinear(6, outputs)
        own.load_state_dict({name: t.held for name, t in (*layer.named_parameters(), *layer.named_buffers())})
        torch.testing.assert_close(got, own(x.held), rtol=1e-4, atol=1e-5)


def test_formulas_written_behind_its_back_give_nan_once_and_then_the_right_numbers() -> None:
    with fake_gpu(computes=True) as gpu:
        model, x, _ = a_network(gpu, one_formula)
        with off():
            text = torch.tensor(list(b'[[0, 0, "cos"]]'), dtype=torch.uint8)
            model.symbolic[0].formulas.held.data.copy_(text)
        waits = len(gpu.waits)
        lost = model(x).held
        assert len(gpu.waits) == waits
        got = model(x).held
    assert lost.isnan().all()
    own = one_formula()
    own.fix_symbolic(0, 0, 0, "cos", fit_params_bool=False)
    torch.testing.assert_close(got, own(x.held), rtol=1e-4, atol=1e-5)


def one_formula() -> KAN:
    model = KAN([2, 1], seed=0)
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
    return model


@pytest.mark.parametrize("metric", REG_METRICS)
@pytest.mark.parametrize("network", ["plain", "multiplication", "formulas"])
def test_a_step_with_a_penalty(network: str, metric: str, gpu: FakeGPU) -> None:
    model, x, target = a_network(gpu, NETWORKS[network])
    penalty = Penalty(model, 1.0, 2.0, 0.1, 0.1, metric)

    def step() -> None:
        output, added = penalty(x)
        (mse_loss(output, target) + 0.01 * added).backward()

    step()
    twice(gpu, step, model.parameters())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_step_on_a_differential_equation(make: Callable[[], KAN], gpu: FakeGPU) -> None:
    """u_xx and the loss's gradient."""
    model, x, _ = a_network(gpu, make)
    x.requires_grad_()

    def step() -> None:
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (curved,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        (curved[:, 0] + u[:, 0] - slope[:, 1]).square().mean().backward()

    twice(gpu, step, [x, *model.parameters()])


# -- compiled code -----------------------------------------------------------------------------------

COMPILED: dict[str, Callable[[], torch.nn.Module]] = {
    "layer": lambda: KANLinear(2, 4),
    "layer with all": lambda: KANLinear(2, 4, outside="linear", bias=True, spline_scale=True),
    "network": NETWORKS["plain"],
    "multiplication": NETWORKS["multiplication"],
    "formulas": NETWORKS["formulas"],
}


@pytest.mark.skipif(not hardware.INTERPRETED, reason="Triton's kernels serve CPU tensors in its interpreter only")
@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_a_compiled_step_is_one_a_graph_can_hold(make: Callable[[], torch.nn.Module]) -> None:
    """``mode="reduce-overhead"`` needs one graph of operators on tensors, none of which writes into its inputs."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        assert all(isinstance(each, Tensor) for each in inputs), "a number of the host goes in"
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    model, x = make(), torch.rand(20, 2).requires_grad_()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=record, bw_compiler=record), fullgraph=True)
    held = [x, *model.parameters(), *model.buffers()]
    versions = [t._version for t in held]
    with fastkan_kernels.backend("triton"):
        compiled(x).square().mean().backward()
    assert [t._version for t in held] == versions
    assert len(graphs) == 2  # there and back
    for graph in graphs:
        assert any("fastkan.contract" in str(node.target) for node in graph.graph.nodes)
        for node in graph.graph.nodes:
            assert node.op in ("placeholder", "call_function", "output"), "a constant of the host is in it"
            if node.op == "call_function" and node.target is not operator.getitem:
                assert isinstance(node.target, torch._ops.OpOverload), node.target
                assert not node.target._schema.is_mutable, node.target
                assert node.target.overloadpacket not in READS, node.target
                assert "device_put" not in str(node.target)


def test_a_layer_on_a_gpu_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA, PyTorch traces GPU tensors only without a gradient and without an index."""
    monkeypatch.setattr(hardware, "capability", lambda device: 90)
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        assert {each.device.type for each in inputs} == {"cuda"}
        graphs.append(graph)
        return graph.forward

    layer = KANLinear(2, 4, bias=True, spline_scale=True)
    shapes = {name: t.shape for name, t in layer.state_dict().items()}
    with FakeTensorMode(), torch.no_grad():
        moved = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        compiled = torch.compile(lambda x: torch.func.functional_call(layer, moved, x), backend=record, fullgraph=True)
        assert compiled(torch.empty(20, 2, device="cuda")).device.type == "cuda"
    (graph,) = graphs
    (call,) = (node for node in graph.graph.nodes if "fastkan.contract" in str(node.target))
    assert "triton" in call.args
