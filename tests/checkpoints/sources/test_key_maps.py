from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.sources.fused import Heads
from salmacli.checkpoints.sources.key_maps import (
    check_native_internvl,
    internvl_to_native,
    native_to_internvl,
    older_native_to_native,
    sa2va_to_salma,
    salma_to_sa2va,
    sam2_to_salma,
)
from salmacli.errors import CheckpointError

HEADS = Heads(queries=4, keys=2)
SAM2 = "grounding_encoder.sam2_model."


def lazy(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor, name) for name, tensor in tensors.items()}


def some(shapes: dict[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    random = torch.Generator().manual_seed(0)
    return lazy({name: torch.randn(shape, generator=random) for name, shape in shapes.items()})


def same(ours: dict[str, LazyTensor], theirs: dict[str, LazyTensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape
        and ours[name].dtype == theirs[name].dtype
        and torch.equal(ours[name].read(), theirs[name].read())
        for name in ours
    )


def vision(norms: bool) -> dict[str, tuple[int, ...]]:
    """One layer of an InternViT: the 300M has biases, the 6B q and k norms in their place."""
    layer = "vision_model.encoder.layers.11."
    own = (
        {"attn.q_norm.weight": (8,), "attn.k_norm.weight": (8,)}
        if norms
        else {"attn.qkv.bias": (24,), "norm1.bias": (8,)}
    )
    return {
        "vision_model.embeddings.class_embedding": (1, 1, 8),
        "vision_model.embeddings.position_embedding": (1, 5, 8),
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 2, 2),
        "vision_model.embeddings.patch_embedding.bias": (8,),
        **{layer + name: shape for name, shape in own.items()},
        **{layer + name: (8,) for name in ("norm1.weight", "norm2.weight", "ls1", "ls2", "attn.proj.bias")},
        layer + "attn.qkv.weight": (24, 8),
        layer + "attn.proj.weight": (8, 8),
        layer + "mlp.fc1.weight": (16, 8),
        layer + "mlp.fc2.bias": (8,),
        **{f"mlp1.{n}.{kind}": (4, 4) for n in (0, 1, 3) for kind in ("weight", "bias")},
    }


def llama(norms: bool) -> dict[str, tuple[int, ...]]:
    layer = "language_model.model.layers.3."
    own = ("self_attn.q_norm.weight", "self_attn.k_norm.weight") if norms else ("self_attn.q_proj.bias",)
    return {
        "language_model.model.embed_tokens.weight": (9, 16),
        "language_model.model.norm.weight": (16,),
        "language_model.lm_head.weight": (9, 16),
        **{layer + name: (16,) for name in (*own, "input_layernorm.weight", "post_attention_layernorm.weight")},
        **{f"{layer}self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"},
        **{f"{layer}mlp.{name}_proj.weight": (16, 16) for name in ("gate", "up", "down")},
    }


INTERNLM2 = {
    "language_model.model.tok_embeddings.weight": (9, 16),
    "language_model.model.norm.weight": (16,),
    "language_model.output.weight": (9, 16),
    "language_model.model.layers.0.attention_norm.weight": (16,),
    "language_model.model.layers.0.ffn_norm.weight": (16,),
    "language_model.model.layers.0.attention.wqkv.weight": (32, 16),
    "language_model.model.layers.0.attention.wqkv.bias": (32,),
    "language_model.model.layers.0.attention.wo.weight": (16, 16),
    **{f"language_model.model.layers.0.feed_forward.w{n}.weight": (16, 16) for n in (1, 2, 3)},
}
SAM2_NAMES = {
    SAM2 + "image_encoder.trunk.pos_embed": (1, 8, 7, 7),
    SAM2 + "memory_encoder.fuser.layers.0.g_weight": (8,),
    SAM2 + "memory_encoder.fuser.layers.1.g_weight": (8,),
    SAM2 + "no_mem_embed": (1, 1, 8),
    SAM2 + "sam_mask_decoder.mask_tokens.weight": (4, 8),
}
PROJECTOR = {f"text_hidden_fcs.{n}.{kind}": (4,) for n in (0, 2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("language", ["llama", "internlm2"])
def test_there_and_back_is_the_identity(norms: bool, language: str) -> None:
    heads = HEADS if language == "internlm2" else None
    original = some(vision(norms) | (INTERNLM2 if heads else llama(norms)) | SAM2_NAMES | PROJECTOR)
    salma = sa2va_to_salma(original, heads)
    assert len(salma) == len(original) + sum(2 for name in original if "qkv" in name)
    assert {name.split(".")[0] for name in salma} == {"mllm", "grounding", "text_hidden_fcs"}
    assert "grounding.memory_encoder.fuser.layers.1.gamma" in salma
    check_native_internvl({n.removeprefix("mllm.model."): t for n, t in salma.items() if n.startswith("mllm.")})
    assert same(salma_to_sa2va(salma, heads), original)
    assert all(tensor.read().shape == tensor.shape for tensor in salma.values())


def test_native_names_are_those_of_transformers() -> None:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    sight = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sight |= {"image_size": [56, 56], "use_qk_norm": True, "norm_type": "rms_norm"}
    for kind in ("qwen2", "qwen3", "llama"):
        text = {"model_type": kind, "vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
        model = InternVLForConditionalGeneration(
            InternVLConfig(vision_config=sight, text_config=text, tie_word_embeddings=False)
        )
        native = lazy(model.state_dict())
        check_native_internvl(native)
        assert same(internvl_to_native(native_to_internvl(native)), native)
        if kind == "llama":  # as an InternLM2
            assert same(internvl_to_native(native_to_internvl(native, HEADS), HEADS), native)


def test_internlm2_rows_are_taken_per_key_head() -> None:
    """Each key head's rows hold its two queries, itself, and its value; heads are 4 wide."""
    name = "language_model.model.layers.0.attention.wqkv.weight"
    fused = torch.arange(32.0)[:, None]
    got = {
        k.split(".")[-2][0]: t.read()[:, 0].tolist() for k, t in internvl_to_native(lazy({name: fused}), HEADS).items()
    }
    assert got["q"] == [*range(8), *range(16, 24)]
    assert got["k"] == [*range(8, 12), *range(24, 28)]
    assert got["v"] == [*range(12, 16), *range(28, 32)]


def test_vision_rows_are_thirds() -> None:
    name = "vision_model.encoder.layers.0.attn.qkv.bias"
    got = internvl_to_native(lazy({name: torch.arange(6.0)}))
    assert [t.read().tolist() for t in got.values()] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("vision_tower.encoder.layer.0.lambda_1", "model.vision_tower.encoder.layer.0.lambda_1"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("model.visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_transformers_4_and_5(old: str, new: str) -> None:
    assert list(older_native_to_native(some({old: (1,)}))) == [new]


def test_buffers_that_are_computed_are_passed_over() -> None:
    extra = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    assert internvl_to_native(some(extra)) == {}


def test_a_name_without_a_rule_is_told() -> None:
    for wrong in (
        "vision_model.encoder.layers.0.attn.qkvx.weight",
        "mlp1.2.weight",
        "language_model.model.layers.0.self_attn.qkv_proj.weight",  # Phi-3
        "module.mlp1.0.weight",
        "grounding_encoder.cma.gamma",
    ):
        with pytest.raises(CheckpointError, match=wrong):
            sa2va_to_salma(some({wrong: (3,), "mlp1.0.weight": (4,)}))
    with pytest.raises(CheckpointError, match=r"2 tensors \(cma\.gamma, cma\.norm\.weight\)"):
        salma_to_sa2va(some({"cma.gamma": (1,), "cma.norm.weight": (4,)}))
    with pytest.raises(CheckpointError, match="wqkv"):  # an InternLM2 read as a Llama
        internvl_to_native(some(INTERNLM2))
    with pytest.raises(CheckpointError, match="unknown"):
        check_native_internvl(some({"model.unknown": (1,)}))


def test_gamma_is_sam2s_name_and_g_weight_sa2vas() -> None:
    gamma = "memory_encoder.fuser.layers.0.gamma"
    with pytest.raises(CheckpointError, match="g_weight"):
        sa2va_to_salma(some({SAM2 + gamma: (8,)}))
    with pytest.raises(CheckpointError, match="g_weight"):
        sam2_to_salma(some({gamma.replace("gamma", "g_weight"): (8,)}))
    assert list(sam2_to_salma(some({gamma: (8,)}))) == ["grounding." + gamma]


def test_two_names_for_one_tensor_are_refused() -> None:
    both = {"language_model.lm_head.weight": (1,), "lm_head.weight": (1,)}
    with pytest.raises(CheckpointError, match="two tensors would become lm_head"):
        older_native_to_native(some(both))


def test_an_incomplete_attention_is_refused() -> None:
    name = "model.vision_tower.encoder.layer.0.attention.{}_proj.weight"
    with pytest.raises(CheckpointError, match=r"only .*q_proj.* is there"):
        native_to_internvl(some({name.format("q"): (8, 8), name.format("v"): (8, 8)}))
    other = lazy({name.format(q): torch.zeros(8, 8, dtype=torch.float16 if q == "k" else None) for q in "qkv"})
    with pytest.raises(CheckpointError, match="do not go into one matrix"):
        native_to_internvl(other)


def test_a_matrix_of_other_heads_is_refused() -> None:
    with pytest.raises(CheckpointError, match="25 rows"):
        internvl_to_native(some({"vision_model.encoder.layers.0.attn.qkv.weight": (25, 8)}))
    wqkv = {"language_model.model.layers.0.attention.wqkv.weight": (30, 16)}
    with pytest.raises(CheckpointError, match="not those of 4 query and 2 key heads"):
        internvl_to_native(some(wqkv), HEADS)


def test_the_half_of_a_lora_is_split_like_its_weight() -> None:
    """LoRA's B has the weight's rows and the rank's columns; splitting B splits the update."""
    name = "language_model.model.layers.0.attention.wqkv.weight"
    up, down = torch.randn(32, 3), torch.randn(3, 16)
    whole = internvl_to_native(lazy({name: up @ down}), HEADS)
    halves = internvl_to_native(lazy({name: up}), HEADS)
    for key, half in halves.items():
        assert half.shape == (whole[key].shape[0], 3)
        torch.testing.assert_close(half.read() @ down, whole[key].read())
