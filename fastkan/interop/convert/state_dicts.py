"""``convert_state_dict``: the tensors of a checkpoint, where there is no module."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...network.core import AFFINE
from .layouts import LAYOUTS, PYKAN, Layout, read

_AFFINE = re.compile(rf"({'|'.join(AFFINE)})_(\d+)")


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`fastkan.convert` does, of a state_dict alone.

    Each layer of pykan, efficient-kan or inkan in it is told by the names of its tensors and becomes a
    :class:`fastkan.KANLinear`'s under the same prefix; a pykan network becomes a :class:`fastkan.KAN`'s. Everything
    else stays as it is. A state_dict tells neither base functions, nor what is trained, nor which columns of x are
    read. inkan's keeps no step but starts, rounded to float32: the step is found again where the ends of the range have
    three decimals, else outputs may differ by 1e-6.

    Load it into a model that is made alike, with ``spline_scale=True`` where the source has a scale (pykan always,
    efficient-kan unless told otherwise).

    Args:
        state_dict: of a module, or a part of one.

    Returns:
        A new dictionary, of new tensors where something was converted.

    Raises:
        TypeError: for something that is no dictionary of names.
        ValueError: for tensors that don't fit together, surfaces of inkan's, layers with more tensors than their
            package's have, tensors on meta, knots that coincide, a pykan network with formulas (whose names its
            state_dict doesn't hold: convert the model), and where there is nothing to convert.

    Example:
        >>> source = {"layer.grid_starts": torch.arange(-2.2, 0.9, 0.4), "layer.weight": torch.randn(5, 2 * 8 + 2)}
        >>> {name: list(value.shape) for name, value in convert_state_dict(source).items()}
        {'layer.spline_weight': [8, 2, 5], 'layer.base_weight': [2, 5], 'layer.knots': [2, 12]}
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise TypeError(f"state_dict must be a dictionary of names, got {type(state_dict).__name__}")
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in state_dict.items():
        prefix, dot, last = name.rpartition(".")
        parts[prefix + dot][last] = value
    networks = {inside[1] for prefix in parts if (inside := re.fullmatch(r"((?:.*\.)?)act_fun\.\d+\.", prefix))}
    found: dict[str, Any] = {}
    layers = 0
    for prefix, tensors in parts.items():
        network = max((each for each in networks if prefix.startswith(each)), key=len, default=None)
        try:
            layout = _layout_of(tensors)
            if layout is not None:
                layers += 1
                renamed = prefix if network is None else _renamed(prefix, network)
                read_as = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
                found |= {renamed + name: value for name, value in read(layout, read_as).state().items()}
                found |= {prefix + name: value for name, value in tensors.items() if name not in read_as}
            elif network is not None:
                found |= _of_network(prefix, network, tensors)
            else:
                found |= {prefix + name: value for name, value in tensors.items()}
        except ValueError as error:
            raise ValueError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None
    if not layers:
        raise ValueError(
            "state_dict must hold layers of "
            + ", ".join(f"{each.package} ({', '.join(sorted(each.needed))})" for each in LAYOUTS)
            + "; it has none"
            + "".join(
                f", but a dictionary in {name!r}" for name, value in state_dict.items() if isinstance(value, Mapping)
            )
        )
    for network in networks:
        knots = found.get(f"{network}layers.0.knots")
        if knots is not None:
            found[f"{network}input_id"] = torch.arange(len(knots), device=knots.device)
    return found


def _layout_of(tensors: Mapping[str, Any]) -> Layout | None:
    names = {name for name, value in tensors.items() if isinstance(value, Tensor)}
    for layout in LAYOUTS:
        if layout.needed <= names:
            more = sorted(names - layout.needed - layout.optional)
            if more:
                raise ValueError(f"it has {', '.join(more)}, which {layout.package}'s layer has not")
            return layout
    return None


def _renamed(prefix: str, network: str) -> str:
    return network + re.sub(r"^act_fun\.", "layers.", prefix[len(network) :])


def _of_network(prefix: str, network: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a pykan network has beside its layers."""
    inside = prefix[len(network) :]
    if not inside:
        return {
            network + _AFFINE.sub(r"\1.\2", name): value.clone() if isinstance(value, Tensor) else value
            for name, value in tensors.items()
        }
    formulas = re.fullmatch(r"symbolic_fun\.(\d+)\.", inside)
    if formulas is None:
        raise ValueError(f"{PYKAN.package}'s networks have no such part")
    missing = [name for name in ("affine", "mask") if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    if tensors["mask"].is_meta:
        raise ValueError("mask is on meta, and has no values to convert")
    if bool(tensors["mask"].any()):
        raise ValueError("it has formulas, and no names of their functions: convert the model instead")
    return {}  # as of a layer without formulas
