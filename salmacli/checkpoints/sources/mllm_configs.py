"""config.json of published multimodal LLMs ↔ ``mllm.native`` of our own configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import InternVLConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from salmacli.checkpoints.sources.fused import INTERNLM2
from salmacli.errors import CheckpointError

# Language models of InternVL's original layout: architecture → transformers' model type.
_LANGUAGE = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    INTERNLM2: "llama",
}
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range",
    "attention_bias", "attention_dropout", "mlp_bias", "use_sliding_window", "sliding_window", "max_window_layers",
    "layer_types", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# Ours → theirs, and what InternVL's own class takes where config.json says nothing.
_VISION: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", 3200),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "intermediate_size": ("intermediate_size", 12800),
    "hidden_act": ("hidden_act", "gelu"),
    "attention_bias": ("qkv_bias", False),
    "use_qk_norm": ("qk_normalization", True),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "num_channels": ("num_channels", 3),
    "patch_size": ("patch_size", 14),
    "image_size": ("image_size", 224),
    "attention_dropout": ("attention_dropout", 0.0),
    "hidden_dropout_prob": ("dropout", 0.0),
    "projection_dropout": ("dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "layer_scale_init_value": ("initializer_factor", 0.1),
}
_NATIVE: dict[str, type[PreTrainedConfig]] = {
    "internvl": InternVLConfig,
    "qwen2_5_vl": Qwen2_5_VLConfig,
    "qwen3_vl": Qwen3VLConfig,
}
# Whole numbers above 0 in a section of `native`, and more layers than any model has.
_COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "num_channels", "depth", "num_heads",
)  # fmt: skip
_LAYERS = 1000
# What comes of values that are of other types than they should be.
_UNUSABLE = (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
# What transformers' configurations hold beside the model itself.
_NOISE = {"architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "auto_map"} | {
    "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "problem_type", "use_cache",
    "is_encoder_decoder", "id2label", "label2id", "_commit_hash", "attn_implementation", "_attn_implementation",
}  # fmt: skip


def native_of_internvl(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What an InternVL or Sa2VA in the original layout says → arguments of transformers' ``InternVLConfig``.

    An InternLM2 is a Llama there; ``text_config.architectures`` goes on to say what it was.

    Args:
        config: Its config.json.
        where: The file, for messages.

    Raises:
        CheckpointError: It is a model that transformers' classes do not compute, or lacks a field.
    """
    try:
        native = _native(config, where)
        _check_sizes(native, where)  # first: transformers makes lists as long as a model is said to be deep
        InternVLConfig(**{key: value for key, value in native.items() if key != "model_type"})
    except _UNUSABLE as error:
        raise CheckpointError(f"{where}: it makes no model ({error})", "download it again") from error
    return native


