"""The stages: tuning of the layers of the bars, and timing of contestants in turns.

The contestants of each row are checked against float64 first, and a contestant that is wrong gets no time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import fastkan
import fastkan_kernels
from fastkan_kernels import basis_of, uniform_knots
from tests.support.oracle import Example, exact_with_sizes

from ..measure import Task, peak_bytes, timing
from ..suite.cases import Edges
from ..suite.contenders import CONTENDERS
from ..suite.errors import BOUND, Oracle
from . import bars
from .bars import CONTRACTIONS, Graphed, Row
from .clock import Clock
from .machine import BOUNDS, DTYPES, Place, precision

SECONDS, RIVALS_SECONDS = 1.5, 4.0  # approximate time of timing a row
TUNING_SECONDS = 10.0  # time limit for tuning a contraction
MAX_ERROR_FACTOR = 4  # bound of the largest error, as a multiple of the bound of the error in the Euclidean norm
PRECISIONS = {"tf32": "tf32", "highest": "tf32x3"}  # names that the kernels use for the precisions of float32 products
COPIED = 4 << 30  # bytes of the copy that measures the memory's bandwidth
WARM_UP = 3  # calls before a CUDA graph is captured


class Contestant(NamedTuple):
    """A task to be timed, with a function for checking its results and with the tensors for measuring its memory.

    Args:
        task: the task.
        results: a function that returns the results as a dict with the names of the true results, or None if nothing is
            checked.
        held: tensors that exist before a call, or None if memory is not measured.
    """

    task: Task
    results: Callable[[], Mapping[str, Any]] | None = None
    held: list[Tensor] | None = None


Makers = Mapping[str, Callable[[], Contestant]]


class Absent(Exception):
    """Raised with the reason if a contestant cannot be measured."""


class Material:
    """Inputs ``x [N, I]``, a gradient ``g [N, O]`` of the output, knots and weights for all contestants of a row."""

    def __init__(self, row: Row, place: Place) -> None:
        case, self.row, self.place = row.case, row, place
        self.to: dict[str, Any] = {"device": place.device, "dtype": DTYPES[row.dtype]}
        (edges,) = case.edges()
        self.x, self.g = case.inputs().to(**self.to), case.upstream().to(**self.to)
        self.edges = Edges(*(part.to(**self.to) for part in edges))
        self.knots = uniform_knots(row.inputs, row.grid, case.order, device=place.device)
        self.basis = basis_of(self.knots, case.order)

    def random(self, *shape: int) -> Tensor:
        """Return random numbers on the device, in the row's dtype."""
        return torch.randn(shape, **self.to)

    def truth(self, name: str) -> list[Tensor]:
        """Return the results of a contraction in float64."""
        o = Example(self.x, self.knots, None, *self.edges, self.g)
        return [part.value for part in exact_with_sizes(name, o, self.basis, CONTRACTIONS[name])]

    def contraction(self, name: str) -> list[Tensor]:
        """Return the results of a contraction by fastkan's public functions."""
        x, knots, (weight, base_weight), g = self.x, self.knots, self.edges, self.g
        options: dict[str, Any] = {"basis": self.basis, "derivative": CONTRACTIONS[name]}
        if name == "F":
            return [fastkan_kernels.contract_out(x, knots, weight, base_weight, **options)]
        if name == "G":
            return [part for part in fastkan_kernels.contract_weight(x, knots, g, **options) if part is not None]
        return [fastkan_kernels.contract_in(x, knots, weight, base_weight, g, **options)]


