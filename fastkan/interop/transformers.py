"""KAN layers in models of Hugging Face transformers, for ``save_pretrained`` and ``from_pretrained``.

``from_pretrained`` first constructs a model from its class, in which the layers are linear again. With this module
imported, it then constructs the KAN layers that the model's ``config.json`` names, before it loads the weights:

    import fastkan.interop.transformers
    model = AutoModelForCausalLM.from_pretrained("gpt2")
    fastkan.replace_linear(model, "*.mlp.*", grid_size=8, sample=batch)
    fastkan.interop.transformers.record_layers(model)  # writes the layers to model.config
    model.save_pretrained("gpt2-kan")                  # as Trainer does, too
    model = AutoModelForCausalLM.from_pretrained("gpt2-kan")

A checkpoint that was saved without KAN layers can be loaded into a model that has KAN layers. The new layers are
initialised as every new :class:`fastkan.KANLinear` is:

    layers = KANLayersConfig("*.mlp.*", grid_size=8)
    model = AutoModelForCausalLM.from_pretrained("gpt2", quantization_config=layers)

If a class of your own constructs KAN layers in ``__init__``, pass an empty ``KANLayersConfig()``. Without a config,
transformers leaves new KAN layers uninitialised, because it only initialises modules that it knows, and the first call
of a layer whose memory does not contain knots raises a RuntimeError.

Nothing is quantized: transformers reads the entry ``quantization_config`` of ``config.json``, because that is its
interface for packages that exchange layers before weights are loaded. So a model cannot have KAN layers and be
quantized at the same time. A program that does not import this module loads a model without KAN layers, whose linear
layers have random weights, and transformers warns of an unknown quantization type and reports the missing weights.

Other packages around transformers:

- Models with KAN layers can have PEFT's adapters on their other layers. To train a KANLinear as a whole, pass
  ``modules_to_save=["c_fc"]`` to PEFT. For LoRA on a KANLinear, PEFT raises an error that names the class.
- ``torch.optim.Muon`` accepts only parameters with two dimensions, so it raises an error for ``spline_weight``, which
  has three. torchao does not quantize KAN layers, and raises an error if a user's filter selects them.
- If an optimizer groups parameters by the class of the module, as minGPT's does, add KANLinear with its parameters
  ``spline_weight``, ``base_weight`` and, if present, ``spline_scale`` and ``bias`` to the groups.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fastkan_kernels import Instance, checked

from ..layers.feedforward import KANFeedForward
from ..layers.linear import KANLinear
from ..network.checkpoint import describe_layer
from .replace import Select, is_linear, linear_sizes, replace_linear

METHOD = "fastkan"  # the value of ``quant_method`` in a config.json


@register_quantization_config(METHOD)
class KANLayersConfig(QuantizationConfigMixin):
    """The KAN layers of a model, in the form in which ``config.json`` contains them.

    Args:
        select: the linear layers that are replaced before the weights are loaded, as in
            :func:`fastkan.replace_linear`. The pattern ``"*"`` selects all layers. If None, only ``layers`` are
            constructed.
        layers: the layers that :func:`record_layers` has found.
        arguments: the other arguments of :func:`fastkan.replace_linear`, except ``sample``.

    Raises:
        ValueError: if there are arguments but ``select`` is None.

    Example:
        >>> KANLayersConfig("*.mlp.*", grid_size=8).to_dict()
        {'quant_method': 'fastkan', 'select': '*.mlp.*', 'grid_size': 8}
    """

    def __init__(
        self,
        select: Select | Sequence[Select] | None = None,
        *,
        layers: Iterable[dict[str, Any]] = (),
        quant_method: str = METHOD,
        **arguments: Any,
    ) -> None:
        if arguments and select is None:
            raise ValueError(
                f"{', '.join(arguments)} given without select: pass select='*' to replace all linear layers"
            )
        self.quant_method: Any = quant_method
        self.select = select
        self.layers = list(layers)
        self.arguments = arguments

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for ``config.json``."""
        entry: dict[str, Any] = {"quant_method": self.quant_method}
        if self.select is not None:
            entry |= {"select": self.select, **self.arguments}
        if self.layers:
            entry["layers"] = self.layers
        return entry


@checked(model=Instance(PreTrainedModel))
def record_layers(model: PreTrainedModel) -> KANLayersConfig:
    """Write to ``model.config`` which layers are KAN layers, so that ``from_pretrained`` can construct them.

    Call the function after layers were replaced, and again after methods that change the size of a layer or add a mask
    (``refine``, ``set_mask``), before the model is saved. Knots that ``update_grid`` or ``set_knots`` moved are part of
    the saved tensors.

    Args:
        model: a model with :class:`fastkan.KANLinear` layers in place of linear layers, or
            :class:`fastkan.KANFeedForward` in place of feed-forward blocks.

    Returns:
        The new value of ``model.config.quantization_config``.

    Raises:
        TypeError: if ``model`` is not a model of transformers.
        ValueError: if the model has no KAN layers, or is quantized.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
        >>> replace_linear(model, "*.c_fc")
        1 of 1 linear layers replaced by KAN layers, which have 2336 instead of 288 parameters
        >>> record_layers(model).layers[0]["names"]
        ['h.0.mlp.c_fc']
    """
    other = getattr(model.config, "quantization_config", None)
    method = other.get("quant_method") if isinstance(other, dict) else getattr(other, "quant_method", METHOD)
    if method != METHOD:
        raise ValueError(f"model is quantized by {method}, but config.json cannot name KAN layers of a quantized model")
    entries: dict[str, dict[str, Any]] = {}
    for cls in _CLASSES.values():
        for name, module in model.named_modules():
            if type(module) is cls:
                description = {"class": cls.__name__, **_describe(module)}
                entry = entries.setdefault(json.dumps(description), {**description, "names": []})
                entry["names"].append(name)
    if not entries:
        raise ValueError("model has no KAN layers: call fastkan.replace_linear first")
    model.config.quantization_config = KANLayersConfig(layers=entries.values())
    return model.config.quantization_config


