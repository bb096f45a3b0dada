"""Saving a network to one file and loading a network from a file. The file has the safetensors format, and loading
never executes code from the file.

The tensors in the file are the tensors of ``state_dict`` and, if ``prune_mask`` is set, its masks. All other data are
stored as a JSON text in the metadata of the file. The JSON text contains the SHA-256 of the whole file, so that any
damage is detected. The SHA-256 is computed with zeros in place of its own 64 digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import DEVICE, SHARE, Path, check_int, check_shape, checked

from ..layers.function_library import SYMBOLIC_LIB
from ..layers.grid import MARGIN
from ..layers.linear import KANLinear
from ..version import __version__
from .architecture import architecture
from .core import Network, NetworkT
from .trace import check_not_sharded

FORMAT = 2  # Incremented whenever older versions of fastkan cannot read new files.
KEY = "fastkan.KAN"  # The only entry of the metadata, because safetensors writes several entries in no fixed order.
BLANK = "0" * 64
MASK = "prune_mask."
FLOAT = "$float"  # JSON has no NaN and infinities, so they are written as objects, for example {"$float": "nan"}.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
LAYER = ("grid_size", "spline_order", "grid_range", "base", "bias", "spline_scale", "outside")


@checked(path=Path())
@torch.inference_mode(False)
def save(model: Network, path: str | os.PathLike[str]) -> None:
    """Save the network to one file, with its parameters, grids, masks, formulas, history, and the names of the
    parameters that are trained.

    An existing file is replaced. If saving is interrupted, the existing file is left unchanged. Parameters that share
    memory are separate after loading. Functions that were added by :func:`add_symbolic` must be added again before
    loading. The rows of the last fit (``model.sample``) are not saved.

    Args:
        path: path of the file.

    Raises:
        OSError: if the file cannot be written.
        TypeError, ValueError: if the model could not be loaded again, for instance because it has additional modules.
        RuntimeError: if the parameters are distributed over processes.

    Example:
        >>> import os, tempfile
        >>> model, path = KAN(width=[2, 5, 1], seed=0), os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> model.save(path)
        >>> x = torch.rand(10, 2)
        >>> torch.equal(KAN.load(path)(x), model(x))
        True
    """
    import safetensors
    import safetensors.torch

    check_not_sharded(model, "save")
    target = os.path.realpath(os.fsdecode(path))
    tensors = _tensors(model)
    text = json.dumps({"sha256": BLANK, **_header(model)}, allow_nan=False)
    try:
        _assembled(_decoded(text), tensors, Network)
    except MALFORMED as error:
        raise ValueError(f"model could not be loaded again: {error}") from error
    try:
        content = safetensors.torch.save(tensors, {KEY: text})
    except safetensors.SafetensorError as error:  # the header is larger than 100 MB
        raise ValueError(f"model and its history, {len(text):,} characters, do not fit into a file: {error}") from None
    start = content.index(BLANK.encode())
    digest = hashlib.sha256(content).hexdigest().encode()
    _replace(target, content[:start] + digest + content[start + len(digest) :])


@checked(path=Path(), device=DEVICE)
@torch.inference_mode(False)
def load(cls: type[NetworkT], path: str | os.PathLike[str], device: torch.device | str | None = None) -> NetworkT:
    """Load a network from a file that :meth:`save` has written. No code from the file is executed.

    Args:
        path: path of the file.
        device: device of the loaded network (default: the CPU, independently of the device at the time of saving).

    Raises:
        OSError: if the file does not exist or cannot be read.
        TypeError, ValueError: if an argument is not a path or not a device, or if the file is not a saved network, is
            damaged, has a newer format, or has formulas with functions that are not in the library.
    """
    import safetensors
    import safetensors.torch

    name = os.fsdecode(path)
    with open(name, "rb") as file:
        content = file.read()
    try:
        header = _checked(content)
        tensors = {key: value.clone() for key, value in safetensors.torch.load(content).items()}
        # A subclass in other code may need arguments of its own, so a network of the base class is returned.
        plain: Any = next(each for each in cls.__mro__ if each.__module__.startswith("fastkan."))
        model = _assembled(header, tensors, plain)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name!r}: its tensors cannot be read: {error}") from None
    except MALFORMED as error:
        raise ValueError(f"{name!r}: {error}") from error
    return model.to("cpu" if device is None else device)


# -- writing --------------------------------------------------------------------------------------


def _tensors(model: Network) -> dict[str, Tensor]:
    """Return copies of the network's tensors on the CPU. The copies share no memory."""
    names = {f"symbolic.{layer}.formulas" for layer in range(model.depth)}  # formulas are stored in the header
    found = {name: value for name, value in model.state_dict().items() if name not in names}
    found |= {f"{MASK}{layer}": mask for layer, mask in enumerate(model.prune_mask or ())}
    empty = [name for name, value in found.items() if value.is_meta]
    if empty:
        raise ValueError(f"model must have values, but {empty[0]} is on meta")
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _header(model: Network) -> dict[str, Any]:
    frozen = {f"layers.{place}.{name}" for place, layer in enumerate(model.layers) for name in layer._frozen}
    parameters = model.named_parameters(remove_duplicate=False)
    return {
        "format": FORMAT,
        "fastkan": __version__,
        "sums": model.architecture.sums,
        "arities": model.architecture.arities,
        "in_features": model.in_features,
        "grid_eps": model.grid_eps,
        "grid_margin": model.grid_margin,
        "layers": [describe_layer(layer) for layer in model.layers],
        "symbolic": [[list(edge) for edge in symbolic.edges] for symbolic in model.symbolic],
        "trained": [name for name, value in parameters if value.requires_grad or name in frozen],
        "prune_mask": model.prune_mask is not None,
        "training": model.training,
        "history": _encoded(model.history),
    }  # fmt: skip


