"""A small network's training step under a CUDA graph: where launches are what costs, and a graph has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..measure import Samples, Task, ratio, times
from ..suite.cases import Case
from ..suite.contenders import CONTENDERS
from ..suite.errors import BOUND, Oracle
from .clock import Clock
from .place import Place
from .rows import Graphed

ANCHOR = "MLP, as many parameters"
NETWORKS = (ANCHOR, "plain Cox-de Boor", "fastkan")
OURS = "fastkan"
SECONDS = 3.0
WARM_UP = 3  # calls before a capture, as PyTorch asks
RATE = 1e-3


class Trained:
    """A network with its data: ``backward`` is a loss and its gradients, ``step`` an optimizer's besides."""

    def __init__(self, network: nn.Module, x: Tensor, target: Tensor, place: Place) -> None:
        self.network, self.x, self.target = network, x, target
        self.y = torch.empty(0)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=RATE, capturable=place.is_gpu)

    def backward(self) -> None:
        self.y = self.network(self.x)
        (self.y - self.target).square().mean().backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def clear(self) -> None:
        for parameter in self.network.parameters():
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        return [cast(Tensor, parameter.grad).clone() for parameter in self.network.parameters()]


def measure(item: Graphed, place: Place, clock: Clock) -> dict[str, Any]:
    """Both halves of it, for each network."""
    entries: dict[str, dict[str, Any]] = {}
    tasks: dict[str, dict[str, Task]] = {"backward": {}, "step": {}}
    for network in NETWORKS:
        entry: dict[str, Any] = {"name": network, "ours": network == OURS, "note": None}
        entries[network] = entry
        try:
            with place.ours():
                found = _captured(network, item.case, place, entry)
        except Exception as failure:
            entry["note"] = f"failed: {type(failure).__name__}: {str(failure).strip()}"[:300]
            continue
        for mode, call in found.items():
            tasks[mode][network] = Task(call)
    for mode, of in tasks.items():
        if of:
            samples = clock.interleaved(of, SECONDS)
            for network in of:
                entries[network][mode] = _timing(samples, network)
    return {"kind": "graphed", "name": item.name, "contestants": list(entries.values())}


def _captured(name: str, case: Case, place: Place, entry: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Replays of both modes; ``entry`` gets the error, and a note if it is too large."""
    rival = next(contender for contender in CONTENDERS if contender.name == name)
    x, target = case.inputs().to(place.device), case.upstream().to(place.device)
    trained = Trained(rival.make(case).to(place.device), x, target, place)
    trained.backward()
    eager = trained.gradients()
    trained.clear()
    replay = graph(trained.backward, trained.clear, place)
    replay()
    place.wait()
    pairs = list(zip(trained.gradients(), eager, strict=True))
    off = max(float((found - want).abs().max() / want.abs().max()) for found, want in pairs)
    entry["graph_against_eager"] = off
    if rival.is_kan:
        oracle = Oracle(case)
        y = trained.y.detach().cpu().double()[oracle.rows]
        entry["error"] = float((y - oracle.y).abs().max() / oracle.y.abs().max())
    if not (off <= BOUND and entry.get("error", 0.0) <= BOUND):
        entry["note"] = f"wrong: error {entry.get('error')}, graph against eager {off:.1e}"
        return {}
    training = Trained(rival.make(case).to(place.device), x, target, place)
    return {"backward": replay, "step": graph(training.step, training.clear, place)}


def graph(call: Callable[[], None], clear: Callable[[], None], place: Place) -> Callable[[], Any]:
    """``call`` captured, without gradients to add to; on a CPU the call itself."""
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


def _timing(samples: dict[str, Samples], name: str) -> dict[str, Any]:
    against = ratio(samples[name], samples[ANCHOR]) if ANCHOR in samples else None
    return {
        "seconds": times(samples[name])._asdict(),
        "ratios": {} if against is None else {ANCHOR: against._asdict()},
    }
