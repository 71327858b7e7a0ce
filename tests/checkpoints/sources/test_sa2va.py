from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from salmacli.checkpoints.contents import Contents
from salmacli.checkpoints.files.tensors import open_safetensors, write_shards
from salmacli.checkpoints.sources.key_maps import EMBEDDING, HEAD
from salmacli.checkpoints.sources.opening import open_source
from salmacli.checkpoints.sources.parts import Parts
from salmacli.checkpoints.sources.sa2va import sa2va_folder
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError


def contents(parts: Parts) -> Contents:
    return Contents(0, parts.model, {}, parts.tokenizer, parts.tensors)


def written(folder: Path, it: Contents) -> Path:
    folder.mkdir()
    config, tensors, tokenizer = sa2va_folder(it)
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in tokenizer.items():
        (folder / name).write_bytes(data)
    return folder


def same(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name].read(), theirs[name].read()) for name in ours
    )


def test_there_and_back_is_the_identity(released: Path, tmp_path: Path) -> None:
    first = open_source(released)
    folder = written(tmp_path / "again", contents(first))
    assert same(open_safetensors(folder), open_safetensors(released))
    second = open_source(folder)
    assert same(second.tensors, first.tensors)
    assert second.tokenizer == first.tokenizer
    assert ModelConfig.model_validate(second.model) == ModelConfig.model_validate(first.model)


def test_a_released_model_comes_out_as_it_went_in(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "parity"
    folder = written(tmp_path / "it", contents(open_source(source)))
    assert same(open_safetensors(folder), open_safetensors(source))
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, source))
    for section in ("llm_config", "vision_config"):
        both = ours[section].keys() & theirs[section].keys()
        assert {key: ours[section][key] for key in both} == {key: theirs[section][key] for key in both}
    assert (ours["architectures"], ours["model_type"], ours["template"]) == (
        ["Sa2VAChatModel"],
        "sa2va_chat",
        "qwen_chat",
    )
    # Nothing lies beside it that says which SAM 2 it is, but its own config.json.
    assert not (folder / "case.json").exists()
    assert open_source(folder).model["sam2"] == open_source(source).model["sam2"]


def test_an_internlm2_goes_back_to_its_own_names(released: Path, tmp_path: Path) -> None:
    it = contents(open_source(released))
    native = it.model["mllm"]["native"]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    text = {**native["text_config"], "model_type": "llama", "architectures": ["InternLM2ForCausalLM"]}
    text |= {"rope_parameters": rope, "attention_bias": True, "layer_types": None}
    model = {**it.model, "mllm": {"native": {**native, "text_config": text}}}
    folder = written(tmp_path / "it", replace(it, model=model))
    config = json.loads((folder / "config.json").read_text())
    assert config["template"] == "internlm2_chat"
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert (config["llm_config"]["bias"], config["llm_config"]["model_type"]) == (True, "internlm2")
    assert "language_model.model.layers.0.attention.wqkv.weight" in open_safetensors(folder)
    assert same(open_source(folder).tensors, it.tensors)


def test_a_tied_head_stays_tied(released: Path, tmp_path: Path) -> None:
    it = contents(open_source(released))
    native = {**it.model["mllm"]["native"], "tie_word_embeddings": True}
    tied = {name: tensor for name, tensor in it.tensors.items() if name != HEAD}
    folder = written(tmp_path / "it", replace(it, model={**it.model, "mllm": {"native": native}}, tensors=tied))
    stored = open_safetensors(folder)  # the released code has two
    assert torch.equal(stored["language_model.lm_head.weight"].read(), tied[EMBEDDING].read())
    again = open_source(folder)
    assert same(again.tensors, tied)
    assert again.model["mllm"]["native"]["tie_word_embeddings"] is True


def test_what_the_layout_has_no_place_for_is_told(released: Path) -> None:
    it = contents(open_source(released))
    with pytest.raises(CheckpointError, match="no place for the cross-modal attention"):
        sa2va_folder(replace(it, model={**it.model, "cma": {"enabled": True}}))
    with pytest.raises(CheckpointError, match="this model has a qwen3_vl"):
        sa2va_folder(replace(it, model={**it.model, "mllm": {"native": {"model_type": "qwen3_vl"}}}))
    with pytest.raises(CheckpointError, match="has no place for 1 tensor"):
        sa2va_folder(replace(it, tensors={**it.tensors, "cma.gamma": it.tensors[EMBEDDING]}))
