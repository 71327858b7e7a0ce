"""Adapters of the LLM: peft's own LoRA, put into transformers' own modules in place, and rows for new tokens."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from salmacli.config.schema import LoraConfig
from salmacli.errors import ConfigError
from salmacli.models.mllm.base import Mllm
from salmacli.models.tokenizer import SEGMENTATION_TOKENS

NEW_ROWS, _IDS = "new_rows", "new_ids"


def add_lora(mllm: Mllm, config: LoraConfig, seed: int) -> None:
    """Adapt linear layers of the language model: W x + α/r · B A x, with B = 0 at the start.

    Args:
        mllm: changed in place: a layer ``q_proj`` becomes ``q_proj.base_layer``, ``q_proj.lora_A.default``, ….
        config: which layers, and how.
        seed: of A.

    Raises:
        ConfigError: the language model has no such layers.

    Source: Hu et al., arXiv 2106.09685.
    """
    llm = mllm.parts()["language model"]
    linear = [name for name, module in llm.named_modules() if isinstance(module, nn.Linear)]
    leaves = {name.rpartition(".")[2] for name in linear}
    if missing := [name for name in config.modules if name not in leaves]:
        raise ConfigError(
            f"train.lora.modules names {', '.join(missing)}, which the LLM does not have",
            f"take some of {', '.join(sorted(leaves))}",
        )
    peft = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[name for name in linear if name.rpartition(".")[2] in config.modules],
    )
    with torch.random.fork_rng(devices=[]):  # peft makes A on the CPU
        torch.manual_seed(seed)
        inject_adapter_in_model(peft, llm)


def lora_scale(mllm: Mllm) -> float:
    """α/r of an adapted language model."""
    llm: Any = mllm.parts()["language model"]
    peft = llm.peft_config["default"]
    return float(peft.lora_alpha / peft.r)


def add_new_rows(mllm: Mllm, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the rows of SALMA's own tokens in embedding and head train, and only those.

    They become parameters of their own, ``new_rows`` (5, D), that stand in for the matrices' rows: an optimiser would
    keep two numbers for each of 151,655 rows, and a gradient mask would still have it do so.
    """
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(SEGMENTATION_TOKENS)))
    embedding, head = mllm.model.get_input_embeddings(), mllm.model.lm_head
    ids = ids.to(embedding.weight.device)
    for module, hook in ((embedding, _embed), (head, _predict)):
        tied = module is head and head.weight is embedding.weight
        rows = embedding.new_rows if tied else nn.Parameter(module.weight.detach()[ids].clone())
        module.register_parameter(NEW_ROWS, rows)
        module.register_buffer(_IDS, ids, persistent=False)
        module.register_forward_hook(hook)


def _embed(module: Any, read: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
    """Embeddings (…, D) of ids (…) with the new rows in their places."""
    same = read[0].unsqueeze(-1) == module.new_ids  # (…, 5)
    return torch.where(same.any(-1, keepdim=True), module.new_rows[same.long().argmax(-1)], embedded)


def _predict(module: Any, read: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Logits (…, V) with those of the new rows in their places."""
    return logits.index_copy(-1, module.new_ids, nn.functional.linear(read[0], module.new_rows).to(logits.dtype))
