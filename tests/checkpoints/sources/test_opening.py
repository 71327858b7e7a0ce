from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD
from salmacli.checkpoints.sources.opening import open_source
from salmacli.config.schema import MllmConfig, ModelConfig, Sam2Config
from salmacli.errors import CheckpointError, SalmaError
from salmacli.models.grounding import build_grounding
from salmacli.models.mllm import build_mllm
from salmacli.models.salma import Salma

PICTURES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
QWEN_PICTURES = [*PICTURES[:3], "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
ROWS = 256 + len(PICTURES)
VIT = {
    "hidden_act": "gelu", "hidden_size": 16, "image_size": 56, "intermediate_size": 32, "layer_norm_eps": 1e-06,
    "norm_type": "layer_norm", "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 14,
    "qk_normalization": False, "qkv_bias": True,
}  # fmt: skip
VIT_6B = VIT | {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
LLM = {
    "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "vocab_size": ROWS,
}  # fmt: skip
LANGUAGES: dict[str, dict[str, Any]] = {
    "qwen2": LLM | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "qwen3": LLM | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 16},
    "internlm2": LLM
    | {"architectures": ["InternLM2ForCausalLM"], "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
}
SAM2 = Sam2Config(
    image_size=64, embed_dim=16, stages=(1, 1, 1, 1), global_attention=(2,), windows=(2, 2, 2, 2), background=(3, 3),
    width=32, memory_width=16, memory_layers=1, memory_feedforward=32, decoder_feedforward=32,
)  # fmt: skip


def vision_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an InternViT and ``mlp1`` in the original layout."""
    width, inner, out = config["hidden_size"], config["intermediate_size"], LLM["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, 17, width),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.patch_embedding.bias": (width,),
    }
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{n}."
        vectors = ["ls1", "ls2", "norm1.weight", "norm2.weight", "attn.proj.bias", "mlp.fc2.bias"]
        vectors += ["attn.q_norm.weight", "attn.k_norm.weight"] if config["qk_normalization"] else []
        vectors += ["norm1.bias", "norm2.bias"] if config["norm_type"] == "layer_norm" else []
        shapes |= {layer + name: (width,) for name in vectors}
        shapes |= {layer + "attn.qkv.bias": (3 * width,)} if config["qkv_bias"] else {}
        shapes[layer + "attn.qkv.weight"], shapes[layer + "attn.proj.weight"] = (3 * width, width), (width, width)
        shapes[layer + "mlp.fc1.weight"], shapes[layer + "mlp.fc1.bias"] = (inner, width), (inner,)
        shapes[layer + "mlp.fc2.weight"] = (width, inner)
    found = {f"vision_model.{name}": shape for name, shape in shapes.items()}
    found |= {"mlp1.0.weight": (4 * width,), "mlp1.0.bias": (4 * width,), "mlp1.1.weight": (out, 4 * width)}
    return found | {"mlp1.1.bias": (out,), "mlp1.3.weight": (out, out), "mlp1.3.bias": (out,)}


def language_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a language model in the original layout; two key heads of 8, or 16 in Qwen3."""
    width, inner, head = LLM["hidden_size"], LLM["intermediate_size"], 16 if kind == "qwen3" else 8
    q, kv = 4 * head, 2 * head
    if kind == "internlm2":
        found = {"model.tok_embeddings.weight": (ROWS, width), "output.weight": (ROWS, width)}
        members = {
            "attention.wqkv.weight": (q + 2 * kv, width), "attention.wo.weight": (width, q),
            "attention_norm.weight": (width,), "ffn_norm.weight": (width,), "feed_forward.w1.weight": (inner, width),
            "feed_forward.w2.weight": (width, inner), "feed_forward.w3.weight": (inner, width),
        }  # fmt: skip
    else:
        found = {"model.embed_tokens.weight": (ROWS, width), "lm_head.weight": (ROWS, width)}
        members = {
            "self_attn.q_proj.weight": (q, width), "self_attn.k_proj.weight": (kv, width),
            "self_attn.v_proj.weight": (kv, width), "self_attn.o_proj.weight": (width, q),
            "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
            "mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
        }  # fmt: skip
        if kind == "qwen2":
            members |= {f"self_attn.{name}_proj.bias": (q if name == "q" else kv,) for name in "qkv"}
        else:
            members |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    found["model.norm.weight"] = (width,)
    found |= {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in members.items()}
    return {f"language_model.{name}": shape for name, shape in found.items()}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write_tokenizer(folder: Path, special: list[str]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>").save_pretrained(folder)


def original(folder: Path, kind: str = "qwen2", vision: dict[str, Any] = VIT) -> Path:
    """A whole InternVL as it is published, of tiny size."""
    folder.mkdir()
    save_file(filled(vision_shapes(vision) | language_shapes(kind)), folder / "model.safetensors")
    config = {
        "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "force_image_size": 56,
        "llm_config": LANGUAGES[kind], "model_type": "internvl_chat", "ps_version": "v2", "select_layer": -1,
        "vision_config": vision,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('ran')")
    write_tokenizer(folder, PICTURES)
    return folder


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def tokenizer_of(files: Any, folder: Path) -> PreTrainedTokenizerFast:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def see(tensors: dict[str, Tensor], config: dict[str, Any], pixels: Tensor) -> Tensor:
    """InternViT, pixel shuffle v2 and ``mlp1`` by the original names: (F, 3, 56, 56) → (F, 4, D)."""
    own = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    size = config["hidden_size"]

    def norm(x: Tensor, name: str, rms: bool = config["norm_type"] == "rms_norm") -> Tensor:
        if rms:
            return F.rms_norm(x, x.shape[-1:], own[f"{name}.weight"], 1e-6)
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))

    patches = F.conv2d(pixels, own["embeddings.patch_embedding.weight"], own["embeddings.patch_embedding.bias"], 14)
    begin = own["embeddings.class_embedding"].expand(len(pixels), -1, -1)
    x = torch.cat([begin, patches.flatten(2).transpose(1, 2)], 1) + own["embeddings.position_embedding"]
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{n}."
        q, k, v = linear(norm(x, layer + "norm1"), layer + "attn.qkv").chunk(3, -1)
        if config["qk_normalization"]:
            q, k = (norm(side, f"{layer}attn.{name}_norm", rms=True) for side, name in ((q, "q"), (k, "k")))
        q, k, v = (side.unflatten(-1, (2, -1)).transpose(1, 2) for side in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + own[layer + "ls1"] * linear(attended, layer + "attn.proj")
        inner = F.gelu(linear(norm(x, layer + "norm2"), layer + "mlp.fc1"))
        x = x + own[layer + "ls2"] * linear(inner, layer + "mlp.fc2")
    squares = x[:, 1:].reshape(-1, 2, 2, 2, 2, size).transpose(2, 3).reshape(-1, 4, 4 * size)
    joined = F.layer_norm(squares, squares.shape[-1:], own["mlp1.0.weight"], own["mlp1.0.bias"])
    return linear(F.gelu(linear(joined, "mlp1.1")), "mlp1.3")


def speak(tensors: dict[str, Tensor], kind: str, ids: Tensor) -> Tensor:
    """The language model by the original names: (1, L) → (1, L, V)."""
    own = {n.removeprefix("language_model."): t for n, t in tensors.items() if n.startswith("language_model.")}
    if kind != "internlm2":
        config, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
        language = model(config(**LANGUAGES[kind])).eval()
        language.load_state_dict(own)
        return language(input_ids=ids).logits

    def rms(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], own[name], 1e-6)

    def turned(x: Tensor) -> Tensor:  # (1, H, L, 8)
        speeds = 1_000_000.0 ** (-torch.arange(0, 8, 2) / 8)
        angles = torch.arange(ids.shape[1])[:, None] * speeds
        first, second = x.chunk(2, -1)
        sin, cos = angles.sin(), angles.cos()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = own["model.tok_embeddings.weight"][ids]
    for n in range(LLM["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        groups = (rms(x, layer + "attention_norm.weight") @ own[layer + "attention.wqkv.weight"].T).unflatten(
            -1, (2, 4, 8)
        )
        q, k, v = groups[..., :2, :].flatten(2, 3), groups[..., 2, :], groups[..., 3, :]
        q, k, v = (side.transpose(1, 2) for side in (q, k, v))
        k, v = turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        attended = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + attended @ own[layer + "attention.wo.weight"].T
        h = rms(x, layer + "ffn_norm.weight")
        gate, down, up = (own[f"{layer}feed_forward.w{m}.weight"].T for m in (1, 2, 3))
        x = x + (F.silu(h @ gate) * (h @ up)) @ down
    return rms(x, "model.norm.weight") @ own["output.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("kind", list(LANGUAGES))
@pytest.mark.parametrize("vision", [VIT, VIT_6B], ids=["300M", "6B"])
def test_the_native_class_computes_what_the_original_does(kind: str, vision: dict[str, Any], tmp_path: Path) -> None:
    folder = original(tmp_path / "it", kind, vision)
    tensors = load_file(folder / "model.safetensors")
    parts = open_source(folder)
    native = InternVLForConditionalGeneration(InternVLConfig(**parts.model["mllm"]["native"])).eval()
    native.load_state_dict({n.removeprefix("mllm.model."): t.read() for n, t in parts.tensors.items()})
    pixels, ids = torch.randn(2, 3, 56, 56), torch.randint(0, 256, (1, 12))
    seen, said = see(tensors, vision, pixels), speak(tensors, kind, ids)
    torch.testing.assert_close(native.get_image_features(pixel_values=pixels).pooler_output, seen, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(native(input_ids=ids).logits, said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", list(LANGUAGES))
@pytest.mark.parametrize("vision", [VIT, VIT_6B], ids=["300M", "6B"])
def test_internvl_fills_its_native_class(kind: str, vision: dict[str, Any], tmp_path: Path) -> None:
    parts = open_source(original(tmp_path / "it", kind, vision))
    assert (parts.layout, parts.notes) == (Layout.INTERNVL, ("its tokenizer gets [SEG] <p> </p> <vp> </vp>",))
    assert parts.files == (tmp_path / "it" / "model.safetensors",)
    native = parts.model["mllm"]["native"]
    assert (native["text_config"]["vocab_size"], native["tie_word_embeddings"]) == (ROWS, False)
    tokenizer = tokenizer_of(parts.tokenizer, tmp_path / "tokenizer")
    assert tokenizer.convert_tokens_to_ids("[SEG]") == ROWS
    grown = {**native, "text_config": {**native["text_config"], "vocab_size": ROWS + 5}}
    wanted = {f"mllm.{name}": t for name, t in build_mllm(MllmConfig(native=grown), tokenizer).state_dict().items()}
    assert wanted.keys() == parts.tensors.keys()
    assert [n for n in wanted if wanted[n].shape != parts.tensors[n].shape] == [EMBEDDING, HEAD]
    assert all(tensor.read().shape == tensor.shape for tensor in parts.tensors.values())


def test_a_file_stands_for_its_folder(tmp_path: Path) -> None:
    folder = original(tmp_path / "it")
    assert open_source(folder / "model.safetensors").tensors.keys() == open_source(str(folder)).tensors.keys()


def test_bins_are_read_like_safetensors(tmp_path: Path) -> None:
    folder = original(tmp_path / "it")
    before = open_source(folder)
    values = {name: tensor.read().clone() for name, tensor in before.tensors.items()}
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    after = open_source(folder)
    assert after.files == (folder / "pytorch_model.bin",)
    assert all(torch.equal(after.tensors[name].read(), value) for name, value in values.items())


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["transformers 5", "transformers 4"])
def test_internvl_in_transformers_own_layout(prefix: str, tmp_path: Path) -> None:
    first = open_source(original(tmp_path / "it", "qwen3"))
    folder = tmp_path / "native"
    shutil.copytree(tmp_path / "it", folder)
    native = first.model["mllm"]["native"]
    names = {name.removeprefix("mllm.model."): tensor.read().clone() for name, tensor in first.tensors.items()}
    if not prefix:
        older = {"lm_head.weight": "language_model.lm_head.weight"}
        names = {
            older.get(name, name.removeprefix("model.").replace("language_model.", "language_model.model.")): tensor
            for name, tensor in names.items()
        }
    save_file(names, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**native, "architectures": ["InternVLForConditionalGeneration"]}))
    second = open_source(folder)
    assert second.layout is Layout.INTERNVL_NATIVE
    assert second.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(second.tensors[name].read(), first.tensors[name].read()) for name in first.tensors)
    assert second.model["mllm"]["native"]["text_config"]["head_dim"] == 16


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_vl(kind: str, tmp_path: Path) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    text = {**LLM, "vocab_size": 300, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "head_dim": 8}
    sight = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    if kind == "qwen2_5_vl":
        config: Any = Qwen2_5_VLConfig(
            text_config={k: v for k, v in text.items() if k != "head_dim"},
            vision_config={**sight, "fullatt_block_indexes": [1]},
            tie_word_embeddings=True,
        )
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    else:
        rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "mrope_interleaved": True}
        config = Qwen3VLConfig(
            text_config={**text, "rope_scaling": rope, "tie_word_embeddings": True},
            vision_config={**sight, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            tie_word_embeddings=True,
        )
        model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, QWEN_PICTURES)
    parts = open_source(tmp_path)
    assert parts.layout is Layout.QWEN_VL
    wanted = {f"mllm.model.{name}": tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert wanted.keys() == parts.tensors.keys()
    assert all(torch.equal(wanted[name], parts.tensors[name].read()) for name in wanted)
    native = parts.model["mllm"]["native"]
    assert native["tie_word_embeddings"] is True
    built = build_mllm(MllmConfig(native=native), tokenizer_of(parts.tokenizer, tmp_path / "tokenizer"))
    assert {f"mllm.{name}" for name in built.state_dict()} - wanted.keys() <= {HEAD}


def test_sam2_in_its_official_file(tmp_path: Path) -> None:
    model = build_grounding(SAM2)
    torch.save({"model": model.state_dict()}, tmp_path / "sam2_tiny.pt")
    (tmp_path / "sam2.json").write_text(SAM2.model_dump_json())
    for place in (tmp_path / "sam2_tiny.pt", tmp_path):
        parts = open_source(place, sam2_config=tmp_path / "sam2.json")
        assert parts.layout is Layout.SAM2
        assert parts.files == (tmp_path / "sam2_tiny.pt",)
        assert Sam2Config.model_validate(parts.model["sam2"]) == SAM2
        assert parts.tensors.keys() == {f"grounding.{name}" for name in model.state_dict()}
        for name, tensor in model.state_dict().items():
            assert torch.equal(parts.tensors[f"grounding.{name}"].read(), tensor)
    with pytest.raises(CheckpointError, match="of no released size; say which with --sam2-config"):
        open_source(tmp_path / "sam2_tiny.pt")
    with pytest.raises(CheckpointError, match="it says embed_dim 144 instead of 16"):
        open_source(tmp_path / "sam2_tiny.pt", sam2_config="sam2_hiera_l")
    shutil.copy(tmp_path / "sam2_tiny.pt", tmp_path / "sam2_other.pt")
    with pytest.raises(CheckpointError, match="holds 2 SAM 2"):
        open_source(tmp_path)


def test_from_the_hub_comes_what_is_needed_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def resolve(name: str, patterns: list[str]) -> Path:
        asked[name] = patterns
        return tmp_path / name.partition("/")[2]

    monkeypatch.setattr("salmacli.checkpoints.sources.opening.resolve", resolve)
    original(tmp_path / "InternVL2_5-1B")
    (tmp_path / "sam2-hiera-large").mkdir()
    torch.save({"model": build_grounding(SAM2).state_dict()}, tmp_path / "sam2-hiera-large" / "sam2_hiera_large.pt")
    (tmp_path / "sam2.json").write_text(SAM2.model_dump_json())
    assert open_source("OpenGVLab/InternVL2_5-1B").name == "OpenGVLab/InternVL2_5-1B"
    sam2 = open_source("facebook/sam2-hiera-large", sam2_config=tmp_path / "sam2.json")
    assert asked["facebook/sam2-hiera-large"] == ["sam2_hiera_large.pt"]  # not the same weights by other names
    assert sam2.place.name == "sam2_hiera_large.pt"
    assert {"config.json", "*.safetensors", "merges.txt", "tokenizer.model"} <= set(asked["OpenGVLab/InternVL2_5-1B"])
    assert not any("py" in Path(pattern).suffix for pattern in asked["OpenGVLab/InternVL2_5-1B"])


def test_a_checkpoint_of_ours_is_a_source(run_checkpoint: Path, tiny_model: Salma) -> None:
    parts = open_source(run_checkpoint)
    assert parts.layout is Layout.SALMA_FOLDER
    assert ModelConfig.model_validate(parts.model) == tiny_model.config
    assert parts.tensors.keys() == tiny_model.state_dict().keys()
    assert "tokenizer.json" in parts.tokenizer


def test_released_sa2va_of_another_size(shared_data: Path) -> None:
    """Real layout, real names; case.json beside it says which SAM 2 it has."""
    parts = open_source(shared_data / "parity")
    assert parts.layout is Layout.SA2VA
    assert parts.notes == ("its SAM 2 is of no released size; case.json beside it says which",)
    config = ModelConfig.model_validate(parts.model)
    assert (config.inference_mode, config.mask_token, config.clip_frames) == ("sa2va", "best-of-three", 5)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_data / "parity")
    wanted = Salma(config, tokenizer).state_dict()
    assert wanted.keys() == parts.tensors.keys()
    assert all(wanted[name].shape == parts.tensors[name].shape for name in wanted)
    assert {tensor.dtype for tensor in parts.tensors.values()} == {torch.bfloat16}


def test_a_template_of_other_turns_is_told(released: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(released, tmp_path / "it")
    assert open_source(folder).notes == ()
    reconfigure(folder, template="phi3_chat")
    assert "turns of phi3_chat" in open_source(folder).notes[0]


def tie(tensors: dict[str, Tensor]) -> None:
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def test_a_head_that_is_the_embedding_is_kept_once(tmp_path: Path) -> None:
    folder = original(tmp_path / "it")
    rewrite(folder, tie)
    parts = open_source(folder)  # nothing says that it is meant
    assert HEAD in parts.tensors and parts.model["mllm"]["native"]["tie_word_embeddings"] is False
    reconfigure(folder, tie_word_embeddings=True)
    parts = open_source(folder)
    assert HEAD not in parts.tensors and parts.model["mllm"]["native"]["tie_word_embeddings"] is True
    rewrite(folder, drop("language_model.lm_head.weight"))
    assert open_source(folder).tensors.keys() == parts.tensors.keys()


def faults() -> dict[str, tuple[Any, dict[str, Any], str]]:
    """What is changed in the weights and in config.json, and what must be said."""
    head, qkv = "language_model.lm_head.weight", "vision_model.encoder.layers.1.attn.qkv.weight"

    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["vision_model.encoder.layers.1.attn.qvk.weight"] = tensors.pop(qkv)

    def fewer(tensors: dict[str, Tensor]) -> None:
        tensors[head] = tensors[head][:-1].clone()

    nothing: dict[str, Any] = {}
    return {
        "head": (drop(head), nothing, "lack the language head lm_head.weight"),
        "tied head": (None, {"tie_word_embeddings": True}, "hold a head of its own"),
        "embedding": (drop("language_model.model.embed_tokens.weight"), nothing, "hold no token embedding"),
        "rows": (fewer, nothing, rf"\[{ROWS - 1}, {ROWS}\] rows"),
        "vocabulary": (None, {"llm_config": {**LANGUAGES["qwen2"], "vocab_size": 99}}, "says a vocabulary of 99"),
        "wrapper": (wrap, nothing, "begin with module., so the file was saved from inside a wrapper"),
        "renamed": (rename, nothing, "qvk.weight"),
        "phi3": (None, {"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "is a Phi3ForCausalLM"),
        "no llm": (None, {"llm_config": None}, "has no llm_config"),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_faults_are_told(fault: str, tmp_path: Path) -> None:
    change, config, message = faults()[fault]
    folder = original(tmp_path / "it")
    if change is not None:
        rewrite(folder, change)
    reconfigure(folder, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(folder)
    assert caught.value.exit_code == 4


def test_a_model_without_its_files_is_told(released: Path, tmp_path: Path) -> None:
    folder = original(tmp_path / "it")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_source(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_source(folder)
    other = shutil.copytree(released, tmp_path / "sa2va")
    write_tokenizer(other, PICTURES)
    with pytest.raises(CheckpointError, match=r"its tokenizer has no \[SEG\]"):
        open_source(other)


def test_what_is_no_model_to_start_from_is_told(tmp_path: Path) -> None:
    lora = "mllm.model.language_model.base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    content = {"state_dict": {lora: torch.zeros(1), "text_hidden_fcs.0.weight": torch.zeros(1)}, "meta": {}}
    torch.save(content, tmp_path / "training.pth")
    with pytest.raises(CheckpointError, match="not a model to start from"):
        open_source(tmp_path / "training.pth")
    with pytest.raises(SalmaError):
        open_source(tmp_path / "nowhere")


def test_other_sets_of_weights_in_the_file_are_noted(tmp_path: Path) -> None:
    tensors = build_grounding(SAM2).state_dict()
    path = tmp_path / "sam2.pt"
    torch.save({"state_dict": tensors, "ema_state_dict": tensors, "meta": {"iter": 3}}, path)
    parts = open_source(path, sam2_config=SAM2.model_dump(mode="json"))
    assert "ema_state_dict beside it was left out" in parts.notes and not any("meta" in note for note in parts.notes)


def test_leftovers_are_told_with_the_file(tmp_path: Path) -> None:
    folder = original(tmp_path / "it")
    rewrite(folder, lambda tensors: tensors.update({"stray.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"^\S+/it: .* has no place for .*stray\.weight") as caught:
        open_source(folder)
    assert str(caught.value).count(str(folder)) == 1
