"""Predicted times of the rows of the GPU bench, and predicted values of the bars.

``python -m bench.gpu.predict`` prints the tables and writes ``bench/results/gpu-predicted.json``. The predictions come
from the cost model of the Triton backend, which counts operations. No time in the tables was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fastkan_kernels.backends.triton import cost
from fastkan_kernels.backends.triton.builds import Setting, problem_of
from fastkan_kernels.backends.triton.config import Config
from fastkan_kernels.backends.triton.key import Key, key
from fastkan_kernels.backends.triton.rules import default

from ..records import RESULTS
from ..report import markdown
from . import bars
from .machine import DTYPES

FILE = "gpu-predicted.json"
GPU = 90  # compute capability of the GPU whose times are predicted
LEGEND = (
    "All values are predicted for an H100 by counts of operations (`python -m bench.gpu.predict`); nothing in the "
    "tables was measured. The limiter is the unit that is busy for the longest time in the slowest contraction."
)


class Predicted(NamedTuple):
    """A predicted contraction of a measured row, and the configuration for which the time is predicted.

    Args:
        contraction: "F", "G" or "H".
        config: the configuration that the rules choose.
        seconds: the predicted time.
        limiter: the part of the GPU that limits the time, such as the tensor cores.
        extra_bytes: bytes of memory that the contraction uses in addition to its operands and results.
    """

    contraction: str
    config: Config
    seconds: float
    limiter: str
    extra_bytes: int


def keys(row: bars.Row) -> Iterator[Key]:
    """Yield the key of each contraction of a row, with the exact number of rows."""
    for contraction, derivative in bars.CONTRACTIONS.items():
        if row.mode == "forward" and contraction != "F":
            continue
        setting = Setting(
            contraction, DTYPES[row.dtype], "tf32" if row.dtype == "tf32" else "tf32x3", derivative=derivative,
            rows=row.rows, inputs=row.inputs, outputs=row.outputs, grid=row.grid,
        )  # fmt: skip
        yield key(problem_of(setting, GPU))._replace(rows=row.rows)


def contractions(row: bars.Row) -> list[Predicted]:
    """Return the predicted contractions of a row."""
    found = []
    for k in keys(row):
        config = default(k, GPU)
        gpu = cost.gpu_of(GPU)
        slowest = max(cost.works(k, config, gpu), key=lambda work: work.seconds(gpu))
        extra = cost.extra_bytes(k, config, gpu)
        found.append(Predicted(k.contraction, config, cost.seconds(k, config, GPU), slowest.limiter(gpu), extra))
    return found


def anchors(row: bars.Row) -> dict[str, float]:
    """Return the predicted time of the plain matrix product, or of an ``nn.Linear`` with as many parameters."""
    dtype = str(DTYPES[row.dtype]).removeprefix("torch.")
    precision = "tf32" if row.dtype == "tf32" else "highest"
    n, i, o = row.rows, row.wide, row.outputs
    shapes = [(n, i, o)] if row.mode == "forward" else [(n, i, o), (i, n, o), (n, o, i)]
    gpu = cost.gpu_of(GPU)
    product = sum(cost.product(*shape, dtype, precision, gpu).seconds(gpu) for shape in shapes)
    return {bars.GEMM: product, bars.LINEAR: product}


def held_bytes(row: bars.Row) -> int:
    """Return the bytes of parameters, inputs, outputs and gradients of a training step."""
    weights = row.wide * row.outputs
    return 2 * DTYPES[row.dtype].itemsize * (weights + row.rows * (row.inputs + row.outputs))


def covered() -> Iterator[tuple[bars.Bar, float, str]]:
    """Yield each bar that the cost model covers, the predicted value, and the limiter of the slowest contraction."""
    rows = {row.name: row for row in bars.MEASURED if isinstance(row, bars.Row)}
    for bar in bars.BARS:
        row = rows.get(bar.row)
        if row is None or (bar.quantity != bars.MEMORY and bar.anchor not in anchors(row)):
            continue
        found = contractions(row)
        if bar.quantity == bars.MEMORY:
            value = max(one.extra_bytes for one in found) / held_bytes(row)
        else:
            ratio = sum(one.seconds for one in found) / anchors(row)[bar.anchor]
            value = 1 / ratio if bar.quantity == bars.SPEED else ratio
        slowest = max(found, key=lambda one: one.seconds)
        yield bar, value, f"{slowest.contraction} {slowest.config.way}: {slowest.limiter}"


def predicted() -> dict[str, float]:
    """Return a dict from the description of each bar that the cost model covers to the predicted value."""
    return {bar.name: value for bar, value, _ in covered()}


def as_json() -> dict[str, Any]:
    """Return the predictions of all rows and bars in the form in which they are written to a file."""
    values = {bar.name: (value, limiter) for bar, value, limiter in covered()}
    return {
        "gpu": f"compute capability {GPU / 10}",
        "bars": [
            {
                "bar": bar.name,
                "least": bar.text(bar.least),
                "aim": bar.text(bar.aim),
                "predicted": bar.text(values[bar.name][0]) if bar.name in values else "not covered by the cost model",
                "verdict": f"predicted: {bar.verdict(values[bar.name][0])}" if bar.name in values else "",
                "limiter": values[bar.name][1] if bar.name in values else "",
            }
            for bar in bars.BARS
        ],
        "rows": [
            {
                "row": row.name,
                "product_us": round(1e6 * anchors(row)[bars.GEMM], 1),
                **{
                    one.contraction: f"{1e6 * one.seconds:.0f} us, {one.config.way} {one.config.rows}x"
                    f"{one.config.columns}x{one.config.inner}x{one.config.splines}, {one.limiter}"
                    for one in contractions(row)
                },
            }
            for row in bars.MEASURED
            if isinstance(row, bars.Row) and not row.rivals
        ],
    }


def block(folder: Path = RESULTS) -> str:
    """Return the tables of the committed predictions for the README."""
    data = json.loads((folder / FILE).read_text(encoding="utf-8"))
    goals = pd.DataFrame(data["bars"]).rename(columns={"verdict": ""}).set_index("bar")
    rows = pd.DataFrame(data["rows"]).fillna("-").rename(columns={"product_us": "product, us"}).set_index("row")
    return "\n\n".join([markdown(goals), markdown(rows), LEGEND])


def main(argv: list[str] | None = None) -> int:
    """Write the predictions into a file."""
    parser = argparse.ArgumentParser("python -m bench.gpu.predict", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder of the file (default bench/results)")
    options = parser.parse_args(argv)
    (options.folder / FILE).write_text(json.dumps(as_json(), indent=1) + "\n", encoding="utf-8")
    print(block(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