@register_quantizer(METHOD)
class KANLayersBuilder(HfQuantizer):
    """The part of ``from_pretrained`` that constructs and initialises KAN layers. transformers calls its methods."""

    def preprocess_model(self, model: PreTrainedModel, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        """Construct the KAN layers of a model that is on the meta device, before its weights are loaded."""
        config: Any = self.quantization_config
        if config.select is not None:
            replace_linear(model, config.select, **config.arguments)
        for entry in config.layers:
            for name in entry["names"]:
                _construct(model, name, entry)
        # transformers calls _init_weights of the innermost model for modules whose weights are not in the checkpoint.
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.__dict__["_init_weights"] = functools.partial(_init_weights, part._init_weights)

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Leave an ordinary model, whose config names its KAN layers."""
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                del part.__dict__["_init_weights"]
        del model.hf_quantizer  # transformers treats a model with this attribute as quantized
        del model.config.quantization_config
        if any(type(part) in _CLASSES.values() for part in model.modules()):
            record_layers(model)

    def is_serializable(self) -> bool:
        """Whether the model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained."""
        return True


def _init_weights(original: Callable[[nn.Module], None], module: nn.Module) -> None:
    """Initialise the tensors of a KAN layer that were not in the checkpoint, or any other module as the model does."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    is_loaded = all(getattr(tensor, "_is_hf_initialized", False) for _, tensor in tensors)
    if not isinstance(module, KANLinear):
        try:
            original(module)
        except AttributeError as error:  # GPT-2's rule for a block reads weights that its KAN layers lack
            if not (is_loaded and isinstance(error.obj, KANLinear)):
                raise
        return
    if is_loaded:
        return  # this only saves time, because ``initialization.copy_`` does not write to loaded tensors either
    fresh = copy.deepcopy(module)
    fresh.reset_parameters()
    for name, tensor in tensors:
        initialization.copy_(tensor, torch.ones_like(tensor) if name == "mask" else getattr(fresh, name))
    bias = module.bias
    if bias is not None and not bias.is_meta and torch.equal(module.spline_weight, fresh.spline_weight):
        bias.zero_()  # the layer is new, and its bias may have come from the linear layer's checkpoint


def _construct(model: PreTrainedModel, name: str, entry: dict[str, Any]) -> None:
    """Put a KAN layer in place of the module with the given name in the saved model."""
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    found = [each for each in (name, name.removeprefix(prefix), prefix + name) if each in modules]
    if not found:
        if name.startswith(prefix) or type(model).__name__ in (model.config.architectures or ()):
            raise ValueError(f"config.json names a KAN layer {name}, but {type(model).__name__} has no such module")
        return  # the layer belongs to the head of another model class
    old = modules[found[0]]
    arguments = {key: value for key, value in entry.items() if key not in ("class", "names", "masked")}
    cls = _CLASSES.get(entry["class"])
    if cls is None:
        raise ValueError(f"config.json names a layer of the class {entry['class']}, which this fastkan does not have")
    if cls is KANLinear:
        sizes = arguments["in_features"], arguments["out_features"]
        has: Any = (old.in_features, old.out_features) if isinstance(old, KANLinear) else None
        if (linear_sizes(old) if is_linear(old) else has) != sizes:
            raise ValueError(f"config.json names a KAN layer {name} of the sizes {sizes}, but the model has {old}")
    first = next(old.parameters())
    layer: Any = cls(**arguments, device=first.device, dtype=first.dtype)
    if entry.get("masked"):
        layer.mask = torch.ones(layer.in_features, layer.out_features, device=first.device, dtype=first.dtype)
    for parent in modules.values():
        for own, child in parent._modules.items():
            if child is old:
                parent._modules[own] = layer


# The classes of layers that a config can name. A feed-forward block comes before the layers inside it.
_CLASSES: dict[str, type[nn.Module]] = {each.__name__: each for each in (KANFeedForward, KANLinear)}


def _describe(layer: Any) -> dict[str, Any]:
    """Return the arguments with which a layer of the same sizes and options is constructed."""
    if isinstance(layer, KANFeedForward):
        sizes = {"d_model": layer.inner.in_features, "hidden": layer.inner.out_features}
        return {**sizes, "dropout": layer.dropout.p}
    masked = {"masked": True} if layer.mask is not None else {}
    return {"in_features": layer.in_features, "out_features": layer.out_features, **describe_layer(layer), **masked}
