"""Networks for tests of pictures, and the parts of a figure."""

from __future__ import annotations

import matplotlib
import torch
from matplotlib.collections import Collection
from matplotlib.figure import Figure

from fastkan.kan.model import KAN

matplotlib.use("Agg")


def made(width=(2, 5, 1), arity=2, noise: float = 1.0, **more) -> KAN:
    return KAN(width=list(width), mult_arity=arity, seed=0, noise_scale=noise, **more)


def part(figure: Figure, gid: str) -> Collection:
    (found,) = (each for each in figure.axes[0].collections if each.get_gid() == gid)
    return found


def colors(figure: Figure, gid: str) -> list[tuple[float, ...]]:
    return [tuple(color) for color in part(figure, gid).get_edgecolor()]


def texts(figure: Figure, gid: str) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_gid() == gid]


def curves(figure: Figure) -> list[torch.Tensor]:
    return [torch.tensor(path.vertices) for path in part(figure, "curves").get_paths()]


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Left, lower, right and upper end of each box."""
    return [path.get_extents().extents for path in part(figure, "boxes").get_paths()]


def edge_count(model: KAN) -> int:
    return sum(i * o for i, o in zip(model.width_in, model.width_out[1:]))


def fix(model: KAN, l: int, i: int, j: int, name: str, affine=(1, 0, 1, 0), alone: bool = True) -> None:
    layer = model.layers[l]
    model.symbolic[l].fix(i, j, name, affine)
    if alone:
        mask = torch.ones(layer.in_features, layer.out_features) if layer.mask is None else layer.mask.clone()
        mask[i, j] = 0
        layer.set_mask(mask)
