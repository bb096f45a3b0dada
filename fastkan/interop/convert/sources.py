"""Recognition of the layers and networks of other packages, and checks that a converted module can compute the same
function.

The packages need not be installed. Their own classes are recognised by the names of their Python module and of the
class. Copies of their files, which have other names and changes, are recognised by their tensors and submodules, and
their outputs are compared with those of the converted module.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fastkan_kernels import BASE_FUNCTIONS, base_function, warn

from ...kan import KAN
from ...layers.edge_functions import has_hooks
from ...layers.linear import KANLinear
from ...network.core import AFFINE
from .guesses import may_be_knots
from .layouts import EFFICIENT_KAN, FROM_SPLINES, INKAN, OLD_PYKAN, PYKAN, Layout, layout_of

SAME_TENSORS = "it has the tensors of a class that fastkan can represent"
MAX_DIFFERENCE = 1e-9  # Maximum relative difference at which outputs and gradients in float64 count as equal.
# The same for layers that cannot be called in float64, in which it is also the maximum difference of values near 0.
MAX_NARROW_DIFFERENCE = 1e-4
NEAR_POINTS = torch.linspace(-6, 6, 97, dtype=torch.float64)
FAR_POINTS = torch.tensor([-1e3, -100, -30, -10, 10, 30, 100, 1e3], dtype=torch.float64)
# The rows on which outputs are compared: the number of rows, and the factor by which their range is wider than the
# knots.
COMPARED_ROWS = ((64, 1.0), (16, 3.0), (8, 100.0))
RANDOM_SCALE = 0.3  # Standard deviation of the random parameters with which outputs are compared.


class SourceKind(Enum):
    """The classes that :func:`fastkan.convert` converts."""

    PYKAN_NETWORK = "pykan's MultKAN"
    PYKAN_LAYER = "pykan's KANLayer"
    OLD_PYKAN_NETWORK = "pykan 0.0's KAN"
    OLD_PYKAN_LAYER = "pykan 0.0's KANLayer"
    EFFICIENT_KAN_NETWORK = "efficient-kan's KAN"
    EFFICIENT_KAN_LAYER = "efficient-kan's KANLinear"
    INKAN_NETWORK = "inkan's KANNetwork"
    INKAN_LAYER = "inkan's KANLayer"

    @property
    def is_network(self) -> bool:
        """Whether the class is a network, which contains layers."""
        return self.name.endswith("NETWORK")

    @property
    def is_chain(self) -> bool:
        """Whether the class is a network that does nothing but call its layers one after another, so that it can also
        call converted layers."""
        return self in (SourceKind.EFFICIENT_KAN_NETWORK, SourceKind.INKAN_NETWORK)

    @property
    def returns_four(self) -> bool:
        """Whether the class is a layer that returns four tensors, of which a converted layer returns the first."""
        return self in (SourceKind.PYKAN_LAYER, SourceKind.OLD_PYKAN_LAYER)

    @property
    def package(self) -> str:
        """The name of the package."""
        return self.value.partition("'")[0]


# The classes of the packages themselves, whose outputs need not be compared. efficient-kan is a file that people copy
# and change, often without renaming its module, so its classes are not in the list.
TRUSTED = {
    ("kan.MultKAN", "MultKAN"), ("kan.KAN", "KAN"), ("kan.KANLayer", "KANLayer"),
    ("inkan.layer", "KANLayer"), ("inkan.network", "KANNetwork"),
}  # fmt: skip
_LAYERS = {
    EFFICIENT_KAN.package: SourceKind.EFFICIENT_KAN_LAYER, INKAN.package: SourceKind.INKAN_LAYER,
    PYKAN.package: SourceKind.PYKAN_LAYER, OLD_PYKAN.package: SourceKind.OLD_PYKAN_LAYER,
}  # fmt: skip

# Classes whose edges are not B-splines, with a description of the edges. No fastkan layer can compute the functions of
# these classes.
OTHER_BASES = {
    **dict.fromkeys(
        ("FastKAN", "FastKANLayer", "AttentionWithFastKANTransform", "RadialBasisFunction"),
        "Gaussian radial basis functions",
    ),
    **dict.fromkeys(("FasterKAN", "FasterKANLayer"), "reflectional switch functions"),
    "ReLUKANLayer": "products of ReLUs",
    "ChebyKANLayer": "Chebyshev polynomials",
    "JacobiKANLayer": "Jacobi polynomials",
    "NaiveFourierKANLayer": "Fourier series",
}


def source_kind(module: nn.Module) -> SourceKind | None:
    """Return the class of a module as a :class:`SourceKind`, or None if the module need not be converted.

    A layer is recognised by the names of its tensors, under any class name, and a network by its submodules.

    Raises:
        ValueError: if the module has the name of a KAN layer whose edges are not B-splines, or efficient-kan's name
            without its tensors.
    """
    cls = type(module)
    if issubclass(cls, (KAN, KANLinear)):
        return None
    found = _kind(module)
    if found is not None:
        return found
    full_name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__name__ in OTHER_BASES:
        raise ValueError(f"{full_name} is made of {OTHER_BASES[cls.__name__]}: no B-splines compute the same functions")
    if cls.__name__ == "KANLinear" and not any(_kind(each) for each in module.modules()):
        raise ValueError(
            f"{full_name} lacks tensors of efficient-kan's KANLinear, which has grid and spline_weight; it has "
            f"{', '.join(sorted(tensors_of(module))) or 'none'}. {FROM_SPLINES}"
        )
    return None


def _kind(module: nn.Module) -> SourceKind | None:
    if isinstance(module, (KAN, KANLinear)):
        return None
    cls, parts = type(module), dict(module._modules.items())  # torch.jit has another type, with fewer methods
    if {"act_fun", "symbolic_fun"} <= parts.keys():
        if all(hasattr(module, name) for name in AFFINE):
            return SourceKind.PYKAN_NETWORK
        return SourceKind.OLD_PYKAN_NETWORK if "biases" in parts else None
    if (cls.__module__, cls.__name__) == ("inkan.network", "KANNetwork"):
        return SourceKind.INKAN_NETWORK
    if cls.__name__ == "KAN" and list(parts) == ["layers"]:
        held = parts["layers"]
        layers = list(held) if isinstance(held, (nn.ModuleList, nn.Sequential)) else []
        if layers and all(_kind(layer) is SourceKind.EFFICIENT_KAN_LAYER for layer in layers):
            return SourceKind.EFFICIENT_KAN_NETWORK
    layout = layout_of(tensors_of(module))
    return None if layout is None else _LAYERS[layout.package]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module itself, and the tensors that are plain attributes."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_leaf}
    held = {**plain, **module._parameters, **module._buffers}
    return {name: value for name, value in held.items() if value is not None}


def is_copy(module: nn.Module) -> bool:
    """Whether a module may compute something other than the class that it is recognised as, so that its outputs must
    be compared with those of the converted module."""
    return (type(module).__module__, type(module).__name__) not in TRUSTED


def near_misses(module: nn.Module) -> str:
    """Return a description of the submodules that look like KAN layers, for an error message, or an empty string."""
    found = [
        f"{name or 'the module'}, a {type(each).__name__} with {', '.join(sorted(tensors_of(each)))}"
        for name, each in module.named_modules()
        if re.search("kan|spline", type(each).__name__, re.IGNORECASE) and tensors_of(each)
    ]
    return f". Not recognised: {'; '.join(found[:3])}. {FROM_SPLINES}" if found else ""


# -- checks -----------------------------------------------------------------------------------------


def base_of(function: Callable[[Tensor], Tensor], name: str) -> str:
    """Return the name of the fastkan base function that computes the same values as ``function``."""
    shown = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", function)
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ValueError(f"{name}={shown} has parameters, which a base function cannot have")
    z = torch.cat([NEAR_POINTS, FAR_POINTS])
    given = z.clone()
    try:
        values = function(given)
    except Exception as error:
        raise ValueError(f"{name}={shown} cannot be called with float64: {error}") from error
    if not torch.equal(given, z):
        raise ValueError(f"{name}={shown} changes its input in place; a base function must leave it unchanged")
    for base in BASE_FUNCTIONS:
        expected = 0 * z if base == "none" else base_function(z, base)
        if isinstance(values, Tensor) and values.shape == z.shape and torch.allclose(values, expected, 1e-12, 1e-12):
            return base
    raise ValueError(
        f"{name}={shown} is none of the base functions silu, gelu, identity and zero. Make a KANLinear without a base "
        "function by KANLinear.from_splines without base_weight, and add F.linear(base(x), weight) to its output"
    )


def check_layers(source: nn.Module, parts: Iterable[nn.Module], kind: SourceKind) -> None:
    """Check that a network uses the ``forward`` of its class and that all its layers are of the class ``kind``."""
    _check_forward(source)
    if not kind.returns_four and source._parameters:
        raise ValueError(
            f"it has the parameter {next(iter(source._parameters))}, which {kind.package}'s network does not have"
        )
    for place, part in enumerate(parts):
        if source_kind(part) is not kind:
            raise ValueError(f"its layer {place} must be {kind.value}, got a {type(part).__name__}")


def _check_forward(source: nn.Module) -> None:
    if "forward" in source.__dict__:
        raise ValueError("its forward was replaced on the instance, so it may compute something else")


def check_tensors(source: nn.Module, layout: Layout) -> None:
    """Check that a layer uses the ``forward`` of its class, has the tensors of its package's layout, and requires
    gradients only for tensors that fastkan can train."""
    _check_forward(source)
    held = tensors_of(source)
    known = layout.required | layout.optional
    if layout.required - held.keys():
        raise ValueError(f"it lacks {', '.join(sorted(layout.required - held.keys()))}")
    more = [name for name, _ in source.named_parameters() if name not in known]
    if more:
        raise ValueError(f"it has the parameter {more[0]}, which {layout.package}'s layer does not have")
    for name in sorted(known & held.keys() - set(layout.parameters.values())):
        if held[name].requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but fastkan cannot train it: call {name}.requires_grad_(False) first"
            )
    dtypes = {str(held[name].dtype) for name in layout.parameters.values() if name in held}
    if len(dtypes) > 1:
        raise ValueError(f"its parameters must have one dtype, got {' and '.join(sorted(dtypes))}")


def check_unshared(module: nn.Module, sources: dict[str, nn.Module]) -> None:
    """Check that no module shares a parameter with a module that will be converted. After the conversion, the two
    modules would have separate parameters."""
    inside = {id(each) for source in sources.values() for each in source.modules()}
    first: dict[int, tuple[nn.Module, str]] = {}
    for name, each in module.named_modules():
        for parameter in each._parameters.values():
            if parameter is None:
                continue
            known, known_name = first.setdefault(id(parameter), (each, name))
            if known is not each and (id(each) in inside or id(known) in inside):
                shown = known_name or "module"
                raise ValueError(f"{shown} and {name} share a parameter, which conversion would separate")


def warn_of_hooks(source: nn.Module) -> None:
    """Warn if a module that will be converted, or one of its parameters, has hooks, because hooks are not converted."""
    for each in source.modules():
        own = each._parameters.values()
        if has_hooks(each) or any(p is not None and p._backward_hooks for p in own):
            warn(f"the hooks of a {type(each).__name__} are not converted")
            return


@torch.no_grad()
def check_same_outputs(
    source: nn.Module, new: nn.Module, build: Callable[[nn.Module], nn.Module], briefly: bool = False
) -> None:
    """Check that the original module and its conversion ``new`` by ``build`` compute the same.

    Outputs are compared in training mode and in evaluation mode, inside and outside of the grid, for a single row, and
    for inputs with three dimensions. Gradients with respect to the inputs and the parameters are compared as well.
    Because parameters that are 0 or 1 can hide a difference, a copy of the original with random parameters is compared
    with its conversion too. Copies in float64 are compared if the module can be called with float64. If ``briefly`` is
    True, only the outputs of the original and of ``new`` are compared.

    Raises:
        ValueError: if the outputs or gradients differ, if the module cannot be called, or if it draws random numbers.

    Warns:
        UserWarning: if the module returns the rows of inputs with three dimensions in one dimension.
    """
    is_double = _dtype(new).itemsize == 8
    wide = source if is_double else _copy_of(source).double()
    is_narrow = _dtype(new).itemsize >= 4 and not _computes_in_double(wide, _columns(new))
    if not (is_narrow or is_double):
        source, new = wide, build(wide)
    _compare(source, new, is_narrow)
    if briefly:
        return
    changed = _copy_of(source)
    generator = torch.Generator().manual_seed(1)
    for each in changed.modules():
        for name, parameter in each._parameters.items():
            if parameter is None or not parameter.is_floating_point() or name in ("grid", "mask", "affine"):
                continue
            if parameter.requires_grad or not may_be_knots(parameter):
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = (RANDOM_SCALE * random).to(parameter)
    as_ours = build(changed)
    x = _compare(changed, as_ours, is_narrow)
    with torch.autocast(x.device.type, enabled=False):
        _compare_shapes(changed, as_ours, x, is_narrow)
        _compare_gradients(changed, as_ours, x, is_narrow)


def _dtype(new: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in new.parameters())


def _columns(new: Any) -> int:
    """Return the number of columns of the inputs of a layer or network."""
    return int(new.in_features)


def _computes_in_double(wide: nn.Module, columns: int) -> bool:
    """Whether a module with float64 parameters can be called with float64 and returns float64."""
    device = next(wide.parameters()).device
    try:
        return _outputs_of(wide, torch.zeros(2, columns, dtype=torch.float64, device=device), False).dtype.itemsize == 8
    except ValueError:
        return False


def _differs(how: str) -> ValueError:
    return ValueError(f"{SAME_TENSORS}, but {how}. {FROM_SPLINES}")


def _compare(source: nn.Module, new: nn.Module, is_narrow: bool) -> Tensor:
    """Compare the outputs for random rows, in training mode and in evaluation mode. Return the rows."""
    first = new.layers[0] if isinstance(new, KAN) else new
    assert isinstance(first, KANLinear)
    columns = _columns(new)
    low, high = (first.knots.min().item(), first.knots.max().item()) if first.in_features else (-1.0, 1.0)
    generator, blocks = torch.Generator().manual_seed(0), []
    for rows, factor in COMPARED_ROWS:
        unit = torch.rand(rows, columns, generator=generator, device="cpu", dtype=torch.float64) - 0.5
        blocks.append((low + high) / 2 + factor * (high - low) * unit)
    x = torch.cat(blocks).to(first.knots.device, _dtype(new))
    accelerators = [x.device] if x.is_cuda else []

    def random_states() -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in accelerators)]

    with torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices=accelerators):
        got = new(x)
        for training in (False, True):
            before = random_states()
            wanted = _outputs_of(source, x, training)
            if not all(map(torch.equal, before, random_states())):
                raise ValueError(
                    "it draws random numbers, as dropout does, but a converted layer does not: convert it with a "
                    "dropout of 0, and put an nn.Dropout in front of or behind the new layer"
                )
            if not _are_close(wanted, got, is_narrow):
                raise _differs("computes something else" + " in training mode" * training)
    return x


def _are_close(wanted: Tensor, got: Tensor, is_narrow: bool) -> bool:
    """Whether tensors with a row for each of the compared rows are equal up to rounding. The rows of each range have a
    tolerance of their own, because outputs far outside of the grid are larger."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    sizes = [rows for rows, _ in COMPARED_ROWS]
    parts = zip(wanted.split(sizes), got.split(sizes)) if len(wanted) == sum(sizes) else [(wanted, got)]
    for theirs, ours in parts:
        finite = theirs[theirs.isfinite()].abs()
        largest = finite.max().item() if len(finite) else 0.0
        tolerance = MAX_NARROW_DIFFERENCE * (1 + largest) if is_narrow else MAX_DIFFERENCE * (1e-3 + largest)
        if not torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def _compare_shapes(source: nn.Module, new: nn.Module, x: Tensor, is_narrow: bool) -> None:
    """Compare the outputs for one row, and for inputs with three dimensions, if both modules can be called with them.
    A module may treat such inputs in its own way."""
    for given in (x[:1], x[:10].unflatten(0, (2, 5))):
        try:
            got = new(given)
            with warnings.catch_warnings():  # pykan warns of the standard deviation of one row
                warnings.simplefilter("ignore")
                wanted = _tensor_of(source, nn.Module.train(_copy_of(source), False)(given.clone()))
        except Exception:  # the module is not made for these inputs
            continue
        if not isinstance(wanted, Tensor):
            continue
        if wanted.shape == got.shape and not _are_close(wanted.flatten(0, -2), got.flatten(0, -2), is_narrow):
            raise _differs(f"computes something else for x of the shape {list(given.shape)}")
        if wanted.shape != got.shape and wanted.shape == got.flatten(0, -2).shape:
            warn(
                f"a {type(source).__name__} returns {list(wanted.shape)} for x of the shape {list(given.shape)}, but "
                f"the converted layer returns {list(got.shape)}"
            )


