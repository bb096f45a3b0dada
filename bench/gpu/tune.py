"""The stage ``tune``: ``fastkan.autotune`` on the layers of the bars, whose choices the stage ``speed`` then uses."""

from __future__ import annotations

import time
from typing import Any

import torch

import fastkan

from . import speed
from .bars import Row
from .machine import Place, precision


def tuned(row: Row, place: Place) -> dict[str, Any]:
    """Tune the three contractions of a layer.

    Returns:
        The row's name, the seconds that it took, and fastkan's own words about what it runs.
    """
    start = time.perf_counter()
    material = speed.Material(row, place)
    layer = fastkan.KANLinear(row.inputs, row.outputs, row.grid).to(**material.to)
    with precision(row.dtype), speed.ours(place):
        layer(material.x.requires_grad_()).backward(material.g)
        place.wait()
        words = fastkan.explain(layer, material.x)
    if place.is_gpu:
        torch.cuda.empty_cache()
    return {"name": row.name, "seconds": time.perf_counter() - start, "choices": words}
