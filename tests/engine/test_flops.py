from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salmacli.engine.flops import Cost, count, measure


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
        "language model",
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
    assert (runs["CMA"], runs["mask decoder"], runs["memory attention"], runs["memory encoder"]) == (
        4,
        10,
        6,
        10,
    )


def test_cma_by_hand(costs: dict[str, Cost], tiny_model) -> None:
    D = tiny_model.mllm.width
    C, HW = tiny_model.config.sam2.width, (tiny_model.config.sam2.image_size // 16) ** 2
    k = tiny_model.config.cma.topk
    tokens = costs["text projector"].flops // (2 * D * (D + C))  # words and [SEG]
    projections = 2 * HW * C * C + 2 * k * C * C  # query and out; key and value
    by_hand = 2 * (projections + 2 * HW * k * C + tokens * C)  # attention twice, router
    assert costs["CMA"].flops == by_hand


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