class Rounded(nn.Module):
    """A layer with two-byte weights that computes its splines in float32, as under autocast.

    The knots stay in float32, because knots rounded to two bytes would be a different grid.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.layer(x)


def tuned(row: Row, place: Place, table: Path) -> dict[str, Any]:
    """Tune the three contractions of a layer by ``fastkan.autotune``, and write all tuned choices of this process.

    Args:
        row: the layer.
        place: device of the layer.
        table: path of the file of tuned choices.

    Returns:
        The row's name, the seconds that tuning took, and the text of ``fastkan.explain``.
    """
    from fastkan_kernels.backends.triton import builds

    start = time.perf_counter()
    m = Material(row, place)
    layer = fastkan.KANLinear(row.inputs, row.outputs, row.grid).to(**m.to)
    with precision(row.dtype), place.ours(), fastkan.autotune(seconds=TUNING_SECONDS):
        layer(m.x.requires_grad_()).backward(m.g)
        place.wait()
        words = fastkan.explain(layer, m.x)
    builds.write_table(table, builds.tuned())
    return {"name": row.name, "seconds": time.perf_counter() - start, "choices": words}


def measured(item: Row | Graphed, place: Place, clock: Clock) -> dict[str, Any]:
    """Measure all contestants of a row; a contestant that fails does not stop the other contestants.

    Returns: The row's name and, for each contestant, either a ``note`` with the reason why there is no time, or the
        ``seconds``, the ``ratios`` to the anchors, the ``error`` and the memory.
    """
    # without the reset, torch.compile would make sizes dynamic that differ from the previous row
    torch.compiler.reset()
    if isinstance(item, Graphed):
        oracle = Oracle(item.case)
        makers: Makers = {name: partial(_graphed, name, item, place, oracle.rows) for name in _NETWORKS}
        with place.ours():
            found = _race(makers, {"y": oracle.y}, BOUND, (bars.MLP,), SECONDS, place, clock)
        found[bars.AUTO] = found.pop("fastkan")
        return {"name": item.name, "contestants": found}
    m = Material(item, place)
    bound, seconds = BOUNDS[item.dtype], RIVALS_SECONDS if item.rivals else SECONDS
    with precision(item.dtype), place.ours():
        if item.mode != "contractions":
            needed = "F" if item.mode == "forward" else "FGH"
            truth = {f"{name}{n}": part for name in needed for n, part in enumerate(m.truth(name))}
            found = _race(_layers(m), truth, bound, bars.ANCHORS, seconds, place, clock)
        else:
            found = {}
            for name in CONTRACTIONS:
                truth = {f"{name}{n}": part for n, part in enumerate(m.truth(name))}
                apart = _race(_contractions(m, name), truth, bound, bars.ANCHORS, seconds, place, clock)
                found |= {f"{name} {contestant}": entry for contestant, entry in apart.items()}
    return {"name": item.name, **item._asdict(), "contestants": found}


def bandwidth(place: Place, clock: Clock) -> dict[str, Any]:
    """Measure how fast the memory is read and written by a large copy."""
    source = torch.empty(COPIED // 2 if place.is_gpu else 1024, dtype=torch.uint8, device=place.device).random_()
    target = torch.empty_like(source)
    samples = clock.interleaved({"copy": Task(lambda: target.copy_(source))}, SECONDS)
    found = timing(samples, "copy", ())
    found["bytes_per_second"] = 2 * source.nbytes / found["seconds"][0]
    return {"name": "copy", "contestants": {"copy": found}}


def _race(
    makers: Makers,
    truth: Mapping[str, Tensor],
    bound: float,
    anchors: tuple[str, ...],
    seconds: float,
    place: Place,
    clock: Clock,
) -> dict[str, dict[str, Any]]:
    """Create all contestants, check their results, and time those that are right.

    Args:
        makers: dict from the name of each contestant to a function that creates the contestant.
        truth: dict from the name of each result to the right result.
        bound: the largest relative error in the Euclidean norm.
        anchors: names of the contestants by whose times the other times are divided.
        seconds: approximate time of timing.
        place: device of the contestants.
        clock: clock of the device.
    """
    found: dict[str, dict[str, Any]] = {}
    tasks: dict[str, Task] = {}
    for name, make in makers.items():
        entry = found[name] = {}
        try:
            contestant = make()
            if contestant.results is not None:
                deviations = {key: deviation(value, truth[key]) for key, value in contestant.results().items()}
                entry["error"] = max(largest for _, largest in deviations.values())
                if wrong := [f"{key} by {norm:.1e}" for key, (norm, largest) in deviations.items()
                             if not (norm <= bound and largest <= MAX_ERROR_FACTOR * bound)]:  # fmt: skip
                    entry["note"] = f"wrong: {', '.join(wrong)} (bound {bound:g})"
                    continue
            contestant.task.call()
            contestant.task.between()
            if contestant.held is not None:
                entry |= _memory(contestant.task, contestant.held, place)
            tasks[name] = contestant.task
        except Absent as reason:
            entry["note"] = str(reason)
        # an error in one contestant must not stop the measurement of the other contestants
        except Exception as failure:
            entry["note"] = f"failed: {type(failure).__name__}: {str(failure).strip()}"[:300]
        gc.collect()
        if place.is_gpu:
            torch.cuda.empty_cache()
    samples = clock.interleaved(tasks, seconds) if tasks else {}
    for name, task in tasks.items():
        found[name] |= timing(samples, name, anchors)
        found[name]["in_a_row_seconds"] = clock.in_a_row(task)
    return found


def deviation(value: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return a tuple of the relative error in the Euclidean norm, and the largest error by the largest true value."""
    off = value.double() - truth.to(value.device)
    return float(off.norm() / truth.norm()), float(off.abs().max() / truth.abs().max())


