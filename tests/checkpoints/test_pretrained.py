from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

import salmacli
from salmacli import SalmaModel
from salmacli.checkpoints import pretrained
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.layouts import Layout
from salmacli.checkpoints.load import load_checkpoint
from salmacli.checkpoints.save import contents_of
from salmacli.checkpoints.sources.parts import Parts
from salmacli.config.loading import load_config
from salmacli.config.schema import ModelConfig
from salmacli.errors import CheckpointError, ConfigError, UsageError
from salmacli.models.salma import Salma


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_class_is_there_and_costs_nothing_until_it_is_used() -> None:
    code = "import sys, salmacli; assert 'torch' not in sys.modules; assert 'SalmaModel' in salmacli.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert salmacli.SalmaModel is SalmaModel
    with pytest.raises(AttributeError, match="has no attribute 'SalmaModels'"):
        _ = salmacli.SalmaModels


def test_there_and_back(run_checkpoint: Path, tiny_model: Salma, tmp_path: Path) -> None:
    model = SalmaModel.from_pretrained(run_checkpoint)
    assert type(model) is SalmaModel and not model.training and _same(model, tiny_model)
    assert model.save_pretrained(tmp_path / "copy", max_shard_bytes=8_000_000) == tmp_path / "copy"
    again = SalmaModel.from_pretrained(str(tmp_path / "copy"), device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert again.info is not None and again.info.step == 7 and again.info.run_config["seed"] == 0
    with pytest.raises(UsageError, match="no SALMA checkpoint"):
        model.save_pretrained(tmp_path)


def test_nothing_of_a_checkpoint_runs(run_checkpoint: Path) -> None:
    """What transformers would import with trust_remote_code is not even looked at."""
    (run_checkpoint / "modeling_salma.py").write_text("raise SystemExit('ran')")
    header = json.loads((run_checkpoint / "config.json").read_text())
    header["auto_map"] = {"AutoModel": "modeling_salma.SalmaModel"}
    (run_checkpoint / "config.json").write_text(json.dumps(header))
    path = run_checkpoint / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["modeling_salma.T", None]}})
    )
    assert SalmaModel.from_pretrained(run_checkpoint).info is not None


def test_upload_and_download(
    run_checkpoint: Path, tiny_model: Salma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict[str, Any]] = {}
    hub = tmp_path / "cache" / "models--lab--model"

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> Any:
        calls["create"] = {"repo_id": repo_id, **options}
        return SimpleNamespace(repo_id=f"lab/{repo_id}")

    def upload_folder(self: HfApi, *, folder_path: Path, **options: Any) -> Any:
        calls["upload"] = options
        shutil.copytree(folder_path, hub / "snapshots" / "c0ffee")
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("c0ffee")
        return SimpleNamespace(commit_url="https://huggingface.co/lab/model/commit/c0ffee")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model = SalmaModel.from_pretrained(run_checkpoint)
    url = model.push_to_hub("model", private=True, message="first")
    assert url == "https://huggingface.co/lab/model/commit/c0ffee"
    assert calls["create"] == {"repo_id": "model", "private": True, "exist_ok": True}
    assert calls["upload"] == {
        "repo_id": "lab/model",
        "revision": None,
        "commit_message": "first",
        "delete_patterns": ["*.safetensors", "model.safetensors.index.json"],
    }
    names = {file.name for file in (hub / "snapshots" / "c0ffee").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= names
    assert "ckpt.pth" not in names  # the optimiser's state stays at home
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert _same(SalmaModel.from_pretrained("lab/model"), tiny_model)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        model.push_to_hub("model")


def _part(model: Salma, name: str, section: str, prefix: str) -> Parts:
    whole = contents_of(model, config={}, step=0)
    tensors = {key: one for key, one in whole.tensors.items() if key.startswith(prefix)}
    layout = Layout.INTERNVL if section == "mllm" else Layout.SAM2
    told = {section: {**whole.model[section], "base": None}}
    return Parts(name, Path(name), layout, (), told, whole.tokenizer if section == "mllm" else {}, tensors)


@pytest.fixture
def bases(tiny_model: Salma, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``lab/mllm`` and ``lab/sam2`` are the tiny model's own; the list tells what was opened."""
    parts = {
        "lab/mllm": _part(tiny_model, "lab/mllm", "mllm", "mllm."),
        "lab/sam2": _part(tiny_model, "lab/sam2", "sam2", "grounding."),
    }
    opened: list[str] = []

    def open_source(name: str) -> Parts:
        opened.append(name)
        return parts[name]

    monkeypatch.setattr(pretrained, "open_source", open_source)
    return opened


def _config(*more: str) -> ModelConfig:
    named = ["model.mllm.base=lab/mllm", "model.sam2.base=lab/sam2"]
    return load_config("tiny", [*named, *more]).model


def test_training_starts_from_the_bases_that_the_config_names(
    tiny_model: Salma, bases: list[str], tmp_path: Path
) -> None:
    model = SalmaModel.build(_config("model.cma.enabled=true"), ["the red circle"])
    assert bases == ["lab/mllm", "lab/sam2"]
    assert _same(model.mllm, tiny_model.mllm) and _same(model.grounding, tiny_model.grounding)
    assert model.cma is not None and not model.cma.gamma.is_meta
    assert model.tokenizer.get_vocab() == tiny_model.tokenizer.get_vocab()
    assert (model.config.mllm.base, model.config.sam2.base) == ("lab/mllm", "lab/sam2")
    again, _ = load_checkpoint(model.save_pretrained(tmp_path / "saved"))
    assert _same(again, model) and again.config == model.config
    assert bases == ["lab/mllm", "lab/sam2"]  # what is saved does not need them


def test_without_bases_everything_is_fresh(bases: list[str]) -> None:
    model = SalmaModel.build(load_config("tiny", []).model, ["the red circle"])
    assert type(model) is SalmaModel and not bases


def test_the_config_cannot_say_otherwise_than_a_base(bases: list[str], tiny_model: Salma) -> None:
    width = tiny_model.mllm.width
    with pytest.raises(ConfigError, match=rf"native\.text_config\.hidden_size = 64, but lab/mllm has {width}"):
        SalmaModel.build(_config("model.mllm.native.text_config.hidden_size=64"), ["the red circle"])
    with pytest.raises(ConfigError, match=r"model\.sam2\.image_size = 320, but lab/sam2 has \d+"):
        SalmaModel.build(_config("model.sam2.image_size=320"), ["the red circle"])


def test_one_base_alone_is_no_whole_model(bases: list[str]) -> None:
    with pytest.raises(CheckpointError, match="there is no SAM 2"):
        SalmaModel.build(_config("model.sam2.base=null"), ["the red circle"])


def test_shapes_that_are_not_those_of_the_config(bases: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    part = pretrained.open_source("lab/sam2")
    name = "grounding.no_mem_embed"
    part.tensors[name] = LazyTensor.of(torch.zeros(1, 1, 3))  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"grounding\.no_mem_embed \(1, 1, 3\)"):
        SalmaModel.build(_config(), ["the red circle"])
