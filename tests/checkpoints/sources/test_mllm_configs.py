from __future__ import annotations

from typing import Any

import pytest
from transformers import InternVLConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from salmacli.checkpoints.sources.fused import Heads
from salmacli.checkpoints.sources.mllm_configs import (
    internvl_of_native,
    native_of_internvl,
    native_of_transformers,
    says_tied,
)
from salmacli.errors import CheckpointError

# The fields that matter of config.json as the models were published, and some that do not.
VIT_300M = {
    "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "drop_path_rate": 0.1, "dropout": 0.0,
    "hidden_act": "gelu", "hidden_size": 1024, "image_size": 448, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b",
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
    "patch_size": 14, "qk_normalization": False, "qkv_bias": True, "use_flash_attn": True,
}  # fmt: skip
VIT_6B = VIT_300M | {
    "hidden_size": 3200, "intermediate_size": 12800, "norm_type": "rms_norm", "num_attention_heads": 25,
    "num_hidden_layers": 45, "qk_normalization": True, "qkv_bias": False,
}  # fmt: skip
QWEN2_0_5B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "id2label": {"0": "LABEL_0"}, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151674,
}  # fmt: skip
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "debug": False,
    "ep_size": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32,
    "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
INTERNLM2_7B = {
    "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "flash_attention_2", "bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "internlm2", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_theta": 1000000,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "tie_word_embeddings": False, "vocab_size": 92553,
}  # fmt: skip
QWEN2_5_VL_3B = {  # flat, as transformers 4 wrote it
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 2048, "image_token_id": 151655,
    "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vision_config": {
        "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_size": 1280, "in_chans": 3,
        "intermediate_size": 3420, "out_hidden_size": 2048, "tokens_per_second": 2, "window_size": 112,
    }, "vocab_size": 151936,
}  # fmt: skip
QWEN3_VL_2B = {
    "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "text_config": {
        "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": True, "vocab_size": 151936,
    }, "tie_word_embeddings": True, "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
        "model_type": "qwen3_vl", "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2048,
    },
}  # fmt: skip
INTERNVL3_1B_HF = {
    "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
    "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu",
    "text_config": {key: value for key, value in QWEN2_0_5B.items() if key != "tie_word_embeddings"},
    "torch_dtype": "bfloat16", "vision_config": {
        "attention_bias": True, "hidden_size": 1024, "image_size": [448, 448], "intermediate_size": 4096,
        "model_type": "internvl_vision", "norm_type": "layer_norm", "num_hidden_layers": 24, "patch_size": [14, 14],
    }, "vision_feature_layer": -1,
}  # fmt: skip


def published(llm: dict[str, Any], vision: dict[str, Any] = VIT_300M, **changes: Any) -> dict[str, Any]:
    return {
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}, "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448, "llm_config": llm,
        "max_dynamic_patch": 12, "model_type": "internvl_chat", "ps_version": "v2", "select_layer": -1,
        "template": "internvl2_5", "use_thumbnail": True, "vision_config": vision, **changes,
    }  # fmt: skip


def configured(native: dict[str, Any], kind: type[PreTrainedConfig] = InternVLConfig) -> dict[str, Any]:
    """What transformers understands, without what it remembers of files."""
    full = kind(**{key: value for key, value in native.items() if key != "model_type"}).to_dict()
    for section in (full, full["text_config"], full["vision_config"]):
        for key in ("architectures", "dtype", "id2label", "label2id", "transformers_version"):
            section.pop(key, None)
    return full


