from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.layouts import (
    ADAPTER_FORMAT,
    Layout,
    bare,
    detect,
    name_layout,
    salma_folder,
    weights_in,
)
from salmacli.checkpoints.load import load_checkpoint
from salmacli.errors import CheckpointError

LORA = "mllm.model.language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
TRAINED = [LORA, "mllm.model.mlp1.0.weight", "text_hidden_fcs.0.weight"]
DECODER = "grounding_encoder.sam2_model.sam_mask_decoder.iou_token.weight"
EMBEDDING = "mllm.model.language_model.base_model.model.model.embed_tokens"

NAMES = {
    Layout.TRAINING_V2: [*TRAINED, DECODER, f"{EMBEDDING}.modules_to_save.default.weight"],
    Layout.TRAINING_V1: [*TRAINED, DECODER, f"{EMBEDDING}.weight"],
    Layout.TRAINING_CMA: [*TRAINED, DECODER, "grounding_encoder.cma.attn.in_proj_weight", "gamma"],
    Layout.SA2VA: ["vision_model.encoder.layers.0.attn.qkv.weight", "text_hidden_fcs.0.weight", DECODER],
    Layout.INTERNVL: [
        "vision_model.encoder.layers.0.attn.qkv.weight",
        "mlp1.0.weight",
        "language_model.lm_head.weight",
    ],
    Layout.INTERNVL_NATIVE: ["model.vision_tower.encoder.layer.0.attention.q_proj.weight", "lm_head.weight"],
    Layout.QWEN_VL: ["model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.input_layernorm.weight"],
    Layout.SAM2: ["image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight", "maskmem_tpos_enc"],
    Layout.UNKNOWN: ["encoder.weight", "decoder.weight"],
}


@pytest.mark.parametrize("layout", NAMES)
def test_layouts_are_known_by_their_names(layout: Layout) -> None:
    assert name_layout(NAMES[layout]) is layout


def test_layouts_are_known_whatever_wrapped_the_model() -> None:
    for layout, names in NAMES.items():
        for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
            assert name_layout([prefix + name for name in names]) is layout
    assert bare("module._orig_mod.a.module.b._orig_mod.c") == "a.module.b.c"


def test_qwen_files_of_before_transformers_5_lack_a_prefix() -> None:
    assert name_layout(["visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.up_proj.weight"]) is Layout.QWEN_VL


def test_native_files_of_before_transformers_5_lack_a_prefix() -> None:
    assert name_layout(["vision_tower.encoder.layer.3.lambda_1"]) is Layout.INTERNVL_NATIVE


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_other_models_say_what_they_are(tmp_path: Path, layout: Layout, suffix: str) -> None:
    tensors = {name: torch.zeros(1) for name in NAMES[layout]}
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model" if layout is Layout.SAM2 else "state_dict": tensors, "meta": {}}, path)
    else:
        save_file(tensors, path)
    assert detect(path) is layout
    with pytest.raises(CheckpointError, match=layout.value.replace("(", r"\(").replace(")", r"\)")):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folders_of_sharded_files(tmp_path: Path, kind: str) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = dict.fromkeys(NAMES[Layout.INTERNVL], f"{stem}-00001-of-00002.{kind}")
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text("{}")
    assert detect(tmp_path) is Layout.INTERNVL


def test_folders_that_hold_a_model_in_two_forms(tmp_path: Path) -> None:
    save_file({"vision_encoder.backbone.pos_embed": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert detect(tmp_path) is Layout.UNKNOWN
    torch.save({"model": {name: torch.zeros(1) for name in NAMES[Layout.SAM2]}}, tmp_path / "sam2_hiera_large.pt")
    assert detect(tmp_path) is Layout.SAM2


def test_adapter_folders(tmp_path: Path) -> None:
    save_file({"base_model.model.model.layers.0.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"format": ADAPTER_FORMAT}))
    assert detect(tmp_path) is detect(tmp_path / "adapter_model.safetensors") is Layout.SALMA_ADAPTER


def test_salma_checkpoints(run_checkpoint: Path) -> None:
    for path in (run_checkpoint, run_checkpoint / "ckpt.pth", run_checkpoint / "model.safetensors"):
        assert detect(path) is Layout.SALMA_FOLDER


def test_weights_without_their_header(run_checkpoint: Path) -> None:
    (run_checkpoint / "config.json").unlink()
    assert detect(run_checkpoint / "model.safetensors") is Layout.SALMA_BARE


def test_a_run_points_to_its_checkpoints(run_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds 1 checkpoints; .*step-7"):
        detect(run_checkpoint.parents[1])


def test_nothing_there_or_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        detect(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        detect(tmp_path)
    (tmp_path / "list.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        detect(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cut off or no checkpoint"):
        detect(tmp_path / "text.pth")


def test_real_files_of_the_predecessor(shared_data: Path) -> None:
    assert detect(shared_data / "parity") is Layout.SA2VA
    assert detect(shared_data / "parity" / "model.safetensors") is Layout.SA2VA
    assert detect(shared_data / "parity" / "training_v2.pth") is Layout.TRAINING_V2


def test_a_foreign_file_in_a_salma_folder_stands_for_itself(run_checkpoint: Path) -> None:
    for name in ("other.safetensors", "model_old.safetensors", "adapter_model.safetensors"):
        save_file({name: torch.zeros(1) for name in NAMES[Layout.SAM2]}, run_checkpoint / name)
        assert salma_folder(run_checkpoint / name) is None
        assert detect(run_checkpoint / name) is Layout.SAM2
    assert salma_folder(run_checkpoint / "model-00001-of-00002.safetensors") == run_checkpoint
    assert salma_folder(run_checkpoint / "model.safetensors.index.json") == run_checkpoint


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_one_of_several_sets_of_weights_is_the_models(tmp_path: Path, key: str) -> None:
    weights, others = {"a": LazyTensor.of(torch.ones(1))}, {"b": LazyTensor.of(torch.ones(1)), "updates": 3}
    path = tmp_path / "it.pth"
    assert weights_in({key: weights, "meta": {"iter": 3}}, path) == (weights, ())
    assert weights_in({"ema": others, key: weights}, path) == (weights, ("ema",))
    assert weights_in(weights, path) == (weights, ())
    for other in {"state_dict", "model", "module"} - {key}:
        with pytest.raises(CheckpointError, match=r"it\.pth holds weights twice, under \w+ and \w+; "):
            weights_in({key: weights, other: others}, path)
        assert weights_in({other: {"type": "configuration"}, key: weights}, path) == (weights, ())