@torch.enable_grad()
def _compare_gradients(source: nn.Module, new: nn.Module, x: Tensor, is_narrow: bool) -> None:
    """Compare the gradients of a random sum of the outputs, in training mode.

    The parameters of the two modules have the same values in another order. Therefore the derivatives in the direction
    of the parameters themselves, sum(p * grad), are compared, for which the order does not matter.
    """
    factors = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
    found = []
    for module, is_source in ((_copy_of(source), True), (new, False)):
        own = [each for each in module.parameters() if each.requires_grad]
        given = x.clone().requires_grad_()
        y = _call_one(nn.Module.train(module, True), given) if is_source else module(given)
        y = y.reshape(len(x), -1)
        loss = (y * factors * torch.arange(1, y.shape[1] + 1, device=y.device).to(y)).sum()
        slopes: Sequence[Tensor | None] = (None,) * (1 + len(own))
        if loss.requires_grad:
            try:
                slopes = torch.autograd.grad(loss, [given, *own], allow_unused=True)
            except RuntimeError:  # the module writes to its parameters after it has used them
                return
        pairs = [(p.detach() * slope).flatten() for p, slope in zip(own, slopes[1:]) if slope is not None]
        products = torch.cat([x.new_zeros(1), *pairs])
        found.append((x.new_zeros(x.shape) if slopes[0] is None else slopes[0], products))
    (theirs, their_products), (ours, our_products) = found
    if not _are_close(theirs, ours, is_narrow):
        raise _differs("has other gradients with respect to its inputs")
    tolerance = (MAX_NARROW_DIFFERENCE if is_narrow else MAX_DIFFERENCE) * our_products.abs().nansum()
    difference = (their_products.sum() - our_products.sum()).abs()
    if difference > tolerance:  # a comparison with NaN is False
        raise _differs("has other gradients with respect to its parameters")


