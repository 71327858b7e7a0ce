"""AdamW's groups and the table of parts: who learns, how fast, with how much decay."""

from __future__ import annotations

import pytest
import torch

from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.engine.training.optimizer import adamw, parameter_groups, parts_table
from salmacli.models.salma import Salma
from salmacli.models.trained import prepare_training

SMALL = [
    "model.cma.enabled=true",
    "model.cma.mba=bias",
    "model.cma.levels=[4, 16]",
    "model.sam2.embed_dim=16",
    "model.sam2.width=32",
    "model.sam2.image_size=64",
    "model.mllm.native.vision_config.num_hidden_layers=1",
    "model.mllm.native.text_config.num_hidden_layers=3",
    "train.lora.rank=4",
    "train.learning_rate=1e-3",
    "train.gamma_rate=5",
    "train.layer_decay=0.5",
    "train.weight_decay=0.1",
]


def build(*assignments: str) -> tuple[Salma, RunConfig]:
    settings = load_config("tiny", [*SMALL, *assignments])
    torch.manual_seed(0)
    model = Salma.build(settings.model, ["the red circle"])
    prepare_training(model, settings, bf16=False)
    return model, settings


def settings_of(model: Salma, settings: RunConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter that is in a group, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, settings):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found, "in one group only"
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_every_parameter_that_trains_is_in_one_group(recipe):
    model, settings = build(f"train.recipe={recipe}")
    assert set(settings_of(model, settings)) == {name for name, one in model.named_parameters() if one.requires_grad}
    optimizer = adamw(model, settings)
    assert optimizer.defaults["betas"] == settings.train.betas
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 5e-4, 2.5e-4, 1.25e-4, 5e-3}


def test_only_matrices_decay():
    model, settings = build("train.recipe=full")
    found = settings_of(model, settings)
    llm = "mllm.model.model.language_model."
    for name, decays in {
        f"{llm}layers.0.mlp.up_proj.weight": True,
        f"{llm}layers.0.input_layernorm.weight": False,
        f"{llm}embed_tokens.weight": False,
        "mllm.model.lm_head.weight": True,
        "mllm.model.model.vision_tower.embeddings.position_embeddings": False,
        "mllm.model.model.vision_tower.embeddings.patch_embeddings.projection.weight": True,
        "grounding.image_encoder.trunk.pos_embed": False,
        "grounding.sam_mask_decoder.mask_tokens.weight": False,
        "grounding.sam_mask_decoder.conv_s0.weight": True,
        "text_hidden_fcs.0.bias": False,
        "cma.gamma": False,
        "cma.null_key": False,
        "cma.value.weight": True,
    }.items():
        assert found[name][1] == (0.1 if decays else 0.0), name
    assert not [name for name, (_, decay) in found.items() if decay and model.get_parameter(name).ndim < 2]
    tied, told = build("train.recipe=full", "model.mllm.native.tie_word_embeddings=true")
    assert settings_of(tied, told)[f"{llm}embed_tokens.weight"][1] == 0, "a head that is the embedding, too"


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            ["train.recipe=full"],
            {
                "mllm.model.model.language_model.layers.2.mlp.up_proj.weight": 1,
                "mllm.model.model.language_model.layers.0.mlp.up_proj.weight": 1 / 4,
                "mllm.model.model.language_model.embed_tokens.weight": 1 / 8,
                "mllm.model.model.language_model.norm.weight": 1,
                "mllm.model.lm_head.weight": 1,
                "mllm.model.model.vision_tower.encoder.layer.0.mlp.fc1.weight": 1,
                "grounding.sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight": 1,
                "cma.gamma": 5,
                "cma.finer.stride4.gamma": 5,
            },
        ),
        (
            ["train.recipe=lora", "train.vocabulary=new"],
            {
                "mllm.model.model.language_model.layers.1.self_attn.q_proj.lora_A.default.weight": 1 / 2,
                "mllm.model.model.language_model.embed_tokens.new_rows": 1 / 8,
                "mllm.model.lm_head.new_rows": 1,
            },
        ),
    ],
)
def test_rates_fall_from_the_last_layer_down_and_gammas_have_their_own(recipe, expected):
    found = settings_of(*build(*recipe))
    assert {name: found[name][0] / 1e-3 for name in expected} == pytest.approx(expected)


def test_the_table_tells_every_part():
    model, settings = build("train.recipe=lora")
    rows = {row.part: row for row in parts_table(model, settings)}
    assert sum(row.parameters for row in rows.values()) == sum(one.numel() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert sum(row.trained for row in rows.values()) == trained
    assert (rows["vision tower"].trained, rows["vision tower"].learning_rates) == (0, None)
    assert rows["LoRA of the LLM"].trained == rows["LoRA of the LLM"].parameters
    assert rows["LoRA of the LLM"].learning_rates == pytest.approx((2.5e-4, 1e-3))
    assert 0 < rows["SAM 2 mask decoder"].trained < rows["SAM 2 mask decoder"].parameters
