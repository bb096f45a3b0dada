"""Tables of the arguments and attributes of pykan and efficient-kan that fastkan lacks, with their replacements."""

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
ON_DEMAND = "activations are computed when get_act is called"


class Renamed(NamedTuple):
    """The table entry of an old argument that has a different name in fastkan."""

    name: str


class Refused(NamedTuple):
    """The table entry of an old argument that raises an error, because ignoring the argument would change the result.

    The field ``instead`` contains the code that replaces the argument.
    """

    instead: str


Old = Mapping[str, "str | Renamed | Refused"]  # a str contains the reason why the argument is ignored

# The table maps each argument of KAN() in older versions of pykan that fastkan ignores to the reason.
IGNORED: dict[str, str] = {
    "bias_trainable": "affine_trainable says whether the nodes' scale and bias are trained",
    "ckpt_path": f"no file is written unless you call save; {IN_MEMORY}",
    "first_init": "a model is always made from its arguments alone",
    "noise_scale_base": "scale_base_mu and scale_base_sigma say how the base functions' weights are drawn",
    "round": NO_NUMBER,
    "save_act": ON_DEMAND,
    "state_id": NO_NUMBER,
    "symbolic_enabled": "the symbolic branch costs nothing while no edge is symbolic",
}
# The table maps each argument of efficient-kan's KAN to the name of the argument in fastkan.
OTHER_NAMES = {"layers_hidden": "width", "grid_size": "grid", "spline_order": "k", "base_activation": "base_fun"}

NO_LOG = {"log_history": f"nothing is logged; {IN_MEMORY}"}
OLD: dict[str, Old] = {  # the table maps the name of each method to its old arguments
    "fit": {
        "device": "the model is where model.to(device) has put it, and the data are moved there",
        "sglr_avoid": Renamed("singularity_avoiding"),
        "small_mag_threshold": "the penalty counts small edges as they are",
        "small_reg_factor": "the penalty counts small edges as they are",
    },
    "attribute": {"plot": "nothing is drawn; model.plot() draws the network with its scores"},
    "expand_width": {"perturb": "edges into new nodes have random parameters; model.perturb() switches more edges on"},
    "plot": {
        "in_vars_offset": "names are placed without overlaps",
        "out_vars_offset": "names are placed without overlaps",
    },
    "prune": {
        "threshold": Renamed("node_th"),
        "mode": Refused("prune_node(mode='manual', active_neurons_id=...)"),
        "active_neurons_id": Refused("prune_node(mode='manual', active_neurons_id=...)"),
    },
    "set_mode": {"mask_n": "a mask is 0 or 1"},
    "symbolic_formula": {"floating_digit": "digits rounds the numbers, and so does ex_round(formula, n_digit)"},
}

# The table maps each attribute of pykan's models that does not exist in fastkan to an explanation for error messages.
INSTEAD: dict[str, str] = {
    "samples": "model.sample has the rows of the last fit",
    "check_edge": "every method checks the edge that it is given",
    **dict.fromkeys(("acts", "spline_preacts"), "model.get_act(x)[l].nodes has the inputs of layer l"),
    "acts_premult": "model.get_act(x)[l].subnodes has the sums of layer l's edges",
    "spline_postacts": "model.get_act(x)[l].edges has every edge's values",
    "spline_postsplines": "model.get_act(x)[l].edges has every edge's values, the base function in them",
    **dict.fromkeys(
        ("edge_actscale", "acts_scale", "acts_scale_spline"),
        "model.get_act(x)[l].edges.std(0) has every edge's standard deviation, and model.get_reg(x=x) is the penalty",
    ),
    "subnode_actscale": "model.get_act(x)[l].subnodes.std(0) has every subnode's standard deviation",
    **dict.fromkeys(
        ("node_scores_all", "edge_scores_all", "subnode_scores_all"), "model.attribute(l) has the scores for each node"
    ),
    "node_attribute_scores": "model.node_attribute() returns them",
    "affine_trainable": "model.node_scale[0].requires_grad has it",
    "sb_trainable": "model.layers[0].base_weight.requires_grad has it",
    "sp_trainable": "model.layers[0].spline_scale.requires_grad has it",
    **dict.fromkeys(("base_fun", "base_fun_name"), "model.layers[0].base has its name"),
    "biases": "model.node_bias has them",
    "grid_range": "model.layers[l].knots has the grids",
    "mask": "model.layers[l].mask says which edges are on, and model.prune_mask which ones prune() keeps",
    "symbolic_enabled": IGNORED["symbolic_enabled"],
    "save_act": ON_DEMAND,
    "ckpt_path": f"no file is written unless you call save; {IN_MEMORY}",
    **dict.fromkeys(("save_ckpt", "load_ckpt"), "model.save(path) writes a file, and KAN.load(path) reads it"),
    "clear_ckpts": f"there are no files to clear; {IN_MEMORY}",
    "initialize_grid_from_another_model": "model.initialize_from_another_model(another, x) copies grids and functions",
    "disable_symbolic_in_fit": 'model.fit(dataset, train=("spline", "base", "scale")) leaves formulas unchanged',
    **dict.fromkeys(("lock", "unlock"), "edges cannot share their functions here"),
}


def check_unused(function: str, unused: Mapping[str, Any]) -> None:
    """Issue a warning for each old argument that is ignored.

    Args:
        function: the name of the function or class, for messages.
        unused: the keyword arguments of a call that are not parameters of the function.

    Raises:
        TypeError: if an argument is unknown, or has a different name in fastkan.
    """
    for name in unused:
        if name not in IGNORED:
            here = f"; it is {OTHER_NAMES[name]} here" if name in OTHER_NAMES else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{here}")
    for name in unused:
        warn(f"{name} has no meaning here: {IGNORED[name]}")


class BaseFunction(Choice):
    """An argument kind that accepts the name of a base function, or the module that older versions of pykan accept."""

    def read(self, name: str, value: Any) -> str:
        if isinstance(value, nn.SiLU) or value is nn.functional.silu:
            value = "silu"
        if (isinstance(value, nn.GELU) and value.approximate == "none") or value is nn.functional.gelu:
            value = "gelu"
        return super().read(name, "identity" if isinstance(value, nn.Identity) else value)


def method(function: Fn, makes_version: bool = True) -> Fn:
    """Return a method that calls a function of a model, and that also accepts old arguments with a warning.

    If the model keeps versions, the method adds a version of the model after each call.

    Args:
        function: a function whose first parameter is the model.
        makes_version: whether a call adds a version, which is needed if the function changes the model or returns a
            changed copy.
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
    """Rename old arguments to their current names, and remove arguments that are ignored."""
    translated = {name: value for name, value in options.items() if name not in old}
    for name in options.keys() & old.keys():
        entry = old[name]
        if isinstance(entry, Refused):
            raise TypeError(f"{function}() has no argument {name!r} here: use {entry.instead}")
        if isinstance(entry, Renamed):
            if entry.name in translated:
                raise TypeError(f"{function}() got both {name!r} and {entry.name!r}, which are the same")
            translated[entry.name] = options[name]
        warn(f"{name} is {entry.name} here" if isinstance(entry, Renamed) else f"{name} has no meaning here: {entry}")
    return translated
