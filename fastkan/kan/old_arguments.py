"""Names of arguments and attributes that other versions and packages have, and what to write instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn

from fastkan_kernels import Choice, warn

from .versions import Versions

Fn = TypeVar("Fn", bound=Callable[..., Any])

IN_MEMORY = "KAN(auto_save=True) keeps versions in memory, and model.save(path) writes a file"
NO_NUMBER = "versions are numbered from 0.0"
ON_DEMAND = "activations are computed when they are asked for"


class Renamed(NamedTuple):
    """Another name for the same argument."""

    name: str


class Refused(NamedTuple):
    """An argument that would change the result, and what to write instead."""

    instead: str


Old = Mapping[str, "str | Renamed | Refused"]

# arguments of KAN() that older versions of pykan take, or other packages
WITHOUT_MEANING: dict[str, str] = {
    "bias_trainable": "affine_trainable says whether the nodes' scale and bias are trained",
    "ckpt_path": f"nothing is saved behind your back; {IN_MEMORY}",
    "first_init": "a model is always made from its arguments",
    "noise_scale_base": "scale_base_mu and scale_base_sigma say how the base functions' weights are drawn",
    "round": NO_NUMBER,
    "save_act": ON_DEMAND,
    "state_id": NO_NUMBER,
    "symbolic_enabled": "the symbolic branch costs nothing while no edge is symbolic",
}
OF_OTHERS = {"layers_hidden": "width", "grid_size": "grid", "spline_order": "k", "base_activation": "base_fun"}

NO_LOG = {"log_history": f"nothing is logged; {IN_MEMORY}"}
OLD: dict[str, Old] = {
    "fit": {
        "device": "the model is where model.to(device) has put it, and the data are brought there",
        "sglr_avoid": Renamed("singularity_avoiding"),
        "small_mag_threshold": "the penalty counts small edges as they are",
        "small_reg_factor": "the penalty counts small edges as they are",
    },
    "attribute": {"plot": "nothing is drawn; model.plot() draws the network by its scores"},
    "expand_width": {"perturb": "the edges into new nodes are fresh, and model.perturb() brings back more"},
    "plot": {
        "in_vars_offset": "names have a place of their own",
        "out_vars_offset": "names have a place of their own",
    },
    "prune": {
        "threshold": Renamed("node_th"),
        "mode": Refused("prune_node(mode='manual', active_neurons_id=...)"),
        "active_neurons_id": Refused("prune_node(mode='manual', active_neurons_id=...)"),
    },
    "set_mode": {"mask_n": "a mask is 0 or 1"},
    "symbolic_formula": {"floating_digit": "digits rounds the numbers, and so does ex_round(formula, n_digit)"},
}

# attributes that a model of pykan's has
INSTEAD: dict[str, str] = {
    **dict.fromkeys(("acts", "spline_preacts"), "model.get_act(x)[l].nodes has what enters layer l"),
    "acts_premult": "model.get_act(x)[l].subnodes has the sums of layer l's edges",
    "spline_postacts": "model.get_act(x)[l].edges has every edge's values",
    "spline_postsplines": "model.get_act(x)[l].edges has every edge's values, the base function in them",
    **dict.fromkeys(
        ("edge_actscale", "acts_scale", "acts_scale_spline"), "model.get_act(x)[l].edges.std(0) has every edge's spread"
    ),
    "subnode_actscale": "model.get_act(x)[l].subnodes.std(0) has every subnode's spread",
    **dict.fromkeys(
        ("node_scores_all", "edge_scores_all", "subnode_scores_all"), "model.attribute(l) has the scores for each node"
    ),
    "node_attribute_scores": "model.node_attribute() returns them",
    "affine_trainable": "model.node_scale[0].requires_grad says it",
    "sb_trainable": "model.layers[0].base_weight.requires_grad says it",
    "sp_trainable": "model.layers[0].spline_scale.requires_grad says it",
    **dict.fromkeys(("base_fun", "base_fun_name"), "model.layers[0].base has its name"),
    "biases": "model.node_bias has them",
    "grid_range": "model.layers[l].knots has the grids",
    "mask": "model.layers[l].mask has what is on, and model.prune_mask what prune() would keep",
    "symbolic_enabled": WITHOUT_MEANING["symbolic_enabled"],
    "save_act": ON_DEMAND,
    "ckpt_path": f"nothing is saved behind your back; {IN_MEMORY}",
    **dict.fromkeys(("save_ckpt", "load_ckpt"), "model.save(path) writes a file, and KAN.load(path) reads it"),
    "clear_ckpts": f"there are no files to clear; {IN_MEMORY}",
    "initialize_grid_from_another_model": "model.initialize_from_another_model(another, x) brings grids and functions",
    "disable_symbolic_in_fit": 'model.fit(dataset, train=("spline", "base", "scale")) leaves formulas alone',
    **dict.fromkeys(("lock", "unlock"), "edges can't be tied to one another here"),
    "regularization_loss": "model.get_reg() is the penalty that fit(lamb=...) adds",
}


def check_unused(function: str, unused: Mapping[str, Any]) -> None:
    """Warn of a class's arguments that have no meaning here.

    Raises:
        TypeError: for those that nobody knows, or that have another name here.
    """
    for name in unused:
        if name not in WITHOUT_MEANING:
            here = f"; it is {OF_OTHERS[name]} here" if name in OF_OTHERS else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{here}")
    for name in unused:
        warn(f"{name} has no meaning here: {WITHOUT_MEANING[name]}")


class BaseFunction(Choice):
    """The name of a base function, or a module that older versions take for it."""

    def read(self, name: str, value: Any) -> str:
        if isinstance(value, nn.SiLU) or value is nn.functional.silu:
            value = "silu"
        return super().read(name, "identity" if isinstance(value, nn.Identity) else value)


def method(function: Fn, makes_version: bool = True) -> Fn:
    """A method of a network: older arguments are taken with a warning, and a version is kept where that is asked for.

    Args:
        function: of a model and other arguments.
        makes_version: whether it changes the model, or returns a changed one.
    """
    old = {**NO_LOG, **OLD.get(function.__name__, {})}

    @functools.wraps(function)
    def call(model: Any, *args: Any, **options: Any) -> Any:
        if options and not old.keys().isdisjoint(options):
            options = _translated(function.__name__, old, options)
        versions: Versions | None = model.__dict__.get("versions") if makes_version else None
        if versions is None:
            return function(model, *args, **options)
        with versions.making():
            result = function(model, *args, **options)
        versions.add(cast(Any, result if isinstance(result, nn.Module) else model))
        return result

    return cast(Fn, call)


def _translated(function: str, old: Old, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments under the names that they have here."""
    found = {name: value for name, value in options.items() if name not in old}
    for name in options.keys() & old.keys():
        known = old[name]
        if isinstance(known, Refused):
            raise TypeError(f"{function}() has no argument {name!r} here: use {known.instead}")
        if isinstance(known, Renamed):
            if known.name in found:
                raise TypeError(f"{function}() got both {name!r} and {known.name!r}, which are the same")
            found[known.name] = options[name]
            message = f"{name} is {known.name} here"
        else:
            message = f"{name} has no meaning here: {known}"
        warn(message)
    return found