def returns_one(source: nn.Module) -> bool:
    """Whether a layer with the tensors of pykan's layer returns one tensor instead of four. The result is also True for
    a layer that cannot be called, because the comparison of outputs then raises an error with the reason."""
    coef = tensors_of(source)["coef"].detach()
    try:
        return isinstance(_call(source, coef.new_zeros(2, inputs_of(source, coef)), False)[1], Tensor)
    except ValueError:
        return True


def inputs_of(source: Any, coef: Tensor) -> int:
    """Return the number of inputs of a layer of pykan with the coefficients ``coef``. In pykan 0.0, the shape of the
    coefficients contains only the number of edges, so the number of inputs is read from an attribute."""
    if coef.ndim == 3:
        return len(coef)
    inputs = getattr(source, "in_dim", None)
    if not isinstance(inputs, int):
        raise ValueError("it lacks in_dim, the number of its inputs")
    return inputs


def _outputs_of(source: nn.Module, x: Tensor, training: bool) -> Tensor:
    """Return the outputs ``[N, out]`` of a copy of a module for ``x [N, in]``. If the module returns several tensors,
    as layers of pykan do, the first is returned.

    Raises:
        ValueError: if the module cannot be called, or returns something else.
    """
    given, y = _call(source, x, training)
    y = _tensor_of(source, y)
    if not isinstance(y, Tensor) or y.shape[:-1] != given.shape[:-1]:
        raise ValueError("it does not return a tensor with an output for each row of its inputs")
    return y.reshape(len(x), -1)