def _memory(task: Task, held: list[Tensor], place: Place) -> dict[str, int]:
    """Return the peak of extra memory in a call and the unavoidable memory, in bytes.

    The unavoidable memory is the memory of the tensors ``held``, of their gradients and of the result.
    """
    kept: list[int] = []

    def call() -> None:
        result = task.call()
        gradients = [t.grad.nbytes for t in held if t.grad is not None]
        kept.append((result.nbytes if isinstance(result, Tensor) else 0) + sum(gradients))

    if place.is_gpu:
        place.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        place.wait()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = peak_bytes(call)
    task.between()
    return {
        "extra_bytes": max(0, peak - kept[0]),
        "held_bytes": kept[0] + sum(tensor.nbytes for tensor in held),
    }


# -- layers -----------------------------------------------------------------------------------------


def _layers(m: Material) -> Makers:
    """Return functions that create the contestants of a layer's row. The anchors come first."""
    row = m.row
    auto: Makers = {bars.AUTO: lambda: _layer(m, _fastkan(m))}
    if not row.rivals:
        return {bars.GEMM: lambda: _products(m), bars.LINEAR: lambda: _linear(m), **auto}
    return {
        bars.PLAIN: lambda: _layer(m, _in_dtype(m, _built("plain Cox-de Boor", m))),
        bars.COMPILED: lambda: _layer(m, _in_dtype(m, _compiled(m, _built("plain Cox-de Boor", m)))),
        bars.INKAN: lambda: _layer(m, _in_dtype(m, _compiled(m, _built("inkan", m)))),
        **auto,
    }


def _layer(m: Material, network: nn.Module, x: Tensor | None = None) -> Contestant:
    """Return a contestant that runs a network in the row's mode."""
    x = (m.x if x is None else x).detach().clone().requires_grad_()
    parameters = list(network.parameters())

    def clear() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None

    def forward() -> Tensor:
        with torch.no_grad():
            return network(x)

    def step() -> Tensor:
        y = network(x)
        y.backward(m.g)
        return y.detach()

    def results() -> dict[str, Any]:
        found: dict[str, Any] = {"F0": task.call()}
        if m.row.mode == "step":
            found["H0"] = x.grad
            # the layers of other libraries store their weights in different layouts
            if isinstance(network, fastkan.KANLinear):
                found |= {"G0": network.spline_weight.grad, "G1": network.base_weight.grad}  # type: ignore[union-attr]
        clear()
        return found

    task = Task(step if m.row.mode == "step" else forward, clear)
    return Contestant(task, None if isinstance(network, nn.Linear) else results, [x, *parameters])


def _products(m: Material) -> Contestant:
    """Return a contestant that computes only a layer's matrix products from given features."""
    psi, weight, g = m.random(m.row.rows, m.row.wide), m.random(m.row.wide, m.row.outputs), m.g

    def step() -> None:
        psi @ weight
        psi.t() @ g
        g @ weight.t()

    return Contestant(Task(step if m.row.mode == "step" else lambda: psi @ weight))


def _linear(m: Material) -> Contestant:
    network = nn.Linear(m.row.wide, m.row.outputs, bias=False, **m.to)
    return _layer(m, network, m.random(m.row.rows, m.row.wide))


def _fastkan(m: Material) -> nn.Module:
    return cast(nn.Sequential, _built("fastkan", m))[0].to(**m.to)


def _built(name: str, m: Material) -> nn.Module:
    """Return a layer of ``bench.suite`` with the row's weights."""
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    if reason := contender.why_not(m.row.case):
        raise Absent(reason)
    return contender.make(m.row.case).to(m.place.device)


def _compiled(m: Material, layer: nn.Module) -> nn.Module:
    if not m.place.is_gpu:
        raise Absent("nothing is compiled in a rehearsal")
    return cast(nn.Module, torch.compile(layer, dynamic=False))


