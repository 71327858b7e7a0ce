from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.training.comparison import difference
from salmacli.checkpoints.training.lora import LoraSettings, Pair
from salmacli.checkpoints.training.training_files import Training, check_base, merge_training, read_training
from salmacli.errors import CheckpointError

LLM = "mllm.model.model.language_model."
Q_PROJ = f"{LLM}layers.0.self_attn.q_proj.weight"
PEFT = "mllm.model.language_model.base_model.model."
DECODER = "grounding_encoder.sam2_model.sam_mask_decoder.mask_tokens.weight"


def _lazy(content: dict[str, Any]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor, name) for name, tensor in content["state_dict"].items()}


@pytest.fixture(scope="module")
def base(released: Path):
    return open_source(released)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_name_finds_its_place(base, training, version: str) -> None:
    content = training(version)
    found = read_training(_lazy(content), base.model["mllm"]["native"], "file")
    assert found.names <= base.tensors.keys()
    assert len(found.pairs) == 14
    assert len(found.tensors) + 2 * len(found.pairs) == len(content["state_dict"])
    assert all(found.tensors[name].shape == base.tensors[name].shape for name in found.tensors)
    assert {EMBEDDING, HEAD, "text_hidden_fcs.0.weight", "grounding.sam_mask_decoder.mask_tokens.weight"} <= found.names
    merged = merge_training(found, base.tensors, LoraSettings(8, 4), "file")
    tensors = content["state_dict"]
    a, b = (tensors[f"{PEFT}model.layers.0.self_attn.q_proj.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(merged[Q_PROJ].read(), base.tensors[Q_PROJ].read().float() + 2 * b @ a)
    assert torch.equal(merged["grounding.sam_mask_decoder.mask_tokens.weight"].read(), tensors[DECODER])


def test_lora_on_the_fused_attention_of_internlm2() -> None:
    """Splitting B as the map splits the weight, and sharing A, is merging first and splitting then."""
    from salmacli.checkpoints.sources.fused import Heads
    from salmacli.checkpoints.sources.key_maps import sa2va_to_salma

    text = {"architectures": ["InternLM2ForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 2}
    native, name = {"text_config": text}, "language_model.model.layers.3.attention.wqkv.weight"
    fused, a, b = torch.randn(64, 32), torch.randn(4, 32), torch.randn(64, 4)
    whole = sa2va_to_salma({name: LazyTensor.of(fused)}, Heads.of(native))
    after = sa2va_to_salma({name: LazyTensor.of(fused + 2 * b @ a)}, Heads.of(native))
    stem = PEFT + name.removeprefix("language_model.").removesuffix("weight")
    file = {f"{stem}lora_A.default.weight": LazyTensor.of(a), f"{stem}lora_B.default.weight": LazyTensor.of(b)}
    found = read_training(file, native, "file")
    merged = merge_training(found, whole, LoraSettings(8), "file")
    assert merged.keys() == after.keys() == {f"{LLM}layers.3.self_attn.{q}_proj.weight" for q in "qkv"}
    for key in after:
        torch.testing.assert_close(merged[key].read(), after[key].read())
        assert merged[key].shape == after[key].shape


def test_a_whole_dump_with_its_wrappers(base, training) -> None:
    """Untrained weights that peft keeps beside the trained ones are no new weights, but evidence of the base."""
    content = training()["state_dict"]
    q = f"{PEFT}model.layers.0.self_attn.q_proj.base_layer.weight"
    embedding = f"{PEFT}model.embed_tokens.original_module.weight"
    content |= {q: base.tensors[Q_PROJ].read().float(), embedding: base.tensors[EMBEDDING].read().float()}
    gamma = "grounding.memory_encoder.fuser.layers.0.gamma"
    content["grounding_encoder.sam2_model." + gamma.removeprefix("grounding.")] = base.tensors[gamma].read()
    found = read_training(_lazy({"state_dict": content}), base.model["mllm"]["native"], "file")
    assert found.frozen.keys() == {Q_PROJ, EMBEDDING}
    assert gamma in found.tensors
    check_base(found, base.tensors, _differences(found, base), "file")
    content[q] = torch.randn_like(content[q])
    other = read_training(_lazy({"state_dict": content}), base.model["mllm"]["native"], "file")
    with pytest.raises(CheckpointError, match=r"untrained copy of .*q_proj\.weight that is not the base's.*--base"):
        check_base(other, base.tensors, _differences(other, base), "file")


def _differences(found, base):
    return {name: difference(base.tensors[name].read(), one.read()) for name, one in found.tensors.items()}


def _wrap(tensors: dict[str, Any], prefix: str = "module.") -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_wrap, r"tensors \(module\..* begin with module\., so the file was saved from inside a wrapper"),
        (lambda t: _wrap(t, "_orig_mod."), r"begin with _orig_mod\."),
        (
            lambda t: t.update({"text_hidden_fc.0.weight": t.pop("text_hidden_fcs.0.weight")}),
            r"text_hidden_fc\.0\.weight",
        ),
        (lambda t: t.update({"text_exist_fcs.0.weight": torch.ones(1)}), r"text_exist_fcs\.0\.weight"),
        (lambda t: t.update({"mllm.model.mlp2.0.weight": torch.ones(1)}), r"mlp2\.0\.weight"),
        (lambda t: t.update({DECODER.replace("mask_tokens", "tokens"): t.pop(DECODER)}), r"sam_mask_decoder\.tokens"),
        (
            lambda t: t.pop(f"{PEFT}model.layers.1.mlp.up_proj.lora_B.default.weight"),
            r"lacks 1 tensor .*up_proj\.lora_B",
        ),
        (lambda t: t.update({f"{PEFT}lm_head.weight": torch.ones(1)}), "two tensors are language_model.lm_head.weight"),
        (lambda t: t.clear(), "holds no weights"),
    ],
)
def test_names_without_a_meaning(base, training, change, told: str) -> None:
    content = training()
    change(content["state_dict"])
    with pytest.raises(CheckpointError, match=told):
        _merged(content, base)


def _merged(content: dict[str, Any], base) -> dict[str, LazyTensor]:
    found = read_training(_lazy(content), base.model["mllm"]["native"], "file")
    return merge_training(found, base.tensors, LoraSettings(8), "file")


def _cut(tensors: dict[str, Any], name: str, columns: int) -> None:
    tensors[name] = tensors[name][:, :columns].clone()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: _cut(t, "text_hidden_fcs.0.weight", 5),
            r"text_hidden_fcs\.0\.weight \(128, 5\), in the base \(128, 128\)",
        ),
        (
            lambda t: _cut(t, f"{PEFT}model.layers.0.self_attn.q_proj.lora_A.default.weight", 9),
            r"q_proj\.weight \(128, 9\)",
        ),
        (lambda t: _cut(t, f"{PEFT}lm_head.modules_to_save.default.weight", 9), r"lm_head\.weight"),
    ],
)
def test_a_base_of_other_shapes(base, training, change, told: str) -> None:
    content = training()
    change(content["state_dict"])
    found = read_training(_lazy(content), base.model["mllm"]["native"], "file")
    with pytest.raises(CheckpointError, match=rf"{told}.*another base"):
        merge_training(found, base.tensors, LoraSettings(8), "file")