def _tensor_of(source: nn.Module, y: Any) -> Any:
    """Return the outputs in what a module has returned, which is a tuple for layers of pykan."""
    kind = _kind(source)
    return y[0] if isinstance(y, tuple) and y and kind is not None and kind.returns_four else y


def _call_one(source: nn.Module, x: Tensor) -> Tensor:
    """Call a module itself, like :func:`_call`, and return its outputs."""
    try:
        return _tensor_of(source, source(x))
    except Exception:
        return _tensor_of(source, source(x.unsqueeze(0)))


def _call(source: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, Any]:
    """Call a copy of a module with ``x [N, in]`` or, if this raises an error, with ``[1, N, in]``. Return a tuple of
    the inputs and the result."""
    errors = []
    for given in (x, x.unsqueeze(0)):
        try:
            # In pykan 0.0, the method ``train`` of a network fits it to data.
            return given, nn.Module.train(_copy_of(source), training)(given.clone())
        except Exception as error:
            errors.append(error)
    raise ValueError(f"it cannot be called: {errors[0]}") from errors[0]


def _copy_of(source: nn.Module) -> nn.Module:
    """Return a deep copy of a module, without the graphs of the outputs that it has stored in attributes. Layers and
    networks of pykan store such outputs, and PyTorch cannot copy tensors with graphs."""
    memo: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach()
        elif isinstance(value, (list, tuple)):
            for each in value:
                visit(each)

    for module in source.modules():
        for value in vars(module).values():
            visit(value)
    return copy.deepcopy(source, memo)
