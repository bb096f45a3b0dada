"""Stage ``parts``: what limits a kernel, from variants with one stage left out, and from ncu where it is.

``python -m bench.gpu.parts`` launches the fused kernels of the first row once: what ncu watches.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastkan_kernels import Basis, basis_of, uniform_knots
from tests.support.oracle import Example

from ..measure import Task, ratio, times
from . import child, ways
from .accuracy import Material
from .clock import Clock
from .place import Place
from .record import Record
from .rows import CONTRACTIONS, MANY, WIDE, Row
from .settings import precision
from .truth import kernel_operands
from .variants import FOLDERS, FUSED, PIPELINED, STAGES, shipped
from .variants import chunked as chunked_without
from .variants import module as variant
from .warm import in_parallel

WHOLE = "whole"
SECONDS = 1.5  # of timing, for a kernel
RESERVE = 3.0
WARMING = 0.4  # of the stage's time, at most, to compile side by side
NCU_SECONDS = 60.0
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats")
KEPT_LINES = 160


class Part(NamedTuple):
    """A contraction of a row, and one of its ways."""

    row: Row
    contraction: str
    derivative: int
    way: str

    @property
    def name(self) -> str:
        return f"{self.row.name_of(self.contraction, self.derivative)} {self.way}"


class Ncu(NamedTuple):
    """What ncu says of the first row's fused kernels."""

    name: str = "ncu"


def subjects(rehearsal: bool) -> list[Part]:
    """Fused kernels first."""
    layers = [Row(*WIDE, "bfloat16", "step"), Row(*MANY, "bfloat16", "step"), Row(*WIDE, "tf32", "step")]
    if rehearsal:
        layers = [Row(64, 16, 16, 5, "float16", "step")]  # whole tiles: beyond an edge a constant would count
    made = [way for way in STAGES if not (rehearsal and way == PIPELINED)]  # which the interpreter does not know
    return [
        Part(row, *of, way) for way in made for row in layers for of in CONTRACTIONS if of[0] in ways.WAYS.get(way, "")
    ]


def count_builds() -> int:
    """Of the variants; the whole kernels have been made before."""
    return sum(len(STAGES[part.way]) for part in subjects(False) if part.way in FOLDERS)


def run(record: Record, place: Place, patterns: list[str] | None, workers: int) -> None:
    """Time all that there is time for."""
    if not ways.available(place):
        record.note(f"no parts: backend {place.backend!r} has no kernels of its own")
        return
    parts = [part for part in subjects(not place.is_gpu) if not patterns or any(p in part.name for p in patterns)]
    items: list[Part | Ncu] = [*parts]
    if not patterns or "ncu" in patterns:
        items.append(Ncu())
    wanted = record.wanted(items)
    compiled = [part for part in wanted if isinstance(part, Part) and part.way in FOLDERS]
    in_parallel(_Warm(place), compiled, workers, WARMING * record.left())
    clock = Clock(place)
    for item in wanted:
        if record.left() < (RESERVE if place.is_gpu else 0):
            record.leave_out(item.name)
        elif isinstance(item, Ncu):
            _ncu(record, place)
        else:
            try:
                result = measure(item, place, clock)
            except ways.NoSuchWay as reason:
                record.leave_out(item.name, str(reason))
            except Exception as failure:  # a variant that does not fit proves nothing wrong
                record.leave_out(item.name, f"{type(failure).__name__}: {str(failure).strip()}"[:200])
            else:
                shares = ", ".join(f"{n} {v['ratio']['median']:.2f}" for n, v in result["variants"].items())
                record.add(result, f"{item.name}: {shares}")


def measure(part: Part, place: Place, clock: Clock) -> dict[str, Any]:
    """The kernel whole and with each stage left out, in turn."""
    with precision(part.row.dtype, place.device.type):
        config, calls = launches(part, place)
        samples = clock.interleaved({name: Task(call) for name, call in calls.items()}, SECONDS)
    found = {}
    for name, of in samples.items():
        against = ratio(of, samples[WHOLE])
        assert against is not None
        found[name] = {"seconds": times(of)._asdict(), "ratio": against._asdict()}
    return {"name": part.name, **part.row._asdict(), "way": part.way, "config": config._asdict(), "variants": found}


