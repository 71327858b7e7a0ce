"""The multimodal LLM: frames and a conversation → hidden states, and greedy answers; one API for all families."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from salmacli.config.schema import MllmConfig
from salmacli.data.conversation import ChatFormat
from salmacli.errors import ConfigError
from salmacli.models.mllm.base import Answers, Mllm
from salmacli.models.mllm.internvl import InternVl
from salmacli.models.mllm.qwen_vl import Qwen3Vl, QwenVl

__all__ = ["Answers", "Mllm", "build_mllm", "chat_of"]

_FAMILIES: dict[str, type[Mllm]] = {"internvl": InternVl, "qwen2_5_vl": QwenVl, "qwen3_vl": Qwen3Vl}


def build_mllm(config: MllmConfig, tokenizer: PreTrainedTokenizerFast) -> Mllm:
    """The model that ``native.model_type`` names (InternVL if it names none), with fresh weights.

    Args:
        config: ``native`` are the arguments of transformers' own configuration.
        tokenizer: of the model; it gives the ids of the special tokens.

    Raises:
        ConfigError: the type is unknown, ``native`` lacks a section, or the tokenizer does not fit the model.
    """
    return _family(config)(config, tokenizer)


def chat_of(config: MllmConfig) -> ChatFormat:
    """How models of that type are shown pictures.

    Raises:
        ConfigError: the type is unknown.
    """
    return _family(config).chat


def _family(config: MllmConfig) -> type[Mllm]:
    kind = config.native.get("model_type", "internvl")
    if kind not in _FAMILIES:
        raise ConfigError(f"model.mllm.native.model_type = {kind!r} is unknown", f"take one of {', '.join(_FAMILIES)}")
    return _FAMILIES[kind]
