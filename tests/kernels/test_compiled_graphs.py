"""Compiled code is made of what a CUDA graph can hold; shown on a GPU that is not there."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from fake_gpu import READS
from test_graph_safety import NETWORKS

import fastkan_kernels
from fastkan import KANLinear
from fastkan_kernels.backends.triton import hardware

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
    """As ``mode="reduce-overhead"`` asks: whole, of operators on tensors, none of which writes into its inputs."""
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


def test_a_layer_on_a_gpu_is_traced_whole() -> None:
    """As far as PyTorch without CUDA traces tensors on a GPU: without a gradient, and without an index."""
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
