"""What the hazard stage tries, as data, and numbers whose results are known to the last bit.

A result is exact if every feature, product and sum is a number that the narrowest dtype on its way
can hold. That is so of small integers for W, v and g, a cell of width 1 (or a power of two), and

- ``linear``: k = 1 with x at quarters of a cell; features are quarters;
- ``doubled``: k = 2 on knots that are single or double, so that two cells together are as wide as 1 or 2;
- ``slopes``: k = 3 and d = 1 on uniform knots at quarters; features are 32nds;
- ``cubic``: k = 3 and d = 0 likewise, where features are rounded to two bytes before they are
  multiplied. The kernels hold B / (4/3), in 512ths, and not B = n/384; the other factor is multiplied
  to the sum, and sums of multiples of 3 it leaves exact. So of the Triton kernels only.

``random`` is what the layer usually has: cubic splines, silu, no number special. There all repeats
must give the same bits, those of the same configuration without a pipeline, within a budget of float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastkan_kernels import Basis, basis_of
from fastkan_kernels.backends.triton.config import WAYS
from tests.support.oracle import Example

from ..suite.cases import SEED
from .rows import CONTRACTIONS
from .settings import DTYPES, REHEARSED

LARGE = (16384, 256, 512)  # rows, inputs, outputs: more tiles than a GPU has multiprocessors
LARGEST = (8192, 1024, 1024)
ODD = (1037, 67, 131)
NARROW = (65536, 64, 64)
SINGLE = (33, 1, 1)
TINY = (37, 5, 7)  # of a rehearsal

MORE_CONTRACTIONS = (("F", 1), ("G", 1), ("H", 0))
DENSITY = 0.5  # of numbers other than 0: sums stay small
PIPELINED = ("bfloat16", "float16", "autocast")  # of two bytes
FORMS = ("uniform", "adapted")
ORDERS = {"linear": 1, "doubled": 2, "slopes": 3, "cubic": 3, "random": 3}


class Trial(NamedTuple):
    """One contraction on some numbers, to be repeated."""

    numbers: str
    contraction: str
    derivative: int
    sizes: tuple[int, int, int]
    setting: str  # a key of settings.DTYPES
    form: str
    way: str  # "auto" or one of ways.WAYS
    grid: int = 8
    multiplied: bool = False  # by v

    @property
    def name(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        v = " v" if self.multiplied else ""
        return (
            f"{self.contraction}_{self.derivative} {self.numbers} {self.form} G{self.grid} {self.setting} {sizes}{v} "
            f"{self.way}"
        )

    @property
    def exact(self) -> bool:
        return self.numbers != "random"


def trials(rehearsal: bool, by_way: bool = True) -> list[Trial]:
    """All of them, so that the first cover every kernel, dtype and form.

    Args:
        by_way: whether the backend has ways to be told apart; else each trial is made once, as it comes.
    """
    found: list[Trial] = []
    large, odd = (TINY, TINY) if rehearsal else (LARGE, ODD)
    for way, sizes in (("pipelined", large), ("fused", large), ("fused", odd), ("chunked", odd), ("gather", odd)):
        found += _over(CONTRACTIONS, sizes, way, multiplied=sizes is odd)
    found += _over(CONTRACTIONS, SINGLE, "auto")
    if not rehearsal:
        found += _over(MORE_CONTRACTIONS, ODD, "fused", multiplied=True)
        found += _over(CONTRACTIONS, NARROW, "auto")
        found += _over(CONTRACTIONS, LARGE, "chunked")
        found += _over(CONTRACTIONS, (2048, 256, 256), "auto", grid=64)
        found += _over(CONTRACTIONS, (1040, 80, 136), "pipelined", multiplied=True)  # no whole tiles, whole 16 bytes
        found += _over(CONTRACTIONS, LARGEST, "fused")
    if rehearsal:
        found = [trial for trial in found if trial.setting in REHEARSED]
    if not by_way:
        found = [trial._replace(way="auto") for trial in found if trial.numbers != "cubic"]
    return list(dict.fromkeys(found))


def _over(
    contractions: tuple, sizes: tuple[int, int, int], way: str, multiplied: bool = False, grid: int = 8
) -> Iterator[Trial]:
    for numbers, form, setting, (name, d) in itertools.product(ORDERS, FORMS, DTYPES, contractions):
        if numbers == "slopes":
            d = 1
        trial = Trial(numbers, name, d, sizes, setting, form, way, grid, multiplied and name != "H")
        if _possible(trial):
            yield trial


def _possible(trial: Trial) -> bool:
    """Whether there is such a way, and whether it is exact."""
    numbers, name, d = trial.numbers, trial.contraction, trial.derivative
    if name not in WAYS.get(trial.way, name):
        return False
    if trial.way == "pipelined" and trial.setting not in PIPELINED:
        return False
    if numbers == "linear":
        return True
    if numbers == "doubled":  # whose mean cell is no power of two, in which a derivative would be rounded
        return trial.form == "adapted" and d == 0 and trial.grid < 16
    if numbers == "slopes":
        return trial.form == "uniform" and trial.way in ("pipelined", "fused", "auto") and trial.grid < 16
    if numbers == "cubic":
        two_bytes = trial.setting in ("bfloat16", "float16", "autocast")
        return trial.form == "uniform" and trial.way == "fused" and two_bytes and name != "H" and d == 0
    return True


def whole(exact: Tensor) -> Tensor:
    """Without float64's own rounding (of sixths, before they are summed): exact results are 1024ths."""
    return torch.round(exact * 1024) / 1024


