"""``replace_linear``: replacement of linear layers by KAN layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastkan_kernels import BASE, FLAG, ORDER, Bounds, Instance, Int, Optional, check_dtype, checked, kind_of, warn

from ..functional import OUTSIDE, rows_of
from ..layers.edge_functions import has_hooks
from ..layers.linear import KANLinear
from ..layers.tables import table
from .attribute_reads import attribute_reads
from .references import check_unwrapped, is_compiled, references

Select = str | type | Callable[[str, nn.Module], bool]
# The class ``Conv1D`` of transformers, the linear layer of GPT-2. It is recognised by name: transformers is optional.
_CONV1D = ("transformers.pytorch_utils", "Conv1D")
# Attributes of the linear layers that a KANLinear does not have.
_MISSING = ("weight", "nf", "nx")


class Replacement(NamedTuple):
    """The outcome of :func:`replace_linear` for one linear layer, or for one parameter that holds several layers.

    Args:
        name: qualified names of the linear layer, separated by commas.
        in_features, out_features: sizes of the linear layer.
        before: number of parameters of the linear layer.
        after: number of parameters of the new KAN layer, or 0 if the linear layer was kept.
        kept_because: the reason why the linear layer was kept, or None if the layer was replaced.
    """

    name: str
    in_features: int
    out_features: int
    before: int
    after: int
    kept_because: str | None


class ReplacementReport(list[Replacement]):
    """A list with a :class:`Replacement` for each selected linear layer. The list is printed as a table."""

    @property
    def replaced(self) -> list[Replacement]:
        """The entries of the layers that were replaced."""
        return [entry for entry in self if entry.kept_because is None]

    def __str__(self) -> str:
        rows = [["linear", "sizes", "parameters", "now"]]
        for entry in self:
            now = f"{entry.after}" if entry.kept_because is None else f"stays: {entry.kept_because}"
            rows.append([entry.name, f"{entry.in_features} to {entry.out_features}", f"{entry.before}", now])
        return "\n".join([table("lrrr", *rows), repr(self)])

    def __repr__(self) -> str:
        done = self.replaced
        before, after = sum(entry.before for entry in done), sum(entry.after for entry in done)
        count = f"{len(done)} of {len(self)}"
        return f"{count} linear layers replaced by KAN layers, which have {after} instead of {before} parameters"


@checked(
    model=Instance(nn.Module), grid_size=Int(least=1), spline_order=ORDER, grid_range=Bounds(), base=BASE,
    bias=Optional(FLAG), spline_scale=FLAG, outside=OUTSIDE,
)  # fmt: skip
@torch.inference_mode(False)
def replace_linear(
    model: nn.Module,
    select: Select | Sequence[Select] | None = None,
    *,
    grid_size: int = 5,
    spline_order: int = 3,
    grid_range: tuple[float, float] = (-1.0, 1.0),
    base: str = "silu",
    bias: bool | None = None,
    spline_scale: bool = False,
    outside: str = "zero",
    sample: Any = None,
) -> ReplacementReport:
    """Replace linear layers of a model in place by new, untrained KAN layers.

    Linear layers are ``nn.Linear`` and the ``Conv1D`` of Hugging Face transformers, which GPT-2 consists of. A layer
    that is used in several places becomes one KAN layer. The following layers are kept, and the report gives the reason
    for each of them.

    - layers whose weights are read by other modules, which are the projections of ``nn.MultiheadAttention``, layers
      with tied weights, layers inside PEFT's adapters, and layers whose attribute ``weight`` a method of the model
      reads, as T5's feed-forward block does (``self.wo.weight.dtype``);
    - layers that something outside the tree of submodules would still call, such as a lambda or a plain list in an
      attribute;
    - layers that no KAN layer can replace, which are lazy layers whose sizes are not known yet, layers with integer
      weights, and layers inside ``torch.compile``;
    - layers of a subclass that may compute something else than a linear layer, because it has its own ``forward``, or
      other parameters or buffers than ``weight`` and ``bias``, unless ``select`` is or contains this subclass itself;
    - parameters with the weights of several layers, such as the fused experts of Mixtral, if a pattern matches them.

    Code that reads ``weight`` through a variable, or passes the input as the keyword ``input=``, cannot be found
    without a call of the model. If a ``sample`` is given, the model is called with it, and is left unchanged if the
    call fails. Without a sample, use ``select`` to exclude layers that such code uses. The fused inference of
    ``nn.TransformerEncoder`` reads the weights of its ``nn.Linear`` layers. If a layer of an ``nn.TransformerEncoder``
    is replaced, fused inference is switched off.

    The parameters are new and trainable, so create the optimizer, and wrap the model for distributed training, after
    the replacement. If an optimizer groups parameters by class or name, add the new parameters to its groups: a
    KANLinear has ``spline_weight`` and ``base_weight``, to which weight decay may be applied, and optionally
    ``spline_scale`` and ``bias``. For ``save_pretrained`` of transformers see :mod:`fastkan.interop.transformers`.

    Args:
        model: a module that contains linear layers.
        select: the linear layers to replace (default: all layers). The layers are given by a pattern of qualified names
            (``"blocks.*.mlp.*"``), by a class of linear layers, by a function of the name and the layer that returns a
            bool, or by a list of patterns, classes and functions.
        grid_size, spline_order, grid_range, base, spline_scale, outside: arguments of the new :class:`KANLinear`
            layers.
        bias: whether the new layers have a bias. If None, a new layer has a bias if the linear layer had one.
        sample: input with which the model is called once, in order to adapt the grid of each new layer to the inputs of
            the layer. The sample is a tensor, or a tuple or mapping of arguments. A layer that receives no input keeps
            its grid. Without a sample, the inputs of the new layers should lie in ``grid_range``: after a LayerNorm,
            (-3, 3) contains 99.7% of normally distributed inputs.

    Returns:
        A list with a :class:`Replacement` for each selected layer. The list is printed as a table.

    Raises:
        TypeError: if ``model``, ``select`` or ``sample`` has the wrong type.
        ValueError: if ``model`` is itself a linear layer; if ``select`` or one of its patterns matches no layer; if
            the model cannot be called with ``sample`` or is on the meta device; if :class:`KANLinear` does not accept
            an argument; or if a wrapper of distributed training contains a selected layer. In these cases the model is
            left unchanged.

    Warns:
        UserWarning: if a replaced layer had hooks, which are lost.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> replace_linear(model, "2", grid_size=8)
        1 of 1 linear layers replaced by KAN layers, which have 194 instead of 18 parameters
    """
    if is_linear(model):
        raise ValueError(f"model must contain linear layers, got a {kind_of(model)}: create a KANLinear of its size")
    if sample is not None and not isinstance(sample, (Tensor, tuple, list, Mapping)):
        raise TypeError(f"sample must be a tensor, or a tuple or mapping of arguments, got {kind_of(sample)}")
    places = linear_layers(model)
    chosen = {id(linear): linear for names, linear in places if any(_matches(select, name, linear) for name in names)}
    selected = [select] if isinstance(select, str) else select if isinstance(select, Sequence) else []
    patterns = [each for each in selected if isinstance(each, str)]
    classes = {each for each in (select, *selected) if isinstance(each, type)}
    fused = _fused_layers(model, patterns)
    known = ", ".join(name for names, _ in places for name in names) or "none"
    if not chosen:
        way = ""
        if fused:
            others = f" and {len(fused) - 1} more" if len(fused) > 1 else ""
            way = (
                f", only {fused[0].name}{others}, which cannot be replaced because {fused[0].kept_because}: replace "
                "the module by one with KANFeedForward blocks"
            )
        raise ValueError(f"select={select!r} matches no linear layer{way}; the model has the linear layers: {known}")
    matched = [name for names, _ in places for name in names] + [entry.name for entry in fused]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in matched):
            raise ValueError(f"select has the pattern {pattern!r}, which matches no linear layer; there are: {known}")
    check_unwrapped(model, chosen.values(), "replace the layers of")
    report, layers, readers = ReplacementReport(fused), {}, _Readers(model, list(chosen.values()))
    for names, linear in places:
        if id(linear) not in chosen:
            continue
        reason = _reason_to_keep(readers, linear)
        if reason is None and type(linear) not in classes:
            reason = _own_computation(linear)
        after = 0
        if reason is None:
            if sample is not None and linear.weight.is_meta:
                raise ValueError(f"sample needs a model with values, but {names[0]} is on the meta device")
            layer = KANLinear(
                *linear_sizes(linear), grid_size, spline_order,
                grid_range=grid_range, base=base, spline_scale=spline_scale, outside=outside,
                bias=linear.bias is not None if bias is None else bias,
                device=linear.weight.device, dtype=linear.weight.dtype,
            )  # fmt: skip
            layers[id(linear)] = layer.train(linear.training)
            after = _count(layer)
        report.append(Replacement(", ".join(names), *linear_sizes(linear), _count(linear), after, reason))
    hooked = [names[0] for names, linear in places if id(linear) in layers and has_hooks(linear)]
    if hooked:
        warn(f"the hooks of {', '.join(hooked)} are lost with the replaced linear layers")
    try:
        with ExitStack() as undo:
            _put_in_place(model, layers, undo)
            if sample is not None:
                _update_grids(model, list(layers.values()), sample)
            undo.pop_all()
    except Exception as error:
        way = ""
        if isinstance(error, AttributeError) and isinstance(error.obj, KANLinear):
            way = f". The model reads {error.name!r} of a linear layer, which a KANLinear lacks: exclude it by select"
        raise ValueError(
            f"sample must be an input that model can be called with; the call raised {error!r}{way}"
        ) from error
    return report


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: an ``nn.Linear``, or a ``Conv1D`` of transformers."""
    return isinstance(module, nn.Linear) or any((c.__module__, c.__name__) == _CONV1D for c in type(module).__mro__)


