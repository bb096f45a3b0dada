"""KAN layers in models of transformers: training, generation, Trainer, PEFT, and checkpoints in both directions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastkan import KANConv2d, KANFeedForward, KANLinear, replace_linear

transformers = pytest.importorskip("transformers")

from transformers.quantizers import auto  # noqa: E402

from fastkan.interop.transformers import KANLayersConfig, record_layers  # noqa: E402

TEXT: dict[str, Any] = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24, **TEXT}
BERT: dict[str, Any] = {"max_position_embeddings": 32, **SIZES, **TEXT}
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, **TEXT,
                      "decoder_start_token_id": 2}  # fmt: skip
OPTIONS: dict[str, Any] = {"grid_size": 4, "grid_range": (-3, 3)}
# The class of a model, its configuration, and the linear layers of the feed-forward blocks.
MODELS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, **TEXT}, ["*.mlp.*"]),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, ["*.mlp.*"]),
    "bert": ("BertForMaskedLM", "BertConfig", BERT, ["*.intermediate.dense", "*.layer.?.output.dense"]),
    "vit": ("ViTForImageClassification", "ViTConfig", {"image_size": 8, "patch_size": 4, **SIZES}, ["*.mlp.*"]),
}
TOKENS = torch.randint(3, 40, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def build(name: str, **changes: Any) -> Any:
    """A small model with random weights, in evaluation mode."""
    cls, config, sizes, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, cls)(getattr(transformers, config)(**sizes, **changes)).eval()


def inputs(name: str) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    return {"input_ids": TOKENS, "labels": TOKENS}


def kan_model(name: str, **changes: Any) -> Any:
    """A small model with KAN layers, whose knots are adapted."""
    model = build(name, **changes)
    replace_linear(model, MODELS[name][3], **OPTIONS, sample=inputs(name))
    record_layers(model)
    return model


def kan_layers(model: nn.Module) -> dict[str, KANLinear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, KANLinear)}


def assert_same_states(model: nn.Module, other: nn.Module) -> None:
    state, found = model.state_dict(), other.state_dict()
    assert state.keys() == found.keys()
    for key, value in state.items():
        assert torch.equal(value, found[key]), key


# -- training and generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward(name: str) -> None:
    model = build(name)
    report = replace_linear(model, MODELS[name][3], **OPTIONS, sample=inputs(name))
    layers = 6 if name == "llama" else 4
    assert len(report.replaced) == len(report) == len(kan_layers(model)) == layers
    assert all("knots=adapted" in repr(layer) for layer in kan_layers(model).values())
    model.train()
    loss = model(**inputs(name)).loss
    loss.backward()
    assert loss.isfinite()
    for layer in kan_layers(model).values():
        for parameter in layer.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


def test_conv1d_has_its_sizes_the_other_way_round() -> None:
    model = build("gpt2")
    entry, _ = replace_linear(model, "*.c_fc")
    assert (entry.name, entry.in_features, entry.out_features) == ("transformer.h.0.mlp.c_fc", 16, 24)
    layer = model.transformer.h[0].mlp.c_fc
    assert (layer.in_features, layer.out_features, layer.bias is not None) == (16, 24, True)
    assert not layer.training
    conv1d = type(model.transformer.h[0].mlp.c_proj)
    assert len(replace_linear(model, conv1d).replaced) == 6
    with pytest.raises(ValueError, match="model must contain linear layers, got a Conv1D"):
        replace_linear(conv1d(2, 3))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_with_a_cache_equals_generation_without(name: str) -> None:
    model = kan_model(name)
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "output_logits": True}
    runs = [model.generate(TOKENS, use_cache=cache, return_dict_in_generate=True, **options) for cache in (True, False)]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, whole in zip(runs[0].logits, runs[1].logits, strict=True):
        torch.testing.assert_close(cached, whole, atol=1e-5, rtol=0)


def test_trainer_saves_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = [{"input_ids": row, "labels": row} for row in torch.randint(3, 40, (8, 6))]

    def trainer(folder: str) -> Any:
        options = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
        options |= {"disable_tqdm": True, "logging_strategy": "no", "seed": 0}
        arguments = transformers.TrainingArguments(str(tmp_path / folder), **options)
        return transformers.Trainer(kan_model("llama", attention_dropout=0.0), arguments, train_dataset=data)

    first = trainer("first")
    before = copy.deepcopy(first.model.state_dict())
    first.train()
    changed = [key for key, value in first.model.state_dict().items() if not torch.equal(value, before[key])]
    assert any("spline_weight" in key for key in changed)
    second = trainer("second")
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-1"))
    assert_same_states(first.model, second.model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "first" / "checkpoint-2")
    assert_same_states(first.model, loaded)


# -- checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_own_checkpoints_load_in_several_files(name: str, tmp_path: Path) -> None:
    model = kan_model(name)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, report = type(model).from_pretrained(tmp_path, device_map="cpu", output_loading_info=True)
    assert not any(report.values())
    assert_same_states(model, loaded)
    batch = inputs(name)
    assert torch.equal(model(**batch).loss, loaded(**batch).loss)
    assert loaded.config.quantization_config.to_dict() == model.config.quantization_config.to_dict()
    # It is an ordinary model, which can be trained, converted and saved again.
    assert not any(hasattr(loaded, each) for each in ("hf_quantizer", "is_quantized", "quantization_method"))
    assert not any("_init_weights" in each.__dict__ for each in loaded.modules())
    loaded.double().save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again", dtype=torch.float64)
    assert_same_states(loaded, again)


def test_knots_stay_float32_in_bfloat16(tmp_path: Path) -> None:
    model = kan_model("llama")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for layer, source in zip(kan_layers(loaded).values(), kan_layers(model).values(), strict=True):
        assert torch.equal(layer.knots, source.knots)
        assert torch.equal(layer.spline_weight, source.spline_weight.bfloat16())
    loaded.save_pretrained(tmp_path / "half")
    assert_same_states(loaded, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half"))


def test_refined_and_masked_layers_and_feed_forward_blocks(tmp_path: Path) -> None:
    model = build("gpt2")
    model.transformer.h[0].mlp = KANFeedForward(16, 5, grid_size=4, dropout=0.1)
    model.transformer.h[0].mlp.outer.refine(8)
    replace_linear(model, "*.c_fc", base="none", spline_scale=True, outside="linear", bias=False)
    layer = model.transformer.h[1].mlp.c_fc
    mask = torch.ones(16, 24)
    mask[2] = 0
    layer.set_mask(mask)
    model.eval()
    names = [entry["names"] for entry in record_layers(model).layers]
    assert names == [
        ["transformer.h.0.mlp"], ["transformer.h.0.mlp.inner"], ["transformer.h.0.mlp.outer"],
        ["transformer.h.1.mlp.c_fc"],
    ]  # fmt: skip
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same_states(model, loaded)
    assert repr(loaded.transformer.h[1].mlp.c_fc) == repr(layer)
    assert loaded.transformer.h[0].mlp.dropout.p == 0.1
    assert torch.equal(model(TOKENS).logits, loaded(TOKENS).logits)


def test_other_classes_load_the_same_body(tmp_path: Path) -> None:
    model = build("llama")
    replace_linear(model, ["*.mlp.*", "lm_head"], **OPTIONS)
    record_layers(model)
    model.save_pretrained(tmp_path)
    body = transformers.AutoModel.from_pretrained(tmp_path)
    assert_same_states(model.model, body)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same_states(model.model, classifier.model)
    body.save_pretrained(tmp_path / "body")
    assert_same_states(body, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "body").model)


@pytest.fixture
def memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialised memory with NaN, so that layers which nothing initialises are noticed."""
    empty_like = torch.empty_like

    def filled(*of: Any, **how: Any) -> Tensor:
        tensor = empty_like(*of, **how)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty_like", filled)


