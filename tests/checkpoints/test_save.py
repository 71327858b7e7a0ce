from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from salmacli.checkpoints.card import card
from salmacli.checkpoints.contents import fingerprint_of
from salmacli.checkpoints.empty import untied
from salmacli.checkpoints.files import disk
from salmacli.checkpoints.files.lazy import LazyTensor
from salmacli.checkpoints.load import read_contents
from salmacli.checkpoints.save import contents_of, save_checkpoint, write_folder, write_pth
from salmacli.errors import CheckpointError, UsageError


class Tied(torch.nn.Module):
    """Two names for one matrix, and two views into one storage that are no aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        both = torch.arange(6.0)
        self.register_buffer("first", both[:3])
        self.register_buffer("second", both[3:])


def _print(tensors: dict[str, torch.Tensor]) -> str:
    return fingerprint_of({name: LazyTensor.of(tensor) for name, tensor in tensors.items()})


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_folder_holds_what_its_header_says(run_checkpoint: Path, tiny_model) -> None:
    header = json.loads((run_checkpoint / "config.json").read_text())
    assert (header["schema"], header["format"], header["step"]) == (1, "salma", 7)
    assert header["model"] == tiny_model.config.model_dump(mode="json")
    assert header["run_config"]["seed"] == 0
    assert (run_checkpoint / header["weights"]).is_file()
    names = {file.name for file in run_checkpoint.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "ckpt.pth",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_the_trainer_state_holds_no_weights_and_says_where_they_are(run_checkpoint: Path, tiny_model) -> None:
    content = torch.load(run_checkpoint / "ckpt.pth", weights_only=True)
    assert "model.safetensors" in content["note"]
    assert content["step"] == 7
    assert content["state"]["epoch"] == 2
    weights = sum(tensor.numel() for tensor in tiny_model.state_dict().values())
    assert (run_checkpoint / "ckpt.pth").stat().st_size < weights


def test_without_a_trainer_state_there_is_no_pth(tiny_model, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", tiny_model, config={}, step=0)
    assert not (tmp_path / "model" / "ckpt.pth").exists()


def test_a_state_that_could_not_be_read_back_is_refused_at_once(tiny_model, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="plain data"):
        save_checkpoint(tmp_path / "step-1", tiny_model, config={}, step=1, trainer_state={"path": tmp_path})
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_old_checkpoint_and_no_litter(
    run_checkpoint: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run_checkpoint / "config.json").read_text()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(disk, "sync", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(run_checkpoint, tiny_model, config={}, step=8)
    assert (run_checkpoint / "config.json").read_text() == before
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_a_newer_checkpoint_replaces_the_older_one(run_checkpoint: Path, tiny_model) -> None:
    save_checkpoint(run_checkpoint, tiny_model, config={}, step=8)
    assert json.loads((run_checkpoint / "config.json").read_text())["step"] == 8
    assert not (run_checkpoint / "ckpt.pth").exists()
    assert _names(run_checkpoint.parent) == ["step-7"]


def test_nothing_but_a_checkpoint_is_ever_replaced(tiny_model, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no SALMA checkpoint"):
        save_checkpoint(tmp_path / "thesis", tiny_model, config={}, step=1)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_tied_tensors_are_written_once_and_views_are_not_taken_for_them(tmp_path: Path) -> None:
    tensors, aliases = untied(Tied())
    assert aliases == {"head.weight": "embedding.weight"}
    assert set(tensors) == {"embedding.weight", "first", "second"}
    assert tensors["second"].tolist() == [3, 4, 5]


def test_weights_are_those_of_the_model(run_checkpoint: Path, tiny_model) -> None:
    written = load_file(run_checkpoint / "model.safetensors")
    assert _print(written) == fingerprint_of(contents_of(tiny_model, config={}, step=0).tensors)


def test_the_fingerprint_sees_names_types_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0)}
    others = [
        {"b": torch.arange(6.0)},
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).view(torch.int32)},
        {"a": torch.tensor([0.0, 1, 2, 3, 4, 5.000001])},
        {"a": torch.arange(6.0), "b": torch.zeros(0)},
    ]
    assert len({_print(tensors) for tensors in [base, *others]}) == 6
    assert _print({"a": torch.arange(6.0), "b": torch.ones(())}) == _print(
        {"b": torch.ones(()), "a": torch.arange(12.0)[:6]}
    )
    assert _print({"a": torch.ones(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize("write", [write_folder, write_pth])
def test_no_room_leaves_no_trace(write, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(CheckpointError, match=r"needs 0\.\d\d GB and its disk has 0\.00 GB left; make room"):
        write(tmp_path / "model", contents_of(tiny_model, config={}, step=0))
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_filled(tiny_model, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_checkpoint(tmp_path / "model", tiny_model, config={}, step=1)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_equal_models_give_equal_files(tiny_model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, tiny_model, config={"seed": 0}, step=1)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_what_frames_must_look_like_lies_beside_the_weights(run_checkpoint: Path, tiny_model) -> None:
    processor = json.loads((run_checkpoint / "processor_config.json").read_text())
    height, width = tiny_model.mllm.frame_size
    side = tiny_model.config.sam2.image_size
    assert processor["mllm"]["size"] == {"height": height, "width": width}
    assert processor["mllm"]["image_mean"] == [0.485, 0.456, 0.406]
    assert processor["sam2"]["size"] == {"height": side, "width": side}


def test_the_card_says_what_it_is_and_where_it_comes_from(run_checkpoint: Path, tiny_model) -> None:
    def parts(text: str) -> tuple[dict[str, object], str]:
        _, metadata, body = text.split("---\n", 2)
        return yaml.safe_load(metadata), body

    metadata, body = parts((run_checkpoint / "README.md").read_text())
    parameters = sum(tensor.numel() for tensor in untied(tiny_model)[0].values())
    assert metadata["library_name"] == "salma" and "base_model" not in metadata
    assert f"{parameters:,} (float32" in body and "trained by `salma train`" in body
    contents = contents_of(tiny_model, config={}, step=0)
    contents = replace(
        contents,
        model={**contents.model, "sam2": {**contents.model["sam2"], "base": "facebook/sam2-hiera-large"}},
        provenance={
            "sources": [{"name": "org/model", "layout": "sa2va", "files": {"model.safetensors": "ab12"}}],
            "trained": {"name": "iter_9.pth", "layout": "training_v2", "files": {"iter_9.pth": "cd34"}},
            "notes": ["a note"],
        },
    )
    metadata, body = parts(card(contents))
    assert metadata["base_model"] == ["facebook/sam2-hiera-large", "org/model"]
    for said in ("`org/model`", "ab12", "`iter_9.pth`", "cd34", "a note"):
        assert said in body


def test_provenance_is_kept(tiny_model, tmp_path: Path) -> None:
    contents = contents_of(tiny_model, config={}, step=3, provenance={"sources": [], "notes": ["x"]})
    write_folder(tmp_path / "folder", contents)
    write_pth(tmp_path / "one.pth", contents)
    assert zipfile.ZipFile(tmp_path / "one.pth").testzip() is None
    for path in (tmp_path / "folder", tmp_path / "one.pth"):
        found = read_contents(path)[2]
        assert found.provenance == {"sources": [], "notes": ["x"]}
        assert found.tokenizer == contents.tokenizer
        assert fingerprint_of(found.tensors) == fingerprint_of(contents.tensors)


def test_one_pth_is_pytorchs_own_format(tiny_model, tmp_path: Path) -> None:
    contents = contents_of(tiny_model, config={}, step=3)
    write_pth(tmp_path / "one.pth", contents)
    for mapped in (False, True):
        found = torch.load(tmp_path / "one.pth", weights_only=True, mmap=mapped)
        assert found["step"] == 3 and list(found["state_dict"]) == list(contents.tensors)
        assert all(torch.equal(tensor, contents.tensors[name].read()) for name, tensor in found["state_dict"].items())