def launches(part: Part, place: Place, whole_only: bool = False) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """The configuration, and what launches the kernel whole and without each stage; each has run once.

    Raises:
        ways.NoSuchWay: where there is none.
    """
    from fastkan_kernels.backends.triton import chunked
    from fastkan_kernels.backends.triton.problem import problem

    o, basis = operands_of(part, place)
    arguments = (part.contraction, o.x, o.knots, kernel_operands(part.contraction, o), basis, part.derivative)
    config = ways.of_way(part.way, *arguments)
    p = problem(*arguments)
    of = part.contraction
    if part.way in FOLDERS:
        found = {WHOLE: _launch(shipped(part.way, of), of, p, config)}
    else:
        found = {WHOLE: _chunked(chunked, of, p, config)}
    for stage in () if whole_only else STAGES[part.way]:
        if part.way in FOLDERS:
            found[f"no {stage}"] = _launch(variant(part.way, of, stage), of, p, config)
        else:
            found[f"no {stage}"] = _chunked(chunked_without(stage), of, p, config)
    for call in found.values():
        call()
    return config, found


def operands_of(part: Part, place: Place) -> tuple[Example, Basis]:
    """Random."""
    row = part.row
    material = Material.of(row, place)
    knots = uniform_knots(row.inputs, row.grid, row.case.order, device=place.device)
    return Example(material.x, knots, None, *material.edges, material.upstream), basis_of(knots, row.case.order)


def _launch(module: Any, contraction: str, p: Any, config: Any) -> Callable[[], Any]:
    if contraction == "F":
        return module.launch_out(p, config, p.x.new_empty(p.rows, p.outputs)).run
    if contraction == "H":
        return module.launch_in(p, config, p.x.new_empty(p.rows, p.inputs)).run
    count, part_rows = shipped(FUSED, contraction).parts_of(p, config)
    dw = p.x.new_empty(count, p.spline_count, p.inputs, p.outputs, dtype=p.x.dtype if count == 1 else p.work)
    if config.way == "pipelined":
        return module.launch_weight(p, config, dw, part_rows, False).run
    return module.launch_weight(p, config, dw, None if p.base == "none" else torch.empty_like(dw[:, 0]), part_rows).run


def _chunked(module: Any, contraction: str, p: Any, config: Any) -> Callable[[], Any]:
    if contraction == "F":
        y = p.x.new_empty(p.rows, p.outputs)
        return lambda: module.out(p, config, y)
    if contraction == "H":
        h = p.x.new_empty(p.x.shape)
        return lambda: module.into(p, config, h)
    return lambda: module.weight(p, config)


class _Warm:
    """Compiles a kernel's variants, in another process."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, part: Part) -> None:
        with precision(part.row.dtype, self._place.device.type):
            launches(part, self._place)


def _ncu(record: Record, place: Place) -> None:
    found = shutil.which("ncu")
    if found is None or not place.is_gpu:
        record.leave_out(Ncu().name, "it is not installed" if place.is_gpu else "it needs a GPU")
        return
    sections = [word for section in NCU_SECTIONS for word in ("--section", section)]
    watching = [found, "--clock-control", "none", "--kernel-name", "regex:contract_", "--launch-count", "3", *sections]
    script = [sys.executable, "-m", "bench.gpu.parts"]
    code, output = child.run([*watching, *script], min(NCU_SECONDS, record.left()))
    if code is None or "==ERROR==" in output:
        lines = [line for line in output.splitlines() if "==ERROR==" in line]
        record.leave_out(Ncu().name, "stopped, out of time" if code is None else lines[0][:200])
        return
    record.add({"name": Ncu().name, "code": code, "output": output.splitlines()[-KEPT_LINES:]}, f"ncu: code {code}")


def main(argv: list[str] | None = None) -> int:
    """Launch the first row's fused kernels once each."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.parts", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    place = Place(torch.device(arguments.parse_args(argv).device))
    for part in subjects(not place.is_gpu)[: len(CONTRACTIONS)]:
        with precision(part.row.dtype, place.device.type):
            launches(part, place, whole_only=True)
    place.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
