"""Faults, each through the command line: one clear line and exit code 4, and nothing is written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.files.tensors import write_shards
from salmacli.cli import main

PEFT = "mllm.model.language_model.base_model.model."
FILE_DECODER = "grounding_encoder.sam2_model.sam_mask_decoder."


def _saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _shards(folder: Path) -> list[Path]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return write_shards(folder, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, 500_000)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


GAMMA = "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0."
RELEASED_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (lambda folder: _shards(folder)[1].unlink(), r"lacks the shard model-00002-of-\d+\.safetensors"),
    "truncated file": (lambda folder: _cut(folder / "model.safetensors"), r"model\.safetensors is cut off"),
    "truncated shard": (lambda folder: _cut(_shards(folder)[0]), r"model-00001-of-\d+\.safetensors is cut off"),
    "key renamed": (
        lambda folder: _change(folder, lambda t: t.update({"mlp1.4.bias": t.pop("mlp1.3.bias")})),
        r"mlp1\.4\.bias",
    ),
    "key of SAM 2 renamed": (
        lambda folder: _change(
            folder, lambda t: t.update({f"{FILE_DECODER}x": t.pop(f"{FILE_DECODER}iou_token.weight")})
        ),
        r"sam_mask_decoder\.x",
    ),
    "key missing": (
        lambda folder: _change(folder, lambda t: t.pop("language_model.model.norm.weight")),
        r"language_model\.norm\.weight",
    ),
    "gamma": (
        lambda folder: _change(folder, lambda t: t.update({f"{GAMMA}gamma": t.pop(f"{GAMMA}g_weight")})),
        r"fuser\.layers\.0\.gamma",
    ),
    "head missing, not tied": (
        lambda folder: _change(folder, lambda t: t.pop("language_model.lm_head.weight")),
        "lm_head",
    ),
    "tied, but differs": (lambda folder: _config(folder, tie_word_embeddings=True), "head"),
    "not finite": (
        lambda folder: _change(folder, lambda t: t["mlp1.1.bias"].fill_(float("nan"))),
        r"multi_modal_projector\.linear_1\.bias has numbers that are not finite",
    ),
    "whole numbers": (
        lambda folder: _change(folder, lambda t: t.update({"mlp1.1.bias": t["mlp1.1.bias"].int()})),
        r"linear_1\.bias torch\.int32",
    ),
    "module. prefix": (
        lambda folder: _change(folder, lambda t: [t.update({f"module.{name}": t.pop(name)}) for name in list(t)]),
        r"begin with module\.",
    ),
}


@pytest.mark.parametrize("fault", RELEASED_FAULTS)
def test_faults_of_a_released_model(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, told = RELEASED_FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(released, folder)
    change(folder)
    _fails(["convert", str(folder)], told, capsys)
    assert list(tmp_path.iterdir()) == [folder]


class Code:
    """What a stranger's pickle may hold."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 1",)


def _other_rank(content: dict[str, Any]) -> None:
    stem = f"{PEFT}model.layers.0.mlp.up_proj.lora_"
    tensors = content["state_dict"]
    tensors[f"{stem}A.default.weight"] = tensors[f"{stem}A.default.weight"][:2].clone()
    tensors[f"{stem}B.default.weight"] = tensors[f"{stem}B.default.weight"][:, :2].clone()


def _prefixed(content: dict[str, Any]) -> None:
    content["state_dict"] = {f"module.{name}": tensor for name, tensor in content["state_dict"].items()}


TRAINING_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "key renamed": (
        lambda c: c["state_dict"].update({"text_hidden_fc.0.bias": c["state_dict"].pop("text_hidden_fcs.0.bias")}),
        r"text_hidden_fc\.0\.bias",
    ),
    "other rank in one module": (_other_rank, r"rank 4, but 2 in 1 tensor \(.*up_proj"),
    "module. prefix": (_prefixed, r"begin with module\."),
    "malicious": (lambda c: c.update(meta=Code()), r"wants to run (posix|nt)\.system"),
    "not finite": (
        lambda c: c["state_dict"]["text_hidden_fcs.0.bias"].fill_(float("nan")),
        r"text_hidden_fcs\.0\.bias",
    ),
}


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_faults_of_a_training_file(
    released: Path, training, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, told = TRAINING_FAULTS[fault]
    content = training()
    change(content)
    file = _saved(content, tmp_path / "iter.pth")
    _fails(["convert", str(file), "--base", str(released), "--lora-alpha", "8"], told, capsys)
    assert list(tmp_path.iterdir()) == [file]


def test_a_truncated_training_file(released: Path, training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _cut(training_file)
    _fails(
        ["convert", str(training_file), "--base", str(released), "--lora-alpha", "8"],
        r"iter_120\.pth is cut off",
        capsys,
    )


def test_a_rank_other_than_stated(
    released: Path, training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text('{"lora_r": 128, "lora_alpha": 256}')
    argv = ["convert", str(training_file), "--base", str(released), "--config", str(tmp_path / "c.json")]
    _fails(argv, "rank 4, but its configuration states 128", capsys)


@pytest.mark.parametrize("kind", ["other shapes", "other weights", "fewer layers"])
def test_a_wrong_base(
    released: Path, training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(released, other)
    random = torch.Generator().manual_seed(9)

    def shuffled(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            flat = tensor.flatten()
            tensors[name] = flat[torch.randperm(len(flat), generator=random)].reshape(tensor.shape)

    def shallow(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("language_model.model.layers.1."):
                del tensors[name]
        llm = {**json.loads((other / "config.json").read_text())["llm_config"], "num_hidden_layers": 1}
        llm.pop("layer_types", None)
        _config(other, llm_config=llm)

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            for layer in (0, 1):
                full = f"language_model.model.layers.{layer}.{name}.weight"
                tensors[full] = tensors[full][:200].clone()
        for layer in (0, 1):
            full = f"language_model.model.layers.{layer}.mlp.down_proj.weight"
            tensors[full] = tensors[full][:, :200].clone()
        llm = {**json.loads((other / "config.json").read_text())["llm_config"], "intermediate_size": 200}
        _config(other, llm_config=llm)

    _change(other, {"other shapes": narrow, "other weights": shuffled, "fewer layers": shallow}[kind])
    told = {"other shapes": "of other shapes", "other weights": "nothing in common", "fewer layers": "does not have"}[
        kind
    ]
    _fails(["convert", str(training_file), "--base", str(other), "--lora-alpha", "8"], f"{told}.*--base", capsys)


def test_a_training_that_changed_nothing(
    released: Path, training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = _saved(training(noise=0.0), tmp_path / "still.pth")
    _fails(["convert", str(still), "--base", str(released), "--lora-alpha", "8"], "changes nothing", capsys)


def _fails(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert re.search(told, err), err
