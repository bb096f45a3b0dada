"""``python -m bench.conv``: KAN convolutions beside other ways to compute them and an equally large ``nn.Conv2d``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastkan import KANConv2d, KANLinear
from fastkan_kernels import BACKENDS, splines

from .measure import Task, interleaved, peak_bytes, settle_allocator, timing
from .records import Record, Result, describe, write
from .report import console, show, spread_text

CONV = "nn.Conv2d, as many parameters"
BOUND = 1e-4  # contenders with a larger error are not timed


class Case(NamedTuple):
    """Sizes of a layer and of its square images."""

    images: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1

    @property
    def title(self) -> str:
        """The case in words."""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        sides = f"{self.images} x {self.channels} x {self.size} x {self.size}"
        return f"{sides} to {self.outputs}, {self.kernel} x {self.kernel}{stride}"


CASES = (
    Case(8, 16, 32, 16, 3), Case(8, 16, 32, 32, 3), Case(8, 64, 16, 64, 3), Case(8, 64, 16, 64, 1),
    Case(8, 16, 32, 16, 7, 2), Case(32, 1, 28, 8, 3), Case(64, 16, 32, 16, 3),
)  # fmt: skip


class _Features(torch.autograd.Function):
    """The features ``[N * pixels, K + 1, C]``, evaluated as in fastkan. The convolution that follows stores them."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        psi = BACKENDS["cpu"].features(x, layer.knots, layer.basis, 0)  # type: ignore[misc]
        return torch.cat([psi, functional.silu(x).unsqueeze(1)], 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = BACKENDS["cpu"].features(x, ctx.layer.knots, ctx.layer.basis, 1)  # type: ignore[misc]
        return (slope * g[:, :-1]).sum(1) + torch.ops.aten.silu_backward(g[:, -1].contiguous(), x), None


def _recursion(x: Tensor, layer: KANConv2d) -> Tensor:
    return torch.cat([splines(x, layer.knots, layer.spline_order), functional.silu(x).unsqueeze(1)], 1)


class _AsChannels(nn.Module):
    """Features of all pixels as the channels of one convolution."""

    def __init__(self, layer: KANConv2d, features: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.features = [layer], features
        edges = [layer.spline_weight, layer.base_weight.unsqueeze(0)]  # type: ignore[union-attr]
        weight = torch.cat(edges).detach().unflatten(2, (-1, *layer.kernel_size))
        self.weight = nn.Parameter(weight.flatten(0, 1).transpose(0, 1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.layer
        psi = self.features(x.movedim(1, -1).flatten(0, -2), layer)
        psi = psi.view(len(x), *x.shape[2:], -1).movedim(-1, 1)
        return functional.conv2d(psi, self.weight, None, layer.stride, layer.padding)


class _Unfolded(nn.Module):
    """A KANLinear whose inputs are all pixels of a window."""

    def __init__(self, layer: KANConv2d) -> None:
        super().__init__()
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.pads = [each for pair in reversed(layer._padding_pairs) for each in pair]
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        self.edges = KANLinear(layer.in_channels * taps, layer.out_channels)
        with torch.no_grad():
            for name in ("spline_weight", "base_weight"):
                edges = getattr(layer, name).unflatten(-1, (-1, taps)).transpose(-1, -2)
                getattr(self.edges, name).copy_(edges.flatten(-3, -2))

    def forward(self, x: Tensor) -> Tensor:
        # A pixel beyond the border must be far from the grid, where splines and silu vanish.
        padded = functional.pad(x, self.pads, value=-1e4)
        rows = functional.unfold(padded, self.kernel_size, stride=self.stride).transpose(1, 2)
        size = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], self.kernel_size, self.stride)]
        return self.edges(rows).transpose(1, 2).unflatten(2, size)


def contenders(layer: KANConv2d) -> dict[str, nn.Module]:
    """Return ways to compute a layer, and an ``nn.Conv2d`` of as many parameters, whose input has a channel for each
    feature."""
    conv = nn.Conv2d(
        layer.in_channels * (layer.spline_weight.shape[0] + 1), layer.out_channels, layer.kernel_size,  # type: ignore[arg-type]
        layer.stride, layer.padding, bias=False,  # type: ignore[arg-type]
    )  # fmt: skip
    return {
        "fastkan": layer,
        "features as channels, stored": _AsChannels(layer, _Features.apply),
        "features as channels, Cox-de Boor": _AsChannels(layer, _recursion),
        "unfold, KANLinear": _Unfolded(layer),
        CONV: conv,
    }


def measure(case: Case, threads: int, seconds: float) -> Iterator[Result]:
    """Compare all ways with float64, and time them in turns."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = KANConv2d(case.channels, case.outputs, case.kernel, case.stride, case.kernel // 2)
    x = 2 * torch.rand(case.images, case.channels, case.size, case.size) - 1
    made = contenders(layer)
    exact = KANConv2d(case.channels, case.outputs, case.kernel, case.stride, case.kernel // 2, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    g = torch.randn(layer(x).shape)
    expected = _outcome(exact, x.double(), g.double())
    inputs = {name: (x.repeat(1, 9, 1, 1) if name == CONV else x).requires_grad_() for name in made}
    errors: dict[str, list[float]] = {}
    notes: dict[str, str | None] = dict.fromkeys(made)
    for name, module in made.items():
        if name != CONV:
            found = _outcome(module, x, g)
            errors[name] = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected)]
            if max(errors[name]) > BOUND:
                notes[name] = f"wrong by {max(errors[name]):.0e}"
    for mode, call in (("forward", _forward), ("step", _step)):
        tasks = {
            name: Task(lambda call=call, name=name: call(made[name], inputs[name], g))  # type: ignore[misc]
            for name in made
            if notes[name] is None
        }
        for task in tasks.values():
            task.call()
        peaks = {name: peak_bytes(task.call) for name, task in tasks.items()}
        run = interleaved(tasks, seconds, [CONV])
        for name in made:
            timed = timing(run.samples, name, [CONV, "fastkan"]) if name in tasks else {"seconds": None, "ratios": {}}
            yield {
                "case": case.title, "contender": name, "mode": mode, "threads": threads, **timed, "note": notes[name],
                "error": errors.get(name), "peak_bytes": peaks.get(name), "load": run.load,
            }  # fmt: skip


def _outcome(module: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, and the gradient with respect to x."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach().double(), torch.autograd.grad(y, x, g)[0].double()


@torch.no_grad()
def _forward(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    return module(x)


def _step(module: nn.Module, x: Tensor, g: Tensor) -> None:
    module.zero_grad()
    x.grad = None
    module(x).backward(g)


def tables(results: Sequence[Result]) -> Iterator[tuple[str, pd.DataFrame]]:
    """A table for each number of threads: for each case the ways, their times, errors and memory."""
    for threads in dict.fromkeys(result["threads"] for result in results):
        rows = []
        for step in results:
            if step["mode"] != "step" or step["threads"] != threads:
                continue
            (forward,) = (
                each
                for each in results
                if each["mode"] == "forward" and all(each[key] == step[key] for key in ("case", "contender", "threads"))
            )
            rows.append([
                step["case"], step["contender"],
                *(spread_text(each["seconds"], 1e3) for each in (forward, step)),
                *(spread_text(each["ratios"].get(CONV)) for each in (forward, step)),
                None if step["error"] is None else ", ".join(f"{error:.0e}" for error in step["error"]),
                None if step["peak_bytes"] is None else f"{step['peak_bytes'] / 2**20:.1f}",
            ])  # fmt: skip
        columns = ["case", "way", "forward ms", "step ms", "forward /conv", "step /conv", "err y, dx", "MiB of a step"]
        yield f"{threads} thread{'s'[: threads > 1]}", pd.DataFrame(rows, columns=columns).set_index("case")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser("python -m bench.conv", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads")
    made.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="numbers of cases, from 0")
    made.add_argument("--seconds", type=float, default=5.0, help="time of each case and mode")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the measurements, print their results and write the file."""
    options = parser().parse_args(argv)
    settle_allocator()
    about, before = describe(), torch.get_num_threads()
    results: list[Result] = []
    try:
        for threads in options.threads:
            for number in options.cases:
                results += measure(CASES[number], threads, options.seconds)
    finally:
        torch.set_num_threads(before)
    for title, frame in tables(results):
        show(console(), frame, title)
    if options.json is not None:
        write(options.json, Record(results, about, {"dtype": "float32", "seconds": options.seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