class OwnLlama(transformers.LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        replace_linear(self, "*.mlp.*", **OPTIONS)


class ConvolutionalViT(transformers.ViTForImageClassification):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.stem = KANConv2d(3, 3, 3, padding=1, bias=True)

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        return super().forward(self.stem(pixel_values), **options)


@pytest.mark.usefixtures("memory_is_nan")
def test_a_plain_checkpoint_gives_a_new_convolution_initial_values(tmp_path: Path) -> None:
    build("vit").save_pretrained(tmp_path)
    model = ConvolutionalViT.from_pretrained(tmp_path, quantization_config=KANLayersConfig())
    assert torch.equal(model.stem.knots, KANConv2d(3, 3, 3).knots)
    assert 0 < model.stem.base_weight.abs().max() <= 27**-0.5  # the bound of nn.Conv2d for 3 x 9 inputs
    assert not model.stem.bias.any()
    assert model(inputs("vit")["pixel_values"]).logits.isfinite().all()


@pytest.mark.usefixtures("memory_is_nan")
def test_new_layers_that_transformers_leaves_uninitialised_say_how_they_get_values(tmp_path: Path) -> None:
    build("vit").save_pretrained(tmp_path)
    model = ConvolutionalViT.from_pretrained(tmp_path)
    message = r"constructed on the device meta.*reset_parameters\(\).*quantization_config=.*KANLayersConfig"
    with pytest.raises(RuntimeError, match=message):
        model(**inputs("vit"))
    model.stem.reset_parameters()
    assert model(inputs("vit")["pixel_values"]).logits.isfinite().all()


@pytest.mark.usefixtures("memory_is_nan")
@pytest.mark.parametrize("name", [*MODELS, "own class"])
def test_a_plain_checkpoint_gives_new_layers_initial_values(name: str, tmp_path: Path) -> None:
    source = build("llama" if name == "own class" else name)
    with torch.no_grad():
        for key, parameter in source.named_parameters():
            if key.endswith("bias"):
                parameter.normal_()
    source.save_pretrained(tmp_path)
    if name == "own class":
        cls, layers, name = OwnLlama, KANLayersConfig(), "llama"
    else:
        cls, layers = type(source), KANLayersConfig(MODELS[name][3], **OPTIONS)
    model = cls.from_pretrained(tmp_path, quantization_config=layers)
    assert len(kan_layers(model)) == (6 if name == "llama" else 4)
    fresh = KANLinear(2, 2, **OPTIONS)
    for layer in kan_layers(model).values():
        assert torch.equal(layer.knots, fresh.knots[:1].expand_as(layer.knots))
        assert 0 < layer.base_weight.abs().max() <= layer.in_features**-0.5
        assert 0 < layer.spline_weight.abs().max() < 0.1
        assert layer.bias is None or not layer.bias.any()
    mine = set(kan_layers(model))
    for key, value in source.state_dict().items():
        if key.rpartition(".")[0] not in mine:
            assert torch.equal(model.state_dict()[key], value), key
    loss = model(**inputs(name)).loss
    assert loss.isfinite()
    model.save_pretrained(tmp_path / "again")
    assert_same_states(model, cls.from_pretrained(tmp_path / "again"))


def test_without_the_import_the_model_is_linear_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kan_model("llama").save_pretrained(tmp_path)
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "fastkan")
    transformers.logging.set_verbosity_warning()
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not kan_layers(model)
    assert "model.layers.0.mlp.up_proj.weight" in report["missing_keys"]
    assert "Unknown quantization type, got fastkan" in caplog.text


