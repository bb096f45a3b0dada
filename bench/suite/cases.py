"""The measured networks: their sizes, inputs, and the weights that all contenders start from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SEED = 0
L1, ENTROPY = 1.0, 2.0  # weights of the sparsity terms, which are pykan's defaults
CUBIC = 3


class Edges(NamedTuple):
    """Weights of one layer, in the layout of :class:`fastkan.KANLinear`, on equally spaced knots."""

    spline_weight: Tensor  # [G + k, in, out]
    base_weight: Tensor  # [in, out], which multiplies silu(x)


class Case(NamedTuple):
    """A network of KAN layers and its batch, float32.

    Args:
        rows: N, the batch size.
        widths: numbers of inputs of each layer, then of the last layer's outputs.
        grid_size: G, on the range -1 to 1.
        order: k.
        quick: whether ``--quick`` measures it.
    """

    rows: int
    widths: tuple[int, ...]
    grid_size: int = 5
    order: int = CUBIC
    quick: bool = True

    @property
    def name(self) -> str:
        """A short name for files and the command line; it contains the order unless splines are cubic."""
        order = "" if self.order == CUBIC else f"-k{self.order}"
        return f"{self.rows}x{'-'.join(map(str, self.widths))}-G{self.grid_size}{order}"

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        return list(zip(self.widths[:-1], self.widths[1:]))

    @property
    def features(self) -> int:
        """Learned weights of an edge: G + k splines and the base function."""
        return self.grid_size + self.order + 1

    @property
    def largest_edges(self) -> int:
        """Size of the largest N x in x out tensor, which some packages allocate."""
        return max(self.rows * i * o for i, o in self.layers)

    def inputs(self) -> Tensor:
        """A batch inside the grid, ``[N, in]``; the same at each call."""
        return torch.rand(self.rows, self.widths[0], generator=_generator(1)) * 2 - 1

    def upstream(self) -> Tensor:
        """A fixed gradient of the output, ``[N, out]``: the loss is its product with the output."""
        return torch.randn(self.rows, self.widths[-1], generator=_generator(2))

    def edges(self) -> list[Edges]:
        """Starting weights, which keep most hidden values inside the grid."""
        generator = _generator(3)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator) * (0.5 / math.sqrt(size[-2]))

        return [Edges(draw(self.features - 1, i, o), draw(i, o)) for i, o in self.layers]


def _generator(stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + stream)


CASES = (
    Case(8192, (256, 256, 256), quick=False),
    Case(4096, (64, 64, 64)),
    Case(100, (1000, 1000, 1)),
    Case(1000, (2, 5, 1)),
    Case(4096, (64, 64, 64), grid_size=64),
)
MIDDLE = Case(2048, (64, 64, 64))
SWEEPS = {  # each varies one property of the middle case
    "rows": tuple(MIDDLE._replace(rows=rows) for rows in (128, 512, 2048, 8192)),
    "width": tuple(MIDDLE._replace(widths=(width,) * 3) for width in (16, 32, 64, 128)),
    "grid": tuple(MIDDLE._replace(grid_size=grid) for grid in (5, 10, 20, 50)),
    "order": tuple(MIDDLE._replace(order=order) for order in (2, 3, 4, 5)),
}
VARIED: dict[str, tuple[str, Callable[[Case], int]]] = {  # axis label and value of each sweep
    "rows": ("rows N", lambda case: case.rows),
    "width": ("width of all layers", lambda case: case.widths[0]),
    "grid": ("grid intervals G", lambda case: case.grid_size),
    "order": ("spline order k", lambda case: case.order),
}


def chosen(patterns: list[str] | None, quick: bool) -> list[Case]:
    """Cases whose names contain any of ``patterns``; without patterns all cases, or all quick ones.

    Raises:
        ValueError: if a pattern matches none.
    """
    if not patterns:
        return [case for case in CASES if case.quick or not quick]
    for pattern in patterns:
        if not any(pattern in case.name for case in CASES):
            raise ValueError(f"no case is named like {pattern!r}; there are {', '.join(c.name for c in CASES)}")
    return [case for case in CASES if any(pattern in case.name for pattern in patterns)]


def swept(names: list[str]) -> list[Case]:
    """The cases of these sweeps, or of ``all``; each once.

    Raises:
        ValueError: for another name.
    """
    for name in names:
        if name not in (*SWEEPS, "all"):
            raise ValueError(f"--sweep takes {', '.join(SWEEPS)} or all; got {name!r}")
    found = [case for name in SWEEPS if name in names or "all" in names for case in SWEEPS[name]]
    return list(dict.fromkeys(found))