def test_a_base_that_lacks_a_layer(base, training) -> None:
    found = read_training(_lazy(training()), base.model["mllm"]["native"], "file")
    shallow = {name: tensor for name, tensor in base.tensors.items() if ".layers.1." not in name}
    with pytest.raises(CheckpointError, match=r"layers\.1\..* that the base does not have"):
        merge_training(found, shallow, LoraSettings(8), "file")


def test_a_base_of_the_same_shapes_with_other_weights(base, training) -> None:
    found = read_training(_lazy(training()), base.model["mllm"]["native"], "file")
    check_base(found, base.tensors, _differences(found, base), "file")
    torch.manual_seed(3)
    names = [name for name in found.tensors if "sam_mask_decoder" in name]
    other = dict(base.tensors) | {name: LazyTensor.of(torch.randn(base.tensors[name].shape)) for name in names}
    differences = {name: difference(other[name].read(), one.read()) for name, one in found.tensors.items()}
    with pytest.raises(CheckpointError, match=r"grounding\.sam_mask_decoder has nothing in common with the base's"):
        check_base(found, other, differences, "file")


GAP = "though it trained others of the same part"


@pytest.mark.parametrize(
    ("dropped", "told"),
    [
        ("sam_mask_decoder.transformer", rf"lacks \d\d tensors \(grounding\.sam_mask_decoder\.transformer.*{GAP}"),
        ("text_hidden_fcs.2.", rf"lacks 2 tensors \(text_hidden_fcs\.2\.bias, text_hidden_fcs\.2\.weight\), {GAP}"),
        ("mlp1.1.bias", rf"lacks 1 tensor \(.*multi_modal_projector\.linear_1\.bias\), {GAP}"),
        ("layers.1.mlp.up_proj.lora_", rf"lacks 1 tensor \({LLM}layers\.1\.mlp\.up_proj\.weight\), {GAP}"),
    ],
)
def test_parts_with_gaps(base, training, dropped: str, told: str) -> None:
    content = training()
    content["state_dict"] = {name: one for name, one in content["state_dict"].items() if dropped not in name}
    with pytest.raises(CheckpointError, match=told):
        _merged(content, base)