def test_internvl2_5_1b() -> None:
    config = configured(native_of_internvl(published(QWEN2_0_5B), "config.json"))
    text, vision = config["text_config"], config["vision_config"]
    assert (text["model_type"], text["vocab_size"], text["hidden_size"]) == ("qwen2", 151674, 896)
    assert text["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert set(text["layer_types"]) == {"full_attention"}
    assert (vision["attention_bias"], vision["use_qk_norm"], vision["norm_type"]) == (True, False, "layer_norm")
    assert (vision["image_size"], vision["patch_size"], config["image_seq_length"]) == ([448, 448], [14, 14], 256)


def test_internvl3_5_8b_has_wider_heads() -> None:
    text = configured(native_of_internvl(published(QWEN3_8B), "config.json"))["text_config"]
    assert (text["model_type"], text["head_dim"], text["attention_bias"]) == ("qwen3", 128, False)


def test_internvl2_5_26b_has_norms_in_its_eyes_and_stretched_positions() -> None:
    llm = INTERNLM2_7B | {"rope_scaling": {"factor": 3.0, "type": "dynamic"}}
    native = native_of_internvl(published(llm, VIT_6B), "config.json")
    config = configured(native)
    assert config["text_config"]["model_type"] == "llama"
    assert config["text_config"]["rope_parameters"] == {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1_000_000}
    assert config["text_config"]["attention_bias"] is False
    assert Heads.of(native) == Heads(32, 8)
    for said, wanted in (({**llm, "bias": True}, True), ({k: v for k, v in llm.items() if k != "bias"}, True)):
        text = native_of_internvl(published(said, VIT_6B), "config.json")["text_config"]
        assert text["attention_bias"] is wanted
    vision = config["vision_config"]
    assert (vision["attention_bias"], vision["use_qk_norm"], vision["norm_type"]) == (False, True, "rms_norm")


def test_what_internvls_config_leaves_out_is_as_in_its_own_class() -> None:
    vision = {key: VIT_6B[key] for key in ("hidden_size", "num_attention_heads", "image_size")}
    ours = configured(native_of_internvl(published(QWEN2_0_5B, vision), "config.json"))["vision_config"]
    assert (ours["use_qk_norm"], ours["norm_type"], ours["attention_bias"]) == (True, "rms_norm", False)
    assert (ours["num_hidden_layers"], ours["intermediate_size"]) == (48, 12800)


@pytest.mark.parametrize("llm", [QWEN2_0_5B, QWEN3_8B, INTERNLM2_7B])
@pytest.mark.parametrize("vision", [VIT_300M, VIT_6B])
def test_there_and_back(llm: dict[str, Any], vision: dict[str, Any]) -> None:
    native = {**native_of_internvl(published(llm, vision), "config.json"), "tie_word_embeddings": False}
    back = internvl_of_native(native)
    assert back["llm_config"]["architectures"] == llm["architectures"]
    assert back["llm_config"].get("rope_scaling") == llm.get("rope_scaling")
    for key in back["vision_config"].keys() & vision.keys():
        assert back["vision_config"][key] == vision[key]
    again = {**native_of_internvl(back, "config.json"), "tie_word_embeddings": False}
    assert configured(again) == configured(native)


def test_defaults_of_transformers_are_not_those_of_the_original() -> None:
    """A config of ours may leave out that the norm is a layer norm; the original would then take another."""
    native = {"vision_config": {"hidden_size": 32, "num_attention_heads": 2}, "text_config": {"model_type": "qwen2"}}
    vision = internvl_of_native(native)["vision_config"]
    assert (vision["norm_type"], vision["qk_normalization"], vision["image_size"]) == ("layer_norm", False, 448)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (published({**QWEN2_0_5B, "architectures": ["Phi3ForCausalLM"]}), "language model is a Phi3ForCausalLM"),
        (published({**QWEN2_0_5B, "architectures": None}), "not named"),
        (published(QWEN2_0_5B, ps_version="v1"), "ps_version is 'v1'"),
        (published(QWEN2_0_5B, select_layer=-4), "select_layer is -4"),
        (published(QWEN2_0_5B, force_image_size=336), "force_image_size 336 differs"),
        (published(QWEN2_0_5B, {**VIT_6B, "layer_norm_eps": 1e-5}), "q and k norms"),
        (published({"architectures": ["Qwen2ForCausalLM"]}), "llm_config lacks vocab_size, hidden_size"),
        ({"ps_version": "v2"}, "has no llm_config"),
        (published(QWEN2_0_5B, {**VIT_300M, "patch_size": 0}), "it makes no model|no model has"),
        (published({**QWEN2_0_5B, "hidden_size": "wide"}), "it makes no model|no model has"),
        (published({**INTERNLM2_7B, "rope_scaling": "dynamic"}), "it makes no model|no model has"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        native_of_internvl(config, "config.json")


@pytest.mark.parametrize(
    ("raw", "kind"),
    [(QWEN2_5_VL_3B, Qwen2_5_VLConfig), (QWEN3_VL_2B, Qwen3VLConfig), (INTERNVL3_1B_HF, InternVLConfig)],
)
def test_configs_of_transformers_lose_nothing(raw: dict[str, Any], kind: type[PreTrainedConfig]) -> None:
    native = native_of_transformers(raw, "config.json")
    assert native["model_type"] == raw["model_type"]
    assert configured(native, kind) == configured(raw, kind)
    assert "architectures" not in native and "torch_dtype" not in native


def test_strange_configs_of_transformers_are_refused() -> None:
    for wrong, message in (
        ({"model_type": "llava"}, "model_type 'llava' is none of"),
        ({**QWEN3_VL_2B, "quantization_config": {}}, "quantised"),
        ({**QWEN3_VL_2B, "vision_config": {"depth": "many"}}, "no model has depth"),
    ):
        with pytest.raises(CheckpointError, match=message):
            native_of_transformers(wrong, "config.json")


def test_what_is_said_of_the_head() -> None:
    assert says_tied(published(QWEN2_0_5B)) is False
    assert says_tied(published(QWEN3_8B)) is None
    assert says_tied(QWEN2_5_VL_3B) is True
    assert says_tied({"text_config": {"tie_word_embeddings": True}}) is True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", None), ("rope_theta", 0), ("num_key_value_heads", 0), ("num_key_value_heads", 5),
        ("num_attention_heads", 0), ("hidden_size", -896), ("num_hidden_layers", 10**7), ("vocab_size", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("llm", [QWEN2_0_5B, QWEN3_8B, INTERNLM2_7B])
def test_numbers_that_no_model_has_are_told(key: str, value: object, llm: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: (no model has|it makes no model)"):
        native_of_internvl(published({**llm, key: value}), "config.json")


def test_numbers_that_no_model_has_are_told_of_transformers_own_layout() -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: .*num_key_value_heads 0"):
        native_of_transformers({**QWEN2_5_VL_3B, "num_key_value_heads": 0}, "config.json")