def describe_layer(layer: KANLinear) -> dict[str, Any]:
    """Return the arguments with which :class:`KANLinear` constructs a layer with the same sizes and options."""
    own: dict[str, Any] = {name: getattr(layer, name, None) for name in LAYER}
    own |= {name: own[name] is not None for name in ("bias", "spline_scale")}
    return {**own, "grid_range": layer._grid_range}


def _encoded(value: Any) -> Any:
    """Convert a value of ``model.history`` to a value that JSON can represent."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {FLOAT: str(value)}
    if isinstance(value, Mapping):
        return {str(name): _encoded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(each) for each in value]
    if hasattr(value, "tolist"):  # the value is a tensor, a NumPy array or a NumPy number
        return _encoded(value.tolist())
    raise TypeError(f"model.history must hold numbers, strings, lists and dictionaries, got {type(value).__name__}")


def _replace(target: str, content: bytes) -> None:
    """Write a file atomically: the content is written to a temporary file, which is then renamed."""
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(f"{target!r} exists and is not a file")
    temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


# -- reading --------------------------------------------------------------------------------------


def _checked(content: bytes) -> dict[str, Any]:
    """Check the format and the SHA-256 of a file, and return the header of the file."""
    foreign = "this is no network that KAN.save has written, or it is damaged"
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(foreign)
    try:
        header = _decoded(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
        version, digest = header["format"], header["sha256"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(foreign) from None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"it was written by a newer fastkan: its format is {version}, this one reads up to {FORMAT}")
    if version not in range(1, FORMAT + 1) or not isinstance(digest, str) or len(digest) != len(BLANK):
        raise ValueError(foreign)
    start = content.find(digest.encode(), 8, 8 + length)
    whole = hashlib.sha256(content[:start] + BLANK.encode() + content[start + len(BLANK) :])
    if start < 0 or whole.hexdigest() != digest:
        raise ValueError("it is damaged: its SHA-256 is not the one that was saved in it")
    return header


def _decoded(text: str) -> Any:
    """Parse JSON. NaN and infinities are recognised in the form in which ``_encoded`` writes them."""

    def floats(entries: dict[str, Any]) -> Any:
        value = entries.get(FLOAT)
        return float(value) if isinstance(value, str) and len(entries) == 1 else entries

    return json.loads(text, object_hook=floats)


def _assembled(header: dict[str, Any], tensors: dict[str, Tensor], cls: type[NetworkT]) -> NetworkT:
    """Construct a network on the CPU from the header and the tensors of a file. The tensors become the parameters of
    the network."""
    names = {edge[2] for edges in header["symbolic"] for edge in edges}
    unknown = sorted(name for name in names if name not in SYMBOLIC_LIB)
    if unknown:
        raise ValueError(f"its edges have functions that are not in the library, {unknown}: add_symbolic them first")
    pairs = [[sums, len(arities)] for sums, arities in zip(header["sums"], header["arities"])]
    sizes = architecture(pairs, header["arities"])
    ends = list(zip(sizes.nodes, sizes.subnodes[1:]))
    layers = []
    for index, (size, said) in enumerate(zip(ends, header["layers"], strict=True)):
        weight = tensors[f"layers.{index}.spline_weight"]  # checked before memory of these sizes is allocated
        check_shape(f"layers.{index}.spline_weight", weight, (said["grid_size"] + said["spline_order"], *size))
        with torch.random.fork_rng(devices=[]):  # the constructor draws initial parameters
            layers.append(KANLinear(*size, **{name: said[name] for name in LAYER}, dtype=weight.dtype))
    model = cls.__new__(cls)
    shares = {"grid_margin": MARGIN, **header}  # older files have no margin
    grid_eps, grid_margin = (SHARE.read(name, shares[name]) for name in ("grid_eps", "grid_margin"))
    Network.__init__(model, sizes, layers, grid_eps=grid_eps, grid_margin=grid_margin)
    parameters = {name: value for name, value in tensors.items() if not name.startswith(MASK)}
    edges = {f"symbolic.{index}.formulas": edges for index, edges in enumerate(header["symbolic"])}
    model.load_state_dict({**parameters, **edges}, assign=True)
    trained = set(header["trained"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for layer in model.layers:
        layer._frozen = frozenset()
        layer._freeze_if_idle()

    check_int("in_features", header["in_features"], least=1)
    model.in_features = header["in_features"]
    ids = model.input_id
    if ids.dtype != torch.int64 or not bool(((ids >= 0) & (ids < model.in_features)).all()):
        raise ValueError(f"it reads other columns of x than 0 to {model.in_features - 1}")
    if header["prune_mask"]:
        model.prune_mask = [tensors[f"{MASK}{index}"] for index in range(model.depth)]
    model.history = header["history"]
    model.train(bool(header["training"]))
    return model