def test_parts_that_were_not_trained_are_no_gaps(base, training) -> None:
    absent = ("sam_mask_decoder.", "text_hidden_fcs.", "mlp1.", "up_proj.lora_", "lm_head.")
    content = training()
    content["state_dict"] = {
        name: one for name, one in content["state_dict"].items() if not any(part in name for part in absent)
    }
    assert EMBEDDING in _merged(content, base)


def test_an_attention_with_a_gap(base) -> None:
    attention = {f"cma.{name}": LazyTensor.of(torch.ones(2)) for name in ("gamma", "norm.weight", "norm.bias")}
    training = Training({"cma.gamma": attention["cma.gamma"]}, {}, {}, {}, ())
    assert merge_training(training, base.tensors, None, "file").keys() == {"cma.gamma"}  # all of it is new
    with pytest.raises(CheckpointError, match=rf"lacks 2 tensors \(cma\.norm\.bias, cma\.norm\.weight\), {GAP}"):
        merge_training(training, {**base.tensors, **attention}, None, "file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [DECODER, f"{PEFT}model.layers.0.self_attn.q_proj.lora_B.default.weight"])
def test_numbers_that_are_not_finite(base, training, name: str, value: float) -> None:
    content = training()
    content["state_dict"][name][0, 0] = value
    found = read_training(_lazy(content), base.model["mllm"]["native"], "file")
    merged = merge_training(found, base.tensors, LoraSettings(8), "file")
    differences = {key: difference(base.tensors[key].read(), one.read()) for key, one in merged.items()}
    with pytest.raises(CheckpointError, match=r"1 tensor \(.* cannot be compared .* not finite"):
        check_base(found, base.tensors, differences, "file")


def _frozen(copies: dict[str, torch.Tensor]) -> Training:
    return Training({}, {}, {name: LazyTensor.of(tensor) for name, tensor in copies.items()}, {}, ())


def test_untrained_copies() -> None:
    bias, table = Q_PROJ.replace("weight", "bias"), torch.randn(6, 4)
    tied = {bias: LazyTensor.of(torch.zeros(3)), EMBEDDING: LazyTensor.of(table)}
    check_base(_frozen({bias: torch.zeros(3), HEAD: table, EMBEDDING: table + 1e-4}), tied, {}, "file")
    wrong = [
        {bias: torch.ones(3)},
        {bias: torch.zeros(4)},
        {HEAD: torch.randn(6, 4)},
        {HEAD: torch.randn(6, 5)},
        {HEAD: torch.full((6, 4), torch.nan)},
        {"mllm.model.other": table},
    ]
    for copies in wrong:
        with pytest.raises(CheckpointError, match="untrained copy of"):
            check_base(_frozen(copies), tied, {}, "file")
    untied = tied | {HEAD: LazyTensor.of(torch.randn(6, 4))}
    with pytest.raises(CheckpointError, match=r"untrained copy of mllm\.model\.lm_head"):
        check_base(_frozen({HEAD: table}), untied, {}, "file")


def _on(name: str, out: int = 6) -> Training:
    pair = Pair(LazyTensor.of(torch.ones(2, 4)), LazyTensor.of(torch.ones(out, 2)))
    return Training({}, {name: pair}, {}, {}, ())


def test_lora_on_a_head_that_is_the_embedding() -> None:
    table = torch.randn(6, 4)
    tied = {EMBEDDING: LazyTensor.of(table)}
    merged = merge_training(_on(HEAD), tied, LoraSettings(2), "file")
    assert merged.keys() == {HEAD}
    torch.testing.assert_close(merged[HEAD].read(), table + 2)
    with pytest.raises(CheckpointError, match=r"LoRA \(7, 4\) for mllm\.model\.lm_head\.weight, which is \(6, 4\)"):
        merge_training(_on(HEAD, 7), tied, LoraSettings(2), "file")
    with pytest.raises(CheckpointError, match=r"text_hidden_fcs\.0\.weight, which is nowhere"):
        merge_training(_on("text_hidden_fcs.0.weight"), tied, LoraSettings(2), "file")


def test_one_alpha_for_the_language_model_and_the_vision_tower() -> None:
    vision = "mllm.model.model.vision_tower.encoder.layer.0.attention.q_proj.weight"
    base = {vision: LazyTensor.of(torch.zeros(6, 4)), Q_PROJ: LazyTensor.of(torch.zeros(6, 4))}
    same, other = (LoraSettings(16, 2, False, LoraSettings(alpha, 2, False)) for alpha in (16, 64))
    assert merge_training(_on(vision), base, same, "file").keys() == {vision}
    assert merge_training(_on(Q_PROJ), base, other, "file").keys() == {Q_PROJ}
    with pytest.raises(CheckpointError, match=r"vision_tower.* states α 64 \(r 2, .* and 16 \(r 2"):
        merge_training(_on(vision), base, other, "file")
