"""A SALMA checkpoint → the layout in which Sa2VA is released: names, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.sources.fused import Heads
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD, MLLM, salma_to_sa2va
from salmacli.checkpoints.sources.mllm_configs import internvl_of_native
from salmacli.checkpoints.sources.tokenizers import for_older_transformers
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError

# How a released Sa2VA prepares pictures; its code reads these from config.json.
_PICTURES = {
    "dynamic_image_size": True,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "pad2square": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": True,
}
# How a released Sa2VA predicts, whatever it was trained on.
PREDICTION = {"inference_mode": "sa2va", "mask_token": "best-of-three", "clip_frames": 5, "tiles": 12}
_LANGUAGE_MODEL = MLLM + "model.language_model."


def released_rotary(tensors: Mapping[str, LazyTensor], native: Mapping[str, Any]) -> str:
    """What the public code leaves of the rotary embedding of an LLM (`MllmConfig.rotary`), told by its stored types.

    It moves a model that is stored in bfloat16 there as a whole; one that was trained and merged in float32 it leaves.
    Qwen's modules keep their frequencies in a buffer, InternLM2's the tables. Source: the public code and its outputs.

    Args:
        tensors: by SALMA's names.
        native: ``mllm.native``.
    """
    types = {one.dtype for name, one in tensors.items() if name.startswith(_LANGUAGE_MODEL)}
    if types != {torch.bfloat16}:
        return "exact"
    return "rounded-frequencies" if Heads.of(native) is None else "rounded-tables"


def sa2va_folder(contents: Contents) -> tuple[dict[str, Any], dict[str, LazyTensor], dict[str, bytes]]:
    """What to write into a folder of the released layout.

    Types stay. `open_source` reads the result back to the same tensors: what the layout has no field for, such as a
    SAM 2 of another size, is kept under ``salma`` in config.json, which other readers pass over.

    Args:
        contents: a whole model without cross-modal attention.

    Returns:
        config.json as plain data, released name → tensor, and the tokenizer's files.

    Raises:
        CheckpointError: the released layout has no place for this model.
    """
    model = ModelConfig.model_validate(contents.model)
    native = model.mllm.native
    if native.get("model_type", "internvl") != "internvl":
        raise CheckpointError(
            f"the released Sa2VA layout is InternVL's, and this model has a {native['model_type']}", "use --to folder"
        )
    if model.cma.enabled:
        raise CheckpointError(
            "the released Sa2VA layout has no place for the cross-modal attention of this model", "use --to folder"
        )
    tensors, heads = dict(contents.tensors), Heads.of(native)
    tied = HEAD not in tensors
    if tied:  # the released code keeps two
        tensors[HEAD] = tensors[EMBEDDING]
    text = {**native["text_config"], "vocab_size": tensors[EMBEDDING].shape[0]}
    native = {**native, "text_config": text, "tie_word_embeddings": tied}
    types = {str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items() if name.startswith(MLLM)}
    config = {
        "architectures": ["Sa2VAChatModel"],
        "model_type": "sa2va_chat",
        **internvl_of_native(native),
        **_PICTURES,
        "template": "qwen_chat" if heads is None else "internlm2_chat",
        "salma": {
            **model.model_dump(mode="json", include={"sam2", "mask_token", "clip_frames", "tiles", "inference_mode"}),
            "rotary": model.mllm.rotary,
        },
    }
    if len(types) == 1:
        config["torch_dtype"] = types.pop()
    return dict(sorted(config.items())), salma_to_sa2va(tensors, heads), for_older_transformers(contents.tokenizer)