def _in_dtype(m: Material, layer: nn.Module) -> nn.Module:
    """Return a layer with its parameters in the row's dtype, and its grid in float32."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(m.x.dtype)
    return Rounded(layer, m.x.dtype) if m.x.dtype.itemsize < 4 else layer


# -- contractions -----------------------------------------------------------------------------------


def _contractions(m: Material, name: str) -> Makers:
    """Return functions that create a contraction's contestants: matrix product, default and implementations."""
    psi, weight = m.random(m.row.rows, m.row.wide), m.random(m.row.wide, m.row.outputs)
    product = {"F": lambda: psi @ weight, "G": lambda: psi.t() @ m.g, "H": lambda: m.g @ weight.t()}[name]
    makers: dict[str, Callable[[], Contestant]] = {
        bars.GEMM: lambda: Contestant(Task(product)),
        bars.AUTO: partial(_contraction, m, name),
    }
    return makers | {config.way: partial(_contraction, m, name, config) for config in implementations(m, name)}


def implementations(m: Material, name: str) -> list[Any]:
    """Return the default configuration of each implementation of a contraction."""
    if m.place.backend != "triton":
        return []
    from fastkan_kernels.backends.triton import builds

    major, minor = torch.cuda.get_device_capability(m.place.device) if m.place.is_gpu else (9, 0)
    found = builds.configs_of(setting(m.row, name), 10 * major + minor)
    # Triton's interpreter does not run the pipelined kernels
    return [config for config in found if m.place.is_gpu or config.way != "pipelined"]


def setting(row: Row, name: str) -> Any:
    """Return a contraction of a row as a ``Setting`` of :mod:`fastkan_kernels.backends.triton.builds`."""
    from fastkan_kernels.backends.triton.builds import Setting

    return Setting(
        name, DTYPES[row.dtype], PRECISIONS.get(row.dtype, "ieee"), order=row.case.order,
        derivative=CONTRACTIONS[name], rows=row.rows, inputs=row.inputs, outputs=row.outputs, grid=row.grid,
    )  # fmt: skip


def _contraction(m: Material, name: str, config: Any = None) -> Contestant:
    """Return a contestant that computes a contraction with a configuration (default: fastkan's own choice)."""

    def call() -> list[Tensor]:
        if config is None:
            return m.contraction(name)
        from fastkan_kernels.backends.triton import builds

        with builds.override(name, config):
            return m.contraction(name)

    return Contestant(Task(call), lambda: {f"{name}{n}": part for n, part in enumerate(call())})


# -- a small network in a CUDA graph ----------------------------------------------------------------

_NETWORKS = (bars.MLP, "plain Cox-de Boor", "fastkan")


def _graphed(name: str, item: Graphed, place: Place, rows: slice) -> Contestant:
    """Return a training step with Adam in a CUDA graph, or without a graph on a CPU.

    Raises:
        RuntimeError: if the gradients that the graph computes differ from the gradients that are computed without a
            graph.
    """
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    x, target = item.case.inputs().to(place.device), item.case.upstream().to(place.device)
    network = contender.make(item.case).to(place.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, capturable=place.is_gpu)
    last: list[Tensor] = []

    def clear() -> None:
        optimizer.zero_grad(set_to_none=True)

    def backward() -> None:
        last[:] = [network(x)]
        (last[0] - target).square().mean().backward()

    def step() -> None:
        backward()
        optimizer.step()

    backward()
    eager = [cast(Tensor, parameter.grad).clone() for parameter in network.parameters()]
    replay = graph(backward, clear, place)
    replay()
    place.wait()
    for parameter, right in zip(network.parameters(), eager, strict=True):
        if not (norm := deviation(cast(Tensor, parameter.grad), right.double())[0]) <= BOUND:
            raise RuntimeError(f"gradients in the graph are off by {norm:.1e}")
    y = last[0].detach().clone()[rows]
    results = (lambda: {"y": y}) if contender.is_kan else None
    return Contestant(Task(graph(step, clear, place)), results)


def graph(call: Callable[[], None], clear: Callable[[], None], place: Place) -> Callable[[], None]:
    """Return a replay of ``call`` as a CUDA graph, which does not add to gradients; on a CPU, the call itself."""
    if not place.is_gpu:

        def plain() -> None:
            clear()
            call()

        return plain
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            clear()
            call()
    torch.cuda.current_stream().wait_stream(stream)
    clear()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured.replay
