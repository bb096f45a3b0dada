"""``convert_state_dict``: conversion of the tensors of a checkpoint without the module to which the tensors belong."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...network.core import AFFINE
from .layouts import OLD_PYKAN, PYKAN, Layout, described, layer_tensors, layout_of

_AFFINE = re.compile(rf"({'|'.join(AFFINE)})_(\d+)")


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state_dict of pykan (0.2 or 0.0), efficient-kan or inkan to a state_dict of fastkan.

    Each layer is recognised by the names of its tensors. The tensors of a layer are converted to the state_dict of a
    :class:`fastkan.KANLinear` under the same prefix, and the tensors of a pykan network are converted to the state_dict
    of a :class:`fastkan.KAN`. All other entries are copied unchanged.

    Load the result into a model of the same structure. A state of efficient-kan's ``KAN`` or inkan's ``KANNetwork``
    loads strictly both into a :class:`fastkan.KAN` and into a list ``layers`` of KANLinear. A KANLinear must have
    ``spline_scale=True`` if the source has a scale, as layers of pykan always have and layers of efficient-kan have by
    default; a :class:`fastkan.KAN` has scales, which are 1 if the source has none. A state_dict does not contain the
    base functions, the ``requires_grad`` of the parameters, or the columns that a network reads, so set these values on
    the model. inkan stores knots that are rounded to float32 instead of their exact spacing. The exact spacing is
    recovered if the ends of the range have at most three decimals. Otherwise outputs can differ by up to 1e-6.

    Args:
        state_dict: state_dict of a module or of a part of a module.

    Returns:
        A new dictionary. The tensors of all converted layers are new.

    Raises:
        TypeError: if ``state_dict`` is not a mapping with strings as keys.
        ValueError: if the shapes of tensors do not fit together, if a layer is a surface of inkan or has tensors that
            layers of its package do not have, if a tensor is on the meta device, if knots coincide, or if nothing can
            be converted. A ValueError is also raised if a pykan network has formulas, because a state_dict does not
            contain the names of formulas. In this case, convert the model itself by :func:`fastkan.convert`. A single
            layer of pykan 0.0 does not store its sizes, so only states of its networks are accepted.

    Example:
        >>> source = {"layer.grid_starts": torch.arange(-2.2, 0.9, 0.4), "layer.weight": torch.randn(5, 2 * 8 + 2)}
        >>> {name: list(value.shape) for name, value in convert_state_dict(source).items()}
        {'layer.spline_weight': [8, 2, 5], 'layer.base_weight': [2, 5], 'layer.knots': [2, 12]}
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise TypeError(f"state_dict must be a dictionary with strings as keys, got {type(state_dict).__name__}")
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in state_dict.items():
        prefix, dot, last = name.rpartition(".")
        parts[prefix + dot][last] = value
    networks = {found[1] for found in (re.fullmatch(r"((?:.*\.)?)act_fun\.\d+\.", prefix) for prefix in parts) if found}
    found: dict[str, Any] = {}
    layers = 0
    for prefix, tensors in parts.items():
        network = max((each for each in networks if prefix.startswith(each)), key=len, default=None)
        try:
            layout = _layout_of(tensors)
            if layout is not None:
                layers += 1
                inside = prefix[len(network or "") :]
                renamed = prefix if network is None else network + re.sub(r"^act_fun\.", "layers.", inside)
                read_as = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
                if layout is OLD_PYKAN:
                    read_as["inputs"] = _old_inputs(parts, prefix, tensors["coef"])
                found |= {renamed + name: value for name, value in layer_tensors(layout, read_as).state().items()}
                found |= {prefix + name: value for name, value in tensors.items() if name not in read_as}
            elif network is not None:
                found |= _network_tensors(prefix, network, tensors)
            else:
                found |= {prefix + name: value for name, value in tensors.items()}
        except ValueError as error:
            raise ValueError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None
    if not layers:
        inner = [f", but a dictionary under {name!r}" for name, each in state_dict.items() if isinstance(each, Mapping)]
        raise ValueError(f"state_dict must hold layers of {described()}; it has none{''.join(inner)}")
    for network in networks:
        knots = found.get(f"{network}layers.0.knots")
        if knots is not None:
            found[f"{network}input_id"] = torch.arange(len(knots), device=knots.device)
    return found


def _layout_of(tensors: Mapping[str, Any]) -> Layout | None:
    read = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    layout = layout_of(read)
    more = [] if layout is None else sorted(read.keys() - layout.required - layout.optional)
    if layout is not None and more:
        raise ValueError(f"it has {', '.join(more)}, which {layout.package}'s layer does not have")
    return layout


def _old_inputs(parts: Mapping[str, Mapping[str, Any]], prefix: str, coef: Tensor) -> Tensor:
    """Return the number of inputs of a layer of pykan 0.0, which stores an entry for each edge. The number of outputs
    is that of the biases of the network."""
    network, name, place = prefix.rpartition("act_fun.")
    bias = parts.get(f"{network}biases.{place}", {}).get("weight") if name else None
    if not isinstance(bias, Tensor) or bias.ndim != 2 or not bias.shape[1]:
        raise ValueError(
            "a layer of pykan 0.0 has an entry for each edge, and its sizes are not in a state_dict without biases of "
            "the network: convert the module itself by fastkan.convert"
        )
    return torch.tensor(len(coef) // bias.shape[1])


def _network_tensors(prefix: str, network: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the tensors of a pykan network that do not belong to its spline layers."""
    inside = prefix[len(network) :]
    if not inside:
        return {
            network + _AFFINE.sub(r"\1.\2", name): value.clone() if isinstance(value, Tensor) else value
            for name, value in tensors.items()
        }
    bias = re.fullmatch(r"biases\.(\d+)\.", inside)
    if bias is not None:  # pykan 0.0 has no other affine maps
        value = tensors["weight"][0]
        maps = {"node_bias": value, "node_scale": torch.ones_like(value), "subnode_scale": torch.ones_like(value),
                "subnode_bias": torch.zeros_like(value)}  # fmt: skip
        return {f"{network}{name}.{bias[1]}": each.clone() for name, each in maps.items()}
    formulas = re.fullmatch(r"symbolic_fun\.(\d+)\.", inside)
    if formulas is None:
        raise ValueError(f"{PYKAN.package}'s networks have no submodule of this name")
    missing = [name for name in ("affine", "mask") if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise ValueError(f"it lacks {' and '.join(missing)}")
    if tensors["mask"].is_meta:
        raise ValueError("mask is on the meta device and has no values to convert")
    if bool(tensors["mask"].any()):
        raise ValueError("it has formulas, whose names are not in a state_dict: convert the model instead")
    return {}  # the state_dict of a ``SymbolicEdges`` without formulas is empty
