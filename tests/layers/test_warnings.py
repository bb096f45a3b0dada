"""Warnings point at the line that called, through the decorators, optimizers and modules in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastkan import KAN, KANLinear
from fastkan_kernels import warn

NARROW = torch.stack([torch.linspace(0, 1, 300), 1e6 + torch.linspace(0, 0.2, 300)], 1)
Y = NARROW[:, :1]

WAYS: dict[str, Callable[[], Any]] = {
    "a layer": lambda: KANLinear(2, 1, 5).update_grid(NARROW),
    "a network": lambda: KAN([2, 1], grid=5).update_grid(NARROW),
    "a fit": lambda: KAN([2, 1], grid=5).fit((NARROW, Y), "Adam", 1, progress=False),
}


@pytest.mark.filterwarnings("ignore:the inputs. columns")  # which the fit says as well, rightly
@pytest.mark.parametrize("way", WAYS)
def test_of_a_grid_that_stays(way: str) -> None:
    with pytest.warns(UserWarning, match=r"inputs \[1\] keep their grids") as caught:
        WAYS[way]()
    assert {warning.filename for warning in caught} == {__file__}


class Warns(nn.Module):
    """Warns of its call, as a module of the user's."""

    def forward(self, x: Tensor) -> Tensor:
        warn("called")
        return x


def test_a_module_of_the_users_is_the_caller() -> None:
    with pytest.warns(UserWarning, match="called") as caught:
        nn.Sequential(Warns())(NARROW)
    assert caught[0].filename == __file__
    assert caught[0].lineno == Warns.forward.__code__.co_firstlineno + 1


def test_a_category_is_kept() -> None:
    with pytest.warns(RuntimeWarning, match="^so$"):
        warn("so", RuntimeWarning)
