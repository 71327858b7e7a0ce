"""Adapters in the LLM, alone: where they are, what they start as, and rows of new tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salmacli.config.loading import load_config
from salmacli.config.schema import LoraConfig, MllmConfig
from salmacli.models.lora import add_lora, add_new_rows, lora_scale
from salmacli.models.mllm import build_mllm, chat_of
from salmacli.models.mllm.base import Mllm
from salmacli.models.tokenizer import SEGMENTATION_TOKENS, build_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
GRID = {"depth": 1, "num_heads": 2, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
QWEN = {  # its tower has layers of the same names
    "model_type": "qwen2_5_vl",
    "vision_config": {**GRID, "fullatt_block_indexes": [0], "window_size": 112},
    "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
}
LORA = LoraConfig(rank=4, alpha=8, dropout=0.5)


def build(native: dict | None = None) -> tuple[Mllm, object]:
    torch.manual_seed(0)
    config = MllmConfig(native=native or {**load_config("tiny").model.mllm.native, "text_config": TEXT})
    tokenizer = build_tokenizer(["the red circle"], 400, chat_of(config))
    return build_mllm(config, tokenizer).eval(), tokenizer


def states(mllm: Mllm, ids: torch.Tensor | None = None) -> torch.Tensor:
    ids = torch.arange(14).view(2, 7) if ids is None else ids
    seen = torch.ones(*ids.shape, ids.shape[1], dtype=torch.bool).tril()
    return mllm(ids, None, seen, torch.arange(ids.shape[1]).expand_as(ids))


@pytest.mark.parametrize("native", [None, QWEN], ids=["InternVL", "Qwen2.5-VL"])
def test_the_language_model_is_adapted_and_the_tower_is_not(native):
    mllm, _ = build(native)
    before = states(mllm)
    add_lora(mllm, LORA, seed=0)
    adapted = {name for name, _ in mllm.model.named_modules() if name.endswith("lora_A")}
    layers = mllm.model.config.text_config.num_hidden_layers
    assert len(adapted) == 7 * layers
    assert all(name.startswith("model.language_model.layers.") for name in adapted)
    assert torch.equal(states(mllm), before), "B is 0 at the start"
    assert lora_scale(mllm) == 2


def test_chosen_modules_only():
    mllm, _ = build()
    add_lora(mllm, LoraConfig(rank=2, alpha=8, modules=("q_proj", "up_proj")), seed=0)
    leaves = {name.split(".")[-2] for name, _ in mllm.model.named_modules() if name.endswith("lora_A")}
    assert leaves == {"q_proj", "up_proj"}
    assert lora_scale(mllm) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_new_tokens_stand_in_for_those_of_the_matrices(tied):
    native = {**load_config("tiny").model.mllm.native, "text_config": TEXT, "tie_word_embeddings": tied}
    mllm, tokenizer = build(native)
    ids = tokenizer.convert_tokens_to_ids(list(SEGMENTATION_TOKENS))
    conversation = torch.tensor([[1, ids[0], 5, ids[3], ids[4]]])

    def logits() -> torch.Tensor:
        return mllm.vocabulary_logits(states(mllm, conversation))

    before = logits()
    add_new_rows(mllm, tokenizer)
    assert torch.allclose(logits(), before, atol=1e-6), "they start as what the matrices have"
    embedding, head = mllm.model.get_input_embeddings(), mllm.model.lm_head
    assert (head.new_rows is embedding.new_rows) == tied
    new = {id(rows): rows for rows in (embedding.new_rows, head.new_rows)}.values()
    for rows in new:
        nn.init.normal_(rows)
    changed = logits()
    assert not torch.allclose(changed, before, atol=1e-2)
    changed.square().sum().backward()
    assert all(rows.grad.abs().sum(1).gt(0)[[0, 3, 4]].all() for rows in new)
    with torch.no_grad():  # the same in the matrices themselves
        for module in (embedding, head):
            module.weight[ids] = module.new_rows
    for module in (embedding, head):
        module._forward_hooks.clear()
    assert torch.allclose(logits(), changed, atol=1e-6)