def linear_sizes(linear: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    inputs, outputs = linear.weight.shape  # The weight of a Conv1D is the transpose of that of an nn.Linear.
    return inputs, outputs


def linear_layers(model: nn.Module) -> list[tuple[list[str], Any]]:
    """Return a list with one pair for each linear layer of a model. The pair consists of the list of all qualified
    names of the layer, and the layer."""
    found: dict[int, tuple[list[str], Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            found.setdefault(id(module), ([], module))[0].append(name)
    return list(found.values())


def _fused_layers(model: nn.Module, patterns: Sequence[str]) -> list[Replacement]:
    """Return an entry for each parameter with the weights of several layers, if a pattern matches the name of the
    parameter or of its module.

    Models with several experts keep the weights of all experts in parameters ``[experts, ..., ...]``. Modules of
    PyTorch and fastkan are skipped, because convolutions and KAN layers have parameters with three dimensions too.
    Parameters ``[1, ..., ...]`` are skipped, because learned embeddings can have this shape.
    """
    found = []
    for place, module in model.named_modules() if patterns else ():
        if type(module).__module__.partition(".")[0] in ("torch", "fastkan"):
            continue
        for own, parameter in module._parameters.items():
            if parameter is None or is_lazy(parameter) or parameter.ndim != 3 or len(parameter) == 1:
                continue
            name = f"{place}.{own}".lstrip(".")
            if any(fnmatchcase(each, pattern) for pattern in patterns for each in (name, place)):
                reason = f"{type(module).__name__} keeps the weights of {len(parameter)} layers in one parameter"
                found.append(Replacement(name, parameter.shape[2], parameter.shape[1], parameter.numel(), 0, reason))
    return found


def _matches(select: Any, name: str, linear: nn.Module) -> bool:
    if select is None:
        return True
    if isinstance(select, str):
        return fnmatchcase(name, select)
    if isinstance(select, type):
        is_conv1d = (select.__module__, select.__name__) == _CONV1D
        if not (issubclass(select, nn.Linear) or is_conv1d):
            raise TypeError(f"select must be a subclass of nn.Linear, or Conv1D, got {select.__name__}")
        return isinstance(linear, select)
    if callable(select) and not isinstance(select, nn.Module):
        return bool(select(name, linear))
    if isinstance(select, Sequence):
        return any(_matches(each, name, linear) for each in select)
    raise TypeError(f"select must be a pattern, a type, a function or a list of these, got {type(select).__name__}")


class _Readers:
    """The other modules of a model that read or call the chosen linear layers. The other modules are determined once
    for all chosen layers, because models can be large."""

    def __init__(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        # Maps the id of each parameter to the names and modules that have the parameter.
        self.owners: dict[int, list[tuple[str, nn.Module]]] = {}
        # Maps the id of each linear layer that another module reads or calls to the reason to keep the layer.
        self.reasons: dict[int, str] = {}
        tree = dict(model.named_modules())
        for name, each in tree.items():
            for parameter in each._parameters.values():
                self.owners.setdefault(id(parameter), []).append((name or "the model", each))
            if isinstance(each, nn.MultiheadAttention):
                self.reasons.update({id(child): f"{name or 'the model'} reads its weight" for child in each.children()})
            if any(cls.__name__ == "BaseTunerLayer" for cls in type(each).__mro__):
                inside = "is inside an adapter of PEFT, which reads its weight"
                self.reasons.update({id(child): f"it {inside}" for child in each.modules() if child is not each})
            if is_compiled(each):
                self.reasons[id(each._modules["_orig_mod"])] = f"{name or 'the model'} is compiled from it"
        for read in attribute_reads(tree, _MISSING):
            self.reasons.setdefault(id(read.module), f"{read.method} reads its {read.attribute}")
        linears = {id(part): each for each in chosen for part in (each, *each._parameters.values())}
        parts = [part for each in chosen for part in (each, *each._parameters.values()) if part is not None]
        owners = {name: each for name, each in tree.items() if id(each) not in linears and not is_compiled(each)}
        for reference in references(owners, tree.values(), parts, copied=False):
            self.reasons.setdefault(id(linears[id(reference.held)]), f"{reference.attribute} holds it as well")


def _reason_to_keep(readers: _Readers, linear: Any) -> str | None:
    """Return the reason why a linear layer must be kept, or None if the layer can be replaced."""
    if id(linear) in readers.reasons:
        return readers.reasons[id(linear)]
    own = [parameter for parameter in linear._parameters.values() if parameter is not None]
    for name, each in (pair for parameter in own for pair in readers.owners[id(parameter)]):
        if each is not linear:
            return f"its weight is also {name}'s"
    if not own or linear._parameters.get("weight") is None:
        return "a parametrization computes its weight"
    if any(is_lazy(parameter) for parameter in linear.parameters(recurse=False)):
        return "its sizes are not known yet: call the model once"
    try:
        check_dtype(linear.weight.dtype)
    except TypeError:
        return f"its weight has the dtype {linear.weight.dtype}"
    return None


def _own_computation(linear: Any) -> str | None:
    """Return what suggests that a layer computes something else than a linear layer, or None."""
    cls: Any = type(linear)
    plain: list[Any] = [nn.Linear, *(each for each in cls.__mro__ if (each.__module__, each.__name__) == _CONV1D)]
    way = f"select the class {cls.__name__} to replace it"
    if "forward" in vars(linear) or cls.forward not in [each.forward for each in plain]:
        return f"it has its own forward: {way}"
    for kind, tensors in (("parameter", linear._parameters), ("buffer", linear._buffers)):
        for name in tensors.keys() - {"weight", "bias"}:
            return f"it has the {kind} {name}: {way}"
    return None


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _put_in_place(model: nn.Module, layers: dict[int, KANLinear], undo: ExitStack) -> None:
    """Put the new layers into the model. The callbacks of ``undo`` restore the linear layers."""

    def put(space: dict[str, Any], name: str, value: Any) -> None:
        undo.callback(space.__setitem__, name, space[name])
        space[name] = value

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in layers:
                put(parent._modules, name, layers[id(child)])
                # The value 0 disables fused inference, which reads the weights of the replaced layer.
                if isinstance(parent, nn.TransformerEncoderLayer):
                    put(parent.__dict__, "activation_relu_or_gelu", 0)
    for each in model.modules():
        if isinstance(each, nn.TransformerEncoder) and any(isinstance(m, KANLinear) for m in each.modules()):
            put(each.__dict__, "use_nested_tensor", False)


@torch.no_grad()
def _update_grids(model: nn.Module, layers: list[KANLinear], sample: Any) -> None:
    """Call the model once with the sample. Before each call of a new layer, the grid of the layer is adapted to all
    inputs that the layer has received so far."""
    seen: dict[nn.Module, Tensor] = {}

    def move(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, KANLinear)
        if not inputs or not inputs[0].numel():
            return
        rows = rows_of(inputs[0], layer.in_features)
        seen[layer] = torch.cat([seen[layer], rows]) if layer in seen else rows
        layer.update_grid(seen[layer])

    hooks = [layer.register_forward_pre_hook(move) for layer in layers]
    training = {id(each): each.training for each in model.modules()}
    model.eval()
    try:
        if isinstance(sample, Mapping):
            model(**sample)
        elif isinstance(sample, (tuple, list)):
            model(*sample)
        else:
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
        for each in model.modules():
            each.training = training[id(each)]