def native_of_transformers(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json of an InternVL, Qwen2.5-VL or Qwen3-VL in transformers' own layout → its plain arguments.

    Raises:
        CheckpointError: It is of another model type, quantised, or not valid.
    """
    kind = config.get("model_type")
    if kind not in _NATIVE:
        raise CheckpointError(f"{where}: model_type {kind!r} is none of {', '.join(_NATIVE)}", "take another model")
    if "quantization_config" in config:
        raise CheckpointError(f"{where}: the weights are quantised", "take the model in its full precision")
    try:
        _check_sizes(config, where)
        full = _NATIVE[kind](**{key: value for key, value in config.items() if key != "model_type"}).to_dict()
        native = {"model_type": kind} | _without_noise(full)
        _check_sizes(native, where)
    except _UNUSABLE as error:
        raise CheckpointError(f"{where}: transformers does not accept it ({error})", "download it again") from error
    return native


def internvl_of_native(native: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `native_of_internvl`: the fields of a config.json in the original layout.

    Raises:
        CheckpointError: The original layout has no such language model.
    """
    # Through transformers' own class: what `native` leaves out has other defaults in the original.
    full = InternVLConfig(**{key: value for key, value in native.items() if key != "model_type"}).to_dict()
    text, sight = full["text_config"], full["vision_config"]
    named = text.get("architectures") or [name for name, kind in _LANGUAGE.items() if kind == text.get("model_type")]
    if not named:
        raise CheckpointError(f"InternVL's original layout has no language model {text.get('model_type')!r}")
    rope = dict(text.pop("rope_parameters", None) or {})
    theta, kind = rope.pop("rope_theta", 10_000.0), rope.pop("rope_type", "default")
    llm = {key: text[key] for key in _TEXT if text.get(key) is not None}
    llm |= {"architectures": [named[0]], "model_type": "internlm2" if named[0] == INTERNLM2 else text["model_type"]}
    llm |= {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope}}
    if named[0] == INTERNLM2:
        llm["bias"] = llm.pop("attention_bias", False)
    vision = {theirs: sight[ours] for ours, (theirs, _) in _VISION.items()}
    vision |= {key: _side(sight[key]) for key in ("image_size", "patch_size")}
    tied = bool(full["tie_word_embeddings"])
    return {
        "downsample_ratio": full["downsample_ratio"],
        "force_image_size": vision["image_size"],
        "hidden_size": text["hidden_size"],
        "llm_config": llm | {"tie_word_embeddings": tied},
        "ps_version": "v2",
        "select_layer": -1,
        "tie_word_embeddings": tied,
        "vision_config": vision | {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"},
    }


def _native(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    llm, vision = (_section(config, key, where) for key in ("llm_config", "vision_config"))
    architecture = _architecture(llm)
    if architecture not in _LANGUAGE:
        raise CheckpointError(
            f"{where}: the language model is a {architecture}, which SALMA does not have",
            f"take a model with one of {', '.join(_LANGUAGE)}",
        )
    _expect(config, "ps_version", "v2", "v1", where)
    _expect(config, "select_layer", -1, -1, where)
    sight = {ours: vision.get(theirs, default) for ours, (theirs, default) in _VISION.items()}
    size = config.get("force_image_size") or sight["image_size"]
    if size != sight["image_size"]:
        raise CheckpointError(
            f"{where}: force_image_size {size} differs from vision_config.image_size {sight['image_size']}",
            "resize the position embeddings first",
        )
    if sight["use_qk_norm"] and sight["layer_norm_eps"] != 1e-6:
        raise CheckpointError(f"{where}: its q and k norms use {sight['layer_norm_eps']}, transformers' 1e-6")
    native: dict[str, Any] = {
        "model_type": "internvl",
        "downsample_ratio": config.get("downsample_ratio", 0.5),
        "vision_config": {**sight, "image_size": [size, size], "patch_size": [sight["patch_size"]] * 2},
        "text_config": _text(llm, architecture, where),
    }
    grid = size // sight["patch_size"]
    native["image_seq_length"] = int(grid * grid * native["downsample_ratio"] ** 2)
    return native


def _check_sizes(native: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that transformers' configurations take and of which no model can be built."""
    for name in ("text_config", "vision_config"):
        section = native.get(name) or {}
        theta = (section.get("rope_parameters") or {}).get("rope_theta", 1.0)
        told = {key: section[key] for key in _COUNTS if section.get(key) is not None}
        faults = [f"{key} {value!r}" for key, value in told.items() if not _is_count(value)]
        faults += [] if isinstance(theta, (int, float)) and 0 < theta < math.inf else [f"rope_theta {theta!r}"]
        if not faults and told.get("num_hidden_layers", 1) > _LAYERS:
            faults.append(f"num_hidden_layers {told['num_hidden_layers']}")
        heads, keys = told.get("num_attention_heads", 1), told.get("num_key_value_heads", 1)
        if not faults and heads % keys:
            faults.append(f"num_attention_heads {heads} for num_key_value_heads {keys}")
        if not faults and "head_dim" not in section and told.get("hidden_size", heads) % heads:
            faults.append(f"hidden_size {told['hidden_size']} for num_attention_heads {heads}")
        if faults:
            raise CheckpointError(f"{where}: no model has {', '.join(faults)} ({name})", "download it again")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def says_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether config.json says that the head is the embedding; None if it says nothing."""
    sections = [config, *(config.get(key) or {} for key in ("text_config", "llm_config"))]
    said = [section["tie_word_embeddings"] for section in sections if "tie_word_embeddings" in section]
    return any(said) if said else None


def _text(llm: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    text = {key: llm[key] for key in _TEXT if llm.get(key) is not None}
    if missing := [key for key in _TEXT[:5] if key not in text]:
        raise CheckpointError(f"{where}: llm_config lacks {', '.join(missing)}", "download it again")
    if architecture == INTERNLM2:
        text["attention_bias"] = bool(llm.get("bias", True))
    scaling = dict(llm.get("rope_scaling") or llm.get("rope_parameters") or {})
    kind = scaling.pop("type", None) or scaling.pop("rope_type", None) or "default"
    scaling.pop("rope_type", None)
    rope = {"rope_type": kind, "rope_theta": llm.get("rope_theta", 10_000.0), **scaling}
    return text | {"model_type": _LANGUAGE[architecture], "architectures": [architecture], "rope_parameters": rope}


def _architecture(llm: Mapping[str, Any]) -> str:
    return str((llm.get("architectures") or ["language model that is not named"])[0])


def _section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{where} has no {key}", "name the folder of a whole model, with its own config.json")
    return section


def _expect(config: Mapping[str, Any], key: str, value: Any, default: Any, where: str) -> None:
    if config.get(key, default) != value:
        raise CheckpointError(
            f"{where}: {key} is {config.get(key, default)!r}, and SALMA computes {value!r}",
            "take InternVL 2.5 or later",
        )


def _without_noise(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_noise(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if key not in _NOISE and value is not None
    }


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)
