"""What trains, per recipe: nothing is left out, nothing trains that no loss reaches, and what is frozen stays exact."""

from __future__ import annotations

import copy

import pytest
import torch

from salmacli.config.loading import load_config
from salmacli.config.schema import RunConfig
from salmacli.errors import ConfigError
from salmacli.models import trained
from salmacli.models.salma import Salma
from salmacli.models.trained import parts_of, prepare_training, trained_parts

SMALL = [
    "model.cma.enabled=true",
    "model.sam2.embed_dim=16",
    "model.sam2.width=32",
    "model.sam2.image_size=64",
    "model.mllm.native.vision_config.num_hidden_layers=1",
    "model.mllm.native.text_config.hidden_size=32",
    "model.mllm.native.text_config.intermediate_size=64",
    "model.mllm.native.text_config.num_attention_heads=2",
    "model.mllm.native.text_config.num_key_value_heads=1",
    "train.lora.rank=4",
]
TIED = ["model.mllm.native.tie_word_embeddings=true", "model.mllm.native.text_config.tie_word_embeddings=true"]
OUTSIDE = {"text projector", "SAM 2 mask decoder", "cross-modal attention"}
LORA = {"LoRA of the LLM", "vision-language projector", *OUTSIDE}
WHOLE = {"vision-language projector", "token embedding", "language model", "language head", *OUTSIDE}


def config(*assignments: str) -> RunConfig:
    return load_config("tiny", [*SMALL, *assignments])


def build(settings: RunConfig, bf16: bool = False) -> Salma:
    torch.manual_seed(0)
    model = Salma.build(settings.model, ["the red circle"])
    prepare_training(model, settings, bf16=bf16)
    return model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.recipe=lora"], {*LORA, "token embedding", "language head"}),
        (["train.recipe=lora", "train.vocabulary=new"], {*LORA, "rows of new tokens"}),
        (["train.recipe=lora", "train.vocabulary=none"], LORA),
        (["train.recipe=lora", *TIED], {*LORA, "token embedding"}),
        (["train.recipe=full"], {*WHOLE, "vision tower", "SAM 2 image encoder"}),
        (["train.recipe=decoder-only"], OUTSIDE),
        (["train.recipe=cma-only"], {"cross-modal attention"}),
        (
            ["train.recipe=decoder-only", "train.memory=true", "data.decoded_frames=3"],
            {*OUTSIDE, "SAM 2 memory"},
        ),
    ],
)
def test_each_recipe_trains_its_parts_and_nothing_else(settings, expected):
    settings = config(*settings)
    model = build(settings)
    parts = trained_parts(model, settings)
    assert set(parts) == expected
    names = [name for part in parts.values() for name in part]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, one in model.named_parameters() if one.requires_grad}
    every = [name for part in parts_of(model).values() for name in part]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())


def test_encoders_that_came_pretrained_stay_with_every_recipe():
    settings = config("train.recipe=full", "model.mllm.base=somewhere")
    assert set(trained_parts(build(settings), settings)) == WHOLE


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ([], {"output_hypernetworks_mlps.1", "output_hypernetworks_mlps.2", "output_hypernetworks_mlps.3"}),
        (["model.mask_token=best-of-three", "losses.iou=0"], {"output_hypernetworks_mlps.0", "iou_prediction_head"}),
        (["model.sam2.object_scores=true", "train.memory=true", "data.decoded_frames=2"], set()),
        (
            ["model.sam2.object_scores=true", "model.mask_token=best-of-three"],
            {"output_hypernetworks_mlps.0", "pred_obj_score_head"},
        ),
    ],
)
def test_heads_that_no_loss_reaches_are_frozen(settings, idle):
    """Weight decay would wear them down; the memory needs the score head as SAM 2 trained it."""
    settings = config("train.recipe=full", *settings)
    decoder = build(settings).grounding.sam_mask_decoder
    frozen = {name for name, one in decoder.named_parameters() if not one.requires_grad}
    assert {next((head for head in idle if name.startswith(f"{head}.")), name) for name in frozen} == idle


def test_with_the_memory_the_decoder_that_propagates_trains_too():
    settings = config("train.recipe=lora", "train.memory=true", "data.decoded_frames=2", "model.sam2.two_decoders=true")
    model = build(settings)
    parts = trained_parts(model, settings)
    assert "grounding.propagation_decoder.output_hypernetworks_mlps.1.layers.0.weight" in parts[trained.PROPAGATION]
    assert "grounding.propagation_decoder.output_hypernetworks_mlps.0.layers.0.weight" not in parts[trained.PROPAGATION]
    assert "grounding.maskmem_tpos_enc" in parts[trained.MEMORY]
    assert not model.grounding.no_mem_embed.requires_grad, "frames without memory stay as they are"
    alone = config("train.recipe=cma-only", "train.memory=true", "data.decoded_frames=2")
    assert set(trained_parts(build(alone), alone)) == {trained.CMA}


def test_a_frozen_matrix_is_kept_as_autocast_rounds_it_and_nothing_else_is():
    settings = config("train.recipe=lora", "train.vocabulary=none")
    exact, rounded = build(settings), build(settings, bf16=True)
    ids, positions = torch.arange(12).view(2, 6), torch.arange(6).expand(2, -1)
    seen = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    pixels = torch.rand(1, 3, *exact.mllm.frame_size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for model in (exact, rounded):
            model.eval()
        ours, theirs = (
            (model.mllm.encode_frames(pixels), model.mllm.vocabulary_logits(model.mllm(ids, None, seen, positions)))
            for model in (rounded, exact)
        )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    narrow = {name for name, one in rounded.named_parameters() if one.dtype is torch.bfloat16}
    llm = "mllm.model.model.language_model."
    assert {f"{llm}layers.0.mlp.up_proj.base_layer.weight", "mllm.model.lm_head.weight"} <= narrow
    assert not [name for name in narrow if not name.startswith("mllm.") or "norm" in name or "embed_tokens" in name]
    assert not [name for name, one in rounded.named_parameters() if one.requires_grad and name in narrow]


def test_a_head_that_is_the_embedding_is_not_rounded():
    """Sums of embeddings are the states of the LLM; they are not rounded by autocast."""
    model = build(config("train.recipe=lora", "train.vocabulary=none", *TIED), bf16=True)
    assert model.mllm.model.lm_head.weight.dtype is torch.float32


def test_what_the_llm_does_not_have_is_named():
    with pytest.raises(ConfigError, match=r"train.lora.modules names wqkv, .* take some of down_proj, .*v_proj"):
        build(config("train.recipe=lora", "train.lora.modules=[q_proj, wqkv]"))


def test_adapters_depend_on_the_runs_seed_alone():
    one, other = config("train.recipe=lora"), config("train.recipe=lora", "seed=1")
    torch.manual_seed(5)
    model = Salma.build(one.model, ["the red circle"])
    after = torch.get_rng_state()
    twin = copy.deepcopy(model)
    prepare_training(model, one, bf16=False)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(6)
    prepare_training(twin, one, bf16=False)
    lora = parts_of(model)[trained.LORA]
    assert all(
        torch.equal(one, two) for one, two in zip(lora.values(), parts_of(twin)[trained.LORA].values(), strict=True)
    )
    third = parts_of(build(other))[trained.LORA]
    assert any(not torch.equal(tensor, third[name]) for name, tensor in lora.items())
