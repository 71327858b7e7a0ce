from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salmacli.config.loading import load_config
from salmacli.config.schema import AttentionInPrediction, MllmConfig, PredictConfig
from salmacli.data.conversation import QWEN_VL, branch, prefix
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.engine.flops import EXPRESSION, Cost, count, measure
from salmacli.models.cma import CrossModalAttention2D
from salmacli.models.salma import Salma
from salmacli.models.tokenizer import build_tokenizer

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GRID = {"depth": 2, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
QWEN = {
    "qwen2_5_vl": {
        "vision_config": {**GRID, "fullatt_block_indexes": [1]},
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    },
    "qwen3_vl": {
        "vision_config": {**GRID, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 100},
        "text_config": {
            **TEXT,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
    },
}


def test_a_linear_layer_by_hand() -> None:
    layer, x = nn.Linear(7, 5), torch.zeros(3, 7)
    assert count(lambda: layer(x)) == 2 * 3 * 7 * 5


def test_fused_attention_by_hand() -> None:
    query, key = torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 6, 8)  # (B, heads, L, width)
    products = 2 * 4 * 10 * 6 * 8  # multiply-adds of Q·Kᵀ, and as many of the weights with V
    assert count(lambda: F.scaled_dot_product_attention(query, key, key)) == 2 * 2 * products


def test_a_convolution_by_hand() -> None:
    layer, x = nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 12)
    assert count(lambda: layer(x)) == 2 * 10 * 12 * 8 * 3 * 9


@pytest.fixture(scope="module")
def costs(tiny_model) -> dict[str, Cost]:
    return {cost.part: cost for cost in measure(copy.deepcopy(tiny_model), frames=10)}


def test_every_part_is_there_and_costs_something(costs: dict[str, Cost]) -> None:
    expected = [
        "vision tower",
        "vision-language projector",
        "LLM prefix",
        "LLM answer",
        "language head",
        "text projector",
    ]
    expected += [
        "SAM 2 image encoder",
        "decoder's fine levels",
        "visual pre-pass",
        "CMA",
        "mask decoder",
        "memory attention",
        "memory encoder",
    ]
    assert list(costs) == expected
    assert all(cost.flops > 0 for cost in costs.values())


def test_runs_follow_the_inference_mode(costs: dict[str, Cost], tiny_model) -> None:
    assert tiny_model.config.inference_mode == "frames"
    assert {part: costs[part].runs for part in ("vision tower", "CMA", "mask decoder", "memory attention")} == {
        "vision tower": tiny_model.config.clip_frames,
        "CMA": 10,
        "mask decoder": 10,
        "memory attention": 0,
    }
    model = copy.deepcopy(tiny_model)
    model.config = model.config.model_copy(update={"inference_mode": "consistent"})
    runs = {cost.part: cost.runs for cost in measure(model, frames=10)}
    # Key frames are decoded a second time, from their masks, as SAM 2 does with a mask that it is given.
    assert runs["mask decoder"] == 10 + 4
    assert (runs["CMA"], runs["memory attention"], runs["memory encoder"]) == (4, 6, 10)


def test_runs_follow_the_settings(tiny_model) -> None:
    """Two windows of 6 frames that share 2."""
    settings = PredictConfig(mode="sa2va", window=6, overlap=2, key_frames=3, cma=AttentionInPrediction(frames="all"))
    runs = {cost.part: cost.runs for cost in measure(copy.deepcopy(tiny_model), frames=10, settings=settings)}
    assert runs["SAM 2 image encoder"] == 10
    assert (runs["vision tower"], runs["LLM prefix"], runs["LLM answer"]) == (6, 2, 2)
    assert (runs["mask decoder"], runs["memory attention"], runs["CMA"]) == (12, 6, 12)


@pytest.mark.slow
def test_fewer_memories_cost_less(tiny_model) -> None:
    def reading(**settings: int) -> int:
        costs = measure(copy.deepcopy(tiny_model), frames=20, settings=PredictConfig(mode="consistent", **settings))
        return next(cost.flops for cost in costs if cost.part == "memory attention")

    one = reading(conditioning=2, memories=2) - reading(conditioning=1, memories=2)
    assert one > 0
    assert one == reading(conditioning=1, memories=3) - reading(conditioning=1, memories=2)
    assert reading() == reading(conditioning=1, memories=1) + (3 + 5) * one


def test_the_language_model_by_hand(costs: dict[str, Cost], tiny_model) -> None:
    """A question's tokens attend to the frames' without computing them again."""
    text = tiny_model.mllm.model.config.text_config
    width, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    keys = 2 * width * head * text.num_key_value_heads
    projections = 2 * (2 * width * width + keys + 3 * width * text.intermediate_size) * text.num_hidden_layers

    def of(tokens: int, seen: int) -> int:
        return tokens * projections + 4 * tokens * seen * width * text.num_hidden_layers

    mllm = tiny_model.mllm
    start = len(prefix(tiny_model.tokenizer, mllm.chat, [mllm.tokens_per_frame] * tiny_model.config.clip_frames))
    asked = len(branch(tiny_model.tokenizer, mllm.chat, EXPRESSION, QUESTIONS[0], ANSWERS[0]).ids)
    assert costs["LLM prefix"].flops == of(start, start)
    assert costs["LLM answer"].flops == of(asked, start + asked)


