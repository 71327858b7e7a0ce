from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmacli.checkpoints.adapters import contents_of_adapter
from salmacli.checkpoints.assemble import Recipe
from salmacli.checkpoints.contents import fingerprint_of
from salmacli.checkpoints.convert import Conversion, convert
from salmacli.checkpoints.layouts import Layout, detect
from salmacli.checkpoints.load import load_checkpoint
from salmacli.errors import CheckpointError, UsageError

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def file(training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "iter.pth"
    torch.save(training(), path)
    return path


@pytest.fixture(scope="module")
def merged(released: Path, file: Path) -> Conversion:
    return convert(file, Recipe((released,), 8.0), out=file.parent / "merged")


@pytest.fixture(scope="module")
def adapter(released: Path, file: Path) -> Conversion:
    return convert(file, Recipe((released,), 8.0), "adapter", file.parent / "adapter")


def test_only_what_was_trained_is_in_it(adapter: Conversion, merged: Conversion) -> None:
    files = {entry.name for entry in adapter.out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors", "config.json"} <= files
    names = load_file(adapter.out / "adapter_model.safetensors").keys()
    assert f"base_model.model.{Q_PROJ}.lora_A.weight" in names
    assert "base_model.model.lm_head.weight" in names
    assert not any("vision_tower" in name for name in names)
    assert {name.split(".")[0] for name in load_file(adapter.out / "model.safetensors")} == {
        "grounding",
        "text_hidden_fcs",
    }
    assert adapter.fingerprint == merged.fingerprint
    assert detect(adapter.out) is Layout.SALMA_ADAPTER


def test_it_loads_as_the_merged_model(adapter: Conversion, merged: Conversion) -> None:
    assert fingerprint_of(contents_of_adapter(adapter.out).tensors) == merged.fingerprint
    ours, info = load_checkpoint(adapter.out)
    theirs, _ = load_checkpoint(merged.out)
    assert info.step == 120
    assert ours.config == theirs.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_it_becomes_the_merged_model_when_it_is_converted(
    adapter: Conversion, merged: Conversion, tmp_path: Path
) -> None:
    made = convert(adapter.out, out=tmp_path / "out")
    assert made.fingerprint == merged.fingerprint
    assert made.hashes == merged.hashes


def test_what_else_lies_in_the_folder_is_not_taken_for_a_tokenizer(
    adapter: Conversion, merged: Conversion, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter.out, tmp_path / "adapter"))
    (folder / "logo.png").write_bytes(b"\x89PNG")
    (folder / "modeling.py").write_text("raise SystemExit")
    made = convert(folder / "adapter_model.safetensors", None, "pth", tmp_path / "whole.pth")
    assert made.fingerprint == merged.fingerprint
    whole = convert(folder, None, "folder", tmp_path / "whole").out
    assert not (whole / "logo.png").exists() and not (whole / "modeling.py").exists()
    with pytest.raises(UsageError, match="is an adapter already"):
        convert(folder, None, "adapter", tmp_path / "again")


def test_peft_computes_the_merged_language_model(adapter: Conversion, merged: Conversion, released: Path) -> None:
    from peft import PeftModel

    base, _ = load_checkpoint(convert(released, out=adapter.out.parent / "base").out)
    whole, _ = load_checkpoint(merged.out)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before, expected = (model.mllm.model(input_ids=ids).logits for model in (base, whole))
        adapted = PeftModel.from_pretrained(base.mllm.model, str(adapter.out))
        got = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=ids).logits, before)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)  # the order of additions differs
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert len(names) == 14
    ours = adapted.merge_and_unload().state_dict()
    for name, tensor in whole.mllm.model.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5)


def test_another_base_than_the_one_by_hash(adapter: Conversion, released: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(released, other)
    made = contents_of_adapter(adapter.out, [other])  # a copy elsewhere is the same base
    assert fingerprint_of(made.tensors) == adapter.fingerprint
    tensors = load_file(other / "model.safetensors")
    tensors["mlp1.1.bias"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(CheckpointError, match="made for another base"):
        contents_of_adapter(adapter.out, [other])
    assert convert(adapter.out, Recipe((released,)), dry_run=True).fingerprint == adapter.fingerprint


def test_a_base_that_has_gone(adapter: Conversion, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter.out, copy)
    header = json.loads((copy / "config.json").read_text())
    header["bases"][0]["name"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="gone"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 99}, "schema 99"),
        ({"bases": [{"name": "x"}]}, "lacks bases"),
        ({"lora": {}}, "lacks bases, lora"),
        ({"lora": {"alpha": 8.0, "rank": 128, "root": False}}, "rank 4, but its configuration states 128"),
    ],
)
def test_headers_that_do_not_fit(adapter: Conversion, tmp_path: Path, change: dict, told: str) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter.out, copy)
    header = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=told):
        contents_of_adapter(copy)


def test_what_has_no_lora_becomes_no_adapter(released: Path, file: Path) -> None:
    with pytest.raises(UsageError, match="holds no LoRA"):
        convert(released, to="adapter")
    with pytest.raises(UsageError, match="leave --dtype out"):
        convert(file, Recipe((released,), 8.0, dtype=torch.bfloat16), "adapter")