# -- numbers ----------------------------------------------------------------------------------------


def operands(trial: Trial, device: torch.device) -> tuple[Example, Basis]:
    """The same each time."""
    generator = torch.Generator(device).manual_seed(SEED)
    rows, inputs, outputs = trial.sizes
    order, dtype = ORDERS[trial.numbers], DTYPES[trial.setting]
    count = trial.grid + order
    make = _integers if trial.exact else _reals
    knots = knots_of(trial, inputs, order, generator)
    basis = basis_of(knots, order, "identity" if trial.exact else "silu")
    if not trial.exact:
        low, high = knots[:, 0], knots[:, -1]
        x = low + (high - low) * (1.1 * _share(rows, inputs, generator=generator) - 0.05)
    else:
        x = _quarters(knots, rows, whole=trial.way == "chunked" or trial.grid > 16, generator=generator)
    factor = 3 if trial.numbers == "cubic" else 1
    found = Example(
        x,
        knots,
        make(rows, inputs, generator=generator) if trial.multiplied else None,
        factor * make(count, inputs, outputs, generator=generator),
        # sparse: with it, too, sums stay small
        make(inputs, outputs, generator=generator) * (_share(inputs, outputs, generator=generator) < 0.125),
        factor * make(rows, outputs, generator=generator),
    )
    if trial.multiplied and found.v is not None and trial.exact:
        found = found._replace(v=found.v + (found.v == 0))  # -1 and 1: a v of 0 would hide a feature
    rounded = found.map(lambda tensor: tensor.to(dtype))._replace(knots=knots)
    if trial.exact and not torch.equal(rounded.x.double(), x.double()):
        raise ValueError(f"{trial.name}: x is not exact in {dtype}")
    return rounded, basis


def _share(*shape: int, generator: torch.Generator) -> Tensor:
    """From 0 to 1."""
    return torch.rand(shape, generator=generator, device=generator.device)


def _whole(below: int, *shape: int, generator: torch.Generator) -> Tensor:
    """0, 1, ..., below - 1."""
    return torch.randint(0, below, shape, generator=generator, device=generator.device)


def _integers(*shape: int, generator: torch.Generator) -> Tensor:
    """-1, 0 and 1."""
    sign = _whole(2, *shape, generator=generator) * 2.0 - 1
    return sign * (_share(*shape, generator=generator) < DENSITY)


def _reals(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def knots_of(trial: Trial, inputs: int, order: int, generator: torch.Generator) -> Tensor:
    """``[inputs, G + 2 k + 1]`` float32; of exact trials whole numbers, around 0."""
    cells, device = trial.grid + 2 * order, generator.device
    if trial.form == "uniform":
        return (torch.arange(cells + 1.0, device=device) - (cells // 2)).expand(inputs, -1).contiguous()
    if not trial.exact:
        widths = 0.4 + _share(inputs, cells, generator=generator)
    elif order == 2:
        pattern = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], device=device)
        widths = pattern.repeat(-(-cells // 6))[:cells].expand(inputs, -1)
    else:
        # threes of mean 2, so that the mean cell is a power of two as well, in which derivatives are counted
        threes = torch.tensor([1.0, 1.0, 4.0], device=device).repeat(cells // 3)
        pattern = torch.cat([threes, torch.full((cells % 3,), 2.0, device=device)])
        widths = pattern[_share(inputs, cells, generator=generator).argsort(1)]
    start = -torch.floor(widths.sum(1, keepdim=True) / 2)
    return torch.cat([start, start + widths.cumsum(1)], 1)


def _quarters(knots: Tensor, rows: int, whole: bool, generator: torch.Generator) -> Tensor:
    """``[rows, inputs]`` on knots and, unless ``whole``, at quarters of cells; a few beyond the ends."""
    inputs, count = knots.shape
    cell = _whole(count - 1, inputs, rows, generator=generator)
    left = knots.gather(1, cell)
    width = knots.gather(1, cell + 1) - left
    share = _whole(4, inputs, rows, generator=generator) / 4
    x = left if whole else left + share * width
    beyond = _share(inputs, rows, generator=generator)
    x = torch.where(beyond < 0.01, knots[:, -1:] + 1, torch.where(beyond > 0.99, knots[:, :1] - 1, x))
    return x.t().contiguous()