def test_cma_by_hand(costs: dict[str, Cost], tiny_model) -> None:
    D = tiny_model.mllm.width
    C, HW = tiny_model.config.sam2.width, (tiny_model.config.sam2.image_size // 16) ** 2
    k = tiny_model.config.cma.topk
    tokens = costs["text projector"].flops // (2 * D * (D + C))  # words and [SEG]
    projections = 2 * HW * C * C + 2 * k * C * C  # query and out; key and value
    by_hand = 2 * (projections + 2 * HW * k * C + tokens * C)  # attention twice, router
    assert costs["CMA"].flops == by_hand


def test_options_of_the_cma_cost_what_they_do(costs: dict[str, Cost], tiny_model) -> None:
    """By hand."""
    C, HW = tiny_model.config.sam2.width, (tiny_model.config.sam2.image_size // 16) ** 2
    k = tiny_model.config.cma.topk
    model = copy.deepcopy(tiny_model)
    options = {"levels": (16, 8, 4), "layers": 2, "decoder_fusion": True, "film": True}
    model.config = model.config.model_copy(update={"cma": model.config.cma.model_copy(update=options)})
    model.cma = CrossModalAttention2D(C, model.config.cma)
    found = {cost.part: cost for cost in measure(model, frames=10)}

    def level(c: int, pixels: int) -> int:
        attention = 2 * pixels * c * c + 2 * k * C * c + 2 * pixels * k * c  # query and out, key and value, products
        return 2 * 2 * (attention + 2 * C * c)  # 2 layers; and the scale and shift of each channel

    def excitation(c: int) -> int:
        return 2 * 2 * 2 * c * max(c // 4, 8)

    tokens = costs["text projector"].flops // (2 * tiny_model.mllm.width * (tiny_model.mllm.width + C))
    fine = sum(level(C // n, HW * pixels) + excitation(C // n) for n, pixels in ((4, 4), (8, 16)))
    assert found["CMA"].flops == level(C, HW) + 2 * tokens * C + fine
    gate = 2 * 2 * 2 * 16 * HW * (C // 8) ** 2
    assert found["CMA in the mask decoder"].flops == level(C // 8, 16 * HW) + gate
    assert found["CMA in the mask decoder"].runs == found["CMA"].runs
    assert found["mask decoder"] == costs["mask decoder"]


def test_without_cma_its_parts_are_absent(tiny_model) -> None:
    model = copy.deepcopy(tiny_model)
    model.cma = None
    parts = [cost.part for cost in measure(model, frames=2)]
    assert "CMA" not in parts
    assert "visual pre-pass" not in parts


def test_counting_on_shapes_equals_counting_real_work(costs: dict[str, Cost], tiny_model) -> None:
    model = copy.deepcopy(tiny_model).requires_grad_(False)
    side = model.config.sam2.image_size
    real = count(lambda: model.grounding.encode(torch.zeros(1, 3, side, side)))
    assert real == costs["SAM 2 image encoder"].flops
    features = model.grounding.encode(torch.zeros(1, 3, side, side))
    sights = model.grounding.decodable(features)
    assert count(lambda: model.prior(sights)) == costs["visual pre-pass"].flops


@pytest.mark.parametrize("kind", QWEN)
def test_counting_qwen_vl_on_shapes_equals_counting_real_work(kind) -> None:
    """Its tower reads grids as numbers, which shapes alone do not have."""
    tokenizer = build_tokenizer(["the red circle"], 600)
    special = [QWEN_VL.image_start, QWEN_VL.image_context, QWEN_VL.image_end]
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tiny = load_config("tiny").model
    native = {"model_type": kind, **QWEN[kind]}
    model = Salma(tiny.model_copy(update={"mllm": MllmConfig(native=native)}), tokenizer).requires_grad_(False)
    seen = count(lambda: model.mllm.encode_frames(torch.zeros(1, 3, *model.mllm.frame_size)))
    merged, merges = (
        model.mllm.tokens_per_frame,
        1 + len(QWEN[kind]["vision_config"].get("deepstack_visual_indexes", ())),
    )
    costs = {cost.part: cost for cost in measure(model, frames=3)}
    assert costs["vision tower"].flops + costs["vision-language projector"].flops == seen
    wide = 4 * GRID["hidden_size"]
    by_hand = merges * 2 * merged * (wide * wide + wide * TEXT["hidden_size"])
    assert costs["vision-language projector"].flops == by_hand