def test_what_cannot_be_recorded_or_constructed_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="model has no KAN layers: call"):
        record_layers(model)
    with pytest.raises(TypeError, match="model must be a PreTrainedModel, got Linear"):
        record_layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="grid_size given without select: pass select="):
        KANLayersConfig(grid_size=8)
    replace_linear(model, "*.mlp.*")
    model.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(ValueError, match=r"model is quantized by awq, but config\.json cannot name KAN layers"):
        record_layers(model)
    del model.config.quantization_config
    record_layers(model)
    model.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("names", ["model.layers.7.mlp.up_proj"], "names a KAN layer model.layers.7.mlp.up_proj, but LlamaForCausalLM"),
        ("in_features", 17, r"of the sizes \(17, 24\), but the model has Linear\(in_features=16"),
        ("class", "Other", "names a layer of the class Other, which this fastkan does not have"),
    ):
        config = copy.deepcopy(whole)
        config["quantization_config"]["layers"][0][key] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


# -- layers that stay -----------------------------------------------------------------------------------------


def test_the_weight_that_t5_reads_stays() -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval()
    report = replace_linear(model, ["*.wi", "*.wo"], **OPTIONS)
    kept = {entry.name.rpartition(".")[2]: entry.kept_because for entry in report}
    assert kept == {"wi": None, "wo": "T5DenseActDense.forward reads its weight"}
    model(TOKENS, labels=TOKENS).loss.backward()


def test_fused_experts_are_named() -> None:
    sizes = {**SIZES, **TEXT, "num_hidden_layers": 1, "num_key_value_heads": 2, "num_local_experts": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    kept = "MixtralExperts keeps the weights of 4 layers in one parameter"
    message = rf"only model.layers.0.mlp.experts.gate_up_proj and 1 more, which .* because {kept}: replace"
    with pytest.raises(ValueError, match=message):
        replace_linear(model, "*.mlp.*")
    report = replace_linear(model, ["*.mlp.*", "*.o_proj"])
    assert [(entry.name, entry.kept_because) for entry in report] == [
        ("model.layers.0.mlp.experts.gate_up_proj", kept),
        ("model.layers.0.mlp.experts.down_proj", kept),
        ("model.layers.0.self_attn.o_proj", None),
    ]
    assert (report[0].in_features, report[0].out_features, report[0].before) == (16, 48, 4 * 16 * 48)


# -- PEFT -----------------------------------------------------------------------------------------------------


def test_lora_on_attention_beside_kan_layers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = kan_model("gpt2")
    before = copy.deepcopy(model.state_dict())
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["c_fc"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(model, lora)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-3] for name in trained if "lora" not in name} == {"modules_to_save"}
    assert sum("spline_weight" in name for name in trained) == 2
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    adapted.eval()
    logits = adapted(input_ids=TOKENS).logits
    adapted.save_pretrained(tmp_path)
    fresh = kan_model("gpt2")
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, logits, atol=1e-6, rtol=0)


def test_lora_on_a_kan_layer_is_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="Target module KANLinear"):
        peft.get_peft_model(kan_model("gpt2"), peft.LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True))


def test_layers_inside_of_adapters_stay() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["up_proj"]))
    report = replace_linear(adapted, "*.mlp.*", **OPTIONS)
    kept = [entry for entry in report if entry.kept_because is not None]
    assert {entry.name.rpartition("mlp.")[2] for entry in report.replaced} == {"gate_proj", "down_proj"}
    assert {entry.kept_because for entry in kept} == {"it is inside an adapter of PEFT, which reads its weight"}
    adapted(input_ids=TOKENS, labels=TOKENS).loss.backward()


def test_muon_refuses_splines() -> None:
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        torch.optim.Muon(KANLinear(2, 3).parameters())
